import type { Duration } from "./gen/google/protobuf/duration.js";
import type { Timestamp } from "./gen/google/protobuf/timestamp.js";

/**
 * A `Timestamp` as a `Date`, which keeps whole milliseconds only.
 *
 * @param timestamp - of an answer; undefined gives undefined.
 */
export function toDate(timestamp: Timestamp): Date;
export function toDate(timestamp: Timestamp | undefined): Date | undefined;
export function toDate(timestamp: Timestamp | undefined): Date | undefined {
  if (timestamp === undefined) {
    return undefined;
  }
  return new Date(Number(timestamp.seconds) * 1_000 + Math.floor(timestamp.nanos / 1e6));
}

/**
 * A `Date` as the `Timestamp` that requests take, such as a submission's `occurredAt`.
 *
 * @throws RangeError if the date isn't one.
 */
export function fromDate(date: Date): Timestamp {
  const milliseconds = date.getTime();
  const seconds = Math.floor(milliseconds / 1_000);
  return { seconds: BigInt(seconds), nanos: (milliseconds - seconds * 1_000) * 1e6 };
}

/**
 * Milliseconds as the `Duration` that requests take, such as `minInterval` or `maxStaleness`.
 *
 * @throws RangeError if it isn't a finite number.
 */
export function fromMs(milliseconds: number): Duration {
  const seconds = Math.trunc(milliseconds / 1_000);
  return { seconds: BigInt(seconds), nanos: Math.round((milliseconds - seconds * 1_000) * 1e6) };
}

/** A `Duration` in milliseconds; 0 if there is none. */
export function durationToMs(duration: Duration | undefined): number {
  return duration === undefined ? 0 : Number(duration.seconds) * 1_000 + duration.nanos / 1e6;
}
