package io.tallyboard;

import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.ServerInterceptors;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import io.tallyboard.v1.CounterServiceGrpc;
import io.tallyboard.v1.GetCounterRequest;
import io.tallyboard.v1.GetCounterResponse;
import io.tallyboard.v1.IncrementRequest;
import io.tallyboard.v1.IncrementResponse;
import io.tallyboard.v1.SequenceFailure;
import io.tallyboard.v1.StreamIncrementsRequest;
import io.tallyboard.v1.StreamIncrementsResponse;
import io.tallyboard.v1.WatchCountersRequest;
import io.tallyboard.v1.WatchCountersResponse;
import java.io.IOException;
import java.net.SocketAddress;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.TimeUnit;

/**
 * A service on a port of its own that counts as the real one does, and fails as a test wants it.
 *
 * <p>What a test may set and read is guarded by the service itself.
 */
final class FakeService extends CounterServiceGrpc.CounterServiceImplBase implements AutoCloseable {
  /** What becomes of the next batches. */
  enum Fate {
    /** Applied and acknowledged. */
    ACKNOWLEDGE,
    /** Applied; nobody hears of it until a later batch, or {@link #acknowledgeAll}. */
    KEEP_SILENT,
    /** Applied; the stream ends with the error of {@link #failWith}. */
    BREAK,
    /** Applied; the stream ends with OK, though nobody asked for it. */
    COMPLETE
  }

  static final String BAD_COUNTER = "full";
  private static final Context.Key<Metadata> HEADERS = Context.key("headers");
  private static final Context.Key<SocketAddress> PEER = Context.key("peer");

  private final Server server;
  private final Map<String, Long> totals = new HashMap<>();
  private final Set<String> applied = new HashSet<>();
  private final List<List<StreamIncrementsRequest>> streams = new ArrayList<>();
  private final List<IncrementRequest> increments = new ArrayList<>();
  private final Queue<StatusRuntimeException> incrementErrors = new ArrayDeque<>();
  private final Set<SocketAddress> peers = new HashSet<>();
  private final Queue<Fate> fates = new ArrayDeque<>();
  private Fate usualFate = Fate.ACKNOWLEDGE;
  private StatusRuntimeException error = Status.UNAVAILABLE.asRuntimeException();
  private StreamObserver<StreamIncrementsResponse> answers;
  private long highest;
  private int completed;
  private int cancelled;
  private Metadata lastHeaders;
  private Deadline lastDeadline;

  /** Starts on a port, or on a free one for 0. */
  FakeService(int port) throws IOException {
    server =
        Grpc.newServerBuilderForPort(port, InsecureServerCredentials.create())
            .addService(ServerInterceptors.intercept(this, new KeepsHeaders()))
            .build()
            .start();
  }

  FakeService() throws IOException {
    this(0);
  }

  String target() {
    return "127.0.0.1:" + server.getPort();
  }

  int port() {
    return server.getPort();
  }

  /** What becomes of the next batches, one fate each; those after them are acknowledged. */
  synchronized void next(Fate... fates) {
    this.fates.addAll(List.of(fates));
  }

  /** What becomes of all batches that have no fate of their own. */
  synchronized void usually(Fate fate) {
    usualFate = fate;
  }

  synchronized void failWith(StatusRuntimeException error) {
    this.error = error;
  }

  synchronized void failIncrementsWith(StatusRuntimeException... errors) {
    incrementErrors.addAll(List.of(errors));
  }

  synchronized void acknowledgeAll() {
    answers.onNext(StreamIncrementsResponse.newBuilder().setAcknowledgedSequence(highest).build());
  }

  synchronized long total(String counter) {
    return totals.getOrDefault(counter, 0L);
  }

  /** The batches of each stream, as they came. */
  synchronized List<List<StreamIncrementsRequest>> streams() {
    return streams.stream().map(List::copyOf).toList();
  }

  synchronized int batches() {
    return streams.stream().mapToInt(List::size).sum();
  }

  synchronized List<IncrementRequest> increments() {
    return List.copyOf(increments);
  }

