// Runs the cases that both clients share: node test/cases.mjs CASES-FOLDER [SCRIPTS]
//
// SCRIPTS has more cases of the batcher, with what the client in Python answered. Prints the number of cases.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Batcher } from "../dist/batcher.js";
import { Client } from "../dist/client.js";
import { QueueFullError } from "../dist/errors.js";
import { encode, partitionKey, queueId, uuid7 } from "../dist/messages.js";
import { askAfterMs, judge } from "../dist/outcomes.js";

const LIMITS = { maxCount: 600, maxBytes: 10_000_000, giveUpMs: 1000, baseMs: 100, maxMs: 500 };
const ANSWERS = { refused: { streamShardId: null }, unknown: { streamShardId: null, isUnknown: true } };
const withSent = (operations) => operations.map(({ item, mayBeSent }) => [item, mayBeSent]);
const [folder, ...scripts] = process.argv.slice(2);
const read = (path) => JSON.parse(readFileSync(path, "utf8"));
let count = 0;

function check(name, path, run) {
  for (const one of read(path)) {
    try {
      run(one);
    } catch (error) {
      error.message = `${name}: ${one.name}: ${error.message}`;
      throw error;
    }
    count += 1;
  }
}

function runBatcher({ steps }) {
  const batcher = new Batcher(LIMITS);
  const inRequests = new Map();
  let added = 0;
  for (const step of steps) {
    const count = step.keys ?? step.count ?? 0;
    const keys = Array.from({ length: count }, (_, number) => [step.key ?? `k${number}`, step.bytes]);
    if (step.do === "add") {
      for (const [key, sizeBytes] of step.operations ?? keys) {
        batcher.add(added++, key, sizeBytes);
      }
    } else if (step.do === "room") {
      assert.equal(batcher.hasRoom(step.key, step.bytes), step.expect);
    } else if (step.do === "batch") {
      const batch = batcher.nextBatch(step.now);
      batch.forEach((record) => inRequests.set(record[0].item, record));
      assert.equal(batch.length, step.expectCount ?? step.expect.length);
      assert.equal(batch.flat().length, step.expectOperations ?? batch.flat().length);
      const items = batch.map((record) => record.map(({ item }) => item));
      assert.deepEqual(items, step.expect ?? items);
    } else if (step.do === "settle") {
      const batch = step.batch.map((number) => inRequests.get(number));
      const answers = step.answers.map((answer) => ANSWERS[answer] ?? { streamShardId: answer });
      const { accepted, givenUp } = batcher.settle(batch, answers, step.now, step.draw ?? 0);
      assert.deepEqual(accepted.map(({ item }) => item), step.accepted ?? []);
      assert.deepEqual(withSent(givenUp), step.givenUp ?? []);
    } else if (step.do === "next") {
      assert.equal(batcher.nextAt(), step.expect);
    } else {
      assert.equal(step.do, "drain");
      assert.deepEqual(withSent(batcher.drain()), step.expect);
      assert.deepEqual([batcher.count, batcher.sizeBytes], [0, 0]);
    }
  }
}

function runMessage({ kind, rule, message, repeat, large, problem, key, keyLength, bytes }) {
  if (repeat) {
    message[repeat[0]] = message[repeat[0]].repeat(repeat[1]);
  }
  if (large) {
    message.data = { a: "x".repeat(large) };
  }
  const own = partitionKey(message, rule);
  const found = encode(message, kind, own);
  if (problem) {
    assert.ok(found.problem?.includes(problem), JSON.stringify(found));
    return;
  }
  assert.deepEqual(JSON.parse(found.data), message);
  assert.equal(found.data.toString(), bytes ?? found.data.toString());
  assert.equal(found.sizeBytes, found.data.length + Buffer.byteLength(own));
  assert.equal(own, key ?? own);
  assert.equal(own.length, keyLength ?? own.length);
}

function runOutcome({ http, answer, sentAt, expect, word, result = null }) {
  const verdict = judge(http, answer, sentAt ? Date.parse(sentAt) : null);
  assert.equal(verdict.constructor.name.replace(/^Object$/, "Outcome"), expect);
  assert.deepEqual(verdict.result ?? null, result);
  if (word !== undefined) {
    const { status, reason, error } = verdict;
    assert.equal(error ?? reason ?? status, word);
  }
}

function deferred() {
  const found = {};
  found.promise = new Promise((resolve) => (found.resolve = resolve));
  return found;
}

/** Returns what a client asks SQS for. */
async function askedOf(use) {
  const requests = [];
  const sqs = { send: async ({ input }) => void requests.push(input) };
  const queues = { orderQueueUrl: "https://sqs/orders.fifo", controlQueueUrl: "https://sqs/control.fifo" };
  await use(new Client({ ...queues, sqs }));
  return requests;
}

