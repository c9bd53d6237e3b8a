/** How many updates a second one producer gets acknowledged: `npm run bench -- --target ...`. */

import { parseArgs } from "node:util";
import { connect } from "tallyboard";

const COUNTERS = 1_000;
const LONGEST = 60;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      target: { type: "string", default: "127.0.0.1:7411" },
      seconds: { type: "string", default: "5" },
      batch: { type: "string", default: "10000" },
      tenant: { type: "string", default: "bench" },
    },
  });
  const seconds = Math.min(Number(values.seconds), LONGEST);
  const size = Number(values.batch);
  const counters = Array.from({ length: size }, (_, index) => `post:${index % COUNTERS}`);
  const deltas = Array.from({ length: size }, () => 1n);

  const tallyboard = connect(values.target, { tenant: values.tenant, connections: 1 });
  const producer = tallyboard.producer({ timeout: 2_000 * seconds });
  const started = performance.now();
  while (performance.now() - started < 1_000 * seconds) {
    await producer.send(counters, deltas);
  }
  await producer.close();
  const took = (performance.now() - started) / 1_000;
  const rate = Math.round(producer.acknowledged / took);
  tallyboard.close();
  console.log(
    `${producer.acknowledged} updates of ${COUNTERS} counters in ${took.toFixed(2)} s: ` +
      `${rate} a second, ${producer.streamsOpened} streams, ${producer.failed} failed`,
  );
}

await main();
