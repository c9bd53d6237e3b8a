package io.tallyboard;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import java.util.List;
import java.util.Map;

/** What text may be in a message. */
final class Text {
  private Text() {}

  /**
   * Finds text that would be sent with a question mark in place of half a surrogate pair: a name
   * with one would count as another name.
   *
   * @return the path of the first such field, {@code deltas[3].counter} for example, or null
   */
  static String malformed(Message message) {
    for (Map.Entry<FieldDescriptor, Object> each : message.getAllFields().entrySet()) {
      String found = malformedField(each.getKey(), each.getValue());
      if (found != null) {
        return each.getKey().getName() + found;
      }
    }
    return null;
  }

  private static String malformedField(FieldDescriptor field, Object value) {
    if (!(value instanceof List<?> items)) {
      return malformedValue(value);
    }
    for (int i = 0; i < items.size(); i++) {
      String found = malformedValue(items.get(i));
      if (found != null) {
        // The entries of a map have no order, and so no index.
        return field.isMapField() ? "" : "[" + i + "]" + found;
      }
    }
    return null;
  }

  private static String malformedValue(Object value) {
    if (value instanceof String text) {
      return Names.isUnicode(text) ? null : "";
    }
    if (value instanceof Message message) {
      String found = malformed(message);
      return found == null ? null : "." + found;
    }
    return null;
  }
}
