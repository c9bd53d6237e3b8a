import assert from "node:assert/strict";
import { test } from "node:test";
import { Metadata, status } from "@grpc/grpc-js";
import { errorFromCall, errorFromStatus } from "tallyboard";
import { BadRequest, ErrorInfo, RetryInfo } from "../src/gen/google/rpc/error_details.js";
import { Status } from "../src/gen/google/rpc/status.js";
import { packed } from "./server.js";

function failed(details: Status["details"], pushback?: string) {
  const found = { code: status.UNAVAILABLE, message: "the queue is full", details };
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(Status.encode(found).finish()));
  if (pushback !== undefined) {
    metadata.set("grpc-retry-pushback-ms", pushback);
  }
  return { code: status.UNAVAILABLE, details: "the queue is full", metadata };
}

function info(reason: string, domain: string) {
  const message = ErrorInfo.fromPartial({ reason, domain });
  return packed("ErrorInfo", ErrorInfo.encode(message).finish());
}

function retry(seconds: bigint, nanos: number) {
  const message = RetryInfo.fromPartial({ retryDelay: { seconds, nanos } });
  return packed("RetryInfo", RetryInfo.encode(message).finish());
}

test("an error has the reason, the fields and the wait of its details", () => {
  const violations = [{ field: "deltas[3].delta", description: "must not be 0" }];
  const request = BadRequest.fromPartial({ fieldViolations: violations });
  const bad = packed("BadRequest", BadRequest.encode(request).finish());
  const call = failed([
    info("OTHER", "elsewhere.example"),
    info("OVERLOADED", "tallyboard"),
    bad,
    retry(1n, 500_000_000),
  ]);
  const error = errorFromCall(call);
  assert.equal(error.code, "UNAVAILABLE");
  assert.equal(error.reason, "OVERLOADED");
  assert.deepEqual(error.violations, violations);
  assert.equal(error.retryAfter, 1_500);
  assert.equal(error.cause, call);
  assert.equal(
    error.message,
    "OVERLOADED: the queue is full (deltas[3].delta: must not be 0)",
  );
});

test("the longer of RetryInfo and the pushback counts", () => {
  assert.equal(errorFromCall(failed([retry(1n, 0)], "1700")).retryAfter, 1_700);
  assert.equal(errorFromCall(failed([retry(2n, 0)], "1700")).retryAfter, 2_000);
  assert.equal(errorFromCall(failed([], "1700")).retryAfter, 1_700);
  assert.equal(errorFromCall(failed([], "-1")).retryAfter, 0);
  assert.equal(errorFromCall(failed([], "soon")).retryAfter, undefined);
  assert.equal(errorFromCall(failed([])).retryAfter, undefined);
});

test("an error of the transport has no reason", () => {
  const error = errorFromCall({ code: status.CANCELLED, details: "gone" });
  assert.deepEqual([error.code, error.reason], ["CANCELLED", ""]);
  assert.equal(error.message, "CANCELLED: gone");
  assert.equal(errorFromCall({ code: 99, details: "" }).code, "UNKNOWN");
});

test("details that can't be read leave the status", () => {
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from([0x1a, 0xff]));
  const error = errorFromCall({ code: status.NOT_FOUND, details: "no such board", metadata });
  assert.equal(error.message, "NOT_FOUND: no such board");
  const garbled = packed("ErrorInfo", Buffer.from([0x0a, 0xff]));
  assert.equal(errorFromCall(failed([garbled])).reason, "");
});

test("the status of an item is an error too", () => {
  const item = { code: 11, message: "past the range", details: [] };
  item.details.push(info("COUNTER_OUT_OF_RANGE", "tallyboard") as never);
  const error = errorFromStatus(item);
  assert.deepEqual([error.code, error.reason], ["OUT_OF_RANGE", "COUNTER_OUT_OF_RANGE"]);
  assert.equal(errorFromStatus(undefined).code, "UNKNOWN");
});
