// Builds parley once, then runs the test files given (default: all), two at a
// time. Each file starts its own pair of servers.
//
//   node run.js [FILE...]
//   PARLEY_BIN=…         use this binary
//   PARLEY_E2E_KEEP=1    keep the servers' folders
//   PARLEY_E2E_LOG=1     show the SDK's log

import { execFileSync } from "node:child_process";
import { globSync, mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const dir = mkdtempSync(path.join(os.tmpdir(), "parley-e2e-bin-"));

if (!process.env.PARLEY_BIN) {
    process.env.PARLEY_BIN = path.join(dir, "parley");
    execFileSync("go", ["build", "-o", process.env.PARLEY_BIN, "./cmd/parley"], {
        cwd: path.resolve(here, "../.."),
        stdio: "inherit",
    });
}

const files = process.argv.length > 2 ? process.argv.slice(2).map((f) => path.resolve(f)) : globSync(path.join(here, "*.test.js")).sort();
const stream = run({ files, concurrency: 2, timeout: 20 * 60_000 });
stream.on("test:fail", () => (process.exitCode = 1));
stream.compose(spec).pipe(process.stdout);
process.on("exit", () => rmSync(dir, { recursive: true, force: true }));
