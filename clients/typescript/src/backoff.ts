const FIRST = 50;
const LONGEST = 3_000;

/**
 * Waits that double from 50 ms to 3 s, each shortened at random by up to half, so that many
 * producers that lose the same worker come back at different moments.
 */
export class Backoff {
  #next = FIRST;

  /** Something went well: the next wait is the shortest again. */
  reset(): void {
    this.#next = FIRST;
  }

  /** The milliseconds to wait now: at least `retryAfter`, if the service asked for that. */
  delay(retryAfter: number | undefined): number {
    const delay = this.#next * (0.5 + Math.random() / 2);
    this.#next = Math.min(this.#next * 2, LONGEST);
    return Math.max(delay, (retryAfter ?? 0) * (1 + Math.random() / 10));
  }
}
