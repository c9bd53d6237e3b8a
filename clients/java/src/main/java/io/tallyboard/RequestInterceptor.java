package io.tallyboard;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.UUID;
import java.util.function.Supplier;

/**
 * Gives every call the metadata of its caller and every request a request id.
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

  private final String tenant;
  private final Supplier<String> token;

  /**
   * @param tenant of calls that name none themselves, or null
   * @param token asked for a bearer token at every call that brings no credentials, or null
   */
  RequestInterceptor(String tenant, Supplier<String> token) {
    this.tenant = tenant;
    this.token = token;
  }

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      @Override
      public void start(Listener<A> listener, Metadata headers) {
        addCaller(headers);
        super.start(listener, headers);
      }

      @Override
      public void sendMessage(Q message) {
        super.sendMessage(withRequestId(message));
      }
    };
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
