package io.tallyboard.conformance;

import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonPrimitive;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import io.tallyboard.Producer;
import io.tallyboard.TallyboardError;
import io.tallyboard.v1.StreamIncrementsResponse;
import io.tallyboard.v1.StreamScoresResponse;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** One case under way. */
final class CasePlayer {
  private static final Metadata.Key<String> TENANT =
      Metadata.Key.of("x-tallyboard-tenant", Metadata.ASCII_STRING_MARSHALLER);
  private static final Pattern VARIABLE = Pattern.compile("\\$\\{([^}]+)}");
  private static final Duration DEADLINE = Duration.ofSeconds(15);
  private static final Duration PRODUCE_TIMEOUT = Duration.ofSeconds(60);
  private static final Duration STALL_TIMEOUT = Duration.ofSeconds(5);

  private final Methods methods;
  private final Channel plain;
  private final Channel helper;
  private final URI control;
  private final String tenant;
  private final Map<String, String> ids = new HashMap<>();
  private final Map<String, String> saved = new HashMap<>();

  /** A step was not as expected. */
  private static final class Failed extends Exception {
    private static final long serialVersionUID = 1;

    Failed(String detail) {
      super(detail);
    }
  }

  CasePlayer(Methods methods, Channel plain, Channel helper, URI control, String name) {
    this.methods = methods;
    this.plain = plain;
    this.helper = helper;
    this.control = control;
    this.tenant = "java-" + name + "-" + UUID.randomUUID().toString().substring(0, 8);
  }

  /** Plays the steps; what is not as expected, or nothing. */
  String play(JsonArray steps) {
    for (int i = 0; i < steps.size(); i++) {
      try {
        step(filled(steps.get(i)).getAsJsonObject());
      } catch (Failed failed) {
        return "step " + (i + 1) + ": " + failed.getMessage();
      } catch (Exception error) {
        return "step " + (i + 1) + ": " + error;
      }
    }
    return "";
  }

  private void step(JsonObject step) throws Exception {
    if (step.has("control")) {
      arm(step.getAsJsonObject("control"));
    } else if (step.has("produce")) {
      produce(step);
    } else if (step.has("stream")) {
      stream(step);
    } else {
      call(step);
    }
  }

  /** With the variables replaced in all strings. */
  private JsonElement filled(JsonElement value) {
    if (value.isJsonObject()) {
      JsonObject object = new JsonObject();
      value.getAsJsonObject().entrySet().forEach(e -> object.add(e.getKey(), filled(e.getValue())));
      return object;
    }
    if (value.isJsonArray()) {
      JsonArray array = new JsonArray();
      value.getAsJsonArray().forEach(item -> array.add(filled(item)));
      return array;
    }
    if (value.isJsonPrimitive() && value.getAsJsonPrimitive().isString()) {
      Matcher matcher = VARIABLE.matcher(value.getAsString());
      return new JsonPrimitive(matcher.replaceAll(this::variable));
    }
    return value;
  }

  private String variable(MatchResult match) {
    String name = match.group(1);
    String value =
        name.startsWith("id:")
            ? ids.computeIfAbsent(name, id -> UUID.randomUUID().toString())
            : saved.get(name);
    if (value == null) {
      throw new IllegalArgumentException(name + " was not saved");
    }
    return Matcher.quoteReplacement(value);
  }

  private void arm(JsonObject wish) throws IOException, InterruptedException, Failed {
    wish.addProperty("tenant", tenant);
    HttpRequest request =
        HttpRequest.newBuilder(control.resolve("/arm"))
            .timeout(DEADLINE)
            .POST(HttpRequest.BodyPublishers.ofString(wish.toString()))
            .build();
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    int status = client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
    if (status != 204) {
      throw new Failed("the control answered " + status);
    }
  }

  private void produce(JsonObject step) throws Failed {
    JsonObject wanted = step.getAsJsonObject("produce");
    Producer.Builder builder =
        Producer.builder(helper)
            .tenant(tenant)
            .producerId(wanted.get("producer_id").getAsString())
            .stallTimeout(STALL_TIMEOUT);
    try (Producer producer = builder.open()) {
      for (JsonElement batch : wanted.getAsJsonArray("batches")) {
        producer.send(counters(batch.getAsJsonObject()), deltas(batch.getAsJsonObject()));
      }
      producer.flush(PRODUCE_TIMEOUT);
      JsonPrimitive acknowledged = new JsonPrimitive(producer.acknowledgedSequence());
      expect(step.get("acknowledged"), acknowledged, "acknowledged");
    }
  }

  private static List<String> counters(JsonObject batch) {
    return batch.getAsJsonArray("counters").asList().stream()
        .map(JsonElement::getAsString)
        .toList();
  }

  private static long[] deltas(JsonObject batch) {
    return batch.getAsJsonArray("deltas").asList().stream()
        .mapToLong(JsonElement::getAsLong)
        .toArray();
  }

