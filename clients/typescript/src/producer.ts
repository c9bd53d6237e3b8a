import { randomUUID } from "node:crypto";
import type { ClientDuplexStream, MethodDefinition, StatusObject } from "@grpc/grpc-js";
import { Backoff } from "./backoff.js";
import { Batches, type Contents, contentsOf, type IncrementFailure } from "./batches.js";
import { type Code, errorFromCall, TallyboardError } from "./errors.js";
import {
  CounterServiceService,
  type StreamIncrementsResponse,
} from "./gen/tallyboard/v1/counters.js";
import { Waiters, type WaitOptions } from "./waiters.js";

export type { WaitOptions } from "./waiters.js";

const MAX_WINDOW = 256;
const KEPT_FAILURES = 1_000;
const CLOSE_TIMEOUT = 5_000;
const LONGEST_TIMER = 2 ** 31 - 1;

/** The same batches would end another stream with the same error. */
const FINAL: ReadonlySet<Code> = new Set<Code>([
  "INVALID_ARGUMENT",
  "FAILED_PRECONDITION",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "UNAUTHENTICATED",
  "PERMISSION_DENIED",
]);

/** StreamIncrements, with requests that are encoded already. */
export const BATCHES: MethodDefinition<Buffer, StreamIncrementsResponse> = {
  ...CounterServiceService.streamIncrements,
  requestSerialize: (bytes) => bytes,
  requestDeserialize: (bytes) => bytes,
};

type Stream = ClientDuplexStream<Buffer, StreamIncrementsResponse>;

/** How a {@link Producer} works. All times are in milliseconds. */
export interface ProducerOptions {
  /** Whose counters they are, instead of the connection's tenant. */
  tenant?: string | undefined;
  /**
   * A name that no other producer uses at the same time, 1 to 256 bytes of UTF-8; a random UUID if
   * left out. An id that was used before needs a `firstSequence`.
   */
  producerId?: string | undefined;
  /**
   * The number of the first batch, 1 or more; 1 if left out. To go on for a producer that was lost
   * with its process: that of its oldest batch without an acknowledgement, followed by the same
   * batches.
   */
  firstSequence?: number | undefined;
  /** How many batches may be unacknowledged, 1 to 256; 64 if left out. It bounds memory. */
  window?: number | undefined;
  /** How long a call waits at most unless it says otherwise; 60,000 if left out. */
  timeout?: number | undefined;
  /**
   * How long some batches may be unacknowledged without any acknowledgement before the stream
   * counts as broken; 30,000 if left out.
   */
  stallTimeout?: number | undefined;
  /**
   * How long the stream stays open with nothing unacknowledged; the next batch opens another. An
   * open stream keeps the process alive. 1,000 if left out.
   */
  idleTimeout?: number | undefined;
  /** Called with each failure; it must be quick. What it throws becomes a process warning. */
  onFailure?: ((failure: IncrementFailure) => void) | undefined;
}

/**
 * Counts in numbered batches over one stream, each update exactly once. A batch is kept until the
 * service has acknowledged it; a stream that breaks is replaced by another, to which all that was
 * not acknowledged is sent again. Made by `producer` of {@link connect}'s result.
 *
 * It keeps the process alive while something is unacknowledged, and then for `idleTimeout`.
 *
 * A producer ends for good with an error that the same batches would meet again: INVALID_ARGUMENT,
 * FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, UNAUTHENTICATED, PERMISSION_DENIED, or the
 * reason MESSAGE_TOO_LARGE. Every call then fails with it. All others it waits out.
 */
export class Producer {
  /** The name under which the service knows this producer. */
  readonly producerId: string;
  readonly #open: () => Stream;
  readonly #timeout: number;
  readonly #stallTimeout: number;
  readonly #idleTimeout: number;
  readonly #onFailure: ((failure: IncrementFailure) => void) | undefined;
  readonly #batches: Batches;
  readonly #backoff = new Backoff();
  readonly #room = new Waiters();
  readonly #progress = new Waiters();
  readonly #failures: IncrementFailure[] = [];
  #stream: Stream | undefined;
  #sent = 0;
  #streamsOpened = 0;
  #pause: NodeJS.Timeout | undefined;
  #stallTimer: NodeJS.Timeout | undefined;
  #idleTimer: NodeJS.Timeout | undefined;
  /** The end of the stream that was closed last. */
  #finished: Promise<void> | undefined;
  #progressAt = 0;
  #brokenBy: TallyboardError | undefined;
  #ended: TallyboardError | undefined;
  #closing: Promise<void> | undefined;

