package io.tallyboard;

import java.time.Duration;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;

/** Waits for what another thread does. */
final class Waiting {
  static final Duration PATIENCE = Duration.ofSeconds(20);
  private static final long LOOK_NANOS = 1_000_000;

  private Waiting() {}

  /** Returns as soon as something is so; fails the test if it takes longer than 20 seconds. */
  static void until(BooleanSupplier isSo, String what) {
    long deadline = System.nanoTime() + PATIENCE.toNanos();
    while (!isSo.getAsBoolean()) {
      if (System.nanoTime() > deadline) {
        throw new AssertionError("waited in vain for " + what);
      }
      LockSupport.parkNanos(LOOK_NANOS);
    }
  }
}