  /** How many connections increments came from. */
  synchronized int peers() {
    return peers.size();
  }

  synchronized int completed() {
    return completed;
  }

  synchronized int cancelled() {
    return cancelled;
  }

  synchronized Metadata lastHeaders() {
    return lastHeaders;
  }

  /** That of the last increment or watch; null if it had none. */
  synchronized Deadline lastDeadline() {
    return lastDeadline;
  }

  @Override
  public synchronized void increment(
      IncrementRequest request, StreamObserver<IncrementResponse> answers) {
    increments.add(request);
    peers.add(PEER.get());
    lastDeadline = Context.current().getDeadline();
    lastHeaders = HEADERS.get();
    StatusRuntimeException wanted = incrementErrors.poll();
    if (wanted != null) {
      answers.onError(wanted);
      return;
    }
    answers.onNext(IncrementResponse.getDefaultInstance());
    answers.onCompleted();
  }

  @Override
  public synchronized void watchCounters(
      WatchCountersRequest request, StreamObserver<WatchCountersResponse> answers) {
    lastDeadline = Context.current().getDeadline();
    answers.onCompleted();
  }

  @Override
  public synchronized void getCounter(
      GetCounterRequest request, StreamObserver<GetCounterResponse> answers) {
    answers.onNext(GetCounterResponse.getDefaultInstance());
    answers.onCompleted();
  }

  @Override
  public synchronized StreamObserver<StreamIncrementsRequest> streamIncrements(
      StreamObserver<StreamIncrementsResponse> answers) {
    this.answers = answers;
    lastHeaders = HEADERS.get();
    List<StreamIncrementsRequest> received = new ArrayList<>();
    streams.add(received);
    return new StreamObserver<>() {
      @Override
      public void onNext(StreamIncrementsRequest batch) {
        take(batch, received, answers);
      }

      @Override
      public void onError(Throwable gone) {
        synchronized (FakeService.this) {
          cancelled++;
        }
      }

      @Override
      public void onCompleted() {
        synchronized (FakeService.this) {
          completed++;
        }
        answers.onCompleted();
      }
    };
  }

  private synchronized void take(
      StreamIncrementsRequest batch,
      List<StreamIncrementsRequest> received,
      StreamObserver<StreamIncrementsResponse> answers) {
    received.add(batch);
    highest = Math.max(highest, batch.getSequence());
    if (applied.add(batch.getProducerId() + batch.getSequence())) {
      for (int i = 0; i < batch.getDeltasCount(); i++) {
        String counter = batch.getCounters(batch.getCountersCount() == 1 ? 0 : i);
        totals.merge(counter, batch.getDeltas(i), Long::sum);
      }
    }
    Fate fate = fates.isEmpty() ? usualFate : fates.remove();
    switch (fate) {
      case ACKNOWLEDGE -> answers.onNext(acknowledgement(batch));
      case BREAK -> answers.onError(error);
      case COMPLETE -> answers.onCompleted();
      case KEEP_SILENT -> {}
    }
  }

  private static StreamIncrementsResponse acknowledgement(StreamIncrementsRequest batch) {
    var answer = StreamIncrementsResponse.newBuilder().setAcknowledgedSequence(batch.getSequence());
    if (batch.getCountersList().contains(BAD_COUNTER)) {
      answer.addFailures(
          SequenceFailure.newBuilder()
              .setSequence(batch.getSequence())
              .setCounter(BAD_COUNTER)
              .setStatus(Errors.status(Status.Code.OUT_OF_RANGE, "COUNTER_OUT_OF_RANGE")));
    }
    return answer.build();
  }

  @Override
  public void close() throws InterruptedException {
    server.shutdownNow().awaitTermination(Waiting.PATIENCE.toSeconds(), TimeUnit.SECONDS);
  }

  private static final class KeepsHeaders implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      SocketAddress peer = call.getAttributes().get(Grpc.TRANSPORT_ATTR_REMOTE_ADDR);
      Context context = Context.current().withValues(HEADERS, headers, PEER, peer);
      return Contexts.interceptCall(context, call, headers, next);
    }
  }
}
