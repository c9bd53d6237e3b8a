import {
  ChannelCredentials,
  type ChannelOptions,
  Client,
  type ClientOptions,
  credentials,
} from "@grpc/grpc-js";
import { type Calls, callsOf, checkHeader, duplex, TENANT_KEY } from "./calls.js";
import { CONFIG_WITHOUT_DEADLINES } from "./deadlines.js";
import {
  CounterServiceDefinition,
  CounterServiceService,
} from "./gen/tallyboard/v1/counters.js";
import {
  LeaderboardServiceDefinition,
  LeaderboardServiceService,
} from "./gen/tallyboard/v1/leaderboards.js";
import {
  OperationsServiceDefinition,
  OperationsServiceService,
} from "./gen/tallyboard/v1/operations.js";
import { preparing } from "./interceptor.js";
import { BATCHES, Producer, type ProducerOptions } from "./producer.js";

const CONNECTIONS = 4;
const TOKEN_KEY = "authorization";

const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.service_config": JSON.stringify(CONFIG_WITHOUT_DEADLINES),
  // Channels to the same target would otherwise share one connection, and so one worker.
  "grpc.use_local_subchannel_pool": 1,
  // A worker that was restarted is back within seconds; the default waits up to two minutes.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 3_000,
  // A call that does not fit in here is not retried; by default that is one above 1 MiB.
  "grpc.per_rpc_retry_buffer_size": 8 << 20,
  "grpc.retry_buffer_size": 64 << 20,
  // The failures of 10,000 items of a batch may take more than gRPC's 4 MiB.
  "grpc.max_receive_message_length": 16 << 20,
  // Without it a connection that swallows everything is never given up, nor a watch on it.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
};

/** Who calls. */
export interface Identity {
  /** Whose data it is; left out, the credentials or the service's default decide. */
  tenant?: string | undefined;
  /** A bearer token, where the service asks for one. */
  token?: string | undefined;
}

/** How to reach the service. */
export interface ConnectOptions extends Identity {
  /**
   * False, the default, for connections that are not encrypted; true for TLS that trusts the
   * public authorities; or credentials made by `credentials.createSsl` of @grpc/grpc-js.
   */
  tls?: boolean | ChannelCredentials | undefined;
  /**
   * How many connections, 1 or more; 4 if left out. Each reaches one worker of the service, and
   * calls take them in turns. A connection is made when a call first needs it.
   */
  connections?: number | undefined;
}

/** The service, as {@link connect} gives it. Close it after use. */
export class Tallyboard {
  /** The calls of `tallyboard.v1.CounterService`. */
  readonly counters: Calls<typeof CounterServiceService>;
  /** The calls of `tallyboard.v1.LeaderboardService`. */
  readonly leaderboards: Calls<typeof LeaderboardServiceService>;
  /** The calls of `tallyboard.v1.OperationsService`. */
  readonly operations: Calls<typeof OperationsServiceService>;
  readonly #clients: readonly Client[];
  #turn = 0;

  /** See {@link connect}. */
  constructor(target: string, options: ConnectOptions = {}) {
    const { connections = CONNECTIONS } = options;
    if (!Number.isInteger(connections) || connections < 1) {
      throw new RangeError(`connections must be 1 or more, not ${connections}`);
    }
    const secured = credentialsOf(options.tls);
    const shared = clientOptions(options);
    this.#clients = Array.from({ length: connections }, () => new Client(target, secured, shared));
    const turns = () => this.#next();
    this.counters = callsOf(CounterServiceService, CounterServiceDefinition, turns);
    this.leaderboards = callsOf(LeaderboardServiceService, LeaderboardServiceDefinition, turns);
    this.operations = callsOf(OperationsServiceService, OperationsServiceDefinition, turns);
  }

  /**
   * A producer, which counts in numbered batches over a stream that it opens anew when it breaks.
   *
   * @throws RangeError if an option is outside its limits.
   */
  producer(options: ProducerOptions = {}): Producer {
    const { tenant } = options;
    if (tenant !== undefined) {
      checkHeader(TENANT_KEY, tenant);
    }
    return new Producer(() => duplex(this.#next(), BATCHES, { tenant }), options);
  }

  /** Ends the connections once the calls under way have ended; later calls fail. */
  close(): void {
    for (const client of this.#clients) {
      client.close();
    }
  }

  #next(): Client {
    this.#turn = (this.#turn + 1) % this.#clients.length;
    return this.#clients[this.#turn]!;
  }
}

/**
 * Reaches the service. Makes no call: one that the service does not answer fails by its deadline.
 *
 * Calls have the retries of the published service config, and its deadlines unless they are given
 * others. A request without a `requestId` gets a random one, so that a repeat of a write counts
 * once. One whose text holds a lone surrogate is refused with INVALID_ARGUMENT and not sent.
 *
 * @param target - where the service listens, as `host:port`.
 * @param options - who calls, and how.
 * @throws RangeError if an option is outside its limits.
 */
export function connect(target: string, options: ConnectOptions = {}): Tallyboard {
  return new Tallyboard(target, options);
}

/**
 * The options with which a generated client behaves as those of {@link connect}:
 * `new CounterServiceClient(target, credentials, clientOptions({ tenant: "acme" }))`. Such a client
 * has one connection of its own.
 *
 * @throws RangeError if the tenant or the token isn't printable ASCII.
 */
export function clientOptions({ tenant, token }: Identity = {}): ClientOptions {
  const metadata = new Map<string, string>();
  if (tenant !== undefined) {
    metadata.set(TENANT_KEY, checkHeader(TENANT_KEY, tenant));
  }
  if (token !== undefined) {
    metadata.set(TOKEN_KEY, checkHeader(TOKEN_KEY, `Bearer ${token}`));
  }
  return { ...CHANNEL_OPTIONS, interceptors: [preparing(metadata)] };
}

function credentialsOf(tls: ConnectOptions["tls"] = false): ChannelCredentials {
  if (tls instanceof ChannelCredentials) {
    return tls;
  }
  return tls ? credentials.createSsl() : credentials.createInsecure();
}
