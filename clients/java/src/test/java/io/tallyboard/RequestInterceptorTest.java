package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;

import io.tallyboard.v1.GetCounterRequest;
import io.tallyboard.v1.IncrementRequest;
import java.util.UUID;
import org.junit.jupiter.api.Test;

class RequestInterceptorTest {
  private static final IncrementRequest REQUEST =
      IncrementRequest.newBuilder().setCounter("post:42").setDelta(1).build();

  @Test
  void anEmptyRequestIdBecomesAUuid() {
    IncrementRequest sent = RequestInterceptor.withRequestId(REQUEST);
    String id = sent.getRequestId();
    assertEquals(id, UUID.fromString(id).toString());
    assertEquals(REQUEST, sent.toBuilder().clearRequestId().build());
  }

  @Test
  void eachRequestHasAnotherId() {
    assertNotEquals(
        RequestInterceptor.withRequestId(REQUEST).getRequestId(),
        RequestInterceptor.withRequestId(REQUEST).getRequestId());
  }

  @Test
  void aRequestIdOfTheCallerStays() {
    IncrementRequest own = REQUEST.toBuilder().setRequestId("mine").build();
    assertSame(own, RequestInterceptor.withRequestId(own));
  }

  @Test
  void aRequestWithoutTheFieldStays() {
    GetCounterRequest read = GetCounterRequest.newBuilder().setCounter("post:42").build();
    assertSame(read, RequestInterceptor.withRequestId(read));
    assertEquals("no message", RequestInterceptor.withRequestId("no message"));
  }
}
