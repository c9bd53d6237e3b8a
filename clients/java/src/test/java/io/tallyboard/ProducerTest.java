package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import io.tallyboard.FakeService.Fate;
import io.tallyboard.v1.StreamIncrementsRequest;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@Timeout(60)
class ProducerTest {
  private static final List<String> POST = List.of("post:42");
  private static final Duration SHORT = Duration.ofMillis(50);

  private FakeService service;
  private TallyboardChannel channel;

  @BeforeEach
  void start() throws Exception {
    service = new FakeService();
    channel = Tallyboard.connect(service.target());
  }

  @AfterEach
  void stop() throws Exception {
    channel.close();
    service.close();
  }

  @Test
  void batchesAreNumberedAndCounted() {
    try (Producer producer = Producer.open(channel)) {
      assertEquals(1, producer.send(POST, 1, 2));
      assertEquals(2, producer.send(List.of("post:42", "post:43"), 4, 8));
      producer.flush(Waiting.PATIENCE);
      assertEquals(4, producer.acknowledged());
      assertEquals(2, producer.acknowledgedSequence());
      assertEquals(0, producer.pending());
      assertEquals(1, producer.streamsOpened());
    }
    assertEquals(7, service.total("post:42"));
    assertEquals(8, service.total("post:43"));
  }

  @Test
  void theTenantOfAProducerGoesWithItsStream() {
    try (Producer producer = Producer.builder(channel).tenant("acme").open()) {
      producer.send(POST, 1);
      producer.flush(Waiting.PATIENCE);
    }
    assertEquals("acme", service.lastHeaders().get(RequestInterceptor.TENANT));
  }

  @Test
  void whatIsNotAcknowledgedIsSentAgainAsItWas() {
    service.next(Fate.ACKNOWLEDGE, Fate.KEEP_SILENT, Fate.BREAK);
    try (Producer producer = Producer.open(channel)) {
      for (long delta : new long[] {1, 2, 4}) {
        producer.send(POST, delta);
      }
      producer.flush(Waiting.PATIENCE);
      assertEquals(3, producer.acknowledged());
      assertEquals(2, producer.streamsOpened());
    }
    List<List<StreamIncrementsRequest>> streams = service.streams();
    assertEquals(streams.get(0).subList(1, 3), streams.get(1));
    assertEquals(7, service.total("post:42"));
  }

  @Test
  void manyBreaksLoseAndDoubleNothing() {
    try (Producer producer = Producer.builder(channel).window(4).open()) {
      for (int i = 0; i < 30; i++) {
        if (i % 6 == 0) {
          service.next(Fate.KEEP_SILENT, Fate.BREAK);
        }
        producer.send(POST, 1);
      }
      producer.flush(Waiting.PATIENCE);
      assertTrue(producer.streamsOpened() > 3, "streams: " + producer.streamsOpened());
    }
    assertEquals(30, service.total("post:42"));
  }

  @Test
  void aServiceThatIsStartedAgainGetsTheRest() throws Exception {
    service.next(Fate.KEEP_SILENT);
    try (Producer producer = Producer.open(channel)) {
      producer.send(POST, 5);
      Waiting.until(() -> service.batches() == 1, "the batch");
      int port = service.port();
      service.close();
      service = new FakeService(port);
      producer.flush(Waiting.PATIENCE);
    }
    assertEquals(5, service.total("post:42"));
  }

  @Test
  void anEndThatNobodyAskedForIsABreak() {
    service.next(Fate.COMPLETE);
    try (Producer producer = Producer.open(channel)) {
      producer.send(POST, 5);
      producer.flush(Waiting.PATIENCE);
      assertEquals(2, producer.streamsOpened());
    }
    assertEquals(5, service.total("post:42"));
  }

  @Test
  void aSilentStreamIsReplaced() {
    service.next(Fate.KEEP_SILENT);
    try (Producer producer = Producer.builder(channel).stallTimeout(SHORT).open()) {
      producer.send(POST, 5);
      producer.flush(Waiting.PATIENCE);
      // A slow machine may take more.
      assertTrue(producer.streamsOpened() >= 2, "streams: " + producer.streamsOpened());
    }
    assertEquals(5, service.total("post:42"));
  }

  @Test
  void theNextStreamWaitsAsLongAsTheServiceAsks() {
    Duration delay = Duration.ofMillis(400);
    service.failWith(
        StatusProto.toStatusRuntimeException(
            Errors.status(Status.Code.UNAVAILABLE, "OVERLOADED", Errors.retryAfter(delay))));
    service.next(Fate.BREAK);
    long start = System.nanoTime();
    try (Producer producer = Producer.open(channel)) {
      producer.send(POST, 5);
      producer.flush(Waiting.PATIENCE);
    }
    assertTrue(System.nanoTime() - start >= delay.toNanos());
  }

