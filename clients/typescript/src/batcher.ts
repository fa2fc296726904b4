/**
 * Which operations go into the next PutRecords, so that those of a partition key are accepted in their order. Pure.
 *
 * Kinesis may accept a later record of a request and reject an earlier one. So a request has at most one record of a key,
 * with as many of the key's operations as it takes, and a key with a record in a request is in no other. Operations that
 * were not accepted stay the first of their key; more of the key may go along when they are sent again.
 *
 * What was not accepted waits for a back-off: of its stream shard, or of its key where no answer has named the shard yet.
 */

export const MAX_OPERATIONS = 1000; // of a record: docs/sending.md
export const MAX_SHARED_BYTES = 256 * 1024; // of a record with several: a quarter of what a stream shard takes in a second
export const MAX_RECORDS = 500; // of a request: API_PutRecords
export const MAX_REQUEST_BYTES = 5 * 1024 * 1024; // data and keys: the lower of the quotas that API_PutRecords has had
const KEYS_MIN = 10; // that fill the queue: one key has at most such a part of it
const KNOWN_KEYS_MAX = 50_000; // keys whose stream shard is remembered

/** The bounds of the queue, and of the tries of an operation: for how long, and how far apart. */
export interface Limits {
  maxCount: number;
  maxBytes: number;
  giveUpMs: number;
  baseMs: number;
  maxMs: number;
}

export const LIMITS: Readonly<Limits> = {
  maxCount: 10_000,
  maxBytes: 64 * 1024 * 1024,
  giveUpMs: 120_000,
  baseMs: 100,
  maxMs: 5_000,
};

/** An operation that is queued or in a request. `triedAt` is the time of its first try. */
export interface Pending<T> {
  readonly item: T;
  readonly key: string;
  readonly sizeBytes: number;
  triedAt: number | null;
  mayBeSent: boolean;
}

/** The operations of one key that are put as one record, in their order: one at the least. */
export type KeyRecord<T> = Pending<T>[];

/**
 * What became of a record in a request: the stream shard that has it, or null. With `isUnknown` Kinesis may have it
 * nevertheless, as after a reply that was cut.
 */
export interface Answer {
  readonly streamShardId: string | null;
  readonly isUnknown?: boolean;
}

/** The operations of a request that are accepted, and those given up: with all that is queued behind them. */
export interface Settled<T> {
  readonly accepted: Pending<T>[];
  readonly givenUp: Pending<T>[];
}

/** The operations of a key. The first `putCount` of them are in a request. */
interface KeyQueue<T> {
  readonly operations: Pending<T>[];
  sizeBytes: number;
  putCount: number;
}

/** The queue of operations, by partition key; callers pass the time, in milliseconds, and the random draws. */
export class Batcher<T> {
  count = 0;
  sizeBytes = 0;
  readonly #queues = new Map<string, KeyQueue<T>>();
  readonly #ready = new Set<string>(); // keys with no record in a request; who has waited longest is first
  readonly #shards = new Map<string, string>(); // the stream shard of a key, as last answered
  readonly #pauses = new Map<string, { span: number; until: number }>(); // by lane

  constructor(readonly limits: Limits) {}

  /** Returns whether an operation of that size may be added now; the first of a key may have any size. */
  hasRoom(key: string, sizeBytes: number): boolean {
    const { maxCount, maxBytes } = this.limits;
    const queue = this.#queues.get(key);
    if (this.count >= maxCount || (this.count > 0 && this.sizeBytes + sizeBytes > maxBytes)) {
      return false;
    }
    return (
      queue === undefined ||
      (queue.operations.length < Math.floor(maxCount / KEYS_MIN) &&
        queue.sizeBytes + sizeBytes <= Math.floor(maxBytes / KEYS_MIN))
    );
  }

  /** Queues an operation behind those of its key. */
  add(item: T, key: string, sizeBytes: number): void {
    let queue = this.#queues.get(key);
    if (queue === undefined) {
      queue = { operations: [], sizeBytes: 0, putCount: 0 };
      this.#queues.set(key, queue);
      this.#ready.add(key);
    }
    queue.operations.push({ item, key, sizeBytes, triedAt: null, mayBeSent: false });
    queue.sizeBytes += sizeBytes;
    this.count += 1;
    this.sizeBytes += sizeBytes;
  }

