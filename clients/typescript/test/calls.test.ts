import assert from "node:assert/strict";
import { createServer } from "node:net";
import { once } from "node:events";
import { test } from "node:test";
import { credentials, type ServerWritableStream, status } from "@grpc/grpc-js";
import { clientOptions, connect, TallyboardError } from "tallyboard";
import {
  type BatchIncrementRequest,
  CounterServiceClient,
  type GetCounterRequest,
  type IncrementRequest,
  IncrementResponse,
  type WatchCountersRequest,
} from "tallyboard/v1/counters";
import {
  type Answer,
  Arrivals,
  type Call,
  failure,
  type Handlers,
  type Stream,
  TestServer,
} from "./server.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Runs a test with a service that answers so. */
async function serving(
  handlers: Handlers,
  body: (target: string, server: TestServer) => Promise<void>,
): Promise<void> {
  const server = await new TestServer(handlers).start();
  try {
    await body(server.target, server);
  } finally {
    server.stop();
  }
}

test("a request without a request id gets one, and a given one is kept", async () => {
  const seen: string[] = [];
  const increment = (call: Call<IncrementRequest>, answer: Answer) => {
    seen.push(call.request.requestId);
    answer(null, IncrementResponse.fromPartial({}));
  };
  await serving({ increment }, async (target) => {
    const { counters, close } = opened(target);
    await counters.increment({ counter: "post:42", delta: 1n });
    await counters.increment({ counter: "post:42", delta: 1n });
    await counters.increment({ counter: "post:42", delta: 1n, requestId: "mine" });
    close();
  });
  assert.match(seen[0]!, UUID);
  assert.match(seen[1]!, UUID);
  assert.notEqual(seen[0], seen[1]);
  assert.equal(seen[2], "mine");
});

test("a repeat carries the same request id", async () => {
  const seen: string[] = [];
  const increment = (call: Call<IncrementRequest>, answer: Answer) => {
    seen.push(call.request.requestId);
    if (seen.length < 3) {
      answer(failure(status.UNAVAILABLE, "OVERLOADED"));
    } else {
      answer(null, IncrementResponse.fromPartial({ duplicate: true }));
    }
  };
  await serving({ increment }, async (target) => {
    const { counters, close } = opened(target);
    const { duplicate } = await counters.increment({ counter: "post:42", delta: 1n });
    assert.equal(duplicate, true);
    close();
  });
  assert.match(seen[0]!, UUID);
  assert.deepEqual(seen, [seen[0], seen[0], seen[0]]);
});

test("a batch above 1 MiB is repeated too", async () => {
  const sizes: number[] = [];
  const batchIncrement = (call: Call<BatchIncrementRequest>, answer: Answer) => {
    sizes.push(call.request.deltas.length);
    if (sizes.length < 2) {
      answer(failure(status.UNAVAILABLE, "OVERLOADED"));
    } else {
      answer(null, { failures: [] });
    }
  };
  const deltas = Array.from({ length: 10_000 }, (_, index) => ({
    counter: `post:${index}`.padEnd(200, "x"),
    delta: 1n,
  }));
  await serving({ batchIncrement }, async (target) => {
    const { counters, close } = opened(target);
    await counters.batchIncrement({ deltas });
    close();
  });
  assert.deepEqual(sizes, [10_000, 10_000]);
});

test("what is not UNAVAILABLE is not repeated", async () => {
  let calls = 0;
  const increment = (_: Call<IncrementRequest>, answer: Answer) => {
    calls += 1;
    answer(failure(status.INVALID_ARGUMENT, "DELTA_ZERO"));
  };
  await serving({ increment }, async (target) => {
    const { counters, close } = opened(target);
    await assert.rejects(counters.increment({ counter: "post:42" }), {
      code: "INVALID_ARGUMENT",
      reason: "DELTA_ZERO",
    });
    close();
  });
  assert.equal(calls, 1);
});

test("UNAVAILABLE that lasts is an error after five attempts", async () => {
  let calls = 0;
  const getCounter = (_: Call<GetCounterRequest>, answer: Answer) => {
    calls += 1;
    const error = failure(status.UNAVAILABLE, "OVERLOADED", 70);
    error.metadata.set("grpc-retry-pushback-ms", "10");
    answer(error);
  };
  await serving({ getCounter }, async (target) => {
    const { counters, close } = opened(target);
    await assert.rejects(counters.getCounter({ counter: "post:42" }), (error) => {
      assert.ok(error instanceof TallyboardError);
      assert.deepEqual([error.code, error.retryAfter], ["UNAVAILABLE", 70]);
      return true;
    });
    close();
  });
  assert.equal(calls, 5);
});

