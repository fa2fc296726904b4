// Sends messages with the client in TypeScript: node client_messages.mjs PLAN; client_messages.py does the same.
import { readFileSync } from "node:fs";
import { KinesisClient } from "@aws-sdk/client-kinesis";
import { NodeHttpHandler } from "@smithy/node-http-handler";
import { Client } from "simplu-client";

const { tenant, waitS, ...plan } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const kinesis = new KinesisClient({ requestHandler: new NodeHttpHandler() });
const client = new Client({ ...plan, kinesis });
const found = [];

async function told(name, asked) {
  try {
    found.push([name, (await asked())?.result?.data ?? null]);
  } catch (error) {
    found.push([name, error.name, error.error ?? null]);
  }
}

const wait = (sent) => client.wait(sent, waitS * 1000);
await client.sendControl({ messageType: "SHARD_CREATION", ...tenant, businessType: "dental" });
const order = { ...tenant, orderId: "o 1" };
const events = [];
for (const isUrgent of [false, true]) {
  const id = isUrgent ? { ...order, orderId: "o-urgent" } : order;
  events.push(await client.sendOrder({ type: "CREATE", ...id, data: { state: "new" } }, { isUrgent }));
  if (!isUrgent) {
    events.push(await client.sendOrder({ type: "UPDATE", ...id, data: { state: "paid" } }));
  }
}
for (const [number, sent] of events.entries()) {
  await told(`event ${number}`, () => wait(sent));
}
const common = { ...tenant, resourceType: "order" };
await told("read", async () => wait(await client.send({ operation: "read", ...common, resourceId: "o 1" })));
await told("patch", async () => wait(await client.send({ operation: "patch", ...common, resourceId: "o 2", data: {} })));
await told("invalid", () => client.send({ operation: "patch", ...common, resourceId: "", data: {} }));
await told("wrong token", async () => {
  const stranger = new Client({ url: plan.url, token: "wrong" });
  return stranger.wait(events[0], 5000);
});
await told("no time", () => client.wait({ ...tenant, requestId: "never sent" }, 500));
const warn = () => {};
const list = { operation: "list", ...common };
const hasty = new Client({ stream: "no such stream", kinesis, warn, limits: { giveUpMs: 300 } });
const both = [await hasty.send(list), await hasty.send(list)];
for (const sent of both) {
  await told("given up", () => wait(sent));
}
found.push(["left", (await hasty.close()).length]);
const patient = new Client({ stream: "no such stream", kinesis, warn });
await patient.send(list);
await patient.send(list);
found.push(["left", (await patient.close(300)).length]);
await client.close();
await told("closed", () => client.send({ operation: "list", ...common }));
console.log(JSON.stringify(found));
kinesis.destroy();
