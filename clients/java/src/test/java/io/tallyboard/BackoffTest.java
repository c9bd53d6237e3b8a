package io.tallyboard;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class BackoffTest {
  private final Backoff backoff = new Backoff();

  @Test
  void waitsDoubleUpToTheLongest() {
    long expected = Backoff.FIRST.toMillis();
    for (int i = 0; i < 10; i++) {
      assertWithin(expected / 2, expected, delay(Optional.empty()));
      expected = Math.min(2 * expected, Backoff.LONGEST.toMillis());
    }
  }

  @Test
  void successStartsAgain() {
    for (int i = 0; i < 10; i++) {
      delay(Optional.empty());
    }
    backoff.reset();
    assertWithin(25, 50, delay(Optional.empty()));
  }

  @Test
  void waitsAsLongAsTheServiceAsks() {
    assertWithin(2_000, 2_200, delay(Optional.of(Duration.ofSeconds(2))));
  }

  private long delay(Optional<Duration> least) {
    return Duration.ofNanos(backoff.delay(least)).toMillis();
  }

  private static void assertWithin(long least, long most, long found) {
    assertTrue(least <= found && found <= most, found + " is not from " + least + " to " + most);
  }
}