  /** Takes the records of the next request; none when none may be sent now. `settle` has to follow. */
  nextBatch(now: number): KeyRecord<T>[] {
    const taken: [KeyQueue<T>, string, KeyRecord<T>][] = [];
    let leftBytes = MAX_REQUEST_BYTES;
    for (const key of this.#ready) {
      const queue = this.#queues.get(key);
      if (queue === undefined || this.#pausedUntil(key) > now) {
        continue;
      }
      const { record, sizeBytes } = nextRecord(queue.operations);
      leftBytes -= sizeBytes;
      if (taken.length === MAX_RECORDS || leftBytes < 0) {
        break;
      }
      taken.push([queue, key, record]);
    }
    for (const [queue, key, record] of taken) {
      this.#ready.delete(key);
      queue.putCount = record.length;
      record.forEach((one) => (one.triedAt ??= now));
    }
    return taken.map(([, , record]) => record);
  }

  /** Takes note of the answers to a request; `draw` (0 ≤ draw < 1) spreads the next tries of several producers. */
  settle(batch: readonly KeyRecord<T>[], answers: readonly Answer[], now: number, draw: number): Settled<T> {
    const accepted: Pending<T>[] = [];
    const givenUp: Pending<T>[] = [];
    const accepting = new Set<string>();
    const failing = new Set<string>();
    batch.forEach((record, index) => {
      const { key, triedAt } = record[0]!;
      const answer = answers[index] ?? { streamShardId: null, isUnknown: true };
      const queue = this.#queues.get(key);
      if (queue?.operations[0] !== record[0]) {
        return; // drained meanwhile
      }
      queue!.putCount = 0;
      if (answer.streamShardId !== null) {
        this.#rememberShard(key, answer.streamShardId);
        accepting.add(answer.streamShardId);
        accepted.push(...this.#removeFirst(key, record.length));
      } else {
        record.forEach((one) => (one.mayBeSent ||= answer.isUnknown ?? false));
        if (now - (triedAt ?? 0) >= this.limits.giveUpMs) {
          givenUp.push(...this.#removeFirst(key, Infinity));
        } else {
          failing.add(this.#lane(key));
        }
      }
      if (this.#queues.has(key)) {
        this.#ready.add(key);
      }
    });
    for (const lane of accepting) {
      if (!failing.has(lane)) {
        this.#pauses.delete(lane);
      }
    }
    for (const lane of failing) {
      const last = this.#pauses.get(lane);
      const span = last === undefined ? this.limits.baseMs : Math.min(this.limits.maxMs, 2 * last.span);
      this.#pauses.set(lane, { span, until: now + span * (0.5 + draw / 2) });
    }
    return { accepted, givenUp };
  }

  /** Returns the time from which `nextBatch` has a record; null as long as nothing is added or settled. */
  nextAt(): number | null {
    let at: number | null = null;
    for (const key of this.#ready) {
      at = Math.min(at ?? Infinity, this.#pausedUntil(key));
    }
    return at;
  }

  /** Removes and returns all operations; those in a request may be sent. */
  drain(): Pending<T>[] {
    const left: Pending<T>[] = [];
    for (const [key, { operations, putCount }] of [...this.#queues]) {
      operations.slice(0, putCount).forEach((one) => (one.mayBeSent = true));
      left.push(...this.#removeFirst(key, Infinity));
    }
    return left;
  }

  #lane(key: string): string {
    return this.#shards.get(key) ?? `key ${key}`;
  }

  #pausedUntil(key: string): number {
    return this.#pauses.get(this.#lane(key))?.until ?? -Infinity;
  }

  #rememberShard(key: string, streamShardId: string): void {
    this.#pauses.delete(`key ${key}`);
    if (!this.#shards.has(key) && this.#shards.size >= KNOWN_KEYS_MAX) {
      this.#shards.delete(this.#shards.keys().next().value!);
    }
    this.#shards.set(key, streamShardId);
  }

  #removeFirst(key: string, count: number): Pending<T>[] {
    const queue = this.#queues.get(key);
    const removed = queue?.operations.splice(0, count) ?? [];
    const sizeBytes = removed.reduce((sum, one) => sum + one.sizeBytes, 0);
    if (queue !== undefined) {
      queue.sizeBytes -= sizeBytes;
      if (queue.operations.length === 0) {
        this.#queues.delete(key);
        this.#ready.delete(key);
        this.#pauses.delete(`key ${key}`);
      }
    }
    this.count -= removed.length;
    this.sizeBytes -= sizeBytes;
    return removed;
  }
}

/** Returns the first operations of a key that go into one record, and its size: at most that. */
function nextRecord<T>(operations: readonly Pending<T>[]): { record: KeyRecord<T>; sizeBytes: number } {
  let count = 1;
  let sizeBytes = operations[0]!.sizeBytes;
  for (; count < Math.min(operations.length, MAX_OPERATIONS); count += 1) {
    const next = operations[count]!.sizeBytes;
    if (sizeBytes + next > MAX_SHARED_BYTES) {
      break;
    }
    sizeBytes += next;
  }
  return { record: operations.slice(0, count), sizeBytes };
}