  @Test
  void aFullWindowRefusesAfterItsTimeout() {
    service.usually(Fate.KEEP_SILENT);
    try (Producer producer = Producer.builder(channel).window(2).timeout(SHORT).open()) {
      producer.send(POST, 1);
      producer.send(POST, 2);
      TallyboardError full = assertThrows(TallyboardError.class, () -> producer.send(POST, 4));
      assertEquals(Status.Code.DEADLINE_EXCEEDED, full.code());
      assertEquals(2, producer.pending());
      Waiting.until(() -> service.batches() == 2, "both batches");
      service.acknowledgeAll();
      producer.flush(Waiting.PATIENCE);
    }
    assertEquals(3, service.total("post:42"));
  }

  @Test
  void aFullWindowBlocksUntilThereIsRoom() throws Exception {
    service.usually(Fate.KEEP_SILENT);
    try (Producer producer = Producer.builder(channel).window(1).open()) {
      producer.send(POST, 1);
      FutureTask<Long> second = new FutureTask<>(() -> producer.send(POST, 2));
      Thread sender = new Thread(second);
      sender.start();
      Waiting.until(() -> sender.getState() == Thread.State.TIMED_WAITING, "a blocked sender");
      Waiting.until(() -> service.batches() == 1, "the first batch");
      service.usually(Fate.ACKNOWLEDGE);
      service.acknowledgeAll();
      assertEquals(2, second.get(Waiting.PATIENCE.toSeconds(), TimeUnit.SECONDS));
    }
    assertEquals(3, service.total("post:42"));
  }

  @Test
  void anInterruptedSenderSendsNothing() throws Exception {
    service.usually(Fate.KEEP_SILENT);
    try (Producer producer = Producer.builder(channel).window(1).open()) {
      producer.send(POST, 1);
      Thread.currentThread().interrupt();
      TallyboardError error = assertThrows(TallyboardError.class, () -> producer.send(POST, 2));
      assertTrue(Thread.interrupted());
      assertEquals(Status.Code.CANCELLED, error.code());
      assertEquals(1, producer.pending());
      Waiting.until(() -> service.batches() == 1, "the batch");
      service.acknowledgeAll();
    }
  }

  @Test
  void aFlushThatIsTooLateLeavesAllPending() {
    service.usually(Fate.KEEP_SILENT);
    try (Producer producer = Producer.open(channel)) {
      producer.send(POST, 1);
      TallyboardError late = assertThrows(TallyboardError.class, () -> producer.flush(SHORT));
      assertEquals("OUTCOME_UNKNOWN", late.reason());
      assertEquals(1, producer.pending());
      Waiting.until(() -> service.batches() == 1, "the batch");
      service.acknowledgeAll();
      producer.flush(Waiting.PATIENCE);
    }
  }

  @Test
  void whatCanNotCountIsReported() {
    List<IncrementFailure> heard = new CopyOnWriteArrayList<>();
    String bad = FakeService.BAD_COUNTER;
    try (Producer producer = Producer.builder(channel).onFailure(heard::add).open()) {
      producer.send(List.of(bad, "post:42", bad), 1, 2, 4);
      producer.send(List.of(bad), 1, 2);
      producer.flush(Waiting.PATIENCE);
      assertEquals(1, producer.acknowledged());
      assertEquals(4, producer.failed());
      assertEquals(0, producer.pending());
      List<IncrementFailure> kept = producer.failures();
      assertEquals(List.of(1L, 2L), kept.stream().map(IncrementFailure::sequence).toList());
      assertEquals(List.of(bad, bad), kept.stream().map(IncrementFailure::counter).toList());
      assertEquals(List.of(2, 2), kept.stream().map(IncrementFailure::updates).toList());
      assertEquals("COUNTER_OUT_OF_RANGE", kept.get(0).error().reason());
      Waiting.until(() -> heard.equals(kept), "the callback");
    }
  }

  @Test
  void aCallbackThatThrowsDoesNotBreakTheStream() {
    try (Producer producer = Producer.builder(channel).onFailure(failure -> boom()).open()) {
      producer.send(List.of(FakeService.BAD_COUNTER), 1);
      producer.send(POST, 1);
      producer.flush(Waiting.PATIENCE);
      assertEquals(1, producer.streamsOpened());
    }
  }

  private static void boom() {
    throw new IllegalStateException("the callback is at fault, as it should be here");
  }

  @Test
  void onlyTheNewestFailuresAreKept() {
    try (Producer producer = Producer.open(channel)) {
      for (int i = 0; i <= Producer.KEPT_FAILURES; i++) {
        producer.send(List.of(FakeService.BAD_COUNTER), 1);
      }
      producer.flush(Waiting.PATIENCE);
      assertEquals(Producer.KEPT_FAILURES, producer.failures().size());
      assertEquals(2, producer.failures().get(0).sequence());
    }
  }

