// Builds parley once, then runs the test files given (default: all), two at a
// time, and then those of calls, which need the machine for their browsers, one
// at a time. Each file starts its own pair of servers.
//
//   node run.js [FILE...]
//   PARLEY_BIN=…         use this binary
//   PARLEY_E2E_KEEP=1    keep the servers' folders
//   PARLEY_E2E_LOG=1     show the SDK's log

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));

// The SDK's cryptography needs Node 22; npm has installed a newer one.
if (Number(process.versions.node.split(".")[0]) < 22) {
    const node = path.join(here, "node_modules/node/bin/node");
    const { status } = spawnSync(node, process.argv.slice(1), { stdio: "inherit" });
    process.exit(status ?? 1);
}

const dir = mkdtempSync(path.join(os.tmpdir(), "parley-e2e-bin-"));

if (!process.env.PARLEY_BIN) {
    process.env.PARLEY_BIN = path.join(dir, "parley");
    execFileSync("go", ["build", "-o", process.env.PARLEY_BIN, "./cmd/parley"], {
        cwd: path.resolve(here, "../.."),
        stdio: "inherit",
    });
}

const tests = (folder) => readdirSync(path.join(here, folder)).filter((f) => f.endsWith(".test.js")).sort().map((f) => path.join(folder, f));
const named = process.argv.slice(2);
const groups = named.length ? [[named, 2]] : [[tests("."), 2], [tests("calls"), 1]];

function runAll([files, concurrency]) {
    // The SDK leaves timers behind, hence forceExit.
    const stream = run({ files: files.map((f) => path.resolve(here, f)), concurrency, timeout: 20 * 60_000, forceExit: true });
    stream.on("test:fail", () => (process.exitCode = 1));
    const shown = stream.compose(spec);
    shown.pipe(process.stdout, { end: false });
    return new Promise((resolve) => shown.on("end", resolve));
}

process.on("exit", () => rmSync(dir, { recursive: true, force: true }));
for (const group of groups) await runAll(group);