  /**
   * @internal
   * @param open - opens a stream.
   * @throws RangeError if an option is outside its limits.
   */
  constructor(open: () => Stream, options: ProducerOptions = {}) {
    const { window = 64, firstSequence = 1, timeout = 60_000 } = options;
    const { stallTimeout = 30_000, idleTimeout = 1_000 } = options;
    checkWithin("window", window, 1, MAX_WINDOW);
    checkWithin("firstSequence", firstSequence, 1, Number.MAX_SAFE_INTEGER);
    checkWithin("stallTimeout", stallTimeout, 1, LONGEST_TIMER);
    checkWithin("idleTimeout", idleTimeout, 1, LONGEST_TIMER);
    this.producerId = options.producerId ?? randomUUID();
    this.#open = open;
    this.#timeout = timeout;
    this.#stallTimeout = stallTimeout;
    this.#idleTimeout = idleTimeout;
    this.#onFailure = options.onFailure;
    this.#batches = new Batches(this.producerId, window, firstSequence);
  }

  /** How many updates are acknowledged and counted, durably so. */
  get acknowledged(): number {
    return this.#batches.counted;
  }

  /** Every batch with this number or a smaller one is acknowledged. */
  get acknowledgedSequence(): number {
    return this.#batches.acknowledgedThrough;
  }

  /** How many updates were taken and are not acknowledged yet. */
  get pending(): number {
    return this.#batches.pending;
  }

  /** How many updates could not count; {@link Producer.failures} says why. */
  get failed(): number {
    return this.#batches.failed;
  }

  /** The newest 1,000 failures, oldest first. */
  get failures(): readonly IncrementFailure[] {
    return [...this.#failures];
  }

  /** How many streams it took so far: 1 if nothing ever broke and it was never idle. */
  get streamsOpened(): number {
    return this.#streamsOpened;
  }

  /**
   * Takes one batch. It waits while the window is full, and does not wait for the acknowledgement;
   * see {@link Producer.flush}. Batches are numbered in the order of the calls.
   *
   * @param counters - the names, 1 to 256 bytes of UTF-8 each: one for each delta, or one for all.
   * @param deltas - 1 to 10,000 numbers to add, none 0, in the signed 64-bit range; a `number`
   *   must be a safe integer.
   * @param options - how long to wait for room.
   * @returns the number of the batch.
   * @throws TallyboardError, of which the batch was not taken: INVALID_ARGUMENT if it can't be
   *   sent, DEADLINE_EXCEEDED if there was no room in time, FAILED_PRECONDITION after `close`, or
   *   the error that ended the producer. The signal's reason if that was aborted.
   */
  async send(
    counters: readonly string[],
    deltas: readonly (bigint | number)[],
    options: WaitOptions = {},
  ): Promise<number> {
    const contents = contentsOf(counters, deltas);
    this.#checkUsable();
    if (this.#closing !== undefined) {
      throw closed();
    }
    let sequence = 0;
    const taken = () => {
      sequence = this.#batches.full ? 0 : this.#take(contents);
      return sequence > 0;
    };
    await this.#room.until(taken, this.#limits(options), () => this.#late("no room for a batch"));
    return sequence;
  }

  /**
   * Waits until every batch that `send` was called with before is acknowledged.
   *
   * @throws TallyboardError: DEADLINE_EXCEEDED with the reason `OUTCOME_UNKNOWN` if it was not in
   *   time, with what broke the last stream as its cause. What is left stays pending, is sent
   *   again as often as it takes, and still counts once. Or the error that ended the producer.
   */
  async flush(options: WaitOptions = {}): Promise<void> {
    this.#checkUsable();
    const ticket = this.#room.newest;
    let last: number | undefined;
    const done = () => {
      if (this.#room.oldest <= ticket) {
        return false;
      }
      last ??= this.#batches.sequence;
      return this.#batches.acknowledgedThrough >= last;
    };
    await this.#progress.until(done, this.#limits(options), () =>
      this.#late(`${this.pending} updates were not acknowledged`, "OUTCOME_UNKNOWN"),
    );
  }

