/** What can go wrong, as a closed set of errors. */

export const FAILURES = [
  "already_exists",
  "not_found",
  "invalid_data",
  "invalid_query",
  "query_too_large",
  "result_too_large",
  "tenant_destroyed",
  "retries_exhausted",
] as const;
export type Failure = (typeof FAILURES)[number];

/** The base of all errors of this package. */
export class SimpluError extends Error {
  override get name(): string {
    return this.constructor.name;
  }
}

/** An operation, order event or control message that the worker would refuse; nothing was queued or sent. */
export class InvalidOperationError extends SimpluError {}

/** The queue had no room for an operation in the time that `send` was given; nothing was queued. */
export class QueueFullError extends SimpluError {}

/** The client is closed; nothing was queued. */
export class ClosedError extends SimpluError {}

/**
 * An operation or message that was given up, or left when the client was closed. With `mayBeSent` it may be applied
 * nevertheless. In either case send `original`, which has its `requestId`, again.
 */
export class NotSentError<T = unknown> extends SimpluError {
  constructor(
    readonly original: T,
    readonly reason: string,
    readonly mayBeSent: boolean,
  ) {
    super(`not sent: ${reason}${mayBeSent ? "; it may be applied nevertheless" : ""}`);
  }
}

/**
 * The worker decided that the operation fails; it has changed nothing. `result` has the place in a schema of the shard's
 * that refused the document, and what was expected there.
 */
export class OperationFailedError extends SimpluError {
  constructor(
    readonly error: Failure,
    readonly result: Record<string, unknown> | null = null,
  ) {
    super(`the operation failed: ${error}${result ? ` ${JSON.stringify(result)}` : ""}`);
  }
}

/** The record or message was no operation, and is a dead letter with this `reason`. */
export class OperationRejectedError extends SimpluError {
  constructor(
    readonly reason: string,
    detail: string,
  ) {
    super(`rejected as ${reason}: ${detail}`);
  }
}

/** The worker has read past the time of sending and knows no such operation: a dead letter, or not sent. */
export class OperationLostError extends SimpluError {}

/** The operation was not decided in that time; `status` is the last answer, null without one. Ask again. */
export class WaitTimeoutError extends SimpluError {
  constructor(
    readonly status: string | null,
    detail: string,
  ) {
    super(`not decided yet: ${status ?? "no answer"}${detail && ` (${detail})`}`);
  }
}

/** The worker refuses the request, by its token or otherwise, or answered what this version does not know. */
export class UnexpectedAnswerError extends SimpluError {}
