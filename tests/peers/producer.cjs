// Puts records with the AWS SDK for JavaScript: NODE_PATH=.tools/node_modules node producer.cjs STREAM FILE
//
// A line of FILE is a partition key and data in base64; for each a line of output has the stream shard and the sequence
// number that it got, in order of the file. The endpoint and the keys are in the environment.
"use strict";

const { readFileSync } = require("node:fs");
const { KinesisClient, PutRecordsCommand } = require("@aws-sdk/client-kinesis");
const { NodeHttpHandler } = require("@smithy/node-http-handler");

const BATCH = 50;

async function main([stream, path]) {
  // Its own choice is HTTP/2, which a server without TLS cannot offer.
  const kinesis = new KinesisClient({ requestHandler: new NodeHttpHandler() });
  const lines = readFileSync(path, "utf8").split("\n").filter(Boolean);
  const records = lines.map((line) => {
    const [key, data] = line.split(" ");
    return { PartitionKey: key, Data: Buffer.from(data, "base64") };
  });
  for (let first = 0; first < records.length; first += BATCH) {
    const batch = { StreamName: stream, Records: records.slice(first, first + BATCH) };
    const { Records } = await kinesis.send(new PutRecordsCommand(batch));
    for (const { ErrorCode, ShardId, SequenceNumber } of Records) {
      if (ErrorCode) {
        throw new Error(ErrorCode);
      }
      console.log(`${ShardId} ${SequenceNumber}`);
    }
  }
  kinesis.destroy();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
