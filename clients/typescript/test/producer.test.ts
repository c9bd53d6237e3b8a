import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { status } from "@grpc/grpc-js";
import { connect, type IncrementFailure, type Producer, type ProducerOptions } from "tallyboard";
import type { SequenceFailure, StreamIncrementsRequest } from "tallyboard/v1/counters";
import { type Answer, Arrivals, type Failure, failure, type Stream, TestServer } from "./server.js";

const LEFT_OPEN = fileURLToPath(new URL("left-open.js", import.meta.url));

/** One stream as the service sees it; the test decides what it answers. */
class Opened {
  readonly batches = new Arrivals<StreamIncrementsRequest>();
  readonly over: Promise<unknown>;

  constructor(readonly call: Stream) {
    this.over = new Promise((resolve) => call.once("end", resolve).once("cancelled", resolve));
    call.on("data", (batch: StreamIncrementsRequest) => this.batches.add(batch));
    call.on("end", () => call.end());
  }

  acknowledge(sequence: number, failures: SequenceFailure[] = []): void {
    this.call.write({ acknowledgedSequence: BigInt(sequence), failures, window: 256 });
  }

  fail(error: Failure): void {
    this.call.emit("error", error);
  }

  get sequences(): number[] {
    return this.batches.all.map((batch) => Number(batch.sequence));
  }
}

interface Stage {
  readonly producer: Producer;
  readonly streams: Arrivals<Opened>;
  readonly server: TestServer;
}

/** Runs a test with a producer, and a service that answers as the test wants it. */
async function producing(
  options: ProducerOptions,
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const streams = new Arrivals<Opened>();
  const streamIncrements = (call: Stream) => streams.add(new Opened(call));
  const server = await new TestServer({ streamIncrements }).start();
  const tallyboard = connect(server.target, { tenant: "acme", connections: 1 });
  const producer = tallyboard.producer({ timeout: 10_000, ...options });
  try {
    await body({ producer, streams, server });
  } finally {
    await producer.close({ timeout: 0 }).catch(() => undefined);
    tallyboard.close();
    server.stop();
  }
}

const UNAVAILABLE = failure(status.UNAVAILABLE, "SHUTTING_DOWN");

test("batches are numbered, acknowledged and counted", async () => {
  await producing({ producerId: "p", tenant: "other" }, async ({ producer, streams }) => {
    assert.equal(await producer.send(["post:42", "post:43"], [1n, -2]), 1);
    assert.equal(await producer.send(["post:42"], [3, 4, 5]), 2);
    assert.deepEqual([producer.pending, producer.acknowledged], [5, 0]);
    const stream = await streams.at(0);
    const second = await stream.batches.at(1);
    assert.deepEqual(stream.batches.all[0], {
      producerId: "p",
      sequence: 1n,
      counters: ["post:42", "post:43"],
      deltas: [1n, -2n],
    });
    assert.deepEqual([second.sequence, second.deltas], [2n, [3n, 4n, 5n]]);
    assert.deepEqual(stream.call.metadata.get("x-tallyboard-tenant"), ["other"]);

    const flushed = producer.flush();
    stream.acknowledge(1);
    stream.acknowledge(2);
    await flushed;
    assert.deepEqual([producer.pending, producer.acknowledged], [0, 5]);
    assert.equal(producer.acknowledgedSequence, 2);
    await producer.close();
    await stream.over;
    assert.equal(producer.streamsOpened, 1);
  });
});

test("what was not acknowledged is sent again with the same contents", async () => {
  await producing({}, async ({ producer, streams }) => {
    const counters = ["post:42"];
    for (const delta of [1, 2, 3]) {
      await producer.send(counters, [delta]);
    }
    counters[0] = "post:43";
    const first = await streams.at(0);
    await first.batches.at(2);
    const flushed = producer.flush();
    first.acknowledge(1);
    first.fail(UNAVAILABLE);

    const second = await streams.at(1);
    await second.batches.at(1);
    assert.deepEqual(second.batches.all, first.batches.all.slice(1));
    assert.equal(producer.acknowledged, 1);
    await producer.send(["post:44"], [4]);
    await second.batches.at(2);
    assert.deepEqual(second.sequences, [2, 3, 4]);
    second.acknowledge(4);
    await flushed;
    assert.deepEqual([producer.acknowledged, producer.streamsOpened], [4, 2]);
  });
});

test("a lost connection and a service that ends the stream are resumed from", async () => {
  await producing({}, async ({ producer, streams, server }) => {
    await producer.send(["post:42"], [1]);
    const first = await streams.at(0);
    await first.batches.at(0);
    server.stop();
    await server.start();
    const second = await streams.at(1);
    await second.batches.at(0);
    second.call.end();
    const third = await streams.at(2);
    await third.batches.at(0);
    assert.deepEqual(third.batches.all, first.batches.all);
    third.acknowledge(1);
    await producer.flush();
  });
});

