/**
 * Which records go into the next PutRecords, so that those of a partition key are accepted in their order. Pure.
 *
 * Kinesis may accept a later record of a request and reject an earlier one. So a request has at most one record of a key,
 * and a key with a record in a request is in no other. A record that was not accepted stays the first of its key.
 *
 * What was not accepted waits for a back-off: of its stream shard, or of its key where no answer has named the shard yet.
 */

export const MAX_RECORDS = 500; // of a request: API_PutRecords
export const MAX_REQUEST_BYTES = 5 * 1024 * 1024; // data and keys: the lower of the quotas that API_PutRecords has had
const KNOWN_KEYS_MAX = 50_000; // keys whose stream shard is remembered

/** The bounds of the queue, and of the tries of a record: for how long, and how far apart. */
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

/** A record that is queued or in a request. `triedAt` is the time of its first try. */
export interface Pending<T> {
  readonly item: T;
  readonly key: string;
  readonly sizeBytes: number;
  triedAt: number | null;
  mayBeSent: boolean;
}

/**
 * What became of a record in a request: the stream shard that has it, or null. With `isUnknown` Kinesis may have it
 * nevertheless, as after a reply that was cut.
 */
export interface Answer {
  readonly streamShardId: string | null;
  readonly isUnknown?: boolean;
}

/** The records of a request that are accepted, and those that are given up: with all that is queued behind them. */
export interface Settled<T> {
  readonly accepted: Pending<T>[];
  readonly givenUp: Pending<T>[];
}

/** The queue of records, by partition key; callers pass the time, in milliseconds, and the random draws. */
export class Batcher<T> {
  count = 0;
  sizeBytes = 0;
  readonly #queues = new Map<string, Pending<T>[]>();
  readonly #ready = new Set<string>(); // keys with no record in a request; who has waited longest is first
  readonly #shards = new Map<string, string>(); // the stream shard of a key, as last answered
  readonly #pauses = new Map<string, { span: number; until: number }>(); // by lane

  constructor(readonly limits: Limits) {}

  /** Returns whether a record of that size may be added now. An empty queue takes a record of any size. */
  hasRoom(sizeBytes: number): boolean {
    const { maxCount, maxBytes } = this.limits;
    return this.count < maxCount && (this.count === 0 || this.sizeBytes + sizeBytes <= maxBytes);
  }

  /** Queues a record behind those of its key. */
  add(item: T, key: string, sizeBytes: number): void {
    let queue = this.#queues.get(key);
    if (queue === undefined) {
      queue = [];
      this.#queues.set(key, queue);
      this.#ready.add(key);
    }
    queue.push({ item, key, sizeBytes, triedAt: null, mayBeSent: false });
    this.count += 1;
    this.sizeBytes += sizeBytes;
  }

  /** Takes the records of the next request; none when none may be sent now. `settle` has to follow. */
  nextBatch(now: number): Pending<T>[] {
    const batch: Pending<T>[] = [];
    let leftBytes = MAX_REQUEST_BYTES;
    for (const key of this.#ready) {
      const record = this.#first(key);
      if (record === undefined || this.#pausedUntil(key) > now) {
        continue;
      }
      leftBytes -= record.sizeBytes;
      if (batch.length === MAX_RECORDS || leftBytes < 0) {
        break;
      }
      batch.push(record);
    }
    for (const record of batch) {
      this.#ready.delete(record.key);
      record.triedAt ??= now;
    }
    return batch;
  }

  /** Takes note of the answers to a request; `draw` (0 ≤ draw < 1) spreads the next tries of several producers. */
  settle(batch: readonly Pending<T>[], answers: readonly Answer[], now: number, draw: number): Settled<T> {
    const accepted: Pending<T>[] = [];
    const givenUp: Pending<T>[] = [];
    const accepting = new Set<string>();
    const failing = new Set<string>();
    batch.forEach((record, index) => {
      const { key } = record;
      const answer = answers[index] ?? { streamShardId: null, isUnknown: true };
      if (this.#first(key) !== record) {
        return; // drained meanwhile
      }
      if (answer.streamShardId !== null) {
        this.#rememberShard(key, answer.streamShardId);
        accepting.add(answer.streamShardId);
        accepted.push(this.#removeFirst(key, record));
      } else {
        record.mayBeSent ||= answer.isUnknown ?? false;
        if (now - (record.triedAt ?? 0) >= this.limits.giveUpMs) {
          for (let next: Pending<T> | undefined = record; next !== undefined; next = this.#first(key)) {
            givenUp.push(this.#removeFirst(key, next));
          }
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

  /** Removes and returns all records; those in a request may be sent. */
  drain(): Pending<T>[] {
    const left: Pending<T>[] = [];
    for (const key of [...this.#queues.keys()]) {
      const isInRequest = !this.#ready.has(key);
      for (let next = this.#first(key); next !== undefined; next = this.#first(key)) {
        left.push(this.#removeFirst(key, next));
        next.mayBeSent ||= isInRequest && left.at(-2)?.key !== key;
      }
    }
    return left;
  }

  #first(key: string): Pending<T> | undefined {
    return this.#queues.get(key)?.[0];
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

  #removeFirst(key: string, record: Pending<T>): Pending<T> {
    const queue = this.#queues.get(key);
    queue?.shift();
    if (queue?.length === 0) {
      this.#queues.delete(key);
      this.#ready.delete(key);
      this.#pauses.delete(`key ${key}`);
    }
    this.count -= 1;
    this.sizeBytes -= record.sizeBytes;
    return record;
  }
}
