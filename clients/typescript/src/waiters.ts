/** How long a call of a producer may wait. */
export interface WaitOptions {
  /** Milliseconds to wait at most; the producer's own `timeout` if left out. */
  timeout?: number | undefined;
  /** Ends the wait, which then fails with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** A timer takes no more milliseconds; a longer wait has no limit. */
const LONGEST = 2 ** 31 - 1;

interface Waiter {
  readonly done: () => boolean;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** Those who wait until something holds, served in the order in which they came. */
export class Waiters {
  readonly #waiting = new Map<number, Waiter>();
  #tickets = 0;

  /** The ticket of who came last. */
  get newest(): number {
    return this.#tickets;
  }

  /** The ticket of who has waited longest; infinity if nobody waits. */
  get oldest(): number {
    return this.#waiting.keys().next().value ?? Infinity;
  }

  /**
   * Waits until `done` gives true; it is asked again at every `settle`, after those who came
   * before.
   *
   * @throws `late()` after the timeout, the signal's reason, or what `fail` was called with.
   */
  async until(
    done: () => boolean,
    { timeout = 0, signal }: WaitOptions,
    late: () => Error,
  ): Promise<void> {
    signal?.throwIfAborted();
    if (this.#waiting.size === 0 && done()) {
      return;
    }
    const ticket = ++this.#tickets;
    let release = () => {};
    try {
      await new Promise<void>((resolve, reject) => {
        // Whoever gives up must not be served any more, so it leaves before its error is seen.
        const giveUp = (error: unknown) => {
          this.#waiting.delete(ticket);
          reject(error);
        };
        const abort = () => giveUp(signal?.reason);
        const timer = timeout <= LONGEST && setTimeout(() => giveUp(late()), timeout);
        release = () => {
          clearTimeout(timer || undefined);
          signal?.removeEventListener("abort", abort);
        };
        signal?.addEventListener("abort", abort, { once: true });
        this.#waiting.set(ticket, { done, resolve, reject });
      });
    } finally {
      release();
    }
  }

  /** Something has changed: lets those go for whom it holds. */
  settle(): void {
    for (const [ticket, waiter] of this.#waiting) {
      if (waiter.done()) {
        this.#waiting.delete(ticket);
        waiter.resolve();
      }
    }
  }

  /** Ends all waits with an error. */
  fail(error: Error): void {
    for (const waiter of this.#waiting.values()) {
      waiter.reject(error);
    }
    this.#waiting.clear();
  }
}
