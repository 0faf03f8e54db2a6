// Runs the tests of calls against parley or against any server of the LiveKit
// protocol whose key is known.
//
//   node calls/run.js [--only PATTERN] [FILE...]
//   node calls/run.js --livekit ws://127.0.0.1:7880 [--key K --secret S] …

import { readdirSync } from "node:fs";
import path from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = path.dirname(fileURLToPath(import.meta.url));
const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { livekit: { type: "string" }, key: { type: "string" }, secret: { type: "string" }, only: { type: "string" } },
});
if (values.livekit) process.env.PARLEY_CALLS_LIVEKIT = values.livekit;
if (values.key) process.env.PARLEY_CALLS_KEY = values.key;
if (values.secret) process.env.PARLEY_CALLS_SECRET = values.secret;

const all = values.livekit ? ["livekit.test.js"] : readdirSync(here).filter((f) => f.endsWith(".test.js")).sort();
const files = positionals.length ? positionals.map((f) => path.resolve(f)) : all.map((f) => path.join(here, f));
const stream = run({ files, concurrency: 1, forceExit: true, testNamePatterns: values.only ? [new RegExp(values.only)] : undefined });
stream.on("test:fail", () => (process.exitCode = 1));
stream.compose(spec).pipe(process.stdout);
