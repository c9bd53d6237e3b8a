package io.tallyboard;

import io.grpc.Channel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import io.tallyboard.v1.CounterServiceGrpc;
import io.tallyboard.v1.CounterServiceGrpc.CounterServiceStub;
import io.tallyboard.v1.StreamIncrementsRequest;
import io.tallyboard.v1.StreamIncrementsResponse;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.EnumSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Supplier;

/**
 * Counts in batches over one stream, each update exactly once, whatever breaks on the way.
 *
 * <p>A producer numbers its batches and keeps each one in memory until the service has acknowledged
 * it. When the stream breaks it opens another and sends the same batches again, which the service
 * recognises. It waits 50 ms before that, doubling to 3 s while nothing is acknowledged, and at
 * least as long as the service asks for.
 *
 * <p>It ends for good on an error that would come again: {@code INVALID_ARGUMENT}, {@code
 * FAILED_PRECONDITION}, {@code OUT_OF_RANGE}, {@code UNIMPLEMENTED}, {@code UNAUTHENTICATED},
 * {@code PERMISSION_DENIED}, or the reason {@code MESSAGE_TOO_LARGE}. From then on every call that
 * sends or waits throws it.
 *
 * <p>Any thread may use it. One lock guards all of its state, and is never held while gRPC or the
 * caller's code runs. One daemon thread, {@code tallyboard-producer-…}, opens the streams, sends on
 * them and breaks them; threads of gRPC bring the answers and call {@code onFailure}. The thread
 * starts with the producer and ends in {@link #close}, or when the producer ends for good.
 */
public final class Producer implements AutoCloseable {
  /** How many updates a batch may have. */
  public static final int MAX_UPDATES = 10_000;

  /** How many batches the service lets be unacknowledged. */
  public static final int MAX_WINDOW = 256;

  /** How many of the newest failures a producer keeps. */
  public static final int KEPT_FAILURES = 1_000;

  private static final Duration END_PATIENCE = Duration.ofSeconds(5);
  private static final Set<Status.Code> FINAL =
      EnumSet.of(
          Status.Code.INVALID_ARGUMENT,
          Status.Code.FAILED_PRECONDITION,
          Status.Code.OUT_OF_RANGE,
          Status.Code.UNIMPLEMENTED,
          Status.Code.UNAUTHENTICATED,
          Status.Code.PERMISSION_DENIED);

  private static final System.Logger LOG = System.getLogger(Producer.class.getName());

  private final CounterServiceStub stub;
  private final String producerId;
  private final long timeout;
  private final long stallTimeout;
  private final long idleTimeout;
  private final Consumer<IncrementFailure> onFailure;
  private final Thread thread;

  private final ReentrantLock lock = new ReentrantLock();
  // Signalled at every change of what the lock guards, which is all that follows.
  private final Condition changed = lock.newCondition();
  private final Batches batches;
  private final Backoff backoff = new Backoff();
  private final ArrayDeque<IncrementFailure> failures = new ArrayDeque<>();
  // When something was acknowledged last, or a stream or the wait for an acknowledgement began.
  private long progressAt = System.nanoTime();
  private long streamsOpened;
  private TallyboardError brokenBy;
  private TallyboardError refusedBy;
  // Takes no more batches.
  private boolean isClosing;
  // Ends its stream and its thread, whatever is pending.
  private boolean isStopping;
  private long stopBy;

  private Producer(Builder builder) {
    this.producerId = builder.producerId;
    this.stub = builder.stub();
    this.timeout = Backoff.nanos(builder.timeout);
    this.stallTimeout = Backoff.nanos(builder.stallTimeout);
    this.idleTimeout = Backoff.nanos(builder.idleTimeout);
    this.onFailure = builder.onFailure;
    this.batches = new Batches(producerId, builder.window, builder.firstSequence);
    String name = producerId.substring(0, Math.min(8, producerId.length()));
    this.thread = new Thread(this::run, "tallyboard-producer-" + name);
    this.thread.setDaemon(true);
  }

  /**
   * Starts a producer with options.
   *
   * @param channel to the service, best a {@link TallyboardChannel}; the producer does not close it
   * @return a builder with every option at its default
   */
  public static Builder builder(Channel channel) {
    return new Builder(channel);
  }

