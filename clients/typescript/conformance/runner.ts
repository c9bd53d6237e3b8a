/** Plays the conformance cases with this client: `node build/conformance/runner.js --help`. */

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import {
  type Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";
import {
  type CallOptions,
  connect,
  errorFromCall,
  errorFromStatus,
  type Tallyboard,
  TallyboardError,
} from "tallyboard";
import * as counters from "tallyboard/v1/counters";
import * as leaderboards from "tallyboard/v1/leaderboards";
import * as operations from "tallyboard/v1/operations";
import { difference, type Json, said } from "./compare.js";
import { jsonOf, type Kind, messageOf } from "./mapping.js";

const DEADLINE = 15_000;
const STALL_TIMEOUT = 5_000;
const TENANT_KEY = "x-tallyboard-tenant";

interface Step {
  readonly call?: string;
  readonly request?: Json;
  readonly response?: Json;
  readonly responses?: Json[];
  readonly stream?: string;
  readonly requests?: Json[];
  readonly acknowledged?: number;
  readonly failures?: Json[];
  readonly produce?: { producer_id: string; batches: { counters: string[]; deltas: string[] }[] };
  readonly control?: { counter: string; action: string };
  readonly error?: { [name: string]: Json };
  readonly with?: string;
  readonly tenant?: string;
  readonly deadline_ms?: number;
  readonly save?: { [name: string]: string };
}

interface Case {
  readonly name: string;
  readonly steps: readonly Step[];
}

interface Method {
  readonly requestType: Kind;
  readonly responseType: Kind;
  readonly requestStream: boolean;
  readonly responseStream: boolean;
}

/** A service by the generated stub, and as the library gives it. */
interface Service {
  readonly methods: { readonly [name: string]: Method };
  readonly stub: Client;
  readonly helper: object;
}

/** The generated stub's functions, whichever service it is of. */
interface Stub {
  readonly [name: string]: (...given: unknown[]) => unknown;
}

/** The library's functions, whichever service they are of. */
interface Helper {
  readonly [name: string]: (request: object, options: CallOptions) => unknown;
}

/** A step was not as expected. */
class Failed extends Error {}

/** Plays cases against a service. */
class Player {
  readonly helper: Tallyboard;
  readonly services: { readonly [name: string]: Service };

  constructor(
    target: string,
    readonly control: string,
  ) {
    const plain = credentials.createInsecure();
    this.helper = connect(target, { connections: 1 });
    this.services = {
      CounterService: {
        methods: counters.CounterServiceDefinition.methods,
        stub: new counters.CounterServiceClient(target, plain),
        helper: this.helper.counters,
      },
      LeaderboardService: {
        methods: leaderboards.LeaderboardServiceDefinition.methods,
        stub: new leaderboards.LeaderboardServiceClient(target, plain),
        helper: this.helper.leaderboards,
      },
      OperationsService: {
        methods: operations.OperationsServiceDefinition.methods,
        stub: new operations.OperationsServiceClient(target, plain),
        helper: this.helper.operations,
      },
    };
  }

  /** Plays a case; what is not as expected, or nothing. */
  async play(played: Case): Promise<string> {
    const run = new Run(this, played.name);
    for (const [index, step] of played.steps.entries()) {
      try {
        await run.step(step);
      } catch (error) {
        return `step ${index + 1}: ${error instanceof Failed ? error.message : String(error)}`;
      }
    }
    return "";
  }

  close(): void {
    this.helper.close();
    Object.values(this.services).forEach((service) => service.stub.close());
  }
}

/** One case under way. */
class Run {
  readonly #tenant: string;
  readonly #ids = new Map<string, string>();
  readonly #saved = new Map<string, string>();

  constructor(
    readonly player: Player,
    name: string,
  ) {
    this.#tenant = `typescript-${name}-${randomUUID().slice(0, 8)}`;
  }

  /** Plays one step. */
  async step(given: Step): Promise<void> {
    const step = this.#filled(given as Json) as Step;
    if (step.control !== undefined) {
      await this.#arm(step.control);
    } else if (step.produce !== undefined) {
      await this.#produce(step, step.produce);
    } else if (step.stream !== undefined) {
      await this.#stream(step, step.stream);
    } else if (step.responses !== undefined) {
      await this.#watch(step, step.responses);
    } else {
      await this.#call(step);
    }
  }

  /** With the variables replaced in all strings. */
  #filled(value: Json): Json {
    if (typeof value === "string") {
      return value.replace(/\$\{([^}]+)\}/g, (_, name: string) => this.#variable(name));
    }
    if (Array.isArray(value)) {
      return value.map((item) => this.#filled(item));
    }
    if (value !== null && typeof value === "object") {
      const fields = Object.entries(value).map(([name, item]) => [name, this.#filled(item)]);
      return Object.fromEntries(fields);
    }
    return value;
  }

  #variable(name: string): string {
    if (name.startsWith("id:") && !this.#ids.has(name)) {
      this.#ids.set(name, randomUUID());
    }
    const found = this.#ids.get(name) ?? this.#saved.get(name);
    if (found === undefined) {
      throw new Failed(`nothing was saved as ${name}`);
    }
    return found;
  }

  async #arm(wish: { counter: string; action: string }): Promise<void> {
    const answer = await fetch(`${this.player.control}/arm`, {
      method: "POST",
      body: JSON.stringify({ ...wish, tenant: this.#tenant }),
      signal: AbortSignal.timeout(DEADLINE),
    });
    await answer.arrayBuffer();
    expect(204, answer.status, "control");
  }

  async #produce(step: Step, wanted: NonNullable<Step["produce"]>): Promise<void> {
    const producer = this.player.helper.producer({
      tenant: this.#tenant,
      producerId: wanted.producer_id,
      stallTimeout: STALL_TIMEOUT,
    });
    try {
      for (const batch of wanted.batches) {
        await producer.send(batch.counters, batch.deltas.map(BigInt));
      }
      await producer.flush();
    } finally {
      await producer.close();
    }
    expect(step.acknowledged ?? 0, producer.acknowledgedSequence, "acknowledged");
  }

  #method(name: string): { service: Service; method: Method; key: string } {
    const [owner = "", rpc = ""] = name.split("/");
    const key = rpc.charAt(0).toLowerCase() + rpc.slice(1);
    const service = this.player.services[owner];
    const method = service?.methods[key];
    if (service === undefined || method === undefined) {
      throw new Failed(`there is no ${name}`);
    }
    return { service, method, key };
  }

  #tenantOf(step: Step): Metadata {
    const metadata = new Metadata();
    metadata.set(TENANT_KEY, step.tenant ?? this.#tenant);
    return metadata;
  }

  async #call(step: Step): Promise<void> {
    const { service, method, key } = this.#method(step.call ?? "");
    const request = messageOf(method.requestType, step.request ?? {});
    const answer = await answered(
      step,
      method.responseStream
        ? this.#firstOf(step, service, key, request)
        : this.#answer(step, service, key, request),
    );
    if (answer === undefined) {
      return;
    }
    const found = jsonOf(method.responseType, answer);
    expectNoError(step, found);
    expect(step.response ?? {}, found, "response");
    for (const [name, path] of Object.entries(step.save ?? {})) {
      this.#saved.set(name, String(at(found, path)));
    }
  }

  #answer(step: Step, service: Service, key: string, request: object): Promise<object> {
    const timeout = step.deadline_ms ?? DEADLINE;
    if (step.with === "helper") {
      const options = { timeout, tenant: step.tenant ?? this.#tenant };
      return (service.helper as Helper)[key]!(request, options) as Promise<object>;
    }
    return new Promise((resolve, reject) => {
      const done = (error: ServiceError | null, answer: object) =>
        error === null ? resolve(answer) : reject(errorFromCall(error));
      const limits = { deadline: Date.now() + timeout };
      const stub = service.stub as unknown as Stub;
      stub[key]!(request, this.#tenantOf(step), limits, done) as ClientUnaryCall;
    });
  }

  /** The first message of a stream that is expected to fail. */
  async #firstOf(step: Step, service: Service, key: string, request: object): Promise<object> {
    const [first = {}] = await this.#messages(step, service, key, request, 1);
    return first;
  }

  async #watch(step: Step, wanted: Json[]): Promise<void> {
    const { service, method, key } = this.#method(step.call ?? "");
    const request = messageOf(method.requestType, step.request ?? {});
    const messages = this.#messages(step, service, key, request, wanted.length);
    const answers = await answered(step, messages);
    if (answers !== undefined) {
      const found = answers.map((answer) => jsonOf(method.responseType, answer));
      expectNoError(step, found);
      expect(wanted, found, "responses");
    }
  }

  async #messages(
    step: Step,
    service: Service,
    key: string,
    request: object,
    count: number,
  ): Promise<object[]> {
    const limits = { deadline: Date.now() + (step.deadline_ms ?? DEADLINE) };
    const stub = service.stub as unknown as Stub;
    const opened = stub[key]!(request, this.#tenantOf(step), limits);
    const stream = opened as ClientReadableStream<object>;
    stream.on("error", () => undefined);
    const found: object[] = [];
    try {
      for await (const message of stream) {
        found.push(message as object);
        if (found.length >= count) {
          break;
        }
      }
    } catch (error) {
      throw errorFromCall(error as ServiceError);
    } finally {
      stream.cancel();
    }
    return found;
  }

  async #stream(step: Step, name: string): Promise<void> {
    const { service, method, key } = this.#method(name);
    const requests = (step.requests ?? []).map((each) => messageOf(method.requestType, each));
    const limits = { deadline: Date.now() + (step.deadline_ms ?? DEADLINE) };
    const stub = service.stub as unknown as Stub;
    const opened = stub[key]!(this.#tenantOf(step), limits);
    const stream = opened as ClientDuplexStream<object, StreamAnswer>;
    const answers = await answered(step, allOf(stream, requests));
    if (answers === undefined) {
      return;
    }
    const acknowledged = answers.map((answer) => Number(answer.acknowledgedSequence));
    const failures = answers.flatMap((answer) => failuresOf(method.responseType, answer));
    expectNoError(step, acknowledged);
    expect(step.acknowledged ?? 0, Math.max(0, ...acknowledged), "acknowledged");
    expect(step.failures ?? [], failures, "failures");
  }
}