assert.throws(() => new Client({ partitionKey: "any" }), /resource-type or tenant/);

// A timestamp that is null or undefined is none.
for (const timestamp of [null, undefined]) {
  const records = [];
  const send = async ({ input: { Records } }) => {
    records.push(...Records);
    return { Records: Records.map(() => ({ ShardId: "s", SequenceNumber: "1" })) };
  };
  const client = new Client({ stream: "s", kinesis: { send } });
  await client.send({ operation: "list", businessId: "b", locationId: "l", resourceType: "t", timestamp });
  assert.deepEqual(await client.close(), []);
  assert.match(JSON.parse(records[0].Data).timestamp, /^20.+Z$/);
  const creation = { messageType: "SHARD_CREATION", businessId: "b", locationId: "l", businessType: "gym" };
  const [request] = await askedOf((sender) => sender.sendControl({ ...creation, timestamp }));
  assert.match(JSON.parse(request.MessageBody).timestamp, /^20.+Z$/);
}

// Operations of a key that are queued while a record of it is in a request share the next one, which has results for some.
{
  const records = [];
  const opened = deferred();
  const send = async ({ input: { Records } }) => {
    await opened.promise;
    records.push(Records.map(({ Data }) => Data.toString().split("\n").length));
    return { Records: records.length === 1 ? [] : Records.map(() => ({ ShardId: "s", SequenceNumber: "1" })) };
  };
  const limits = { maxCount: 30, baseMs: 1 };
  const client = new Client({ stream: "s", kinesis: { send }, limits, warn: () => {} });
  const list = { operation: "list", businessId: "b", locationId: "l", resourceType: "t" };
  const first = await client.send(list);
  await new Promise(setImmediate); // its request is sent
  await client.send(list);
  await client.send(list);
  await assert.rejects(client.send(list, { timeoutMs: 1 }), QueueFullError);
  await client.send({ ...list, resourceType: "other" }, { timeoutMs: 1 }); // each key has room of its own
  opened.resolve();
  assert.equal((await first.accepted).streamShardId, "s");
  assert.deepEqual(await client.close(), []);
  assert.deepEqual([records[0], records.flat().reduce((sum, count) => sum + count)], [[1], 5]);
}

// A token of a file may end with a line break, and what no worker has is refused and not shown.
assert.ok(new Client({ token: "secret\n" }));
for (const token of ["sec\nret", "sec ret", "secrét", ""]) {
  assert.throws(() => new Client({ token }), { message: "token: expected visible ASCII characters without spaces" });
}

// A queue has the events of all tenants: only within one are an order and a deduplicationId unique.
const event = { type: "CREATE", locationId: "l", orderId: "o", data: {}, deduplicationId: "d" };
const ofOrders = await askedOf(async (client) => {
  for (const businessId of ["a", "b", "a"]) {
    await client.sendOrder({ ...event, businessId });
  }
  await client.sendOrder({ ...event, businessId: "a" }, { groupId: "own" });
});
assert.deepEqual(ofOrders.map((request) => request.MessageGroupId), ["a-l-o", "b-l-o", "a-l-o", "own"]);
assert.equal(new Set(ofOrders.map((request) => request.MessageDeduplicationId)).size, 4);
assert.ok(ofOrders.every((request) => JSON.parse(request.MessageBody).deduplicationId === "d"));

check("batcher", `${folder}/batcher.json`, runBatcher);
check("messages", `${folder}/messages.json`, runMessage);
check("outcomes", `${folder}/outcomes.json`, runOutcome);
scripts.forEach((path) => check("scripts", path, runBatcher));

assert.equal(uuid7(0x0190a1b2c3d4, Buffer.alloc(10, 0xff)), "0190a1b2-c3d4-7fff-bfff-ffffffffffff");
assert.equal(uuid7(0, Buffer.alloc(10)), "00000000-0000-7000-8000-000000000000");
const patch = { operation: "patch", businessId: "b", locationId: "l", resourceType: "t", resourceId: "1" };
for (const value of [NaN, Infinity, -Infinity, new Date(NaN), [1, { deep: NaN }]]) {
  assert.match(encode({ ...patch, data: { price: value } }, "operation").problem, /not finite/);
}
for (const data of [{ gone: null }, { text: "null", absent: undefined }, { at: new Date(0), list: [null, 1] }]) {
  assert.equal(JSON.stringify(JSON.parse(encode({ ...patch, data }, "operation").data).data), JSON.stringify(data));
}
assert.equal(queueId("o-1"), "o-1");
for (const text of ["o 1", "ö", "", "o\n", "x".repeat(129)]) {
  assert.match(queueId(text), /^[0-9a-f]{64}$/);
}
assert.deepEqual([askAfterMs(1, 0), askAfterMs(5, 0), askAfterMs(99, 0.5)], [50, 800, 1500]);
console.log(`${count} cases`);
