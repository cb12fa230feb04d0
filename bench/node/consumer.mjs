// sqs-consumer at its best: ten messages a receive, all of them at work at a time, one delete for
// all. Its work is that of bench/work.py.

import { SQSClient } from "@aws-sdk/client-sqs";
import { MongoClient } from "mongodb";
import { Consumer } from "sqs-consumer";
import { setTimeout as wait } from "node:timers/promises";

const { AWS_REGION, AWS_ENDPOINT_URL, AWS_SQS_QUEUE_URL, MONGO_URI, BENCH_TASK } = process.env;

const users = new MongoClient(MONGO_URI).db().collection("users");

const works = {
  noop: async () => {},
  wait: async () => wait(50),
  register: async ({ stock_id, user_id, user_info }) => {
    const user = { stock_id, user_id, user_info, index: 0, money: 1_000_000, loan_count: 0 };
    const key = { _id: `${stock_id}:${user_id}` };
    await users.updateOne(key, { $setOnInsert: user }, { upsert: true });
  },
};
const work = works[BENCH_TASK];

const consumer = Consumer.create({
  queueUrl: AWS_SQS_QUEUE_URL,
  // Else it goes to the server that the queue's URL names, past the proxy.
  sqs: new SQSClient({
    region: AWS_REGION,
    endpoint: AWS_ENDPOINT_URL,
    useQueueUrlAsEndpoint: false,
  }),
  batchSize: 10,
  waitTimeSeconds: 20,
  handleMessageBatch: async (messages) => {
    await Promise.all(messages.map(({ Body }) => work(JSON.parse(Body).data)));
    return messages;
  },
});
for (const event of ["error", "processing_error", "timeout_error"]) {
  consumer.on(event, (error) => console.error(event, error));
}
consumer.start();