  @ParameterizedTest
  @EnumSource(
      value = Status.Code.class,
      names = {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED"
      })
  void anErrorThatWouldComeAgainIsTheEnd(Status.Code code) {
    service.failWith(code.toStatus().asRuntimeException());
    service.next(Fate.BREAK);
    Producer producer = Producer.open(channel);
    producer.send(POST, 1);
    for (Runnable use :
        List.<Runnable>of(
            () -> producer.flush(Waiting.PATIENCE),
            () -> producer.send(POST, 1),
            producer::close)) {
      assertEquals(code, assertThrows(TallyboardError.class, use::run).code());
    }
    assertEquals(1, producer.streamsOpened());
  }

  @Test
  void aTooLargeMessageIsTheEnd() {
    service.failWith(
        StatusProto.toStatusRuntimeException(
            Errors.status(Status.Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")));
    service.next(Fate.BREAK);
    Producer producer = Producer.open(channel);
    producer.send(POST, 1);
    assertEquals(
        "MESSAGE_TOO_LARGE",
        assertThrows(TallyboardError.class, () -> producer.flush(Waiting.PATIENCE)).reason());
  }

  @Test
  void aClosedChannelIsTheEnd() {
    channel.close();
    Producer producer = Producer.open(channel);
    producer.send(POST, 1);
    TallyboardError error =
        assertThrows(TallyboardError.class, () -> producer.flush(Waiting.PATIENCE));
    assertEquals(Status.Code.FAILED_PRECONDITION, error.code());
  }

  @Test
  void closingWaitsForTheRestAndEndsTheStream() {
    Producer producer = Producer.open(channel);
    producer.send(POST, 1);
    producer.close();
    producer.close();
    assertEquals(1, producer.acknowledged());
    assertEquals(1, service.completed());
    assertFalse(isRunning(producer));
    TallyboardError closed = assertThrows(TallyboardError.class, () -> producer.send(POST, 1));
    assertEquals(Status.Code.FAILED_PRECONDITION, closed.code());
  }

  @Test
  void closingGivesUpAfterItsTimeout() {
    service.usually(Fate.KEEP_SILENT);
    Producer producer = Producer.builder(channel).timeout(SHORT).open();
    producer.send(POST, 1);
    Waiting.until(() -> service.batches() == 1, "the batch");
    TallyboardError late = assertThrows(TallyboardError.class, producer::close);
    assertEquals("OUTCOME_UNKNOWN", late.reason());
    assertFalse(isRunning(producer));
    Waiting.until(() -> service.cancelled() == 1, "the end of the stream");
  }

  private static boolean isRunning(Producer producer) {
    String name = "tallyboard-producer-" + producer.producerId().substring(0, 8);
    return Thread.getAllStackTraces().keySet().stream().anyMatch(t -> t.getName().equals(name));
  }

  @Test
  void anIdleStreamIsClosedUntilThereIsWork() {
    try (Producer producer = Producer.builder(channel).idleTimeout(SHORT).open()) {
      producer.send(POST, 1);
      Waiting.until(() -> service.completed() == 1, "the end of the first stream");
      producer.send(POST, 2);
      producer.flush(Waiting.PATIENCE);
      assertEquals(2, producer.streamsOpened());
    }
    assertEquals(3, service.total("post:42"));
  }

  @Test
  void aSuccessorGoesOnWhereTheOtherStopped() {
    try (Producer producer =
        Producer.builder(channel).producerId("writer-1").firstSequence(41).open()) {
      assertEquals(41, producer.send(POST, 1));
      producer.flush(Waiting.PATIENCE);
      assertEquals(41, producer.acknowledgedSequence());
    }
    assertEquals("writer-1", service.streams().get(0).get(0).getProducerId());
  }

  @Test
  void aBatchThatWouldEndTheStreamIsRefused() {
    try (Producer producer = Producer.open(channel)) {
      List<Runnable> bad =
          List.of(
              () -> producer.send(POST),
              () -> producer.send(POST, new long[Producer.MAX_UPDATES + 1]),
              () -> producer.send(List.of("post:42", "post:43"), 1),
              () -> producer.send(List.of(), 1),
              () -> producer.send(List.of(""), 1),
              () -> producer.send(POST, 0));
      for (Runnable send : bad) {
        assertThrows(IllegalArgumentException.class, send::run);
      }
      assertEquals(0, producer.pending());
    }
    assertEquals(0, service.batches());
  }

  @Test
  void optionsOutOfTheirLimitsAreRefused() {
    Producer.Builder builder = Producer.builder(channel);
    List<Runnable> bad =
        List.of(
            () -> builder.window(0),
            () -> builder.window(Producer.MAX_WINDOW + 1),
            () -> builder.firstSequence(0),
            () -> builder.producerId(""),
            () -> builder.stallTimeout(Duration.ZERO),
            () -> builder.idleTimeout(Duration.ZERO));
    for (Runnable option : bad) {
      assertThrows(IllegalArgumentException.class, option::run);
    }
  }
}
