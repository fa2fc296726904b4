/** What an answer of `GET /operations/{requestId}` means, and when to ask again. Pure. */

import {
  FAILURES,
  OperationFailedError,
  OperationLostError,
  OperationRejectedError,
  SimpluError,
  UnexpectedAnswerError,
} from "./errors.js";

const CLOCK_MARGIN_MS = 10_000; // by which the clocks of producer and worker may differ
const ASK_BASE_MS = 100;
const ASK_MAX_MS = 2_000;
const NOT_NOW = [429, 502, 503, 504];

/** An operation that succeeded; `result` is that of a `read` or `list`, `answer` the whole answer. */
export interface Outcome {
  readonly requestId: string;
  readonly result: Record<string, unknown> | null;
  readonly answer: Record<string, unknown>;
}

/** It is not decided, as far as this answer knows. */
export class AskAgain {
  constructor(
    readonly status: string | null,
    readonly detail: string,
  ) {}
}

/** Returns what an answer means; `answer` is null if it was no JSON object, `sentAt` if the time is not known. */
export function judge(
  httpStatus: number,
  answer: Record<string, unknown> | null,
  sentAt: number | null,
): Outcome | AskAgain | SimpluError {
  if (NOT_NOW.includes(httpStatus)) {
    return new AskAgain(null, `HTTP status ${httpStatus}`);
  }
  if (answer === null || (httpStatus !== 200 && httpStatus !== 404)) {
    return new UnexpectedAnswerError(`expected the status of an operation, got HTTP status ${httpStatus}`);
  }
  const { requestId, status, error, reason, result, readUpTo } = answer;
  const detail = (result ?? null) as Record<string, unknown> | null;
  const failure = FAILURES.find((known) => known === error);
  if (status === "succeeded") {
    return { requestId: String(requestId), result: detail, answer };
  } else if (status === "failed" && failure !== undefined) {
    return new OperationFailedError(failure, detail);
  } else if (status === "rejected") {
    return new OperationRejectedError(String(reason), String(error));
  } else if (status === "pending" || status === "held") {
    return new AskAgain(status, String(reason ?? ""));
  } else if (status === "unknown") {
    return typeof readUpTo === "string" && sentAt !== null && Date.parse(readUpTo) > sentAt + CLOCK_MARGIN_MS
      ? new OperationLostError("the worker has read the stream up to here: a dead letter, or it was never sent")
      : new AskAgain(status, "");
  }
  return new UnexpectedAnswerError(`expected a status and an error of the interface, got ${status}, ${error}`);
}

/** Returns the pause after that answer, counted from 1. */
export function askAfterMs(count: number, draw: number): number {
  return Math.min(ASK_MAX_MS, ASK_BASE_MS * 2 ** (count - 1)) * (0.5 + draw / 2);
}
