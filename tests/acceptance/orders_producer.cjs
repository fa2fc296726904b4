// Sends order events with the AWS SDK for JavaScript, as the references' services do: one SendMessage for each.
//
//     NODE_PATH=.tools/node_modules node orders_producer.cjs QUEUE_URL EVENTS_A_SECOND < events.jsonl
//
// A line of input is {groupId, deduplicationId, body, attributes}; for each one sent a line of output says its number and
// the message id it got, {number, messageId}. Groups go in parallel, a group's events one after the other. A rate of 0 is
// as fast as the queue takes them.
"use strict";

const readline = require("node:readline");
const { SQSClient, SendMessageCommand } = require("@aws-sdk/client-sqs");

const LANES = 16;
const READ_AHEAD = 256;

async function main([queueUrl, rateText]) {
  const rate = Number(rateText ?? 0);
  const sqs = new SQSClient({});
  const lanes = Array.from({ length: LANES }, () => Promise.resolve());
  const began = performance.now();
  let number = 0;
  let underWay = 0;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const event = JSON.parse(line);
    const mine = number++;
    if (rate > 0) {
      await sleep(began + (mine * 1000) / rate - performance.now());
    }
    const lane = laneOf(event.groupId);
    underWay += 1;
    lanes[lane] = lanes[lane].then(async () => {
      const { MessageId } = await sqs.send(new SendMessageCommand(inputOf(queueUrl, event)));
      underWay -= 1;
      process.stdout.write(`${JSON.stringify({ number: mine, messageId: MessageId })}\n`);
    });
    while (underWay >= READ_AHEAD) {
      await Promise.race(lanes);
      await sleep(1);
    }
  }
  await Promise.all(lanes);
  sqs.destroy();
}

function inputOf(queueUrl, event) {
  const attributes = Object.entries(event.attributes);
  return {
    QueueUrl: queueUrl,
    MessageBody: event.body,
    MessageGroupId: event.groupId,
    MessageDeduplicationId: event.deduplicationId,
    MessageAttributes: Object.fromEntries(
      attributes.map(([name, text]) => [name, { DataType: "String", StringValue: text }]),
    ),
  };
}

function laneOf(groupId) {
  let hash = 0;
  for (const character of groupId) {
    hash = (hash * 31 + character.codePointAt(0)) % 65521;
  }
  return hash % LANES;
}

function sleep(milliseconds) {
  return milliseconds > 0 ? new Promise((resolve) => setTimeout(resolve, milliseconds)) : undefined;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
