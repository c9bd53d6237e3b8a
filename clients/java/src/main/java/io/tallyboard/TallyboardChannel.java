package io.tallyboard;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.TlsChannelCredentials;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Supplier;
import java.util.stream.Stream;

/**
 * A channel to a service, for every generated stub and for {@link Producer}.
 *
 * <p>Calls have the deadlines and the retries of the published service config: a unary call takes
 * 10 seconds at most unless its stub has a deadline, waits for a connection, and is repeated up to
 * four times on {@code UNAVAILABLE}. A request with an empty {@code request_id} gets a random UUID,
 * so that a repeat counts once. One whose text holds half of a surrogate pair fails with {@code
 * INVALID_ARGUMENT} and is not sent. A message may be sent that has up to 4 MiB, which is the limit
 * of the service, and received that has up to 16 MiB.
 *
 * <p>A connection that is lost is opened again within 2 seconds of the service's return, however
 * long it was away. A connection under load that answers nothing for 40 seconds counts as lost.
 *
 * <p>Any thread may use it. It has one thread of its own, which sees to connections that are lost,
 * and which {@link #close} ends; gRPC's threads are shared by the whole process.
 */
public final class TallyboardChannel extends Channel implements AutoCloseable {
  private static final Duration CLOSE_PATIENCE = Duration.ofSeconds(5);
  private static final Duration RECONNECT_INTERVAL = Duration.ofSeconds(2);

  private final List<ManagedChannel> connections;
  private final Channel intercepted;
  private final ScheduledExecutorService reconnecting;
  private final AtomicInteger turn = new AtomicInteger();
  private volatile boolean isClosed;

  private TallyboardChannel(List<ManagedChannel> connections, RequestInterceptor interceptor) {
    this.connections = connections;
    this.intercepted = ClientInterceptors.intercept(new InTurns(), interceptor);
    this.reconnecting =
        Executors.newSingleThreadScheduledExecutor(
            task -> {
              Thread thread = new Thread(task, "tallyboard-reconnect");
              thread.setDaemon(true);
              return thread;
            });
    long interval = RECONNECT_INTERVAL.toMillis();
    reconnecting.scheduleWithFixedDelay(
        this::reconnect, interval, interval, TimeUnit.MILLISECONDS);
  }

  /**
   * Starts a channel with options.
   *
   * @param target where the service listens, as {@code host:port} or any other gRPC target
   * @return a builder with every option at its default
   */
  public static Builder builder(String target) {
    return new Builder(target);
  }

  /**
   * Starts a call on the next connection; generated stubs do this.
   *
   * @throws IllegalStateException if the channel is closed
   */
  @Override
  public <Q, A> ClientCall<Q, A> newCall(MethodDescriptor<Q, A> method, CallOptions options) {
    if (isClosed) {
      throw new IllegalStateException("the channel is closed");
    }
    return intercepted.newCall(method, options);
  }

  /** The name by which the service is known to TLS: the host and port of the target. */
  @Override
  public String authority() {
    return connections.get(0).authority();
  }

