// Sends with the client in TypeScript: node client_producer.mjs PLAN
//
// PLAN is the file of `support.clients.trial`; what is printed is its `Report`. client_producer.py does the same.
import { appendFileSync, readFileSync } from "node:fs";
import { KinesisClient } from "@aws-sdk/client-kinesis";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { Client } from "simplu-client";

const plan = JSON.parse(readFileSync(process.argv[2], "utf8"));
const { tenant, operations, keys } = plan;
let retries = 0;

// Its own choice is HTTP/2, which a server without TLS cannot offer.
const kinesis = new KinesisClient({ maxAttempts: 1, requestHandler: new NodeHttpHandler() });
const { stream, url, token } = plan;
const warn = (text) => (retries += Number(/^not accepted: (\d+)/.exec(text)?.[1] ?? 0));
const client = new Client({ stream, url, token, kinesis, warn, limits: { maxCount: plan.maxCount } });
const last = new Map();
let lines = [];

const writeQueued = () => appendFileSync(plan.queued, lines.splice(0).join(""));
for (let number = 0; number < operations; number += 1) {
  const key = number % keys;
  const step = Math.floor(number / keys);
  const common = { ...tenant, resourceType: `${plan.run}-${key}`, resourceId: "1" };
  const n = Math.floor(step / 2);
  const change = { operation: step === 0 ? "create" : "patch", ...common, data: { n } };
  const sent = await client.send(step % 2 === 1 ? { operation: "read", ...common } : change);
  last.set(key, sent);
  lines.push(`${JSON.stringify([key, step, sent.requestId])}\n`);
  if (number % 200 === 0) {
    writeQueued();
  }
}
writeQueued();
const results = [];
for (const sent of last.values()) {
  results.push((await client.wait(sent, plan.waitS * 1000)).result?.data?.n ?? null);
}
const left = await client.close();
console.log(JSON.stringify({ retries, left: left.length, results }));
kinesis.destroy();