test("every call has the token and the tenant, or a tenant of its own", async () => {
  const seen: unknown[] = [];
  const getCounter = (call: Call<GetCounterRequest>, answer: Answer) => {
    const { metadata } = call;
    seen.push([metadata.get("x-tallyboard-tenant"), metadata.get("authorization")]);
    answer(null, {});
  };
  await serving({ getCounter }, async (target) => {
    const tallyboard = connect(target, { tenant: "acme", token: "secret" });
    await tallyboard.counters.getCounter({ counter: "post:42" });
    await tallyboard.counters.getCounter({ counter: "post:42" }, { tenant: "other" });
    tallyboard.close();
  });
  assert.deepEqual(seen, [
    [["acme"], ["Bearer secret"]],
    [["other"], ["Bearer secret"]],
  ]);
});

test("a call has the deadline of the service config, or one of its own", async () => {
  const left: number[] = [];
  const getCounter = (call: Call<GetCounterRequest>, answer: Answer) => {
    left.push(Number(call.getDeadline()) - Date.now());
    answer(null, {});
  };
  await serving({ getCounter }, async (target) => {
    const { counters, close } = opened(target);
    await counters.getCounter({ counter: "post:42" });
    await counters.getCounter({ counter: "post:42" }, { timeout: 2_000 });
    await counters.getCounter({ counter: "post:42" }, { timeout: 60_000 });
    close();
  });
  assert.ok(left[0]! > 5_000 && left[0]! <= 10_000, `${left[0]}`);
  assert.ok(left[1]! <= 2_000, `${left[1]}`);
  assert.ok(left[2]! > 30_000, `${left[2]}`);
});

test("streams have no deadline unless it is given", async () => {
  const deadlines: number[] = [];
  const watchCounters = (call: ServerWritableStream<WatchCountersRequest, object>) => {
    deadlines.push(Number(call.getDeadline()));
    call.end();
  };
  await serving({ watchCounters }, async (target) => {
    const { counters, close } = opened(target);
    await counters.watchCounters({ counters: ["post:42"] }).next();
    await counters.watchCounters({ counters: ["post:42"] }, { timeout: 60_000 }).next();
    close();
  });
  assert.equal(deadlines[0], Infinity);
  assert.ok(deadlines[1]! < Infinity);
});

test("text that would be sent as other text is refused", async () => {
  const arrived: unknown[] = [];
  const answering = (call: Call<object>, answer: Answer) => {
    arrived.push(call.request);
    answer(null, IncrementResponse.fromPartial({}));
  };
  const handlers = { increment: answering, batchIncrement: answering, getCounter: answering };
  await serving(handlers, async (target) => {
    const tallyboard = connect(target, { connections: 1 });
    const { counters, leaderboards } = tallyboard;
    const counter = "post:\ud800";
    const center = { $case: "member" as const, value: "\udfff" };
    const refused: [Promise<unknown>, string, string][] = [
      [counters.increment({ counter, delta: 1n }), "NAME_INVALID", "counter"],
      [
        counters.batchIncrement({ deltas: [{ counter: "post:42", delta: 1n }, { counter }] }),
        "NAME_INVALID",
        "deltas[1].counter",
      ],
      [counters.watchCounters({ counters: [counter] }).next(), "NAME_INVALID", "counters[0]"],
      [
        leaderboards.submitScore({ submission: { leaderboardId: "a", member: "\udc00" } }),
        "NAME_INVALID",
        "submission.member",
      ],
      [leaderboards.listEntriesAround({ center }), "NAME_INVALID", "member"],
      [
        leaderboards.createLeaderboard({ leaderboard: { attributes: { a: "\ud800" } } }),
        "FIELD_INVALID",
        "leaderboard.attributes.a",
      ],
    ];
    for (const [call, reason, field] of refused) {
      await assert.rejects(call, (error) => {
        assert.ok(error instanceof TallyboardError);
        const fields = error.violations.map((violation) => violation.field);
        assert.deepEqual([error.code, error.reason, fields], ["INVALID_ARGUMENT", reason, [field]]);
        return true;
      });
    }
    assert.deepEqual(arrived, []);
    await counters.increment({ counter: "post:\u{1f389}", delta: 1n });
    assert.equal(arrived.length, 1);
    tallyboard.close();
  });
});