  private Channel channel(JsonObject step) {
    boolean isHelper = step.has("with") && step.get("with").getAsString().equals("helper");
    Metadata headers = new Metadata();
    headers.put(TENANT, step.has("tenant") ? step.get("tenant").getAsString() : tenant);
    return ClientInterceptors.intercept(
        isHelper ? helper : plain, MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private static CallOptions options(JsonObject step) {
    long deadline =
        step.has("deadline_ms") ? step.get("deadline_ms").getAsLong() : DEADLINE.toMillis();
    return CallOptions.DEFAULT.withDeadlineAfter(deadline, TimeUnit.MILLISECONDS);
  }

  private void call(JsonObject step) throws Exception {
    MethodDescriptor<Message, Message> method = methods.get(step.get("call").getAsString());
    Message request = Methods.request(method, step.get("request"));
    try {
      if (method.getType() == MethodDescriptor.MethodType.UNARY) {
        checkAnswer(step, Methods.json(unary(step, method, request)));
      } else {
        int count = step.has("responses") ? step.getAsJsonArray("responses").size() : 1;
        JsonArray found = some(step, method, request, count);
        refuseAnswer(step, found);
        expect(step.get("responses"), found, "responses");
      }
    } catch (StatusRuntimeException error) {
      checkError(step, TallyboardError.of(error));
    }
  }

  private Message unary(
      JsonObject step, MethodDescriptor<Message, Message> method, Message request) {
    return ClientCalls.blockingUnaryCall(channel(step), method, options(step), request);
  }

  /** The first answers of a server-streaming call, which is then cancelled. */
  private JsonArray some(
      JsonObject step, MethodDescriptor<Message, Message> method, Message request, int count)
      throws Exception {
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      return context.call(
          () -> {
            Iterator<Message> answers =
                ClientCalls.blockingServerStreamingCall(
                    channel(step), method, options(step), request);
            JsonArray found = new JsonArray();
            while (found.size() < count && answers.hasNext()) {
              found.add(Methods.json(answers.next()));
            }
            return found;
          });
    }
  }

  private void checkAnswer(JsonObject step, JsonObject found) throws Failed {
    refuseAnswer(step, found);
    expect(step.get("response"), found, "response");
    if (step.has("save")) {
      step.getAsJsonObject("save")
          .entrySet()
          .forEach(each -> saved.put(each.getKey(), at(found, each.getValue().getAsString())));
    }
  }

  private static String at(JsonObject found, String path) {
    JsonElement value = found;
    for (String part : path.split("\\.")) {
      value = value.getAsJsonObject().get(part);
    }
    return value.getAsString();
  }

  private void stream(JsonObject step) throws Exception {
    MethodDescriptor<Message, Message> method = methods.get(step.get("stream").getAsString());
    List<Message> requests = new ArrayList<>();
    for (JsonElement request : step.getAsJsonArray("requests")) {
      requests.add(Methods.request(method, request));
    }
    Answers answers = new Answers();
    StreamObserver<Message> call =
        ClientCalls.asyncBidiStreamingCall(
            channel(step).newCall(method, options(step)), answers);
    requests.forEach(call::onNext);
    call.onCompleted();
    // The deadline of the call ends the wait.
    Throwable error = answers.ended.get();
    if (error != null) {
      checkError(step, TallyboardError.of(error));
      return;
    }
    JsonPrimitive acknowledged = new JsonPrimitive(answers.acknowledged);
    refuseAnswer(step, acknowledged);
    expect(step.get("acknowledged"), acknowledged, "acknowledged");
    JsonArray failures = step.has("failures") ? step.getAsJsonArray("failures") : new JsonArray();
    expect(failures, answers.failures, "failures");
  }

  /** What a stream answers. gRPC calls one method after the other, and the end last. */
  private static final class Answers implements StreamObserver<Message> {
    final CompletableFuture<Throwable> ended = new CompletableFuture<>();
    final JsonArray failures = new JsonArray();
    long acknowledged;

    @Override
    public void onNext(Message answer) {
      if (answer instanceof StreamIncrementsResponse increments) {
        acknowledged = Math.max(acknowledged, increments.getAcknowledgedSequence());
        increments.getFailuresList().forEach(failure -> add(failure, failure.getStatus()));
      } else if (answer instanceof StreamScoresResponse scores) {
        acknowledged = Math.max(acknowledged, scores.getAcknowledgedSequence());
        scores.getFailuresList().forEach(failure -> add(failure, failure.getStatus()));
      }
    }

    private void add(Message failure, com.google.rpc.Status status) {
      JsonObject found = Methods.json(failure);
      found.addProperty("reason", TallyboardError.of(status).reason());
      failures.add(found);
    }

    @Override
    public void onError(Throwable error) {
      ended.complete(error);
    }

    @Override
    public void onCompleted() {
      ended.complete(null);
    }
  }

  private static void refuseAnswer(JsonObject step, JsonElement found) throws Failed {
    if (step.has("error")) {
      throw new Failed(found + " instead of " + step.get("error"));
    }
  }

  private static void checkError(JsonObject step, TallyboardError error) throws Failed {
    if (!step.has("error")) {
      throw new Failed(error.getMessage());
    }
    JsonObject found = new JsonObject();
    found.addProperty("code", error.code().name());
    found.addProperty("reason", error.reason());
    found.add("fields", sorted(error.fieldViolations().stream().map(v -> v.field()).toList()));
    found.addProperty("retryable", error.retryDelay().isPresent());
    JsonObject wanted = step.getAsJsonObject("error").deepCopy();
    if (wanted.has("fields")) {
      List<JsonElement> fields = wanted.getAsJsonArray("fields").asList();
      wanted.add("fields", sorted(fields.stream().map(JsonElement::getAsString).toList()));
    }
    expect(wanted, found, "error");
  }

  private static JsonElement sorted(List<String> texts) {
    return new Gson().toJsonTree(texts.stream().sorted().toList());
  }

  private static void expect(JsonElement expected, JsonElement found, String what) throws Failed {
    String wrong = Comparison.difference(expected, found, what);
    if (!wrong.isEmpty()) {
      throw new Failed(wrong);
    }
  }
}