test("a full window makes send wait, in the order of the calls", async () => {
  await producing({ window: 2 }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    await producer.send(["post:42"], [2]);
    const waiting = [3, 4, 5].map((delta) => producer.send(["post:42"], [delta]));
    const flushed = producer.flush();
    const stream = await streams.at(0);
    await stream.batches.at(1);
    assert.deepEqual([producer.pending, stream.sequences], [2, [1, 2]]);
    stream.acknowledge(1);
    assert.equal(await waiting[0], 3);
    assert.equal(producer.pending, 2);
    stream.acknowledge(3);
    assert.deepEqual(await Promise.all(waiting), [3, 4, 5]);
    const last = await stream.batches.at(4);
    assert.deepEqual(last.deltas, [5n]);
    stream.acknowledge(5);
    await flushed;
    assert.equal(producer.acknowledged, 5);
  });
});

test("a send that gives up was not taken, and those behind it are", async () => {
  await producing({ window: 1 }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const controller = new AbortController();
    const late = producer.send(["post:42"], [2], { timeout: 1 });
    const aborted = producer.send(["post:42"], [3], { signal: controller.signal });
    const last = producer.send(["post:42"], [4]);
    await assert.rejects(late, { code: "DEADLINE_EXCEEDED", reason: "DEADLINE_EXCEEDED" });
    controller.abort(new Error("changed my mind"));
    await assert.rejects(aborted, { message: "changed my mind" });
    const stream = await streams.at(0);
    stream.acknowledge(1);
    assert.equal(await last, 2);
    const batch = await stream.batches.at(1);
    assert.deepEqual([batch.sequence, batch.deltas], [2n, [4n]]);
  });
});

test("a send that a callback aborts is not taken by the room that it makes", async () => {
  const controller = new AbortController();
  const onFailure = () => controller.abort(new Error("changed my mind"));
  await producing({ window: 1, onFailure }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const aborted = producer.send(["post:42"], [2], { signal: controller.signal });
    const stream = await streams.at(0);
    await stream.batches.at(0);
    stream.acknowledge(1, [{ sequence: 1n, counter: "post:42", status: undefined }]);
    await assert.rejects(aborted, { message: "changed my mind" });
    assert.deepEqual([producer.pending, producer.acknowledgedSequence], [0, 1]);
  });
});

test("an idle stream is closed, and the next batch opens another", async () => {
  await producing({ idleTimeout: 20 }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const first = await streams.at(0);
    await first.batches.at(0);
    first.acknowledge(1);
    await first.over;
    assert.equal(first.call.cancelled, false);
    await producer.send(["post:42"], [2]);
    const second = await streams.at(1);
    await second.batches.at(0);
    assert.deepEqual(second.sequences, [2]);
    second.acknowledge(2);
    await producer.flush();
    assert.deepEqual([producer.acknowledged, producer.streamsOpened], [2, 2]);
  });
});

test("a process with a producer left open ends once all is acknowledged", async () => {
  const streams = new Arrivals<Opened>();
  const streamIncrements = (call: Stream) => streams.add(new Opened(call));
  const getCounter = async (_: unknown, answer: Answer) => {
    // The next batch is taken during this pause, in which nothing else keeps the process alive.
    streams.all[0]!.fail(failure(status.UNAVAILABLE, "SHUTTING_DOWN", 300));
    answer(null, {});
  };
  const server = await new TestServer({ streamIncrements, getCounter }).start();
  const child = execFile(process.execPath, [LEFT_OPEN, server.target], { timeout: 20_000 });
  const printed = text(child.stdout!);
  const exited = once(child, "exit");
  try {
    const first = await streams.at(0);
    await first.batches.at(0);
    first.acknowledge(1);
    const second = await streams.at(1);
    await second.batches.at(0);
    second.fail(UNAVAILABLE);
    const third = await streams.at(2);
    await third.batches.at(0);
    third.acknowledge(2);
    third.fail(failure(status.UNAVAILABLE, "SHUTTING_DOWN", 60_000));
    assert.deepEqual(await exited, [0, null]);
    assert.equal(await printed, "acknowledged 2, pending 0\n");
  } finally {
    child.kill();
    server.stop();
  }
});

test("a stream that acknowledges nothing is broken after the stall timeout", async () => {
  await producing({ stallTimeout: 50 }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const first = await streams.at(0);
    await first.over;
    const second = await streams.at(1);
    const batch = await second.batches.at(0);
    assert.deepEqual(batch, first.batches.all[0]);
    second.acknowledge(1);
    await producer.flush();
  });
});

test("a producer waits as long as the service asks it to", async () => {
  await producing({}, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const first = await streams.at(0);
    await first.batches.at(0);
    const failedAt = performance.now();
    first.fail(failure(status.UNAVAILABLE, "OVERLOADED", 300));
    await streams.at(1);
    const waited = performance.now() - failedAt;
    // Timers and the other clock may be a little early.
    assert.ok(waited >= 295, `${waited}`);
  });
});

