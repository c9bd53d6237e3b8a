package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import io.tallyboard.v1.BatchIncrementRequest;
import io.tallyboard.v1.CounterDelta;
import io.tallyboard.v1.CounterServiceGrpc;
import io.tallyboard.v1.CounterServiceGrpc.CounterServiceBlockingStub;
import io.tallyboard.v1.CreateLeaderboardRequest;
import io.tallyboard.v1.IncrementRequest;
import io.tallyboard.v1.Leaderboard;
import io.tallyboard.v1.LeaderboardServiceGrpc;
import io.tallyboard.v1.Submission;
import io.tallyboard.v1.SubmitScoreRequest;
import io.tallyboard.v1.WatchCountersRequest;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.function.Executable;

@Timeout(60)
class TallyboardChannelTest {
  private static final IncrementRequest REQUEST =
      IncrementRequest.newBuilder().setCounter("post:42").setDelta(1).build();

  private FakeService service;

  @BeforeEach
  void start() throws Exception {
    service = new FakeService();
  }

  @AfterEach
  void stop() throws Exception {
    service.close();
  }

  @Test
  void allAttemptsOfACallHaveOneRequestId() {
    StatusRuntimeException away = Status.UNAVAILABLE.asRuntimeException();
    service.failIncrementsWith(away, away);
    try (TallyboardChannel channel = Tallyboard.connect(service.target())) {
      CounterServiceGrpc.newBlockingStub(channel).increment(REQUEST);
    }
    List<IncrementRequest> attempts = service.increments();
    assertEquals(3, attempts.size());
    assertEquals(1, Set.copyOf(attempts).size());
    assertFalse(attempts.get(0).getRequestId().isEmpty());
  }

  @Test
  void otherErrorsAreNotRepeated() {
    service.failIncrementsWith(Status.DEADLINE_EXCEEDED.asRuntimeException());
    try (TallyboardChannel channel = Tallyboard.connect(service.target())) {
      CounterServiceBlockingStub stub = CounterServiceGrpc.newBlockingStub(channel);
      assertThrows(StatusRuntimeException.class, () -> stub.increment(REQUEST));
    }
    assertEquals(1, service.increments().size());
  }

  @Test
  void theCallerGoesWithEveryCall() {
    try (TallyboardChannel channel =
        TallyboardChannel.builder(service.target()).tenant("acme").token("secret").build()) {
      CounterServiceGrpc.newBlockingStub(channel).increment(REQUEST);
    }
    assertEquals("acme", service.lastHeaders().get(RequestInterceptor.TENANT));
    assertEquals("Bearer secret", service.lastHeaders().get(RequestInterceptor.AUTHORIZATION));
  }

  @Test
  void aCallMayNameItsOwnTenant() {
    Metadata headers = new Metadata();
    headers.put(RequestInterceptor.TENANT, "other");
    try (TallyboardChannel channel =
        TallyboardChannel.builder(service.target()).tenant("acme").build()) {
      CounterServiceGrpc.newBlockingStub(channel)
          .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
          .increment(REQUEST);
    }
    Set<String> tenants = new HashSet<>();
    service.lastHeaders().getAll(RequestInterceptor.TENANT).forEach(tenants::add);
    assertEquals(Set.of("other"), tenants);
  }

  @Test
  void aCallHasTheDeadlineOfTheServiceConfigOrOneOfItsOwn() {
    try (TallyboardChannel channel = Tallyboard.connect(service.target())) {
      CounterServiceBlockingStub stub = CounterServiceGrpc.newBlockingStub(channel);
      stub.increment(REQUEST);
      assertBetween(5, 10, secondsLeft());
      stub.withDeadlineAfter(2, TimeUnit.SECONDS).increment(REQUEST);
      assertBetween(0, 2, secondsLeft());
      stub.withDeadlineAfter(60, TimeUnit.SECONDS).increment(REQUEST);
      assertBetween(30, 60, secondsLeft());
      stub.watchCounters(WatchCountersRequest.getDefaultInstance()).hasNext();
      assertNull(service.lastDeadline());
    }
  }

