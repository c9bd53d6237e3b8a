package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class NamesTest {
  @ParameterizedTest
  @ValueSource(strings = {"post:42", "näme", "日本", "🎉"})
  void namesOfAllScriptsPass(String name) {
    assertEquals(name, Names.require("a counter", name));
  }

  @Test
  void bytesCountAndNotCharacters() {
    Names.require("a counter", "a".repeat(256));
    Names.require("a counter", "é".repeat(128));
    Names.require("a counter", "日".repeat(85));
    Names.require("a counter", "🎉".repeat(64));
    for (String tooLong :
        List.of("a".repeat(257), "é".repeat(129), "日".repeat(86), "🎉".repeat(65))) {
      assertThrows(IllegalArgumentException.class, () -> Names.require("a counter", tooLong));
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "\ud83c", "\udf89a", "a\ud83c"})
  void whatWouldArriveAsAnotherNameIsRefused(String name) {
    assertThrows(IllegalArgumentException.class, () -> Names.require("a counter", name));
  }
}
