// Publish one request with kafkajs, and poll its answer from Redis or Valkey.
//   npm install --no-save --prefix docs/producers kafkajs redis
//   node docs/producers/producer.mjs HOST:PORT redis://HOST:PORT [PREFIX]
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Kafka, logLevel } from "kafkajs";
import { createClient } from "redis";

const [kafkaAddress, redisUrl, prefix = "headrace"] = process.argv.slice(2);
const id = randomUUID();
const body = JSON.parse(readFileSync(new URL("request.json", import.meta.url)));

const kafka = new Kafka({ clientId: "docs", brokers: kafkaAddress.split(","), logLevel: logLevel.ERROR });
const producer = kafka.producer({ idempotent: true });
await producer.connect();
// All fields are in the body here; the key is the request id, and JSON is the default content type.
await producer.send({
  topic: `${prefix}.requests`,
  acks: -1,
  messages: [{ key: id, value: JSON.stringify({ ...body, min_accuracy: 0.9, timeout_ms: 300 }) }],
});
await producer.disconnect();

const store = await createClient({ url: redisUrl }).connect();
const giveUp = Date.now() + 5_000;
let answer = null;
while ((answer = await store.get(`${prefix}:response:${id}`)) === null && Date.now() < giveUp) await sleep(5);
store.destroy();
if (answer === null) throw new Error(`no answer for ${id}`);

const { outcome, accuracy, outputs, error } = JSON.parse(answer);
if (outcome !== "completed") {
  console.log(`${id} ${outcome}: ${error.code}: ${error.message}`);
} else {
  const probabilities = outputs.find((output) => output.name === "probs").data;
  console.log(`${id} ${outcome} accuracy ${accuracy} label ${probabilities.indexOf(Math.max(...probabilities))}`);
}
