import assert from "node:assert/strict";
import { test } from "node:test";
import * as counters from "tallyboard/v1/counters";
import * as leaderboards from "tallyboard/v1/leaderboards";
import { difference, type Json } from "../conformance/compare.js";
import { jsonOf, messageOf } from "../conformance/mapping.js";

// As numbers they would be the same.
const IS_OFF_BY_ONE = 'it is "-90071992547409930" instead of "-90071992547409931"';

test("what is expected is a part of what is there", () => {
  const same: [Json, Json | undefined][] = [
    [{ value: "3" }, { value: "3", other: 1 }],
    [{ value: 3 }, { value: "3" }],
    [{ value: 1.5 }, { value: "1.5" }],
    [{ value: "0", list: [], exists: false, name: "" }, {}],
    ["$any", "something"],
    [[{ a: 1 }], [{ a: 1, b: 2 }]],
    ["9223372036854775807", "9223372036854775807"],
  ];
  for (const [expected, found] of same) {
    assert.equal(difference(expected, found, "it"), "");
  }
});

test("what is missing or other is told with its path", () => {
  const other: [Json, Json | undefined, string][] = [
    [{ count: { value: "3" } }, { count: { value: "4" } }, 'it.count.value is "4" instead of "3"'],
    ["$any", "", "it is missing"],
    [{ a: "$any" }, {}, "it.a is missing"],
    [[1], [], "it has 0 items instead of 1: []"],
    [[], [1], "it has 1 items instead of 0: [1]"],
    [[{ a: 1 }], [{ a: 2 }], "it[0].a is 2 instead of 1"],
    [{ exists: true }, {}, "it.exists is nothing instead of true"],
    [{ exists: false }, { exists: true }, "it.exists is true instead of false"],
    ["-90071992547409931", "-90071992547409930", IS_OFF_BY_ONE],
    ["2026", "2026-W48", 'it is "2026-W48" instead of "2026"'],
  ];
  for (const [expected, found, text] of other) {
    assert.equal(difference(expected, found, "it"), text);
  }
});

test("durations, masks and oneofs are read as protobuf's JSON has them", () => {
  const watch = messageOf(counters.WatchCountersRequest, { minInterval: "0.1s" });
  assert.deepEqual((watch as counters.WatchCountersRequest).minInterval, {
    seconds: 0n,
    nanos: 100_000_000,
  });
  const json = { leaderboard: { resetOffset: "-1.5s" }, updateMask: "maxEntries,timeZone" };
  const update = messageOf(leaderboards.UpdateLeaderboardRequest, json);
  const { leaderboard, updateMask } = update as leaderboards.UpdateLeaderboardRequest;
  assert.deepEqual(leaderboard?.resetOffset, { seconds: -1n, nanos: -500_000_000 });
  assert.deepEqual(updateMask, ["max_entries", "time_zone"]);
  const read = messageOf(counters.GetCounterRequest, { consistency: { maxStaleness: "2s" } });
  assert.deepEqual((read as counters.GetCounterRequest).consistency?.level, {
    $case: "maxStaleness",
    value: { seconds: 2n, nanos: 0 },
  });
});

test("messages are written as protobuf's JSON has them", () => {
  const board = leaderboards.Leaderboard.fromPartial({
    leaderboardId: "weekly",
    sortOrder: leaderboards.SortOrder.SORT_ORDER_ASCENDING,
    resetOffset: { seconds: 3600n, nanos: 0 },
    lateGrace: { seconds: -1n, nanos: -500_000_000 },
    maxEntries: 2n ** 53n + 1n,
    attributes: { game: "chess" },
    createdAt: { seconds: 1_795_000_000n, nanos: 123_456_000 },
  });
  assert.deepEqual(jsonOf(leaderboards.Leaderboard, board), {
    leaderboardId: "weekly",
    sortOrder: "SORT_ORDER_ASCENDING",
    resetOffset: "3600s",
    lateGrace: "-1.500s",
    maxEntries: "9007199254740993",
    attributes: { game: "chess" },
    createdAt: "2026-11-18T11:06:40.123456Z",
  });
  const entry = leaderboards.Entry.fromPartial({ score: NaN, metadata: Buffer.from([0, 255]) });
  assert.deepEqual(jsonOf(leaderboards.Entry, entry), { score: "NaN", metadata: "AP8=" });
  const around = leaderboards.ListEntriesAroundRequest.fromPartial({
    center: { $case: "member", value: "ann" },
  });
  assert.deepEqual(jsonOf(leaderboards.ListEntriesAroundRequest, around), { member: "ann" });
});
