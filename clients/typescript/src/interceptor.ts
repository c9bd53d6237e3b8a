import { randomUUID } from "node:crypto";
import {
  InterceptingCall,
  type Interceptor,
  type InterceptorOptions,
  type StatusObject,
} from "@grpc/grpc-js";
import { usualLimit } from "./deadlines.js";
import { refusalOf } from "./errors.js";
import { malformedText } from "./text.js";

const IS_NAME = /\b(counters?|members?|leaderboard_id)(\[\d+\])?$/;

/**
 * Prepares every call: gives it the deadline of the service config where the caller gives none,
 * gives a request without a request id one, adds the metadata where the call has none of its own,
 * lets the call wait for a connection, and refuses text that can't be sent as it is.
 *
 * It runs before the retries of the service config, so a repeat carries the same request id, and
 * the service counts it once. Waiting is set here because @grpc/grpc-js does not read
 * `waitForReady` in a service config.
 *
 * @param metadata - keys and values for every call.
 */
export function preparing(metadata: ReadonlyMap<string, string>): Interceptor {
  return (options, nextCall) => {
    const call = nextCall(withDeadline(options));
    let refusal: StatusObject | undefined;
    return new InterceptingCall(call, {
      start(own, listener, next) {
        for (const [key, value] of metadata) {
          if (own.get(key).length === 0) {
            own.set(key, value);
          }
        }
        const given = own.getOptions();
        own.setOptions({ ...given, waitForReady: given.waitForReady ?? true });
        next(own, {
          onReceiveMetadata: (received, forward) => forward(received),
          onReceiveMessage: (received, forward) => forward(received),
          onReceiveStatus: (status, forward) => forward(refusal ?? status),
        });
      },
      sendMessage(message: unknown, next) {
        refusal ??= refusalOfText(message);
        if (refusal === undefined) {
          next(withRequestId(message));
        } else {
          call.cancelWithStatus(refusal.code, refusal.details);
        }
      },
    });
  };
}

/** The message, or a copy with a random request id where it has that field and it is empty. */
export function withRequestId(message: unknown): unknown {
  const isWithout =
    typeof message === "object" &&
    message !== null &&
    "requestId" in message &&
    message.requestId === "";
  return isWithout ? { ...message, requestId: randomUUID() } : message;
}

function withDeadline(options: InterceptorOptions): InterceptorOptions {
  const limit = usualLimit(options.method_definition.path);
  return options.deadline !== undefined || limit === undefined
    ? options
    : { ...options, deadline: Date.now() + limit };
}

function refusalOfText(message: unknown): StatusObject | undefined {
  const path = malformedText(message)?.slice(1);
  if (path === undefined) {
    return undefined;
  }
  const reason = IS_NAME.test(path) ? "NAME_INVALID" : "FIELD_INVALID";
  return refusalOf(reason, path, "must be well-formed Unicode");
}