/** An answer of any of the streams that acknowledge. */
interface StreamAnswer {
  readonly acknowledgedSequence: bigint;
  readonly failures: readonly { readonly status: Parameters<typeof errorFromStatus>[0] }[];
}

function failuresOf(kind: Kind, answer: StreamAnswer): Json[] {
  const { failures = [] } = jsonOf(kind, answer) as { failures?: { [name: string]: Json }[] };
  return failures.map((failure, index) => ({
    ...failure,
    reason: errorFromStatus(answer.failures[index]?.status).reason,
  }));
}

/** Sends all, half-closes, and gives all answers. */
async function allOf<Answer>(
  stream: ClientDuplexStream<object, Answer>,
  requests: readonly object[],
): Promise<Answer[]> {
  stream.on("error", () => undefined);
  requests.forEach((request) => stream.write(request));
  stream.end();
  const found: Answer[] = [];
  try {
    for await (const answer of stream) {
      found.push(answer as Answer);
    }
  } catch (error) {
    throw errorFromCall(error as ServiceError);
  }
  return found;
}

/** What was answered, or nothing if the call failed as the step expects. */
async function answered<Answer>(step: Step, call: Promise<Answer>): Promise<Answer | undefined> {
  try {
    return await call;
  } catch (error) {
    if (!(error instanceof TallyboardError) || step.error === undefined) {
      throw error;
    }
    checkError(step.error, error);
    return undefined;
  }
}

