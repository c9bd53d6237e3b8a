package io.tallyboard.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.TypeRegistry;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.ErrorDetailsProto;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import io.tallyboard.v1.CounterServiceGrpc;
import io.tallyboard.v1.LeaderboardServiceGrpc;
import io.tallyboard.v1.OperationsServiceGrpc;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The RPCs of the contract by name, and their messages in protobuf's JSON mapping. */
final class Methods {
  // Statuses in answers have details of these types.
  private static final TypeRegistry DETAILS =
      TypeRegistry.newBuilder().add(ErrorDetailsProto.getDescriptor().getMessageTypes()).build();
  private static final JsonFormat.Printer PRINTER =
      JsonFormat.printer().usingTypeRegistry(DETAILS).omittingInsignificantWhitespace();
  private static final JsonFormat.Parser PARSER = JsonFormat.parser().usingTypeRegistry(DETAILS);

  private final Map<String, MethodDescriptor<Message, Message>> byName = new HashMap<>();

  // All marshallers of the stubs are for protobuf messages.
  @SuppressWarnings("unchecked")
  Methods() {
    List<ServiceDescriptor> services =
        List.of(
            CounterServiceGrpc.getServiceDescriptor(),
            LeaderboardServiceGrpc.getServiceDescriptor(),
            OperationsServiceGrpc.getServiceDescriptor());
    for (ServiceDescriptor service : services) {
      for (MethodDescriptor<?, ?> method : service.getMethods()) {
        byName.put(method.getFullMethodName(), (MethodDescriptor<Message, Message>) method);
      }
    }
  }

  /** The RPC with a name such as {@code CounterService/Increment}. */
  MethodDescriptor<Message, Message> get(String name) {
    MethodDescriptor<Message, Message> method = byName.get("tallyboard.v1." + name);
    if (method == null) {
      throw new IllegalArgumentException("there is no " + name);
    }
    return method;
  }

  static Message request(MethodDescriptor<Message, Message> method, JsonElement json)
      throws InvalidProtocolBufferException {
    var marshaller = (PrototypeMarshaller<Message>) method.getRequestMarshaller();
    Message.Builder builder = marshaller.getMessagePrototype().newBuilderForType();
    PARSER.merge(json.toString(), builder);
    return builder.build();
  }

  static JsonObject json(Message message) {
    try {
      return JsonParser.parseString(PRINTER.print(message)).getAsJsonObject();
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalArgumentException("the answer has a detail of an unknown type", error);
    }
  }
}
