import { Metadata, status, type StatusObject } from "@grpc/grpc-js";
import type { Any } from "./gen/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";
import { durationToMs } from "./time.js";

const DOMAIN = "tallyboard";
const DETAILS_KEY = "grpc-status-details-bin";
const PUSHBACK_KEY = "grpc-retry-pushback-ms";

/** The name of a gRPC status code, `INVALID_ARGUMENT` for example. */
export type Code = keyof typeof status;

/** What is wrong with one field of a request. */
export interface Violation {
  /** The path of the field, `deltas[3].counter` for example. */
  readonly field: string;
  /** A sentence for a person. */
  readonly description: string;
}

/** What an error has beside its message. */
export interface ErrorDetails {
  /** See {@link TallyboardError.reason}; empty if left out. */
  reason?: string;
  /** See {@link TallyboardError.violations}; none if left out. */
  violations?: readonly Violation[];
  /** See {@link TallyboardError.retryAfter}. */
  retryAfter?: number | undefined;
  /** What led to the error. */
  cause?: unknown;
}

/**
 * Any error of the service, or of this package on its behalf. Branch on `code` or `reason`, never
 * on the message.
 */
export class TallyboardError extends Error {
  override readonly name = "TallyboardError";
  /** The gRPC status code. `UNAVAILABLE` is safe to retry with the same request id. */
  readonly code: Code;
  /**
   * The `tallyboard.v1.ErrorReason` without its prefix, `NAME_INVALID` for example; empty if the
   * error comes from the transport, which knows no reasons.
   */
  readonly reason: string;
  /** The fields at fault; empty if none were named. */
  readonly violations: readonly Violation[];
  /** The least time in milliseconds to wait before trying again, if the service named one. */
  readonly retryAfter: number | undefined;

  /**
   * @param message - a sentence for a person.
   * @param code - the gRPC status code.
   * @param details - what else is known.
   */
  constructor(message: string, code: Code, details: ErrorDetails = {}) {
    const { reason = "", violations = [], retryAfter, cause } = details;
    const fields = violations.map((each) => `${each.field}: ${each.description}`).join("; ");
    const text = `${reason || code}: ${message}${fields && ` (${fields})`}`;
    super(text, cause === undefined ? undefined : { cause });
    this.code = code;
    this.reason = reason;
    this.violations = violations;
    this.retryAfter = retryAfter;
  }
}

/** What gRPC tells of a call that ended; `ServiceError` and `StatusObject` are such. */
export interface CallStatus {
  /** The number of the gRPC status code. */
  readonly code: number;
  /** A sentence for a person. */
  readonly details: string;
  /** The trailing metadata. */
  readonly metadata?: Metadata;
}

/**
 * The error for a call that failed, for those who use the generated stubs by themselves.
 *
 * @param failed - the `ServiceError` of the callback or of the stream's `error` event; it becomes
 *   the `cause`.
 * @returns an error whose `retryAfter` is the longer of RetryInfo and `grpc-retry-pushback-ms`.
 */
export function errorFromCall(failed: CallStatus): TallyboardError {
  const packed = failed.metadata?.get(DETAILS_KEY)[0];
  const found = (packed instanceof Buffer && decoded(Status, packed)) || {
    code: failed.code,
    message: failed.details,
    details: [],
  };
  return errorOf(found, pushback(failed.metadata), failed);
}

/**
 * The error for a status within an answer, such as that of one item of a batch.
 *
 * @param failed - the `status` of an `ItemStatus`, a `SequenceFailure` or a `ScoreFailure`.
 */
export function errorFromStatus(failed: Status | undefined): TallyboardError {
  return errorOf(failed ?? { code: status.UNKNOWN, message: "", details: [] });
}

/** The end of a call that is refused before it is sent, as the service would refuse it. */
export function refusalOf(reason: string, field: string, description: string): StatusObject {
  const violation = { field, description, reason: "", localizedMessage: undefined };
  const details = [
    packed("ErrorInfo", ErrorInfo.encode({ reason, domain: DOMAIN, metadata: {} }).finish()),
    packed("BadRequest", BadRequest.encode({ fieldViolations: [violation] }).finish()),
  ];
  const code = status.INVALID_ARGUMENT;
  const message = "the request cannot be sent";
  const metadata = new Metadata();
  metadata.set(DETAILS_KEY, Buffer.from(Status.encode({ code, message, details }).finish()));
  return { code, details: message, metadata };
}

function packed(name: string, value: Uint8Array): Any {
  return { typeUrl: `type.googleapis.com/google.rpc.${name}`, value: Buffer.from(value) };
}

function errorOf(found: Status, pushback?: number, cause?: unknown): TallyboardError {
  const info = unpacked(found, "ErrorInfo", ErrorInfo).find((each) => each.domain === DOMAIN);
  const violations = unpacked(found, "BadRequest", BadRequest)
    .flatMap((each) => each.fieldViolations)
    .map(({ field, description }) => ({ field, description }));
  const waits = unpacked(found, "RetryInfo", RetryInfo).map((each) =>
    durationToMs(each.retryDelay),
  );
  if (pushback !== undefined) {
    waits.push(pushback);
  }
  return new TallyboardError(found.message, codeOf(found.code), {
    reason: info?.reason ?? "",
    violations,
    retryAfter: waits.length > 0 ? Math.max(...waits) : undefined,
    cause,
  });
}

function codeOf(number: number): Code {
  return (status[number] as Code | undefined) ?? "UNKNOWN";
}

function unpacked<T>(from: Status, name: string, kind: Decoder<T>): T[] {
  return from.details
    .filter((each) => each.typeUrl.endsWith(`/google.rpc.${name}`))
    .map((each) => decoded(kind, each.value))
    .filter((each) => each !== undefined);
}

interface Decoder<T> {
  decode(bytes: Uint8Array): T;
}

/** Details that can't be read are as if they weren't there: the status still says enough. */
function decoded<T>(kind: Decoder<T>, bytes: Uint8Array): T | undefined {
  try {
    return kind.decode(bytes);
  } catch {
    return undefined;
  }
}

function pushback(metadata: Metadata | undefined): number | undefined {
  const milliseconds = Number.parseInt(String(metadata?.get(PUSHBACK_KEY)[0]), 10);
  return Number.isNaN(milliseconds) ? undefined : Math.max(0, milliseconds);
}
