import { errorFromStatus, TallyboardError } from "./errors.js";
import type { Status } from "./gen/google/rpc/status.js";
import {
  StreamIncrementsRequest,
  type StreamIncrementsResponse,
} from "./gen/tallyboard/v1/counters.js";

/** How many updates a batch holds at most. */
export const MAX_UPDATES = 10_000;
const MAX_NAME_BYTES = 256;
const SMALLEST = -(2n ** 63n);
const LARGEST = 2n ** 63n - 1n;

/** The increments of one counter in one batch, none of which counted. */
export interface IncrementFailure {
  /** The number of the batch. */
  readonly sequence: number;
  /** The name of the counter. */
  readonly counter: string;
  /** How many increments they were. */
  readonly updates: number;
  /** The sum of their deltas. */
  readonly total: bigint;
  /** Why; its reason is `NAME_INVALID`, `DELTA_ZERO` or `COUNTER_OUT_OF_RANGE`. */
  readonly error: TallyboardError;
}

/** A batch without a number. */
export interface Contents {
  readonly bytes: Uint8Array;
  readonly updates: number;
}

interface Batch {
  readonly sequence: number;
  readonly message: Buffer;
  readonly updates: number;
}

/**
 * The batches of a producer that are not acknowledged, each as the bytes that are sent, so that
 * they are the same however often they are sent.
 */
export class Batches {
  /** The number of the newest batch. */
  sequence: number;
  /** How many updates were acknowledged and counted. */
  counted = 0;
  /** How many updates were acknowledged and could not count. */
  failed = 0;
  /** How many updates are unacknowledged. */
  pending = 0;
  readonly #producerId: string;
  readonly #window: number;
  readonly #unacknowledged: Batch[] = [];

  constructor(producerId: string, window: number, firstSequence: number) {
    this.#producerId = producerId;
    this.#window = window;
    this.sequence = firstSequence - 1;
  }

  /** Whether the window has no room for another batch. */
  get full(): boolean {
    return this.#unacknowledged.length >= this.#window;
  }

  /** Every batch with this sequence or a smaller one is acknowledged. */
  get acknowledgedThrough(): number {
    return this.sequence - this.#unacknowledged.length;
  }

  /** Takes a batch and gives its sequence; the window must not be full. */
  append({ bytes, updates }: Contents): number {
    const sequence = ++this.sequence;
    // The bytes of two messages, one after the other, are those of a message with both's fields.
    const head = StreamIncrementsRequest.encode({
      producerId: this.#producerId,
      sequence: BigInt(sequence),
      counters: [],
      deltas: [],
    }).finish();
    this.#unacknowledged.push({ sequence, message: Buffer.concat([head, bytes]), updates });
    this.pending += updates;
    return sequence;
  }

  /** The messages of the unacknowledged batches above this sequence. */
  after(sequence: number): Buffer[] {
    const index = Math.max(0, sequence - this.acknowledgedThrough);
    return this.#unacknowledged.slice(index).map((batch) => batch.message);
  }

  /** Drops what the answer acknowledges; gives what of it did not count. */
  acknowledge(answer: StreamIncrementsResponse): IncrementFailure[] {
    const through = Number(answer.acknowledgedSequence) - this.acknowledgedThrough;
    const found: IncrementFailure[] = [];
    for (const batch of this.#unacknowledged.splice(0, Math.max(0, through))) {
      const failures = failuresOf(batch, answer);
      const failed = failures.reduce((sum, each) => sum + each.updates, 0);
      this.failed += failed;
      this.counted += batch.updates - failed;
      this.pending -= batch.updates;
      found.push(...failures);
    }
    return found;
  }
}

/**
 * The batch, checked and encoded.
 *
 * @throws TallyboardError INVALID_ARGUMENT if the service would refuse it.
 */
export function contentsOf(
  counters: readonly string[],
  deltas: readonly (bigint | number)[],
): Contents {
  checkLists(counters, deltas);
  counters.forEach(checkCounter);
  const exact = deltas.map(checkedDelta);
  const bytes = StreamIncrementsRequest.encode({
    producerId: "",
    sequence: 0n,
    counters: counters as string[],
    deltas: exact,
  }).finish();
  return { bytes, updates: exact.length };
}

function checkLists(counters: readonly string[], deltas: readonly (bigint | number)[]): void {
  if (deltas.length === 0) {
    throw invalid("FIELD_INVALID", "deltas", "must not be empty");
  }
  if (deltas.length > MAX_UPDATES) {
    const detail = `has ${deltas.length} items; at most ${MAX_UPDATES} are allowed`;
    throw invalid("TOO_MANY_ITEMS", "deltas", detail);
  }
  if (counters.length !== deltas.length && counters.length !== 1) {
    const detail = `${counters.length} counters do not match ${deltas.length} deltas`;
    throw invalid("FIELD_INVALID", "counters", detail);
  }
}

function checkCounter(counter: string): void {
  // A name that isn't well formed would be sent as another one, and count there.
  if (!counter.isWellFormed()) {
    throw invalid("NAME_INVALID", "counter", "must be well-formed Unicode");
  }
  const size = Buffer.byteLength(counter);
  if (size === 0 || size > MAX_NAME_BYTES) {
    const detail = `must have 1 to ${MAX_NAME_BYTES} bytes of UTF-8, not ${size}`;
    throw invalid("NAME_INVALID", "counter", detail);
  }
}

function checkedDelta(delta: bigint | number): bigint {
  if (typeof delta === "number" && !Number.isSafeInteger(delta)) {
    throw invalid("FIELD_INVALID", "delta", "must be a bigint or a safe integer");
  }
  const exact = BigInt(delta);
  if (exact === 0n) {
    throw invalid("DELTA_ZERO", "delta", "must not be 0");
  }
  if (exact < SMALLEST || exact > LARGEST) {
    throw invalid("FIELD_INVALID", "delta", "must fit in a signed 64-bit integer");
  }
  return exact;
}

function failuresOf(batch: Batch, answer: StreamIncrementsResponse): IncrementFailure[] {
  const own = answer.failures.filter((each) => Number(each.sequence) === batch.sequence);
  if (own.length === 0) {
    return [];
  }
  const statuses = new Map<string, Status | undefined>();
  own.forEach((each) => statuses.set(each.counter, each.status));
  const { counters, deltas } = StreamIncrementsRequest.decode(batch.message);
  const sums = new Map<string, { updates: number; total: bigint }>();
  deltas.forEach((delta, index) => {
    const counter = counters[counters.length === 1 ? 0 : index]!;
    if (statuses.has(counter)) {
      const { updates, total } = sums.get(counter) ?? { updates: 0, total: 0n };
      sums.set(counter, { updates: updates + 1, total: total + delta });
    }
  });
  return [...sums].map(([counter, { updates, total }]) => {
    const error = errorFromStatus(statuses.get(counter));
    return { sequence: batch.sequence, counter, updates, total, error };
  });
}

function invalid(reason: string, field: string, description: string): TallyboardError {
  return new TallyboardError("the batch cannot be taken", "INVALID_ARGUMENT", {
    reason,
    violations: [{ field, description }],
  });
}
