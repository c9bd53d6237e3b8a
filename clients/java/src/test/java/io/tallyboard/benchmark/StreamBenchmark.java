package io.tallyboard.benchmark;

import io.tallyboard.Producer;
import io.tallyboard.TallyboardChannel;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/**
 * How many updates a second one producer gets acknowledged: {@code StreamBenchmark host:port
 * [seconds]}. It adds to 1,000 counters of the tenant {@code bench} and prints one line.
 */
public final class StreamBenchmark {
  private static final int COUNTERS = 1_000;
  private static final int DEFAULT_SECONDS = 5;
  private static final int MAX_SECONDS = 60;
  private static final Duration DRAIN = Duration.ofSeconds(30);

  private StreamBenchmark() {}

  /**
   * Sends for the given time, waits for the rest of the acknowledgements, and prints the rate.
   *
   * @param arguments the target, then seconds from 1 to 60, 5 if left out
   */
  public static void main(String[] arguments) {
    if (arguments.length < 1 || arguments.length > 2) {
      System.err.println("usage: StreamBenchmark host:port [seconds]");
      System.exit(2);
    }
    int seconds = arguments.length == 2 ? Integer.parseInt(arguments[1]) : DEFAULT_SECONDS;
    long limit = Duration.ofSeconds(Math.max(1, Math.min(seconds, MAX_SECONDS))).toNanos();
    List<String> counters = new ArrayList<>();
    for (int i = 0; i < Producer.MAX_UPDATES; i++) {
      counters.add("post:" + i % COUNTERS);
    }
    long[] deltas = new long[Producer.MAX_UPDATES];
    Arrays.fill(deltas, 1);
    TallyboardChannel.Builder builder = TallyboardChannel.builder(arguments[0]).tenant("bench");
    try (TallyboardChannel channel = builder.build();
        Producer producer = Producer.builder(channel).timeout(DRAIN).open()) {
      producer.send(counters, deltas); // Connects.
      producer.flush(DRAIN);
      long before = producer.acknowledged();
      long start = System.nanoTime();
      while (System.nanoTime() - start < limit) {
        producer.send(counters, deltas);
      }
      producer.flush(DRAIN);
      double elapsed = (System.nanoTime() - start) / 1e9;
      long count = producer.acknowledged() - before;
      System.out.printf(
          Locale.ROOT,
          "%.0f updates acknowledged per second (%d in %.1f s, %d failed)%n",
          count / elapsed,
          count,
          elapsed,
          producer.failed());
    }
  }
}
