package io.tallyboard;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.Serializable;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * An error of the service, with its details, or of this library on its behalf.
 *
 * <p>Branch on {@link #code} and {@link #reason}, never on the text. It is an exception, thrown by
 * {@link Producer}; stubs throw those of gRPC, which {@link #of(Throwable)} reads.
 */
public final class TallyboardError extends RuntimeException {
  private static final long serialVersionUID = 1;
  private static final Metadata.Key<String> PUSHBACK =
      Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER);

  private final Status.Code code;
  private final String reason;
  private final List<FieldViolation> fieldViolations;
  private final Duration retryDelay;

  /**
   * What is wrong with one field of a request.
   *
   * @param field the path of the field, {@code deltas[1].delta} for example
   * @param description a sentence for a person
   */
  public record FieldViolation(String field, String description) implements Serializable {}

  private TallyboardError(
      Status.Code code,
      String reason,
      String message,
      List<FieldViolation> fieldViolations,
      Duration retryDelay,
      Throwable cause) {
    super(message, cause);
    this.code = code;
    this.reason = reason;
    this.fieldViolations = List.copyOf(fieldViolations);
    this.retryDelay = retryDelay;
  }

  /** An error that this library finds by itself. */
  TallyboardError(Status.Code code, String reason, String message, Throwable cause) {
    this(code, reason, nameOf(code, reason) + ": " + message, List.of(), null, cause);
  }

  /**
   * Reads the error of a call.
   *
   * @param thrown what a stub threw or gave to {@code onError}, or an exception around it
   * @return the error, with {@code thrown} as its cause; {@code thrown} itself if it is one. What
   *     does not come from gRPC has the code {@code UNKNOWN}
   */
  public static TallyboardError of(Throwable thrown) {
    if (thrown instanceof TallyboardError error) {
      return error;
    }
    Status status = Status.fromThrowable(thrown);
    Metadata trailers = Status.trailersFromThrowable(thrown);
    return of(statusOf(status, trailers), pushback(trailers), thrown);
  }

  /**
   * Reads the error of one item of a batch, that of an {@code ItemStatus} or {@code
   * SequenceFailure}.
   *
   * @param status with the details that the error of a call has
   * @return the error, without a cause
   */
  public static TallyboardError of(com.google.rpc.Status status) {
    return of(status, null, null);
  }

  private static TallyboardError of(
      com.google.rpc.Status status, Duration pushback, Throwable cause) {
    String reason =
        details(status, ErrorInfo.class).stream()
            .filter(info -> info.getDomain().equals(Tallyboard.ERROR_DOMAIN))
            .map(ErrorInfo::getReason)
            .findFirst()
            .orElse("");
    List<FieldViolation> violations =
        details(status, BadRequest.class).stream()
            .flatMap(request -> request.getFieldViolationsList().stream())
            .map(found -> new FieldViolation(found.getField(), found.getDescription()))
            .toList();
    Duration delay = pushback;
    for (RetryInfo retry : details(status, RetryInfo.class)) {
      delay = longer(delay, durationOf(retry.getRetryDelay()));
    }
    Status.Code code = Status.fromCodeValue(status.getCode()).getCode();
    String message = sentence(nameOf(code, reason), status, violations);
    return new TallyboardError(code, reason, message, violations, delay, cause);
  }

  /**
   * The status code.
   *
   * @return never {@code OK}
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Which error it is.
   *
   * @return a name of {@code io.tallyboard.v1.ErrorReason} without its prefix, {@code NAME_INVALID}
   *     for example, or one that was added since; empty if the error comes from the transport
   */
  public String reason() {
    return reason;
  }

  /**
   * The fields at fault.
   *
   * @return in the order of the service; empty if no field is at fault
   */
  public List<FieldViolation> fieldViolations() {
    return fieldViolations;
  }

  /**
   * How long to wait at least before trying again.
   *
   * @return empty if the service did not say
   */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /** What a stub throws for a request that is refused before it is sent, as the service would. */
  static StatusRuntimeException refusal(String reason, String field, String description) {
    ErrorInfo info =
        ErrorInfo.newBuilder().setDomain(Tallyboard.ERROR_DOMAIN).setReason(reason).build();
    BadRequest.FieldViolation violation =
        BadRequest.FieldViolation.newBuilder()
            .setField(field)
            .setDescription(description)
            .setReason(reason)
            .build();
    return StatusProto.toStatusRuntimeException(
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.INVALID_ARGUMENT.value())
            .setMessage("the request cannot be sent")
            .addDetails(Any.pack(info))
            .addDetails(Any.pack(BadRequest.newBuilder().addFieldViolations(violation).build()))
            .build());
  }

  /** The same error for another thread, whose stack it shows. */
  TallyboardError again() {
    return new TallyboardError(code, reason, getMessage(), fieldViolations, retryDelay, this);
  }

  private static com.google.rpc.Status statusOf(Status status, Metadata trailers) {
    try {
      return StatusProto.fromStatusAndTrailers(status, trailers);
    } catch (IllegalArgumentException error) {
      // Details that are not a status, or not of this one: what the transport says remains.
      return StatusProto.fromStatusAndTrailers(status, null);
    }
  }

  private static Duration pushback(Metadata trailers) {
    String milliseconds = trailers == null ? null : trailers.get(PUSHBACK);
    try {
      return milliseconds == null
          ? null
          : Duration.ofMillis(Math.max(0, Long.parseLong(milliseconds)));
    } catch (NumberFormatException error) {
      return null;
    }
  }

  private static <M extends Message> List<M> details(com.google.rpc.Status status, Class<M> kind) {
    List<M> found = new ArrayList<>();
    for (Any detail : status.getDetailsList()) {
      try {
        if (detail.is(kind)) {
          found.add(detail.unpack(kind));
        }
      } catch (InvalidProtocolBufferException error) {
        continue; // The code and the sentence are worth having without it.
      }
    }
    return found;
  }

  private static Duration durationOf(com.google.protobuf.Duration duration) {
    return Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
  }

  private static Duration longer(Duration one, Duration other) {
    return one == null || one.compareTo(other) < 0 ? other : one;
  }

  private static String nameOf(Status.Code code, String reason) {
    return reason.isEmpty() ? code.name() : reason;
  }

  private static String sentence(
      String name, com.google.rpc.Status status, List<FieldViolation> violations) {
    StringBuilder text = new StringBuilder(name).append(": ").append(status.getMessage());
    for (FieldViolation violation : violations) {
      text.append(" (").append(violation.field()).append(": ");
      text.append(violation.description()).append(')');
    }
    return text.toString();
  }
}
