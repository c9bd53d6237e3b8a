package io.tallyboard.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonPrimitive;
import java.math.BigDecimal;
import java.util.Map;

/** Whether what was found holds what is expected, by the rules of the conformance cases. */
final class Comparison {
  private static final JsonPrimitive ANY = new JsonPrimitive("$any");

  private Comparison() {}

  /**
   * What is not as expected, in words; empty if all is.
   *
   * @param expected a part of what must be there
   * @param found what is there, in protobuf's JSON mapping; null for nothing
   * @param path of both, for the words
   */
  static String difference(JsonElement expected, JsonElement found, String path) {
    JsonElement held = found == null ? JsonNull.INSTANCE : found;
    if (expected.equals(ANY)) {
      return isDefault(held) ? path + " is missing" : "";
    }
    if (expected.isJsonObject()) {
      return ofObjects(expected.getAsJsonObject(), held, path);
    }
    if (expected.isJsonArray()) {
      return ofArrays(expected.getAsJsonArray(), held, path);
    }
    boolean areEqual =
        isDefault(expected) ? isDefault(held) : plain(expected).equals(plain(held));
    return areEqual ? "" : path + " is " + held + " instead of " + expected;
  }

  private static String ofObjects(JsonObject expected, JsonElement found, String path) {
    JsonObject held = found.isJsonObject() ? found.getAsJsonObject() : new JsonObject();
    for (Map.Entry<String, JsonElement> field : expected.entrySet()) {
      String name = field.getKey();
      String wrong = difference(field.getValue(), held.get(name), path + "." + name);
      if (!wrong.isEmpty()) {
        return wrong;
      }
    }
    return "";
  }

  private static String ofArrays(JsonArray expected, JsonElement found, String path) {
    JsonArray held = found.isJsonArray() ? found.getAsJsonArray() : new JsonArray();
    if (held.size() != expected.size()) {
      return path + " has " + held.size() + " items instead of " + expected.size() + ": " + held;
    }
    for (int i = 0; i < held.size(); i++) {
      String wrong = difference(expected.get(i), held.get(i), path + "[" + i + "]");
      if (!wrong.isEmpty()) {
        return wrong;
      }
    }
    return "";
  }

  /** A field with its default is as good as one that is left out. */
  private static boolean isDefault(JsonElement value) {
    if (value.isJsonNull()) {
      return true;
    }
    if (value.isJsonArray()) {
      return value.getAsJsonArray().isEmpty();
    }
    if (value.isJsonObject()) {
      return value.getAsJsonObject().size() == 0;
    }
    Object plain = plain(value);
    return plain.equals("") || plain.equals(false) || plain.equals(BigDecimal.ZERO);
  }

  /** 64-bit integers are strings in JSON, and other numbers are not; both are numbers here. */
  private static Object plain(JsonElement value) {
    if (!value.isJsonPrimitive()) {
      return value;
    }
    JsonPrimitive primitive = value.getAsJsonPrimitive();
    if (primitive.isBoolean()) {
      return primitive.getAsBoolean();
    }
    try {
      BigDecimal number = new BigDecimal(primitive.getAsString()).stripTrailingZeros();
      return number.signum() == 0 ? BigDecimal.ZERO : number;
    } catch (NumberFormatException error) {
      return primitive.getAsString();
    }
  }
}