  /**
   * Flushes, then ends the stream. A second call gives the promise of the first.
   *
   * @throws TallyboardError as `flush`. The producer is closed all the same, and does not send
   *   again what is still pending.
   */
  close(options: WaitOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options);
    return this.#closing;
  }

  async #close(options: WaitOptions): Promise<void> {
    try {
      await this.flush(options);
    } finally {
      const stream = this.#stream;
      this.#end(this.#ended ?? closed());
      if (stream !== undefined) {
        this.#finished = finished(stream, this.pending === 0);
      }
      await this.#finished;
    }
  }

  #take(contents: Contents): number {
    if (this.#batches.pending === 0) {
      this.#progressAt = Date.now();
      clearTimeout(this.#idleTimer);
      this.#pause?.ref();
    }
    const sequence = this.#batches.append(contents);
    this.#pump();
    return sequence;
  }

  /** Sends what the stream has not sent, and opens one where there is none. */
  #pump(): void {
    if (this.#batches.pending === 0 || this.#pause !== undefined || this.#ended !== undefined) {
      return;
    }
    const stream = this.#stream ?? this.#opened();
    if (stream === undefined) {
      return;
    }
    for (const message of this.#batches.after(this.#sent)) {
      stream.write(message);
    }
    this.#sent = this.#batches.sequence;
    this.#watchForStall();
  }

  #opened(): Stream | undefined {
    let stream: Stream;
    try {
      stream = this.#open();
    } catch (error) {
      this.#end(error instanceof TallyboardError ? error : internal(error));
      return undefined;
    }
    stream.on("data", (answer: StreamIncrementsResponse) => this.#acknowledge(answer));
    // The status comes after every error, and without one too.
    stream.on("error", () => undefined);
    stream.on("status", (status: StatusObject) => this.#broken(stream, errorOfEnd(status)));
    this.#stream = stream;
    this.#sent = 0;
    this.#streamsOpened += 1;
    this.#progressAt = Date.now();
    return stream;
  }

  #acknowledge(answer: StreamIncrementsResponse): void {
    const before = this.#batches.acknowledgedThrough;
    const failures = this.#batches.acknowledge(answer);
    if (this.#batches.acknowledgedThrough === before) {
      return;
    }
    this.#progressAt = Date.now();
    this.#backoff.reset();
    if (this.#batches.pending === 0) {
      this.#idleTimer = setTimeout(() => this.#rest(), this.#idleTimeout);
    }
    for (const failure of failures) {
      this.#failures.push(failure);
    }
    this.#failures.splice(0, this.#failures.length - KEPT_FAILURES);
    failures.forEach((failure) => this.#report(failure));
    this.#room.settle();
    this.#progress.settle();
  }

  #report(failure: IncrementFailure): void {
    try {
      this.#onFailure?.(failure);
    } catch (error) {
      process.emitWarning(error instanceof Error ? error : String(error));
    }
  }

  #broken(stream: Stream, error: TallyboardError): void {
    if (stream !== this.#stream) {
      return;
    }
    this.#stream = undefined;
    this.#brokenBy = error;
    if (FINAL.has(error.code) || error.reason === "MESSAGE_TOO_LARGE") {
      this.#end(error);
      return;
    }
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#pump();
    }, this.#backoff.delay(error.retryAfter));
    if (this.#batches.pending === 0) {
      this.#pause.unref();
    }
  }

  /** Ends a stream that has nothing to do, which would keep the process alive. */
  #rest(): void {
    const stream = this.#stream;
    if (stream !== undefined) {
      this.#stream = undefined;
      this.#finished = finished(stream, true);
    }
  }

  /** Breaks the stream once it has work and has acknowledged nothing for too long. */
  #watchForStall(): void {
    if (this.#stallTimer !== undefined) {
      return;
    }
    const left = Math.max(1, this.#progressAt + this.#stallTimeout - Date.now());
    this.#stallTimer = setTimeout(() => {
      this.#stallTimer = undefined;
      const stream = this.#stream;
      if (stream === undefined || this.#batches.pending === 0) {
        return;
      }
      if (Date.now() - this.#progressAt < this.#stallTimeout) {
        this.#watchForStall();
        return;
      }
      const text = `no acknowledgement for ${this.#stallTimeout} ms`;
      this.#broken(stream, new TallyboardError(text, "DEADLINE_EXCEEDED"));
      stream.cancel();
    }, left);
    // The stream keeps the process alive for as long as there is something to wait for.
    this.#stallTimer.unref();
  }

  #end(error: TallyboardError): void {
    this.#ended ??= error;
    this.#stream = undefined;
    clearTimeout(this.#pause);
    clearTimeout(this.#stallTimer);
    clearTimeout(this.#idleTimer);
    this.#room.fail(this.#ended);
    this.#progress.fail(this.#ended);
  }

  #checkUsable(): void {
    if (this.#ended !== undefined) {
      throw this.#ended;
    }
  }

  #limits({ timeout = this.#timeout, signal }: WaitOptions): WaitOptions {
    return { timeout, signal };
  }

  #late(what: string, reason = "DEADLINE_EXCEEDED"): TallyboardError {
    const text = `${what} in time`;
    return new TallyboardError(text, "DEADLINE_EXCEEDED", { reason, cause: this.#brokenBy });
  }
}

/** Ends a stream, and waits until it has ended; one with nothing to wait for is cancelled. */
function finished(stream: Stream, isDone: boolean): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => stream.cancel(), CLOSE_TIMEOUT);
    stream.once("status", () => {
      clearTimeout(timer);
      resolve();
    });
    if (isDone) {
      stream.end();
    } else {
      stream.cancel();
    }
  });
}

function checkWithin(name: string, value: number, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new RangeError(`${name} must be from ${least} to ${most}, not ${value}`);
  }
}

function closed(): TallyboardError {
  return new TallyboardError("the producer is closed", "FAILED_PRECONDITION");
}

/** What ended a stream. Without an error of its own, the service was about to stop. */
function errorOfEnd(status: StatusObject): TallyboardError {
  return status.code === 0
    ? new TallyboardError("the service has ended the stream", "UNAVAILABLE")
    : errorFromCall(status);
}

function internal(cause: unknown): TallyboardError {
  return new TallyboardError("the stream could not be opened", "INTERNAL", { cause });
}
