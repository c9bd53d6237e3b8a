package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import io.tallyboard.v1.CounterServiceGrpc;
import io.tallyboard.v1.CounterServiceGrpc.CounterServiceBlockingStub;
import io.tallyboard.v1.IncrementRequest;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

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
