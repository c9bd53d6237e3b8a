package io.tallyboard;

import java.util.Objects;

/** What names may be. */
final class Names {
  static final int MAX_BYTES = 256;

  private Names() {}

  /**
   * Refuses a name that cannot be sent as it is.
   *
   * <p>Control characters are left to the service, which reports them without harm to the rest.
   *
   * @throws IllegalArgumentException if it is empty, longer than 256 bytes, or not Unicode
   */
  static String require(String what, String name) {
    Objects.requireNonNull(name, what);
    int bytes = utf8Length(name);
    if (bytes < 0) {
      // It would be sent with a question mark in its place, which is the name of something else.
      throw new IllegalArgumentException(what + " holds half of a surrogate pair");
    }
    if (bytes == 0 || bytes > MAX_BYTES) {
      throw new IllegalArgumentException(
          what + " must have 1 to " + MAX_BYTES + " bytes of UTF-8, not " + bytes);
    }
    return name;
  }

  /** Refuses what metadata cannot carry. */
  static String requireMetadata(String what, String value) {
    Objects.requireNonNull(value, what);
    if (value.isEmpty() || !value.chars().allMatch(c -> c >= ' ' && c <= '~')) {
      throw new IllegalArgumentException(what + " must be printable ASCII");
    }
    return value;
  }

  /** Whether UTF-8 can carry a text as it is: no surrogate stands alone. */
  static boolean isUnicode(String text) {
    return utf8Length(text) >= 0;
  }

  /** The length in UTF-8, or -1 if a surrogate stands alone. */
  private static int utf8Length(String text) {
    int bytes = 0;
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (c < 0x80) {
        bytes += 1;
      } else if (c < 0x800) {
        bytes += 2;
      } else if (!Character.isSurrogate(c)) {
        bytes += 3;
      } else if (Character.isHighSurrogate(c)
          && i + 1 < text.length()
          && Character.isLowSurrogate(text.charAt(i + 1))) {
        bytes += 4;
        i++;
      } else {
        return -1;
      }
    }
    return bytes;
  }
}