  /**
   * Opens a producer with every option at its default.
   *
   * @param channel to the service, best a {@link TallyboardChannel}; the producer does not close it
   * @return the producer; close it
   */
  public static Producer open(Channel channel) {
    return builder(channel).open();
  }

  /**
   * Sends one batch. Blocks while the window is full, at most for the producer's timeout.
   *
   * @param counters the names, each of 1 to 256 bytes of UTF-8: one for each delta, or one for all
   * @param deltas what to add, 1 to 10,000 values that are not 0
   * @return the sequence of the batch, by which {@link #failures} name it
   * @throws IllegalArgumentException if the batch cannot be sent; it was not taken
   * @throws TallyboardError if it was not taken: {@code DEADLINE_EXCEEDED} when there was no room
   *     in time, {@code CANCELLED} when the thread was interrupted, {@code FAILED_PRECONDITION}
   *     when the producer is closed, or the error that ended it for good
   */
  public long send(List<String> counters, long... deltas) {
    StreamIncrementsRequest.Builder batch = Batches.checked(counters, deltas);
    lock.lock();
    try {
      await(this::hasRoom, timeout, this::windowFull);
      if (batches.isEmpty()) {
        progressAt = System.nanoTime();
      }
      long sequence = batches.append(batch);
      changed.signalAll();
      return sequence;
    } finally {
      lock.unlock();
    }
  }

  /**
   * Waits until everything sent so far is acknowledged.
   *
   * @param timeout how long to wait at most
   * @throws TallyboardError {@code DEADLINE_EXCEEDED} with the reason {@code OUTCOME_UNKNOWN} when
   *     the time is over, caused by what broke the last stream. What is left is sent again as
   *     often as it takes and still counts once: do not send it a second time. {@code CANCELLED}
   *     when the thread was interrupted, {@code FAILED_PRECONDITION} when the producer was closed
   *     before, or the error that ended it for good
   */
  public void flush(Duration timeout) {
    lock.lock();
    try {
      long last = batches.last();
      await(() -> isAcknowledged(last), Backoff.nanos(timeout), this::unacknowledged);
    } finally {
      lock.unlock();
    }
  }

  /**
   * Waits for what is pending as {@link #flush} does, for the producer's timeout, then ends the
   * stream and the thread. Does nothing the second time.
   *
   * @throws TallyboardError as {@link #flush}. The producer is closed all the same, and does not
   *     send again what is still pending
   */
  @Override
  public void close() {
    lock.lock();
    try {
      if (!isStopping) {
        isClosing = true;
        await(() -> isAcknowledged(batches.last()), timeout, this::unacknowledged);
      }
    } finally {
      stop();
      lock.unlock();
      join();
    }
  }

  /**
   * The name under which the service knows this producer.
   *
   * @return its id
   */
  public String producerId() {
    return producerId;
  }

  /**
   * How many updates are acknowledged: they counted, and durably so.
   *
   * @return a number of updates, not of batches
   */
  public long acknowledged() {
    return guarded(batches::counted);
  }

  /**
   * Every batch with this sequence or a smaller one is acknowledged.
   *
   * @return a sequence; one less than the first before any acknowledgement
   */
  public long acknowledgedSequence() {
    return guarded(batches::acknowledgedThrough);
  }

  /**
   * How many updates were sent and are not acknowledged yet.
   *
   * @return a number of updates, not of batches
   */
  public long pending() {
    return guarded(batches::pending);
  }

  /**
   * How many updates could not count; {@link #failures} says why.
   *
   * @return a number of updates
   */
  public long failed() {
    return guarded(batches::failed);
  }

  /**
   * The newest 1,000 failures, oldest first; a copy.
   *
   * @return those that are known at this moment
   */
  public List<IncrementFailure> failures() {
    return guarded(() -> List.copyOf(failures));
  }

  /**
   * How many streams it took so far: 1 if nothing ever broke and the producer was never idle.
   *
   * @return 0 before the first batch
   */
  public long streamsOpened() {
    return guarded(() -> streamsOpened);
  }

  private <T> T guarded(Supplier<T> value) {
    lock.lock();
    try {
      return value.get();
    } finally {
      lock.unlock();
    }
  }

