package io.tallyboard;

import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Waits that double from 50 ms to 3 s, each shortened at random by up to half.
 *
 * <p>Many producers that lose the same worker so come back at different moments. Not for several
 * threads at once: a producer's lock guards it.
 */
final class Backoff {
  static final Duration FIRST = Duration.ofMillis(50);
  static final Duration LONGEST = Duration.ofSeconds(3);
  private static final double MOST_LATE = 0.1;
  // Leaves room for adding a few of them to System.nanoTime().
  private static final Duration FOREVER = Duration.ofDays(3650);

  private long next = FIRST.toNanos();

  /** Something went well: the next wait is the shortest again. */
  void reset() {
    next = FIRST.toNanos();
  }

  /**
   * How long to wait now, in nanoseconds.
   *
   * @param least what the service asked for
   */
  long delay(Optional<Duration> least) {
    ThreadLocalRandom random = ThreadLocalRandom.current();
    long delay = random.nextLong(next / 2, next + 1);
    next = Math.min(next * 2, LONGEST.toNanos());
    if (least.isEmpty()) {
      return delay;
    }
    return Math.max(delay, (long) (nanos(least.get()) * (1 + random.nextDouble(MOST_LATE))));
  }

  /** A duration in nanoseconds; one that does not fit is as good as for ever. */
  static long nanos(Duration duration) {
    return duration.compareTo(FOREVER) < 0 ? duration.toNanos() : FOREVER.toNanos();
  }
}
