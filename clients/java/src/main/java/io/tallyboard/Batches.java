package io.tallyboard;

import com.google.rpc.Status;
import io.tallyboard.v1.SequenceFailure;
import io.tallyboard.v1.StreamIncrementsRequest;
import io.tallyboard.v1.StreamIncrementsResponse;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * The batches of a producer that are not acknowledged, and what became of the others.
 *
 * <p>Nothing here waits or locks: all of it belongs to the producer, whose lock guards it.
 */
final class Batches {
  private final String producerId;
  // The batch with sequence s is at s modulo the length.
  private final StreamIncrementsRequest[] slots;
  private long oldest;
  private long next;
  private long counted;
  private long failed;
  private long pending;

  /**
   * @param producerId goes into every batch
   * @param window how many batches may be unacknowledged
   * @param firstSequence the number of the first batch
   */
  Batches(String producerId, int window, long firstSequence) {
    this.producerId = producerId;
    this.slots = new StreamIncrementsRequest[window];
    this.oldest = firstSequence;
    this.next = firstSequence;
  }

  /**
   * A batch that has no sequence yet.
   *
   * @throws IllegalArgumentException if the service would end the stream for it, or refuse updates
   *     in it for what can be seen here
   */
  static StreamIncrementsRequest.Builder checked(List<String> counters, long[] deltas) {
    if (deltas.length < 1 || deltas.length > Producer.MAX_UPDATES) {
      throw new IllegalArgumentException(
          "a batch has 1 to " + Producer.MAX_UPDATES + " deltas, not " + deltas.length);
    }
    StreamIncrementsRequest.Builder batch = StreamIncrementsRequest.newBuilder();
    for (String counter : counters) {
      batch.addCounters(Names.require("a counter", counter));
    }
    int names = batch.getCountersCount();
    if (names != 1 && names != deltas.length) {
      throw new IllegalArgumentException(
          names + " counters do not match " + deltas.length + " deltas");
    }
    for (long delta : deltas) {
      if (delta == 0) {
        throw new IllegalArgumentException("a delta must not be 0");
      }
      batch.addDeltas(delta);
    }
    return batch;
  }

  /** Whether all batches are acknowledged. */
  boolean isEmpty() {
    return oldest == next;
  }

  /** Whether there is no room for another batch. */
  boolean isFull() {
    return next - oldest >= slots.length;
  }

  /** The number of the newest batch. */
  long last() {
    return next - 1;
  }

  /** Every batch with this sequence or a smaller one is acknowledged. */
  long acknowledgedThrough() {
    return oldest - 1;
  }

  /** Updates that were acknowledged and counted. */
  long counted() {
    return counted;
  }

  /** Updates that were acknowledged and could not count. */
  long failed() {
    return failed;
  }

  /** Updates that are not acknowledged. */
  long pending() {
    return pending;
  }

  /** Takes a batch made by {@link #checked} and gives its sequence; there must be room. */
  long append(StreamIncrementsRequest.Builder batch) {
    long sequence = next++;
    slots[slot(sequence)] = batch.setProducerId(producerId).setSequence(sequence).build();
    pending += batch.getDeltasCount();
    return sequence;
  }

  /** The first unacknowledged batch above a sequence, or null. */
  StreamIncrementsRequest after(long sequence) {
    long wanted = Math.max(oldest, sequence + 1);
    return wanted < next ? slots[slot(wanted)] : null;
  }

  /** Drops what the response acknowledges; gives what of it did not count. */
  List<IncrementFailure> acknowledge(StreamIncrementsResponse response) {
    Map<Long, Map<String, Status>> failures = bySequence(response.getFailuresList());
    List<IncrementFailure> found = new ArrayList<>();
    long through = Math.min(response.getAcknowledgedSequence(), last());
    while (oldest <= through) {
      int slot = slot(oldest++);
      StreamIncrementsRequest batch = slots[slot];
      slots[slot] = null;
      pending -= batch.getDeltasCount();
      counted += batch.getDeltasCount();
      found.addAll(failuresOf(batch, failures.getOrDefault(batch.getSequence(), Map.of())));
    }
    for (IncrementFailure failure : found) {
      counted -= failure.updates();
      failed += failure.updates();
    }
    return found;
  }

  private int slot(long sequence) {
    return (int) (sequence % slots.length);
  }

  private static Map<Long, Map<String, Status>> bySequence(List<SequenceFailure> failures) {
    Map<Long, Map<String, Status>> found = new HashMap<>();
    for (SequenceFailure failure : failures) {
      found
          .computeIfAbsent(failure.getSequence(), sequence -> new HashMap<>())
          .put(failure.getCounter(), failure.getStatus());
    }
    return found;
  }

  private static List<IncrementFailure> failuresOf(
      StreamIncrementsRequest batch, Map<String, Status> statuses) {
    if (statuses.isEmpty()) {
      return List.of();
    }
    boolean hasOneCounter = batch.getCountersCount() == 1;
    Map<String, Integer> updates = new HashMap<>();
    for (String counter : batch.getCountersList()) {
      updates.merge(counter, hasOneCounter ? batch.getDeltasCount() : 1, Integer::sum);
    }
    List<IncrementFailure> found = new ArrayList<>();
    statuses.forEach(
        (counter, status) -> {
          if (updates.containsKey(counter)) {
            int count = updates.get(counter);
            TallyboardError error = TallyboardError.of(status);
            found.add(new IncrementFailure(batch.getSequence(), counter, count, error));
          }
        });
    return found;
  }
}
