import { randomUUID } from "node:crypto";
import { InterceptingCall, type Interceptor } from "@grpc/grpc-js";

/**
 * Prepares every call: gives a request without a request id one, adds the metadata where the call
 * has none of its own, and lets the call wait for a connection.
 *
 * It runs before the retries of the service config, so a repeat carries the same request id, and
 * the service counts it once. Waiting is set here because @grpc/grpc-js does not read
 * `waitForReady` in a service config.
 *
 * @param metadata - keys and values for every call.
 */
export function preparing(metadata: ReadonlyMap<string, string>): Interceptor {
  return (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start(own, listener, next) {
        for (const [key, value] of metadata) {
          if (own.get(key).length === 0) {
            own.set(key, value);
          }
        }
        const given = own.getOptions();
        own.setOptions({ ...given, waitForReady: given.waitForReady ?? true });
        next(own, listener);
      },
      sendMessage(message: unknown, next) {
        next(withRequestId(message));
      },
    });
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
