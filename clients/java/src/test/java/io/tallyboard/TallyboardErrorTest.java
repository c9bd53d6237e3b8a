package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.tallyboard.TallyboardError.FieldViolation;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.Test;

class TallyboardErrorTest {
  private static final Metadata.Key<String> PUSHBACK =
      Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  @Test
  void readsAllDetailsOfACall() {
    StatusRuntimeException thrown =
        StatusProto.toStatusRuntimeException(
            Errors.status(
                Status.Code.INVALID_ARGUMENT,
                "DELTA_ZERO",
                Errors.badField("deltas[1].delta", "must not be 0"),
                Errors.retryAfter(Duration.ofMillis(1_500))));

    TallyboardError error = TallyboardError.of(thrown);

    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals("DELTA_ZERO", error.reason());
    assertEquals(
        List.of(new FieldViolation("deltas[1].delta", "must not be 0")), error.fieldViolations());
    assertEquals(Optional.of(Duration.ofMillis(1_500)), error.retryDelay());
    assertEquals(
        "DELTA_ZERO: a sentence for a person (deltas[1].delta: must not be 0)", error.getMessage());
    assertSame(thrown, error.getCause());
  }

  @Test
  void looksInsideOtherExceptions() {
    Exception thrown = new ExecutionException(Status.NOT_FOUND.asException());
    assertEquals(Status.Code.NOT_FOUND, TallyboardError.of(thrown).code());
  }

  @Test
  void anErrorOfTheTransportHasNoReason() {
    TallyboardError error =
        TallyboardError.of(Status.UNAVAILABLE.withDescription("lost").asException());
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertEquals("", error.reason());
    assertEquals(Optional.empty(), error.retryDelay());
    assertEquals("UNAVAILABLE: lost", error.getMessage());
  }

  @Test
  void whatIsNotOfGrpcIsUnknown() {
    assertEquals(
        Status.Code.UNKNOWN, TallyboardError.of(new IllegalStateException("no")).code());
  }

  @Test
  void isItselfAlready() {
    TallyboardError error = TallyboardError.of(Status.ABORTED.asException());
    assertSame(error, TallyboardError.of(error));
  }

  @Test
  void theLongerDelayCounts() {
    RetryInfo second = Errors.retryAfter(Duration.ofSeconds(1));
    com.google.rpc.Status status =
        Errors.status(Status.Code.UNAVAILABLE, "OVERLOADED", second);
    Metadata trailers = StatusProto.toStatusRuntimeException(status).getTrailers();
    trailers.put(PUSHBACK, "2500");
    TallyboardError error = TallyboardError.of(Status.UNAVAILABLE.asException(trailers));
    assertEquals(Optional.of(Duration.ofMillis(2_500)), error.retryDelay());
  }

  @Test
  void brokenDetailsLeaveTheCode() {
    Metadata trailers = new Metadata();
    trailers.put(DETAILS, new byte[] {(byte) 0xff, 1, 2});
    trailers.put(PUSHBACK, "soon");
    TallyboardError error = TallyboardError.of(Status.ABORTED.asException(trailers));
    assertEquals(Status.Code.ABORTED, error.code());
    assertEquals("", error.reason());
  }

  @Test
  void aBrokenDetailLeavesTheOthers() {
    Any broken =
        Any.newBuilder()
            .setTypeUrl("type.googleapis.com/google.rpc.RetryInfo")
            .setValue(ByteString.copyFrom(new byte[] {(byte) 0xff}))
            .build();
    var status =
        Errors.status(Status.Code.OUT_OF_RANGE, "COUNTER_OUT_OF_RANGE").toBuilder()
            .addDetails(broken)
            .build();
    TallyboardError error = TallyboardError.of(status);
    assertEquals("COUNTER_OUT_OF_RANGE", error.reason());
    assertEquals(Optional.empty(), error.retryDelay());
  }
}
