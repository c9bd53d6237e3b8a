package io.tallyboard.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.tallyboard.TallyboardChannel;
import java.io.IOException;
import java.io.PrintStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * Plays conformance cases: {@code Runner --target host:port --control http://host:port FILE...}.
 *
 * <p>Prints one line of JSON for each case. The exit status is 0 if all passed, 1 if one failed,
 * and 2 if the arguments are not as above.
 */
public final class Runner {
  private static final String USAGE =
      "usage: Runner --target host:port --control http://host:port FILE...";

  private Runner() {}

  /**
   * Plays the files.
   *
   * @param arguments as in the usage
   * @throws IOException if a file cannot be read
   */
  public static void main(String[] arguments) throws IOException {
    String target = null;
    String control = null;
    List<Path> files = new ArrayList<>();
    for (int i = 0; i < arguments.length; i++) {
      boolean hasValue = i + 1 < arguments.length;
      if (arguments[i].equals("--target") && hasValue) {
        target = arguments[++i];
      } else if (arguments[i].equals("--control") && hasValue) {
        control = arguments[++i];
      } else {
        files.add(Path.of(arguments[i]));
      }
    }
    if (target == null || control == null || files.isEmpty()) {
      System.err.println(USAGE);
      System.exit(2);
    }
    System.exit(play(target, URI.create(control), cases(files)) ? 0 : 1);
  }

  private static boolean play(String target, URI control, List<JsonObject> cases) {
    PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    Methods methods = new Methods();
    boolean haveAllPassed = true;
    ManagedChannel plain =
        Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    try (TallyboardChannel helper = TallyboardChannel.builder(target).build()) {
      for (JsonObject each : cases) {
        String name = each.get("name").getAsString();
        CasePlayer player = new CasePlayer(methods, plain, helper, control, name);
        String detail = player.play(each.getAsJsonArray("steps"));
        haveAllPassed &= detail.isEmpty();
        out.println(line(name, detail));
      }
    } finally {
      plain.shutdownNow();
    }
    return haveAllPassed;
  }

  private static JsonObject line(String name, String detail) {
    JsonObject line = new JsonObject();
    line.addProperty("case", name);
    line.addProperty("ok", detail.isEmpty());
    if (!detail.isEmpty()) {
      line.addProperty("detail", detail);
    }
    return line;
  }

  /** All cases, those with faults last: they end the connections of the others, too. */
  private static List<JsonObject> cases(List<Path> files) throws IOException {
    List<JsonObject> peaceful = new ArrayList<>();
    List<JsonObject> faulty = new ArrayList<>();
    for (Path file : files) {
      JsonObject held = JsonParser.parseString(Files.readString(file)).getAsJsonObject();
      for (JsonElement element : held.getAsJsonArray("cases")) {
        JsonObject each = element.getAsJsonObject();
        (hasFault(each) ? faulty : peaceful).add(each);
      }
    }
    peaceful.addAll(faulty);
    return peaceful;
  }

  private static boolean hasFault(JsonObject each) {
    return each.getAsJsonArray("steps").asList().stream()
        .anyMatch(step -> step.getAsJsonObject().has("control"));
  }
}
