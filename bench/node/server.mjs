// node server.mjs PORT: an SQS server (fauxqs) in memory, on 127.0.0.1.
//
// startFauxqs() of fauxqs 1.9.2 listens on every address, whatever it is told (dist/app.js), so the
// app is built here and listens where it is asked to.

import { buildApp } from "fauxqs";

const app = buildApp({ logger: false, host: undefined });
// It would close a connection that a client has kept for another call.
app.server.keepAliveTimeout = 0;
await app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" });
process.on("SIGTERM", () => process.exit(0));