  private void update(Runnable change) {
    lock.lock();
    try {
      change.run();
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  /** Waits, with the lock, until something is so; throws what {@code tooLate} gives after that. */
  private void await(BooleanSupplier isSo, long timeout, Supplier<TallyboardError> tooLate) {
    long deadline = System.nanoTime() + timeout;
    while (!isSo.getAsBoolean()) {
      long left = deadline - System.nanoTime();
      if (left <= 0) {
        throw tooLate.get();
      }
      try {
        changed.awaitNanos(left);
      } catch (InterruptedException error) {
        Thread.currentThread().interrupt();
        throw error(Status.Code.CANCELLED, "", "the thread was interrupted", error);
      }
    }
  }

  private boolean hasRoom() {
    requireUsable();
    if (isClosing) {
      throw closed();
    }
    return !batches.isFull();
  }

  private boolean isAcknowledged(long sequence) {
    requireUsable();
    boolean is = batches.acknowledgedThrough() >= sequence;
    if (!is && isStopping) {
      throw closed();
    }
    return is;
  }

  private void requireUsable() {
    if (refusedBy != null) {
      throw refusedBy.again();
    }
  }

  private TallyboardError windowFull() {
    String text = "too many batches are unacknowledged to take another";
    return error(Status.Code.DEADLINE_EXCEEDED, "", text, brokenBy);
  }

  private TallyboardError unacknowledged() {
    String text = batches.pending() + " updates were not acknowledged in time";
    return error(Status.Code.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN", text, brokenBy);
  }

  private static TallyboardError closed() {
    return error(Status.Code.FAILED_PRECONDITION, "", "the producer is closed", null);
  }

  private static TallyboardError error(
      Status.Code code, String reason, String text, Throwable cause) {
    return new TallyboardError(code, reason, text, cause);
  }

  /** With the lock. */
  private void stop() {
    if (!isStopping) {
      isStopping = true;
      stopBy = System.nanoTime() + END_PATIENCE.toNanos();
      changed.signalAll();
    }
  }

  private void join() {
    try {
      // The thread cuts its stream at stopBy, and then has only to hear of the end.
      thread.join(2 * END_PATIENCE.toMillis());
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
    }
  }

  /** The producer's thread: one stream after the other. */
  private void run() {
    try {
      while (awaitWork()) {
        TallyboardError error = new Stream().serve();
        if (error != null && !goesOnAfter(error)) {
          return;
        }
      }
    } catch (InterruptedException | RuntimeException | Error fault) {
      // Whoever waits must hear of it, since nobody is left to send.
      refuse(error(Status.Code.INTERNAL, "", "the producer's thread ended: " + fault, fault));
    }
  }

  private boolean awaitWork() throws InterruptedException {
    lock.lock();
    try {
      while (!isStopping && batches.isEmpty()) {
        changed.await();
      }
      return !isStopping;
    } finally {
      lock.unlock();
    }
  }

  private boolean goesOnAfter(TallyboardError error) throws InterruptedException {
    if (FINAL.contains(error.code()) || error.reason().equals("MESSAGE_TOO_LARGE")) {
      refuse(error);
      return false;
    }
    lock.lock();
    try {
      brokenBy = error;
      long until = System.nanoTime() + backoff.delay(error.retryDelay());
      for (long left; !isStopping && (left = until - System.nanoTime()) > 0; ) {
        changed.awaitNanos(left);
      }
      return true;
    } finally {
      lock.unlock();
    }
  }

  private void refuse(TallyboardError error) {
    update(() -> refusedBy = error);
  }

  /** One stream, from its start to its end. The producer's lock guards its fields, too. */
  private final class Stream
      implements ClientResponseObserver<StreamIncrementsRequest, StreamIncrementsResponse> {
    // Set before the stream starts, and then never again.
    private ClientCallStreamObserver<StreamIncrementsRequest> call;
    private long sent;
    private boolean isHalfClosed;
    private boolean isOver;
    private TallyboardError cutBy;
    private TallyboardError endedBy;

    /** Sends until the stream is over; gives what broke it, or null if nothing did. */
    TallyboardError serve() throws InterruptedException {
      open();
      try {
        return sendUntilOver();
      } catch (InterruptedException | RuntimeException | Error fault) {
        // Nobody would end it otherwise.
        call.cancel("the producer's thread ended", fault);
        throw fault;
      }
    }

    private TallyboardError sendUntilOver() throws InterruptedException {
      lock.lock();
      try {
        while (!isOver) {
          Runnable step = nextStep();
          if (step == null) {
            changed.awaitNanos(untilNextLook());
          } else {
            runUnlocked(step);
          }
        }
        return cutBy == null ? endedBy : cutBy;
      } finally {
        lock.unlock();
      }
    }

    private void open() {
      update(
          () -> {
            streamsOpened++;
            progressAt = System.nanoTime();
          });
      try {
        stub.streamIncrements(this);
      } catch (IllegalStateException error) {
        String text = "the channel cannot be used: " + error.getMessage();
        end(error(Status.Code.FAILED_PRECONDITION, "", text, error));
      } catch (RuntimeException error) {
        // Of whoever makes tokens or intercepts calls: it may be better the next time.
        end(TallyboardError.of(error));
      }
    }

    private void runUnlocked(Runnable step) {
      lock.unlock();
      try {
        step.run();
      } finally {
        lock.lock();
      }
    }

    /** What to do on the stream now, without the lock; null: wait for a change. */
    private Runnable nextStep() {
      long now = System.nanoTime();
      if (cutBy != null) {
        return null;
      }
      cutBy = reasonToCut(now);
      if (cutBy != null) {
        return () -> call.cancel(cutBy.getMessage(), null);
      }
      if (isHalfClosed) {
        return null;
      }
      if (batches.isEmpty()) {
        isHalfClosed = isStopping || now - progressAt >= idleTimeout;
        return isHalfClosed ? call::onCompleted : null;
      }
      StreamIncrementsRequest batch = batches.after(sent);
      // A stream that is not ready would only pile up what it is given.
      if (batch == null || !call.isReady()) {
        return null;
      }
      sent = batch.getSequence();
      return () -> call.onNext(batch);
    }

    private TallyboardError reasonToCut(long now) {
      if (isStopping && (!batches.isEmpty() || now - stopBy >= 0)) {
        return closed();
      }
      if (!batches.isEmpty() && now - progressAt >= stallTimeout) {
        String text = "nothing was acknowledged for " + Duration.ofNanos(stallTimeout);
        return error(Status.Code.UNAVAILABLE, "", text, null);
      }
      return null;
    }

    private long untilNextLook() {
      long now = System.nanoTime();
      long quiet = now - progressAt;
      long wait = batches.isEmpty() ? idleTimeout - quiet : stallTimeout - quiet;
      if (isStopping) {
        wait = stopBy - now;
      }
      // A time that is past has led to its step already, and the stream's end will signal.
      return wait > 0 ? wait : END_PATIENCE.toNanos();
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<StreamIncrementsRequest> call) {
      this.call = call;
      call.setOnReadyHandler(() -> update(() -> {}));
    }

    @Override
    public void onNext(StreamIncrementsResponse response) {
      List<IncrementFailure> found = acknowledge(response);
      if (onFailure != null) {
        found.forEach(this::report);
      }
    }

    @Override
    public void onError(Throwable error) {
      end(TallyboardError.of(error));
    }

    @Override
    public void onCompleted() {
      String text = "the service ended the stream";
      boolean wasAsked = guarded(() -> isHalfClosed);
      end(wasAsked ? null : error(Status.Code.UNAVAILABLE, "", text, null));
    }

    private void end(TallyboardError error) {
      update(
          () -> {
            isOver = true;
            endedBy = error;
          });
    }

    private List<IncrementFailure> acknowledge(StreamIncrementsResponse response) {
      lock.lock();
      try {
        long before = batches.acknowledgedThrough();
        List<IncrementFailure> found = batches.acknowledge(response);
        if (batches.acknowledgedThrough() > before) {
          progressAt = System.nanoTime();
          backoff.reset();
        }
        for (IncrementFailure failure : found) {
          if (failures.size() == KEPT_FAILURES) {
            failures.removeFirst();
          }
          failures.addLast(failure);
        }
        changed.signalAll();
        return found;
      } finally {
        lock.unlock();
      }
    }

    private void report(IncrementFailure failure) {
      try {
        onFailure.accept(failure);
      } catch (RuntimeException error) {
        // What is wrong with the callback is no reason to lose the stream.
        LOG.log(System.Logger.Level.WARNING, "onFailure threw", error);
      }
    }
  }

  /** The options of a producer. Not for several threads at once. */
  public static final class Builder {
    private final Channel channel;
    private String tenant;
    private String producerId = UUID.randomUUID().toString();
    private long firstSequence = 1;
    private int window = 64;
    private Duration timeout = Duration.ofSeconds(60);
    private Duration stallTimeout = Duration.ofSeconds(30);
    private Duration idleTimeout = Duration.ofSeconds(60);
    private Consumer<IncrementFailure> onFailure;

    private Builder(Channel channel) {
      this.channel = Objects.requireNonNull(channel, "channel");
    }

    /**
     * Sets whose counters they are. Without it, that of the channel, or of the credentials.
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
     * Sets the name of the producer, which nobody else may use at the same time. An id that was
     * used before needs a {@link #firstSequence}.
     *
     * @param producerId 1 to 256 bytes of UTF-8; a random UUID by default
     * @return this
     * @throws IllegalArgumentException if it is empty, too long or not Unicode
     */
    public Builder producerId(String producerId) {
      this.producerId = Names.require("producerId", producerId);
      return this;
    }

    /**
     * Sets the number of the first batch. To go on for a producer that was lost with its process:
     * that of its oldest batch without an acknowledgement; then send the same batches again.
     *
     * @param firstSequence 1 (the default) or more
     * @return this
     * @throws IllegalArgumentException if it is less than 1
     */
    public Builder firstSequence(long firstSequence) {
      if (firstSequence < 1) {
        throw new IllegalArgumentException("firstSequence must be 1 or more");
      }
      this.firstSequence = firstSequence;
      return this;
    }

    /**
     * Sets how many batches may be unacknowledged. With the size of the batches it bounds memory.
     *
     * @param window 1 to 256; 64 by default
     * @return this
     * @throws IllegalArgumentException if it is out of its limits
     */
    public Builder window(int window) {
      if (window < 1 || window > MAX_WINDOW) {
        throw new IllegalArgumentException("window must be from 1 to " + MAX_WINDOW);
      }
      this.window = window;
      return this;
    }

    /**
     * Sets how long {@link Producer#send} waits for room, and {@link Producer#close} for what is
     * pending.
     *
     * @param timeout 60 seconds by default; zero does not wait
     * @return this
     */
    public Builder timeout(Duration timeout) {
      this.timeout = Objects.requireNonNull(timeout, "timeout");
      return this;
    }

    /**
     * Sets after how long without an acknowledgement a stream counts as broken, while some are
     * pending.
     *
     * @param stallTimeout 30 seconds by default
     * @return this
     * @throws IllegalArgumentException if it is not above zero
     */
    public Builder stallTimeout(Duration stallTimeout) {
      this.stallTimeout = positive("stallTimeout", stallTimeout);
      return this;
    }

    /**
     * Sets after how long without work the stream is closed until there is some.
     *
     * @param idleTimeout 60 seconds by default
     * @return this
     * @throws IllegalArgumentException if it is not above zero
     */
    public Builder idleTimeout(Duration idleTimeout) {
      this.idleTimeout = positive("idleTimeout", idleTimeout);
      return this;
    }

    /**
     * Sets who hears of each failure.
     *
     * @param onFailure called on a thread of gRPC, one failure after the other; it must be quick and
     *     not send, flush or close, because the next acknowledgement waits for it
     * @return this
     */
    public Builder onFailure(Consumer<IncrementFailure> onFailure) {
      this.onFailure = Objects.requireNonNull(onFailure, "onFailure");
      return this;
    }

    /**
     * Opens the producer and starts its thread. The first stream opens with the first batch.
     *
     * @return the producer; close it
     */
    public Producer open() {
      Producer producer = new Producer(this);
      producer.thread.start();
      return producer;
    }

    private CounterServiceStub stub() {
      CounterServiceStub stub = CounterServiceGrpc.newStub(channel);
      if (tenant == null) {
        return stub;
      }
      Metadata headers = new Metadata();
      headers.put(RequestInterceptor.TENANT, tenant);
      return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    }

    private static Duration positive(String what, Duration duration) {
      if (duration.isNegative() || duration.isZero()) {
        throw new IllegalArgumentException(what + " must be above zero");
      }
      return duration;
    }
  }
}