function checkError(wanted: { [name: string]: Json }, error: TallyboardError): void {
  const { fields } = wanted;
  const expected = Array.isArray(fields) ? { ...wanted, fields: [...fields].sort() } : wanted;
  const found = {
    code: error.code,
    reason: error.reason,
    fields: error.violations.map((violation) => violation.field).sort(),
    retryable: error.retryAfter !== undefined,
  };
  expect(expected, found, "error");
}

function expectNoError(step: Step, found: Json): void {
  if (step.error !== undefined) {
    throw new Failed(`${said(found)} instead of ${said(step.error)}`);
  }
}

function expect(expected: Json, found: Json, what: string): void {
  const wrong = difference(expected, found, what);
  if (wrong) {
    throw new Failed(wrong);
  }
}

/** What is at a path of names, `count.value` for example. */
function at(found: Json, path: string): Json {
  let value: Json = found;
  for (const name of path.split(".")) {
    value = (value as { [name: string]: Json })[name] ?? null;
  }
  return value;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    options: { target: { type: "string" }, control: { type: "string" } },
    allowPositionals: true,
  });
  const { target, control } = values;
  if (target === undefined || control === undefined || positionals.length === 0) {
    console.error("usage: runner --target host:port --control http://host:port FILE...");
    return 2;
  }
  const files = positionals.map((file) => JSON.parse(readFileSync(file, "utf8")));
  const player = new Player(target, control);
  let failed = 0;
  for (const played of (files as { cases: Case[] }[]).flatMap((file) => file.cases)) {
    const detail = await player.play(played);
    failed += detail ? 1 : 0;
    const ok = !detail;
    console.log(JSON.stringify({ case: played.name, ok, ...(detail && { detail }) }));
  }
  player.close();
  return failed > 0 ? 1 : 0;
}

process.exitCode = await main();
