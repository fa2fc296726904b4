/** Sends operations, order events and control messages to simplu-worker, and waits for their outcomes. */

export { type Limits } from "./batcher.js";
export { Client, type ClientOptions, type Position, type Sent } from "./client.js";
export {
  ClosedError,
  type Failure,
  FAILURES,
  InvalidOperationError,
  NotSentError,
  OperationFailedError,
  OperationLostError,
  OperationRejectedError,
  QueueFullError,
  SimpluError,
  UnexpectedAnswerError,
  WaitTimeoutError,
} from "./errors.js";
export { type ControlMessage, type Operation, type OrderEvent, type Tenant } from "./messages.js";
export { type Outcome } from "./outcomes.js";
