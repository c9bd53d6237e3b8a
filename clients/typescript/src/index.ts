/**
 * The client of Tallyboard, live counters and leaderboards over gRPC. The messages and enums are
 * in `tallyboard/v1/counters`, `/leaderboards`, `/operations`, `/consistency` and `/errors`.
 *
 * @packageDocumentation
 */

export type { IncrementFailure } from "./batches.js";
export type { CallOptions, Calls, DuplexCall, UnaryCall, WatchCall } from "./calls.js";
export {
  clientOptions,
  connect,
  type ConnectOptions,
  type Identity,
  type Tallyboard,
} from "./connect.js";
export {
  type CallStatus,
  type Code,
  type ErrorDetails,
  errorFromCall,
  errorFromStatus,
  TallyboardError,
  type Violation,
} from "./errors.js";
export { SERVICE_CONFIG } from "./gen/service_config.js";
export type { Duration } from "./gen/google/protobuf/duration.js";
export type { Timestamp } from "./gen/google/protobuf/timestamp.js";
export type { Status } from "./gen/google/rpc/status.js";
export type { Producer, ProducerOptions, WaitOptions } from "./producer.js";
export { fromDate, fromMs, toDate } from "./time.js";
