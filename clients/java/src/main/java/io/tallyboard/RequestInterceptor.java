package io.tallyboard;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.regex.Pattern;

/**
 * Gives every call the metadata of its caller and a deadline, and every request a request id;
 * refuses text that cannot be sent as it is.
 *
 * <p>It stands in front of the channel, and the channel repeats calls behind it: all attempts of a
 * call so have one id, and the service counts them once.
 */
final class RequestInterceptor implements ClientInterceptor {
  static final Metadata.Key<String> TENANT =
      Metadata.Key.of("x-tallyboard-tenant", Metadata.ASCII_STRING_MARSHALLER);
  static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
  private static final String REQUEST_ID = "request_id";
  private static final Pattern ENDS_WITH_NAME =
      Pattern.compile("\\b(counters?|members?|leaderboard_id)(\\[\\d+])?$");

  private final String tenant;
  private final Supplier<String> token;
  private final ServiceConfig config;

  /**
   * @param tenant of calls that name none themselves, or null
   * @param token asked for a bearer token at every call that brings no credentials, or null
   * @param config has the deadlines of calls that have none
   */
  RequestInterceptor(String tenant, Supplier<String> token, ServiceConfig config) {
    this.tenant = tenant;
    this.token = token;
    this.config = config;
  }

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return new PreparedCall<>(next.newCall(method, withDeadline(method, options)));
  }

  private final class PreparedCall<Q, A> extends SimpleForwardingClientCall<Q, A> {
    private volatile StatusRuntimeException refusal;

    PreparedCall(ClientCall<Q, A> call) {
      super(call);
    }

    @Override
    public void start(Listener<A> listener, Metadata headers) {
      addCaller(headers);
      super.start(
          new SimpleForwardingClientCallListener<>(listener) {
            @Override
            public void onClose(Status status, Metadata trailers) {
              StatusRuntimeException found = refusal;
              if (found == null) {
                super.onClose(status, trailers);
              } else {
                super.onClose(found.getStatus(), found.getTrailers());
              }
            }
          },
          headers);
    }

    @Override
    public void sendMessage(Q message) {
      if (refusal != null) {
        return;
      }
      refusal = refusalOf(message);
      if (refusal == null) {
        super.sendMessage(withRequestId(message));
      } else {
        cancel(refusal.getMessage(), refusal);
      }
    }

    @Override
    public void halfClose() {
      // gRPC takes nothing from a call that was cancelled.
      if (refusal == null) {
        super.halfClose();
      }
    }
  }

  private CallOptions withDeadline(MethodDescriptor<?, ?> method, CallOptions options) {
    Optional<Long> limit = config.limit(method.getFullMethodName());
    return options.getDeadline() != null || limit.isEmpty()
        ? options
        : options.withDeadlineAfter(limit.get(), TimeUnit.NANOSECONDS);
  }

  private static StatusRuntimeException refusalOf(Object request) {
    String path = request instanceof Message message ? Text.malformed(message) : null;
    if (path == null) {
      return null;
    }
    String reason = ENDS_WITH_NAME.matcher(path).find() ? "NAME_INVALID" : "FIELD_INVALID";
    return TallyboardError.refusal(reason, path, "holds half of a surrogate pair");
  }

  private void addCaller(Metadata headers) {
    if (tenant != null && !headers.containsKey(TENANT)) {
      headers.put(TENANT, tenant);
    }
    if (token != null && !headers.containsKey(AUTHORIZATION)) {
      headers.put(AUTHORIZATION, "Bearer " + token.get());
    }
  }

  // A builder of a message builds a message of the same class.
  @SuppressWarnings("unchecked")
  static <Q> Q withRequestId(Q request) {
    if (!(request instanceof Message message)) {
      return request;
    }
    FieldDescriptor field = message.getDescriptorForType().findFieldByName(REQUEST_ID);
    boolean lacksId =
        field != null
            && field.getJavaType() == FieldDescriptor.JavaType.STRING
            && !field.isRepeated()
            && ((String) message.getField(field)).isEmpty();
    if (!lacksId) {
      return request;
    }
    return (Q) message.toBuilder().setField(field, UUID.randomUUID().toString()).build();
  }
}
