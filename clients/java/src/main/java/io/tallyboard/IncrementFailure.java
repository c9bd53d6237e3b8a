package io.tallyboard;

/**
 * The increments of one counter in one batch, none of which counted. The rest of the batch did.
 *
 * @param sequence the number of the batch
 * @param counter the name of the counter
 * @param updates how many increments they were
 * @param error why; its reason is {@code NAME_INVALID}, {@code DELTA_ZERO} or {@code
 *     COUNTER_OUT_OF_RANGE}
 */
public record IncrementFailure(long sequence, String counter, int updates, TallyboardError error) {}
