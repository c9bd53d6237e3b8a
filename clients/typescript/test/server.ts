import { once } from "node:events";
import {
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type sendUnaryData,
  type ServiceDefinition,
  status,
  type StatusObject,
  type UntypedServiceImplementation,
} from "@grpc/grpc-js";
import { fromMs } from "tallyboard";
import {
  CounterServiceService,
  type StreamIncrementsRequest,
  type StreamIncrementsResponse,
} from "tallyboard/v1/counters";
import { Any } from "../src/gen/google/protobuf/any.js";
import { ErrorInfo, RetryInfo } from "../src/gen/google/rpc/error_details.js";
import { Status } from "../src/gen/google/rpc/status.js";

/** What a test's service answers; the calls that it leaves out are UNIMPLEMENTED. */
export type Handlers = {
  readonly [name in keyof typeof CounterServiceService]?: (...given: never[]) => void;
};

export type Call<Request> = ServerUnaryCall<Request, object>;
export type Answer = sendUnaryData<object>;
export type Stream = ServerDuplexStream<StreamIncrementsRequest, StreamIncrementsResponse>;

/** A service in this process. */
export class TestServer {
  readonly #handlers: Handlers;
  #server: Server | undefined;
  /** Where it listens, the same after a restart. */
  target = "127.0.0.1:0";

  constructor(handlers: Handlers) {
    this.#handlers = handlers;
  }

  async start(): Promise<this> {
    const server = new Server();
    server.addService(
      CounterServiceService as ServiceDefinition,
      this.#handlers as unknown as UntypedServiceImplementation,
    );
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(this.target, ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    this.target = `127.0.0.1:${port}`;
    this.#server = server;
    return this;
  }

  /** Ends all connections at once. */
  stop(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
  }
}

/** What ends a call with an error. */
export type Failure = Pick<StatusObject, "code" | "details" | "metadata">;

/** An error as the service sends it. */
export function failure(code: status, reason: string, retryAfterMs?: number): Failure {
  const info = ErrorInfo.fromPartial({ reason, domain: "tallyboard" });
  const details = [packed("ErrorInfo", ErrorInfo.encode(info).finish())];
  if (retryAfterMs !== undefined) {
    const wait = RetryInfo.fromPartial({ retryDelay: fromMs(retryAfterMs) });
    details.push(packed("RetryInfo", RetryInfo.encode(wait).finish()));
  }
  const found = Status.fromPartial({ code, message: "as the test wants it", details });
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(Status.encode(found).finish()));
  return { code, details: found.message, metadata };
}

export function packed(name: string, value: Uint8Array): Any {
  return Any.fromPartial({
    typeUrl: `type.googleapis.com/google.rpc.${name}`,
    value: Buffer.from(value),
  });
}

/** The next of something that a test waits for. */
export class Arrivals<T> {
  readonly all: T[] = [];
  readonly #events = new EventTarget();

  add(item: T): void {
    this.all.push(item);
    this.#events.dispatchEvent(new Event("added"));
  }

  /** The item at an index, as soon as it is there. */
  async at(index: number): Promise<T> {
    while (this.all.length <= index) {
      await once(this.#events, "added", { signal: AbortSignal.timeout(10_000) });
    }
    return this.all[index]!;
  }
}