  private long secondsLeft() {
    return service.lastDeadline().timeRemaining(TimeUnit.SECONDS);
  }

  private static void assertBetween(long least, long most, long found) {
    assertTrue(least <= found && found <= most, () -> found + " s");
  }

  @Test
  void textThatWouldBeSentAsOtherTextIsRefused() {
    String half = "post:\ud83c";
    CounterDelta good = CounterDelta.newBuilder().setCounter("post:42").setDelta(1).build();
    Submission submission = Submission.newBuilder().setMember(half).build();
    SubmitScoreRequest score = SubmitScoreRequest.newBuilder().setSubmission(submission).build();
    Leaderboard.Builder board = Leaderboard.newBuilder().putAttributes("a", half);
    try (TallyboardChannel channel = Tallyboard.connect(service.target())) {
      var counters = CounterServiceGrpc.newBlockingStub(channel);
      var boards = LeaderboardServiceGrpc.newBlockingStub(channel);
      assertRefused(
          "NAME_INVALID counter",
          () -> counters.increment(REQUEST.toBuilder().setCounter(half).build()));
      assertRefused(
          "NAME_INVALID deltas[1].counter",
          () ->
              counters.batchIncrement(
                  BatchIncrementRequest.newBuilder()
                      .addDeltas(good)
                      .addDeltas(good.toBuilder().setCounter(half))
                      .build()));
      assertRefused(
          "NAME_INVALID counters[0]",
          () ->
              counters
                  .watchCounters(WatchCountersRequest.newBuilder().addCounters(half).build())
                  .hasNext());
      assertRefused("NAME_INVALID submission.member", () -> boards.submitScore(score));
      assertRefused(
          "FIELD_INVALID leaderboard.attributes",
          () ->
              boards.createLeaderboard(
                  CreateLeaderboardRequest.newBuilder().setLeaderboard(board).build()));
    }
    assertEquals(List.of(), service.increments());
  }

  private static void assertRefused(String expected, Executable call) {
    TallyboardError error = TallyboardError.of(assertThrows(StatusRuntimeException.class, call));
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals(expected, error.reason() + " " + error.fieldViolations().get(0).field());
  }

  @Test
  void connectionsTakeTurns() {
    try (TallyboardChannel channel =
        TallyboardChannel.builder(service.target()).connections(3).build()) {
      CounterServiceBlockingStub stub = CounterServiceGrpc.newBlockingStub(channel);
      for (int i = 0; i < 6; i++) {
        stub.increment(REQUEST);
      }
    }
    assertEquals(3, service.peers());
  }

  @Test
  void aServiceThatComesBackIsFound() throws Exception {
    int port = service.port();
    try (TallyboardChannel channel = Tallyboard.connect(service.target())) {
      CounterServiceBlockingStub stub = CounterServiceGrpc.newBlockingStub(channel);
      stub.increment(REQUEST);
      service.close();
      service = new FakeService(port);
      stub.increment(REQUEST);
    }
    assertEquals(1, service.increments().size());
  }

  @Test
  void aClosedChannelSaysSo() {
    TallyboardChannel channel = Tallyboard.connect(service.target());
    channel.close();
    channel.close();
    CounterServiceBlockingStub stub = CounterServiceGrpc.newBlockingStub(channel);
    assertThrows(IllegalStateException.class, () -> stub.increment(REQUEST));
  }

  @Test
  void optionsOutOfTheirLimitsAreRefused() {
    TallyboardChannel.Builder builder = TallyboardChannel.builder("127.0.0.1:7411");
    assertThrows(IllegalArgumentException.class, () -> builder.connections(0));
    assertThrows(IllegalArgumentException.class, () -> builder.tenant("ä"));
    assertThrows(IllegalArgumentException.class, () -> builder.token("two\nlines"));
  }
}
