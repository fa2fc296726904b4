/** The client: a queue in memory that is put on the stream, messages to queues, and questions over HTTP. */

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { KinesisClient, PutRecordsCommand, type PutRecordsResultEntry } from "@aws-sdk/client-kinesis";
import { SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";
import { type Answer, Batcher, LIMITS, type Limits, type Pending, type KeyRecord } from "./batcher.js";
import {
  ClosedError,
  InvalidOperationError,
  NotSentError,
  QueueFullError,
  SimpluError,
  WaitTimeoutError,
} from "./errors.js";
import {
  type ControlMessage,
  encode,
  type Operation,
  type OrderEvent,
  type PartitionKeyRule,
  partitionKey,
  queueId,
  uuid7,
} from "./messages.js";
import { AskAgain, askAfterMs, judge, type Outcome } from "./outcomes.js";

const REQUESTS = 4; // at a time
const REQUEST_TIMEOUT_MS = 10_000;
const SQS_ATTEMPTS = 8;
const ANSWER_WITHIN_S = 10; // of a request that waits for the outcome
const HTTP_MARGIN_MS = 5_000;
const THROTTLED = "ProvisionedThroughputExceededException";
const NO_RESULT = "NoResult"; // of a record for which a reply has none
const TOKEN = /^[!-~]+$/;
const LINE_END = Buffer.from("\n");

/**
 * What is not needed may be left out: `stream` for operations, the URLs of queues for messages, and `url` with `token`
 * for `wait`. `kinesis` and `sqs` are made from the environment without them.
 */
export interface ClientOptions {
  stream?: string;
  orderQueueUrl?: string;
  priorityQueueUrl?: string;
  controlQueueUrl?: string;
  url?: string;
  token?: string;
  kinesis?: KinesisClient;
  sqs?: SQSClient;
  limits?: Partial<Limits>;
  /** The worker's `KINESIS_PARTITION_KEY`; by default `resource-type`. */
  partitionKey?: PartitionKeyRule;
  /** Gets what was not accepted and is sent again, and what was given up; by default the console does. */
  warn?: (text: string) => void;
}

/** Where a record is in the stream, and since when at the latest. */
export interface Position {
  readonly streamShardId: string;
  readonly sequenceNumber: string;
  readonly at: number;
}

/** What names an operation when its outcome is asked for. */
export interface Sent {
  readonly requestId: string;
  readonly businessId: string;
  readonly locationId: string;
  /** Of operations alone: its position once Kinesis has the record, or a `NotSentError`. */
  readonly accepted?: Promise<Position>;
}

interface Item {
  readonly data: Buffer;
  readonly accept: (position: Position) => void;
  readonly refuse: (error: NotSentError) => void;
  position?: Position;
  reason?: string; // why the last try was none
}

interface Waiting {
  readonly add: () => void;
  readonly sizeBytes: number;
  readonly reject: (error: ClosedError | QueueFullError) => void;
}

export class Client {
  readonly #options: ClientOptions;
  readonly #kinesis: KinesisClient;
  readonly #sqs: SQSClient;
  readonly #warn: (text: string) => void;
  readonly #batcher: Batcher<Item>;
  readonly #waiting = new Map<string, Waiting[]>(); // operations for which the queue has no room, by their key
  readonly #onIdle: (() => void)[] = [];
  #inFlight = 0;
  #timer: NodeJS.Timeout | undefined;
  #soon: NodeJS.Immediate | undefined;
  #isClosed = false;
  #isDrained = false;

  constructor(options: ClientOptions) {
    if (!["resource-type", "tenant"].includes(options.partitionKey ?? "resource-type")) {
      throw new SimpluError(`partitionKey: expected resource-type or tenant, got ${options.partitionKey}`);
    }
    const token = options.token?.trim();
    if (token !== undefined && !TOKEN.test(token)) {
      throw new SimpluError("token: expected visible ASCII characters without spaces"); // and not those it has
    }
    this.#options = { ...options, ...(token !== undefined && { token }) };
    // A request that is sent again may let others of its keys wait: the batcher tries again, not the SDK.
    this.#kinesis = options.kinesis ?? new KinesisClient({ maxAttempts: 1 });
    this.#sqs = options.sqs ?? new SQSClient({ maxAttempts: SQS_ATTEMPTS });
    this.#warn = options.warn ?? ((text) => console.warn(`simplu-client: ${text}`));
    this.#batcher = new Batcher({ ...LIMITS, ...options.limits });
  }

  /**
   * Queues an operation behind those of its partition key, in the order of the calls; resolves once it is queued, which
   * waits while the queue has no room for the key, at most for `timeoutMs`. Rejects with `InvalidOperationError`,
   * `QueueFullError` or `ClosedError`.
   */
  async send(operation: Operation, options: { timeoutMs?: number } = {}): Promise<Sent> {
    const requestId = operation.requestId ?? newId();
    const message = { ...operation, requestId, timestamp: operation.timestamp ?? new Date().toISOString() };
    const key = partitionKey(message, this.#options.partitionKey);
    const { data, sizeBytes } = encoded(message, "operation", key);
    required("stream", this.#options.stream);
    if (this.#isClosed) {
      throw new ClosedError("expected an open client");
    }
    const { businessId, locationId } = operation;
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const add = (): void => {
        clearTimeout(timer);
        const accepted = new Promise<Position>((accept, refuse) => {
          this.#batcher.add({ data, accept, refuse }, key, sizeBytes);
        });
        accepted.catch(() => {}); // who does not ask is told by `warn` and `close`
        resolve({ requestId, businessId, locationId, accepted });
      };
      const giveUp = (error: ClosedError | QueueFullError): void => {
        clearTimeout(timer);
        reject(error);
      };
      const waiting: Waiting = { add, sizeBytes, reject: giveUp };
      const ofKey = this.#waiting.get(key) ?? [];
      ofKey.push(waiting);
      this.#waiting.set(key, ofKey);
      if (options.timeoutMs !== undefined) {
        timer = setTimeout(() => this.#stopWaiting(key, waiting, options.timeoutMs), options.timeoutMs);
      }
      this.#admit(key);
    });
  }

  /** Takes no more operations, sends those that are queued, and returns what was not sent in that time. */
  async close(timeoutMs = 30_000): Promise<NotSentError<Operation>[]> {
    this.#isClosed = true;
    const waiting = [...this.#waiting.values()].flat();
    this.#waiting.clear();
    waiting.forEach(({ reject }) => reject(new ClosedError("expected an open client")));
    if (this.#batcher.count > 0) {
      const idle = new Promise<void>((resolve) => this.#onIdle.push(resolve));
      await Promise.race([idle, sleep(timeoutMs, undefined, { ref: false })]); // what is queued has timers or requests
    }
    this.#isDrained = true;
    clearTimeout(this.#timer);
    return this.#giveUp(this.#batcher.drain());
  }

  #stopWaiting(key: string, waiting: Waiting, timeoutMs?: number): void {
    const left = (this.#waiting.get(key) ?? []).filter((one) => one !== waiting);
    this.#waiting.set(key, left);
    if (left.length === 0) {
      this.#waiting.delete(key);
    }
    waiting.reject(new QueueFullError(`the queue had no room for the key ${key} within ${timeoutMs} ms`));
  }

  /** Queues what waits and has room now: of one key, or of all. */
  #admit(...keys: string[]): void {
    for (const key of keys.length > 0 ? keys : [...this.#waiting.keys()]) {
      const waiting = this.#waiting.get(key) ?? [];
      let count = 0;
      for (; count < waiting.length && this.#batcher.hasRoom(key, waiting[count]!.sizeBytes); count += 1) {
        waiting[count]!.add();
      }
      if (count > 0) {
        this.#waiting.delete(key);
        if (count < waiting.length) {
          this.#waiting.set(key, waiting.slice(count)); // behind other keys
        }
      }
    }
    // What is queued in one turn of the event loop goes into one request.
    this.#soon ??= setImmediate(() => {
      this.#soon = undefined;
      this.#pump();
    });
  }

  #pump(): void {
    clearTimeout(this.#timer);
    while (this.#inFlight < REQUESTS && !this.#isDrained) {
      const batch = this.#batcher.nextBatch(performance.now());
      if (batch.length === 0) {
        const at = this.#batcher.nextAt();
        if (at !== null) {
          this.#timer = setTimeout(() => this.#pump(), Math.max(1, Math.ceil(at - performance.now())));
        }
        return;
      }
      this.#inFlight += 1;
      void this.#put(batch);
    }
  }

  async #put(batch: KeyRecord<Item>[]): Promise<void> {
    const Records = batch.map((record) => ({ Data: dataOf(record), PartitionKey: record[0]!.key }));
    let results: PutRecordsResultEntry[] = [];
    let failure: { ErrorCode: string; isUnknown: boolean } | undefined;
    try {
      const command = new PutRecordsCommand({ StreamName: this.#options.stream, Records });
      const abortSignal = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
      results = (await this.#kinesis.send(command, { abortSignal })).Records ?? [];
    } catch (error) {
      failure = { ErrorCode: reasonOf(error), isUnknown: !isRefused(error) };
    }
    const at = Date.now();
    const refused = new Map<string, number>();
    const answers = batch.map((record, index): Answer => {
      const result: PutRecordsResultEntry = failure ?? results[index] ?? {};
      if (result.ShardId !== undefined) {
        const position = { streamShardId: result.ShardId, sequenceNumber: result.SequenceNumber ?? "", at };
        record.forEach(({ item }) => (item.position = position));
        return { streamShardId: result.ShardId };
      }
      const reason = result.ErrorCode ?? NO_RESULT;
      record.forEach(({ item }) => (item.reason = reason));
      refused.set(reason, (refused.get(reason) ?? 0) + record.length);
      return { streamShardId: null, isUnknown: failure?.isUnknown ?? reason !== THROTTLED };
    });
    this.#inFlight -= 1;
    const { accepted, givenUp } = this.#batcher.settle(batch, answers, performance.now(), Math.random());
    for (const { item } of accepted) {
      item.accept(item.position!);
    }
    refused.forEach((count, reason) => this.#warn(`not accepted: ${count} operations, ${reason}`));
    this.#giveUp(givenUp);
    this.#admit();
    if (this.#batcher.count === 0) {
      this.#onIdle.splice(0).forEach((resolve) => resolve());
    }
  }

  #giveUp(operations: Pending<Item>[]): NotSentError<Operation>[] {
    const instead = this.#isDrained ? "the client was closed" : "an earlier operation of its key was not sent";
    return operations.map(({ item, mayBeSent }) => {
      const operation = JSON.parse(item.data.toString()) as Operation;
      const error = new NotSentError(operation, item.reason ?? instead, mayBeSent);
      this.#warn(`${operation.requestId}: ${error.message}`);
      item.refuse(error);
      return error;
    });
  }

  /**
   * Sends an order event; resolves when its queue has it. Await one before the next that has to follow it. In a FIFO
   * queue `groupId` names those, else each order of a tenant is a group. Rejects with `InvalidOperationError` or `NotSentError`.
   */
  async sendOrder(event: OrderEvent, options: { isUrgent?: boolean; groupId?: string } = {}): Promise<Sent> {
    const requestId = event.deduplicationId ?? newId();
    const message = { ...event, deduplicationId: requestId };
    const name = options.isUrgent ? "priorityQueueUrl" : "orderQueueUrl";
    const order = `${event.businessId}-${event.locationId}-${event.orderId ?? requestId}`;
    await this.#sendMessage(required(name, this.#options[name]), message, "type", options.groupId ?? order);
    return { requestId, businessId: event.businessId, locationId: event.locationId };
  }

  /** Sends a control message; resolves when the queue has it. Rejects with `InvalidOperationError` or `NotSentError`. */
  async sendControl(message: ControlMessage): Promise<void> {
    const groupId = `${message.businessId}-${message.locationId ?? ""}`;
    const sent = { ...message, timestamp: message.timestamp ?? new Date().toISOString() };
    const queueUrl = required("controlQueueUrl", this.#options.controlQueueUrl);
    await this.#sendMessage(queueUrl, sent, "messageType", groupId);
  }

  async #sendMessage(
    QueueUrl: string,
    message: Readonly<Record<string, unknown>>,
    kindName: string,
    groupId: string,
  ): Promise<void> {
    const MessageBody = encoded(message, kindName).data.toString();
    // SQS drops an id that the queue had in the last five minutes, of any tenant, and also if that event became a dead
    // letter. So each call has its own: the SDK's tries share it, and the worker drops repetitions.
    const fifo = { MessageGroupId: queueId(groupId), MessageDeduplicationId: newId() };
    const request = { QueueUrl, MessageBody, ...(QueueUrl.endsWith(".fifo") ? fifo : {}) };
    try {
      await this.#sqs.send(new SendMessageCommand(request)); // which tries again
    } catch (error) {
      throw new NotSentError(message, reasonOf(error), !isRefused(error));
    }
  }

  /**
   * Resolves to the outcome of what succeeded, as soon as the worker has decided it. Rejects with `NotSentError` (given
   * up), `OperationFailedError`, `OperationRejectedError` and `OperationLostError` (a dead letter), `WaitTimeoutError`,
   * or `UnexpectedAnswerError` (the token or the address is wrong).
   */
  async wait(sent: Sent, timeoutMs = 60_000): Promise<Outcome> {
    const deadline = performance.now() + timeoutMs;
    let last = new AskAgain(null, "Kinesis does not have it yet");
    const stop = new AbortController();
    const timeout = sleep(timeoutMs, null, { signal: stop.signal }).catch(() => null);
    const position = await Promise.race([sent.accepted, timeout]).finally(() => stop.abort());
    const sentAt = position?.at ?? null;
    for (let count = 1; position !== null && performance.now() < deadline; count += 1) {
      const leftS = Math.floor((deadline - performance.now()) / 1000);
      const { verdict, retryAfterMs } = await this.#ask(sent, sentAt, Math.min(ANSWER_WITHIN_S, leftS));
      if (verdict instanceof SimpluError) {
        throw verdict;
      } else if (!(verdict instanceof AskAgain)) {
        return verdict;
      }
      last = verdict;
      const pauseMs = Math.max(retryAfterMs, askAfterMs(count, Math.random()));
      await sleep(Math.max(0, Math.min(pauseMs, deadline - performance.now())));
    }
    throw new WaitTimeoutError(last.status, last.detail);
  }

  async #ask(
    sent: Sent,
    sentAt: number | null,
    waitS: number,
  ): Promise<{ verdict: Outcome | AskAgain | SimpluError; retryAfterMs: number }> {
    const { businessId, locationId, requestId } = sent;
    const query = new URLSearchParams({ businessId, locationId, wait: String(waitS) });
    const base = required("url", this.#options.url).replace(/\/+$/, "");
    const headers = { Authorization: `Bearer ${required("token", this.#options.token)}` };
    let response: Response;
    let text: string;
    try {
      response = await fetch(`${base}/operations/${encodeURIComponent(requestId)}?${query}`, {
        headers,
        signal: AbortSignal.timeout(waitS * 1000 + HTTP_MARGIN_MS),
      });
      text = await response.text();
    } catch (error) {
      return { verdict: new AskAgain(null, reasonOf(error)), retryAfterMs: 0 };
    }
    const after = response.headers.get("Retry-After") ?? "";
    const retryAfterMs = /^\d+$/.test(after) ? Number(after) * 1000 : 0;
    return { verdict: judge(response.status, objectOf(text), sentAt), retryAfterMs };
  }
}

/** Returns JSON lines: of an operation that the worker cannot read, the others of the record are none. */
function dataOf(record: KeyRecord<Item>): Buffer {
  return Buffer.concat(record.flatMap(({ item }, index) => (index === 0 ? [item.data] : [LINE_END, item.data])));
}

function encoded(
  message: Readonly<Record<string, unknown>>,
  kindName: string,
  key = "",
): { data: Buffer; sizeBytes: number } {
  const found = encode(message, kindName, key);
  if ("problem" in found) {
    throw new InvalidOperationError(found.problem);
  }
  return found;
}

function required(name: string, value: string | undefined): string {
  if (value === undefined) {
    throw new SimpluError(`expected ${name} among the client's options, got none`);
  }
  return value;
}

function objectOf(text: string): Record<string, unknown> | null {
  try {
    const answer: unknown = JSON.parse(text);
    return typeof answer === "object" && answer !== null ? (answer as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

/** Returns whether an AWS service has certainly not done what was asked, by its status. */
function isRefused(error: unknown): boolean {
  const status = (error as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode ?? 500;
  return status >= 400 && status < 500;
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.name : String(error);
}

function newId(): string {
  return uuid7(Date.now(), randomBytes(10));
}
