import {
  type CallOptions as GrpcOptions,
  type Client,
  type ClientDuplexStream,
  Metadata,
  type MethodDefinition,
  type ServiceError,
} from "@grpc/grpc-js";
import { errorFromCall, TallyboardError } from "./errors.js";
import type { DeepPartial } from "./gen/tallyboard/v1/counters.js";

export const TENANT_KEY = "x-tallyboard-tenant";

/** What a caller may say about one call. */
export interface CallOptions {
  /**
   * Milliseconds that the call may take, repeats included. Left out, most calls have 10 s, and
   * streams no limit.
   */
  timeout?: number | undefined;
  /** Cancels the call, which then fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** The tenant of this call, instead of the connection's. */
  tenant?: string | undefined;
}

/** One call: what is left out of the request has its default. */
export type UnaryCall<Request, Response> = (
  request: DeepPartial<Request>,
  options?: CallOptions,
) => Promise<Response>;

/** A stream of answers; leaving the loop cancels the call. */
export type WatchCall<Request, Response> = (
  request: DeepPartial<Request>,
  options?: CallOptions,
) => AsyncGenerator<Response, void, undefined>;

/** A stream both ways as @grpc/grpc-js has it, with its `ServiceError`; see `errorFromCall`. */
export type DuplexCall<Request, Response> = (
  options?: CallOptions,
) => ClientDuplexStream<Request, Response>;

/** The calls of a service, as promises, with {@link TallyboardError} as their error. */
export type Calls<Service> = {
  readonly [Name in keyof Service]: Service[Name] extends MethodDefinition<
    infer Request,
    infer Response
  >
    ? Service[Name] extends { requestStream: true }
      ? DuplexCall<Request, Response>
      : Service[Name] extends { responseStream: true }
        ? WatchCall<Request, Response>
        : UnaryCall<Request, Response>
    : never;
};

type Method = MethodDefinition<object, object>;

interface Described {
  readonly methods: Readonly<
    Record<string, { readonly requestType: { fromPartial(partial: object): object } }>
  >;
}

/** Gives the connection for the next call. */
export type Turns = () => Client;

/**
 * Makes the calls of a service.
 *
 * @param service - the generated definition that has the serializers.
 * @param described - the generated definition that has the message types.
 * @param turns - gives the connection for a call.
 */
export function callsOf<Service extends object>(
  service: Service,
  described: Described,
  turns: Turns,
): Calls<Service> {
  const calls = Object.entries(service as Record<string, Method>).map(([name, method]) => {
    const kind = described.methods[name]!.requestType;
    return [name, callOf(method, (partial) => kind.fromPartial(partial), turns)];
  });
  return Object.fromEntries(calls) as Calls<Service>;
}

function callOf(method: Method, complete: (partial: object) => object, turns: Turns) {
  if (method.requestStream) {
    return (options?: CallOptions) => duplex(turns(), method, options);
  }
  if (method.responseStream) {
    return (request: object, options?: CallOptions) =>
      watch(turns, method, complete(request), options);
  }
  return async (request: object, options?: CallOptions) =>
    unary(turns(), method, complete(request), options);
}

function unary(
  client: Client,
  method: Method,
  request: object,
  options: CallOptions = {},
): Promise<object> {
  const { signal } = options;
  signal?.throwIfAborted();
  const metadata = metadataOf(options);
  return new Promise((resolve, reject) => {
    const done = (error: ServiceError | null, response?: object) => {
      signal?.removeEventListener("abort", cancel);
      if (response !== undefined && error === null) {
        resolve(response);
      } else {
        reject(signal?.aborted ? signal.reason : errorFromCall(error!));
      }
    };
    const { path, requestSerialize, responseDeserialize } = method;
    const call = started(() =>
      client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        metadata,
        limitsOf(options),
        done,
      ),
    );
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel, { once: true });
  });
}

async function* watch(
  turns: Turns,
  method: Method,
  request: object,
  options: CallOptions = {},
): AsyncGenerator<object, void, undefined> {
  const { signal } = options;
  signal?.throwIfAborted();
  const metadata = metadataOf(options);
  const stream = started(() =>
    turns().makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadata,
      limitsOf(options),
    ),
  );
  // The iterator below hears of errors; without a listener, one after its end would be uncaught.
  stream.on("error", () => undefined);
  const cancel = () => stream.cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    yield* stream as AsyncIterable<object>;
  } catch (error) {
    throw signal?.aborted ? signal.reason : errorFromCall(error as ServiceError);
  } finally {
    signal?.removeEventListener("abort", cancel);
    stream.cancel();
  }
}

/** Opens a stream both ways. */
export function duplex<Request, Response>(
  client: Client,
  method: MethodDefinition<Request, Response>,
  options: CallOptions = {},
): ClientDuplexStream<Request, Response> {
  const { signal } = options;
  signal?.throwIfAborted();
  const metadata = metadataOf(options);
  const stream = started(() =>
    client.makeBidiStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      metadata,
      limitsOf(options),
    ),
  );
  if (signal) {
    const cancel = () => stream.cancel();
    signal.addEventListener("abort", cancel, { once: true });
    stream.once("status", () => signal.removeEventListener("abort", cancel));
  }
  return stream;
}

/** What it starts; @grpc/grpc-js throws an Error of its own for a connection that was closed. */
function started<T>(start: () => T): T {
  try {
    return start();
  } catch (cause) {
    throw new TallyboardError("the connection was closed", "FAILED_PRECONDITION", { cause });
  }
}

function metadataOf({ tenant }: CallOptions): Metadata {
  const metadata = new Metadata();
  if (tenant !== undefined) {
    metadata.set(TENANT_KEY, checkHeader(TENANT_KEY, tenant));
  }
  return metadata;
}

function limitsOf({ timeout }: CallOptions): GrpcOptions {
  return timeout === undefined ? {} : { deadline: Date.now() + timeout };
}

/**
 * The value, if it can go into a header.
 *
 * @throws RangeError if it is empty or isn't printable ASCII.
 */
export function checkHeader(key: string, value: string): string {
  if (!/^[\x20-\x7e]+$/.test(value)) {
    throw new RangeError(`${key} must be printable ASCII`);
  }
  return value;
}
