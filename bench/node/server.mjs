// node server.mjs PORT: an SQS server (fauxqs) in memory, on 127.0.0.1.
//
// startFauxqs() of fauxqs 1.9.2 listens on every address, whatever it is told (dist/app.js), so the
// app is built here and listens where it is asked to.

import { buildApp } from "fauxqs";
// By its path, because fauxqs does not export it.
import { SqsQueue } from "./node_modules/fauxqs/dist/sqs/sqsStore.js";

// SQS answers a long poll without messages only at its end
// (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html).
// fauxqs 1.9.2 answers all open polls of a queue as soon as one message is there. Here it answers one,
// and the next one if messages are left then.
SqsQueue.prototype.notifyWaiters = function () {
  if (this.isAnswering || !this.messages.length || !this.pollWaiters.length) return;
  const waiter = this.pollWaiters.shift();
  clearTimeout(waiter.timer);
  waiter.resolve();
  this.isAnswering = true;
  setImmediate(() => {
    this.isAnswering = false;
    this.notifyWaiters();
  });
};

const app = buildApp({ logger: false, host: undefined });
// It would close a connection that a client has kept for another call.
app.server.keepAliveTimeout = 0;
await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" });
process.on("SIGTERM", () => process.exit(0));
