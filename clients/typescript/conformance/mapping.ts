import type { Json } from "./compare.js";

/**
 * Between messages and protobuf's JSON mapping, where the generated `fromJSON` and `toJSON` have
 * another one: they know durations as objects, field masks by the names in the protos, and times
 * to the millisecond only.
 */

/** What the generated code offers for a message. */
export interface Kind {
  fromJSON(json: unknown): object;
  toJSON(message: never): unknown;
}

type Message = Record<string, unknown>;

/** The fields of requests that hold a google.protobuf.Duration. */
const DURATIONS: ReadonlySet<string> = new Set([
  "duration",
  "lateGrace",
  "maxStaleness",
  "minInterval",
  "resetOffset",
]);
const MASK = "updateMask";

/** The message that a case's JSON stands for. */
export function messageOf(kind: Kind, json: Json): object {
  return kind.fromJSON(generated(json, ""));
}

/** A message in protobuf's JSON mapping. */
export function jsonOf(kind: Kind, message: object): Json {
  return canonical(message, kind.toJSON(message as never));
}

function generated(value: Json, name: string): unknown {
  if (typeof value === "string" && DURATIONS.has(name)) {
    return durationOf(value);
  }
  if (typeof value === "string" && name === MASK) {
    return value.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  }
  if (Array.isArray(value)) {
    return value.map((item) => generated(item, name));
  }
  if (value !== null && typeof value === "object") {
    const fields = Object.entries(value).map(([own, item]) => [own, generated(item, own)]);
    return Object.fromEntries(fields);
  }
  return value;
}

function durationOf(text: string): { seconds: string; nanos: number } {
  const found = /^(-?)(\d+)(?:\.(\d{1,9}))?s$/.exec(text);
  if (found === null) {
    throw new Error(`${text} is no duration`);
  }
  const [, sign = "", seconds = "", fraction = ""] = found;
  const nanos = Number(fraction.padEnd(9, "0"));
  return { seconds: `${sign}${seconds}`, nanos: sign ? -nanos : nanos };
}

/** The generated JSON, with what the message says better. */
function canonical(message: unknown, json: unknown): Json {
  if (isTime(message)) {
    return typeof json === "string" ? timestamp(message) : duration(message);
  }
  if (Array.isArray(json)) {
    return json.map((item, index) => canonical((message as unknown[])[index], item));
  }
  if (json !== null && typeof json === "object") {
    const fields = Object.entries(json).map(([name, item]) => [
      name,
      canonical(fieldOf(message as Message, name), item),
    ]);
    return Object.fromEntries(fields);
  }
  return typeof json === "number" && !Number.isFinite(json) ? String(json) : (json as Json);
}

/** A field by its name in JSON, in which that of a oneof stands beside the others. */
function fieldOf(message: Message, name: string): unknown {
  if (name in message) {
    return message[name];
  }
  const cases = Object.values(message) as ({ $case?: string; value?: unknown } | undefined)[];
  return cases.find((each) => each?.$case === name)?.value;
}

interface Time {
  readonly seconds: bigint;
  readonly nanos: number;
}

function isTime(value: unknown): value is Time {
  return (
    value !== null &&
    typeof value === "object" &&
    "seconds" in value &&
    typeof value.seconds === "bigint" &&
    "nanos" in value &&
    typeof value.nanos === "number"
  );
}

function timestamp({ seconds, nanos }: Time): string {
  const whole = new Date(Number(seconds) * 1_000).toISOString().slice(0, -".000Z".length);
  return `${whole}${fractionOf(nanos)}Z`;
}

function duration({ seconds, nanos }: Time): string {
  const isNegative = seconds < 0n || nanos < 0;
  const whole = seconds < 0n ? -seconds : seconds;
  return `${isNegative ? "-" : ""}${whole}${fractionOf(Math.abs(nanos))}s`;
}

/** None, or 3, 6 or 9 digits behind a point. */
function fractionOf(nanos: number): string {
  const digits = String(nanos).padStart(9, "0").replace(/(000){1,3}$/, "");
  return digits && `.${digits}`;
}
