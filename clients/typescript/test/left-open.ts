/** A program that closes nothing. Its argument is where a service listens. */

import { connect } from "tallyboard";

const tallyboard = connect(process.argv[2]!, { connections: 1 });
const producer = tallyboard.producer({ idleTimeout: 20 });
process.once("exit", () => {
  console.log(`acknowledged ${producer.acknowledged}, pending ${producer.pending}`);
});

await producer.send(["post:42"], [1]);
await producer.flush();
// What the service has told the stream before this answer has arrived with it.
await tallyboard.counters.getCounter({ counter: "post:42" });
await producer.send(["post:42"], [2]);