test("a call waits for a service that is not there yet", async () => {
  const reserved = createServer().listen(0, "127.0.0.1");
  await once(reserved, "listening");
  const { port } = reserved.address() as { port: number };
  const attempts = new Arrivals<void>();
  reserved.on("connection", (socket) => {
    socket.destroy();
    attempts.add();
  });
  const { counters, close } = opened(`127.0.0.1:${port}`);
  // A stream, because no retry policy would make up for one that does not wait.
  const stream = counters.streamIncrements().resume();
  const ended = once(stream, "status");
  stream.end();
  await attempts.at(2);
  reserved.close();
  await once(reserved, "close");

  const streamIncrements = (call: Stream) => call.resume().on("end", () => call.end());
  const server = new TestServer({ streamIncrements });
  server.target = `127.0.0.1:${port}`;
  await server.start();
  const [found] = await ended;
  close();
  server.stop();
  assert.equal(found.code, status.OK);
});

test("an aborted call fails with the reason of its signal", async () => {
  const arrived = new Arrivals<Call<GetCounterRequest>>();
  const getCounter = (call: Call<GetCounterRequest>) => arrived.add(call);
  await serving({ getCounter }, async (target) => {
    const { counters, close } = opened(target);
    const controller = new AbortController();
    const { signal } = controller;
    const call = counters.getCounter({ counter: "post:42" }, { signal });
    const call2 = await arrived.at(0);
    const cancelled = once(call2, "cancelled");
    controller.abort(new Error("changed my mind"));
    await assert.rejects(call, { message: "changed my mind" });
    await cancelled;
    await assert.rejects(counters.getCounter({}, { signal }), { message: "changed my mind" });
    close();
  });
});

test("leaving the loop over a watch cancels it", async () => {
  const arrived = new Arrivals<NodeJS.EventEmitter>();
  const watchCounters = (call: NodeJS.EventEmitter & { write(message: object): void }) => {
    arrived.add(call);
    call.write({ counts: [] });
  };
  await serving({ watchCounters }, async (target) => {
    const { counters, close } = opened(target);
    let messages = 0;
    for await (const message of counters.watchCounters({ counters: ["post:42"] })) {
      messages += message.counts.length + 1;
      break;
    }
    assert.equal(messages, 1);
    const call = (await arrived.at(0)) as NodeJS.EventEmitter & { cancelled: boolean };
    if (!call.cancelled) {
      await once(call, "cancelled");
    }
    close();
  });
});

test("a watch that fails throws", async () => {
  const watchCounters = (call: NodeJS.EventEmitter) =>
    void call.emit("error", failure(status.INVALID_ARGUMENT, "NAME_INVALID"));
  await serving({ watchCounters }, async (target) => {
    const { counters, close } = opened(target);
    await assert.rejects(counters.watchCounters({ counters: [""] }).next(), {
      reason: "NAME_INVALID",
    });
    close();
  });
});

test("connections are taken in turns", async () => {
  const peers = new Set<string>();
  const getCounter = (call: Call<GetCounterRequest>, answer: Answer) => {
    peers.add(call.getPeer());
    answer(null, {});
  };
  await serving({ getCounter }, async (target) => {
    const tallyboard = connect(target, { connections: 3 });
    for (let i = 0; i < 6; i++) {
      await tallyboard.counters.getCounter({ counter: "post:42" });
    }
    tallyboard.close();
  });
  assert.equal(peers.size, 3);
});

test("a generated client with the options has request ids and the tenant", async () => {
  let seen: unknown[] = [];
  const increment = (call: Call<IncrementRequest>, answer: Answer) => {
    seen = [call.request.requestId, call.metadata.get("x-tallyboard-tenant")];
    answer(null, IncrementResponse.fromPartial({}));
  };
  await serving({ increment }, async (target) => {
    const options = clientOptions({ tenant: "acme" });
    const client = new CounterServiceClient(target, credentials.createInsecure(), options);
    const request = { counter: "post:42", delta: 1n, requestId: "", returnCount: false };
    await new Promise((resolve) => client.increment(request, resolve));
    client.close();
    assert.equal(request.requestId, "");
  });
  assert.match(String(seen[0]), UUID);
  assert.deepEqual(seen[1], ["acme"]);
});

test("what can't be sent is refused", async () => {
  assert.throws(() => connect("127.0.0.1:1", { tenant: "é" }), RangeError);
  assert.throws(() => connect("127.0.0.1:1", { token: "\n" }), RangeError);
  assert.throws(() => connect("127.0.0.1:1", { connections: 0 }), RangeError);
  const { counters, close } = opened("127.0.0.1:1");
  await assert.rejects(counters.getCounter({}, { tenant: "\n" }), RangeError);
  close();
  await assert.rejects(counters.getCounter({ counter: "post:42" }), {
    code: "FAILED_PRECONDITION",
  });
});

function opened(target: string) {
  const tallyboard = connect(target, { connections: 1 });
  return { counters: tallyboard.counters, close: () => tallyboard.close() };
}