test("an error that would come again ends the producer", async () => {
  await producing({ window: 1 }, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const waiting = producer.send(["post:42"], [1]);
    const flushed = producer.flush();
    const stream = await streams.at(0);
    await stream.batches.at(0);
    stream.fail(failure(status.FAILED_PRECONDITION, "SEQUENCE_TOO_OLD"));
    const expected = { code: "FAILED_PRECONDITION", reason: "SEQUENCE_TOO_OLD" };
    await assert.rejects(waiting, expected);
    await assert.rejects(flushed, expected);
    await assert.rejects(producer.send(["post:42"], [1]), expected);
    await assert.rejects(producer.close(), expected);
    assert.deepEqual([producer.streamsOpened, streams.all.length], [1, 1]);
  });
});

test("what can't count is told, counted and kept", async () => {
  const told: IncrementFailure[] = [];
  const onFailure = (found: IncrementFailure) => {
    told.push(found);
    throw new Error("from the callback");
  };
  const warned = once(process, "warning");
  await producing({ onFailure }, async ({ producer, streams }) => {
    await producer.send(["post:42", "post:43", "post:42"], [1, 2, 3]);
    const stream = await streams.at(0);
    await stream.batches.at(0);
    const refused = { code: status.OUT_OF_RANGE, message: "past the range", details: [] };
    stream.acknowledge(1, [{ sequence: 1n, counter: "post:42", status: refused }]);
    await producer.flush();
    assert.deepEqual([producer.acknowledged, producer.failed, producer.pending], [1, 2, 0]);
    const { error, ...rest } = told[0]!;
    assert.deepEqual(rest, { sequence: 1, counter: "post:42", updates: 2, total: 4n });
    assert.equal(error.code, "OUT_OF_RANGE");
    assert.deepEqual(producer.failures, told);
  });
  const [warning] = await warned;
  assert.equal(warning.message, "from the callback");
});

test("a flush that is late says so, and what it waited for still counts", async () => {
  await producing({}, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    await assert.rejects(producer.flush({ timeout: 1 }), {
      code: "DEADLINE_EXCEEDED",
      reason: "OUTCOME_UNKNOWN",
    });
    const stream = await streams.at(0);
    stream.acknowledge(1);
    await producer.flush();
    assert.equal(producer.acknowledged, 1);
  });
});

test("a closed producer takes nothing, and what it could not flush is cancelled", async () => {
  await producing({}, async ({ producer, streams }) => {
    await producer.send(["post:42"], [1]);
    const stream = await streams.at(0);
    await assert.rejects(producer.close({ timeout: 1 }), { reason: "OUTCOME_UNKNOWN" });
    await stream.over;
    assert.equal(stream.call.cancelled, true);
    await assert.rejects(producer.send(["post:42"], [1]), { code: "FAILED_PRECONDITION" });
  });
});

test("a producer that goes on for another begins at its sequence", async () => {
  await producing({ producerId: "p", firstSequence: 7 }, async ({ producer, streams }) => {
    assert.equal(producer.acknowledgedSequence, 6);
    assert.equal(await producer.send(["post:42"], [1]), 7);
    const stream = await streams.at(0);
    await stream.batches.at(0);
    stream.acknowledge(7);
    await producer.flush();
  });
});

test("a batch that the service would refuse is not taken", async () => {
  await producing({}, async ({ producer, streams }) => {
    const refused: [string[], (bigint | number)[], string][] = [
      [["post:42"], [], "FIELD_INVALID"],
      [["post:42", "post:43"], [1], "FIELD_INVALID"],
      [["post:42"], [0], "DELTA_ZERO"],
      [["post:42"], [1.5], "FIELD_INVALID"],
      [["post:42"], [2n ** 63n], "FIELD_INVALID"],
      [[""], [1], "NAME_INVALID"],
      [["é".repeat(129)], [1], "NAME_INVALID"],
      [["\ud800"], [1], "NAME_INVALID"],
      [["post:42"], new Array(10_001).fill(1), "TOO_MANY_ITEMS"],
    ];
    for (const [counters, deltas, reason] of refused) {
      const sent = producer.send(counters, deltas);
      await assert.rejects(sent, { code: "INVALID_ARGUMENT", reason });
    }
    assert.deepEqual([producer.pending, streams.all.length], [0, 0]);
    await producer.send(["é".repeat(128)], [-(2n ** 63n)]);
    const stream = await streams.at(0);
    const { counters, deltas } = await stream.batches.at(0);
    assert.deepEqual([counters, deltas], [["é".repeat(128)], [-(2n ** 63n)]]);
  });
});

test("options outside their limits are refused", () => {
  const tallyboard = connect("127.0.0.1:1");
  for (const options of [
    { window: 0 },
    { window: 257 },
    { firstSequence: 0 },
    { window: 1.5 },
    { idleTimeout: 0 },
  ]) {
    assert.throws(() => tallyboard.producer(options), RangeError);
  }
  assert.throws(() => tallyboard.producer({ tenant: "\n" }), RangeError);
  tallyboard.close();
});