  /**
   * Takes no more calls, waits up to 5 seconds for those under way, cancels what is left, and ends
   * the connections and the thread. Does nothing the second time.
   */
  @Override
  public void close() {
    isClosed = true;
    reconnecting.shutdownNow();
    connections.forEach(ManagedChannel::shutdown);
    long deadline = System.nanoTime() + CLOSE_PATIENCE.toNanos();
    try {
      for (ManagedChannel connection : connections) {
        connection.awaitTermination(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
      }
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
    }
    connections.forEach(ManagedChannel::shutdownNow);
  }

  /** Ends the waits of gRPC between attempts to connect, which would grow to two minutes. */
  private void reconnect() {
    for (ManagedChannel connection : connections) {
      if (isAway(connection)) {
        connection.resetConnectBackoff();
      }
    }
  }

  private static boolean isAway(ManagedChannel connection) {
    return connection.getState(false) == ConnectivityState.TRANSIENT_FAILURE;
  }

  /** Passes each call to the next connection, if another has none that is known to be lost. */
  private final class InTurns extends Channel {
    @Override
    public <Q, A> ClientCall<Q, A> newCall(MethodDescriptor<Q, A> method, CallOptions options) {
      return next().newCall(method, options);
    }

    @Override
    public String authority() {
      return TallyboardChannel.this.authority();
    }

    private ManagedChannel next() {
      int count = connections.size();
      int first = Math.floorMod(turn.getAndIncrement(), count);
      for (int i = 0; i < count; i++) {
        ManagedChannel connection = connections.get((first + i) % count);
        if (!isAway(connection)) {
          return connection;
        }
      }
      return connections.get(first);
    }
  }

  /** The options of a channel. Not for several threads at once. */
  public static final class Builder {
    private static final int MAX_CONNECTIONS = 64;
    private static final int MAX_ANSWER_BYTES = 16 << 20;
    // gRPC repeats only what it has kept, and keeps 1 MiB of a call and 16 MiB in all by default.
    private static final long MAX_REPEATED_BYTES = 5 << 20;
    private static final long MAX_KEPT_BYTES = 64 << 20;
    private static final Duration KEEPALIVE = Duration.ofSeconds(30);
    private static final Duration KEEPALIVE_TIMEOUT = Duration.ofSeconds(10);

    private final String target;
    private ChannelCredentials credentials = InsecureChannelCredentials.create();
    private int connections = 1;
    private String tenant;
    private Supplier<String> token;
    private String authority;

    private Builder(String target) {
      this.target = Objects.requireNonNull(target, "target");
    }

    /**
     * Encrypts with TLS and trusts what the Java runtime trusts. Without this, or {@link
     * #credentials}, nothing is encrypted.
     *
     * @return this
     */
    public Builder tls() {
      return credentials(TlsChannelCredentials.create());
    }

    /**
     * Sets the credentials of the channel, for an own certificate authority or client certificates.
     *
     * @param credentials for example of {@link TlsChannelCredentials#newBuilder()}
     * @return this
     */
    public Builder credentials(ChannelCredentials credentials) {
      this.credentials = Objects.requireNonNull(credentials, "credentials");
      return this;
    }

    /**
     * Sets the name that the service's certificate must have, where it is not that of the target.
     *
     * @param authority a host name
     * @return this
     */
    public Builder authority(String authority) {
      this.authority = Objects.requireNonNull(authority, "authority");
      return this;
    }

    /**
     * Sets how many connections take the calls in turns. A connection reaches one worker of the
     * service, so have as many as it has workers, or a few more.
     *
     * @param count 1 (the default) to 64
     * @return this
     * @throws IllegalArgumentException if the count is out of its limits
     */
    public Builder connections(int count) {
      if (count < 1 || count > MAX_CONNECTIONS) {
        throw new IllegalArgumentException(
            "connections must be from 1 to " + MAX_CONNECTIONS + ", not " + count);
      }
      this.connections = count;
      return this;
    }

    /**
     * Sets the tenant of calls that do not carry {@code x-tallyboard-tenant} themselves. Without
     * it, the credentials decide.
     *
     * @param tenant 1 to 256 printable ASCII characters
     * @return this
     * @throws IllegalArgumentException if metadata cannot carry the name
     */
    public Builder tenant(String tenant) {
      this.tenant = Names.requireMetadata("tenant", tenant);
      return this;
    }

    /**
     * Sets a bearer token that goes with every call. Use it with TLS: it is a secret.
     *
     * @param token printable ASCII
     * @return this
     * @throws IllegalArgumentException if metadata cannot carry the token
     */
    public Builder token(String token) {
      Names.requireMetadata("token", token);
      return token(() -> token);
    }

    /**
     * Sets where bearer tokens come from, for tokens that expire.
     *
     * @param token asked at the start of every call, on the caller's thread; it must be quick and
     *     may be asked by several threads at once
     * @return this
     */
    public Builder token(Supplier<String> token) {
      this.token = Objects.requireNonNull(token, "token");
      return this;
    }

    /**
     * Opens the channel. Connecting happens in the background with the first calls.
     *
     * @return the channel; close it
     * @throws IllegalArgumentException if nothing can resolve the target
     */
    public TallyboardChannel build() {
      ServiceConfig config = ServiceConfig.load();
      List<ManagedChannel> opened =
          Stream.generate(() -> connection(config.withoutDeadlines())).limit(connections).toList();
      return new TallyboardChannel(opened, new RequestInterceptor(tenant, token, config));
    }

    private ManagedChannel connection(Map<String, ?> config) {
      var builder =
          Grpc.newChannelBuilder(target, credentials)
              .defaultServiceConfig(config)
              .enableRetry()
              .perRpcBufferLimit(MAX_REPEATED_BYTES)
              .retryBufferSize(MAX_KEPT_BYTES)
              .maxInboundMessageSize(MAX_ANSWER_BYTES)
              .keepAliveTime(KEEPALIVE.toSeconds(), TimeUnit.SECONDS)
              .keepAliveTimeout(KEEPALIVE_TIMEOUT.toSeconds(), TimeUnit.SECONDS);
      if (authority != null) {
        builder.overrideAuthority(authority);
      }
      return builder.build();
    }
  }
}
