// Two or three parley servers as real processes, with a TCP relay in front of
// each one's federation port, so that tests can kill, freeze, restart and
// separate them.

import { spawn, execFile } from "node:child_process";
import { promises as fs, openSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { fileURLToPath } from "node:url";

import { sleep, until } from "./wait.js";

const run = promisify(execFile);
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");

/** Secret of the servers' shared-secret registration. */
export const sharedSecret = "the e2e tests know this";

/** The binary: PARLEY_BIN, or built once a process from the source. */
async function binary(dir) {
    if (process.env.PARLEY_BIN) return process.env.PARLEY_BIN;
    const out = path.join(dir, "parley");
    await run("go", ["build", "-o", out, "./cmd/parley"], { cwd: root });
    return out;
}

/**
 * Starts servers A and B in a new folder. `config` sets keys of both, as
 * {"section.key": "TOML value"}. Call stop() at the end; the folder stays when
 * PARLEY_E2E_KEEP is set.
 */
export async function startPair(options) {
    const all = await startServers(2, options);
    const [a, b] = all.servers;
    return { a, b, ...all };
}

/** Like startPair, for up to three servers; gives {servers, dir, cut, heal, stop}. */
export async function startServers(count, { config = {} } = {}) {
    const dir = await fs.mkdtemp(path.join(os.tmpdir(), "parley-e2e-"));
    const bin = await binary(dir);
    const base = await freePorts();
    // localserve makes two: a third server is of a second pair.
    const folders = count > 2 ? [dir, path.join(dir, "more")] : [dir];
    for (const [i, folder] of folders.entries()) await run(bin, ["localserve", "--prepare", "--dir", folder, "--port", String(base + 2 * i)]);
    const keys = {
        "registration.open": "true",
        "registration.shared_secret": JSON.stringify(sharedSecret),
        "limits.rate_limits": "false",
        "log.level": '"info"',
        "tls.trusted_authorities": JSON.stringify(folders.map((f) => path.join(f, "ca.crt"))),
        ...config,
    };
    const servers = [];
    for (const [i, label] of ["a", "b", "c"].slice(0, count).entries()) {
        const folder = path.join(folders[i >> 1], i % 2 ? "b" : "a");
        servers.push(await new Server(label, bin, folder, base + 1 + i, base + 11 + i, base + 21 + i).configure(keys));
    }
    await Promise.all(servers.map((s) => s.start()));
    return {
        servers,
        dir,
        /** Separates the servers: their federation connections break and new ones are refused. */
        cut: () => servers.forEach((s) => s.relay.cut()),
        heal: () => Promise.all(servers.map((s) => s.relay.heal())),
        async stop() {
            await Promise.all(servers.map((s) => s.stop()));
            if (process.env.PARLEY_E2E_KEEP) process.stderr.write(`kept ${dir}\n`);
            else await fs.rm(dir, { recursive: true, force: true });
        },
    };
}

/** A base port with the ports that all need free. */
async function freePorts() {
    for (let tries = 0; tries < 50; tries++) {
        const base = 20000 + Math.floor(Math.random() * 20000);
        const wanted = [1, 11, 21].flatMap((d) => [0, 1, 2, 3].map((i) => base + d + i));
        if ((await Promise.all(wanted.map(isFree))).every(Boolean)) return base;
    }
    throw new Error("no free ports");
}

function isFree(port) {
    return new Promise((resolve) => {
        const s = net.createServer();
        s.once("error", () => resolve(false));
        s.listen(port, "127.0.0.1", () => s.close(() => resolve(true)));
    });
}

class Server {
    constructor(label, bin, dir, federationPort, clientPort, realPort) {
        this.label = label;
        this.bin = bin;
        this.dir = dir;
        this.configFile = path.join(dir, "parley.toml");
        this.name = `localhost:${federationPort}`;
        this.url = `http://localhost:${clientPort}`;
        /** Where its media goes by UDP; by TCP it is realPort. */
        this.mediaPort = clientPort;
        this.realPort = realPort;
        this.relay = new Relay(federationPort, realPort);
        this.process = null;
    }

    /** Moves the HTTPS listener behind the relay and sets other keys. */
    async configure(keys) {
        let text = await fs.readFile(this.configFile, "utf8");
        for (const [key, value] of Object.entries({ ...keys, "listen.https": `"127.0.0.1:${this.realPort}"` })) {
            text = setKey(text, key, value);
        }
        await fs.writeFile(this.configFile, text);
        return this;
    }

    async start() {
        await this.relay.heal();
        const log = openSync(path.join(this.dir, "log"), "a");
        const child = spawn(this.bin, ["serve", "--config", this.configFile], { stdio: ["ignore", log, log] });
        this.process = child;
        this.exited = new Promise((resolve) => child.once("exit", resolve));
        child.once("exit", () => (this.process = null));
        await until(() => this.answers(), `server ${this.label} answers`);
    }

    async answers() {
        if (!this.process) throw new Error(`server ${this.label} has stopped:\n${await this.log()}`);
        try {
            return (await fetch(`${this.url}/_matrix/client/versions`, { signal: AbortSignal.timeout(2000) })).ok;
        } catch {
            return false;
        }
    }

    /** The end of the server's log. */
    async log() {
        const text = await fs.readFile(path.join(this.dir, "log"), "utf8").catch(() => "");
        return text.slice(-4000);
    }

    /** Ends the process without any warning. */
    async kill() {
        this.process.kill("SIGKILL");
        await this.exited;
    }

    pause() {
        this.process.kill("SIGSTOP");
    }

    resume() {
        this.process.kill("SIGCONT");
    }

    async restart() {
        await this.stop();
        await this.start();
    }

    async stop() {
        if (this.process) {
            this.process.kill("SIGCONT");
            this.process.kill("SIGTERM");
            const late = sleep(20_000).then(() => this.process?.kill("SIGKILL"));
            await Promise.race([this.exited, late]);
        }
        await this.relay.cut();
    }

    /** Runs a subcommand of the binary and returns what it prints. */
    async command(...args) {
        const { stdout } = await run(this.bin, [...args, "--config", this.configFile]);
        return stdout.trim();
    }
}

/** Sets a key in the text of a configuration. */
function setKey(text, key, value) {
    const [section, name] = key.includes(".") ? key.split(".") : ["", key];
    let now = "";
    let done = false;
    const lines = text.split("\n").map((line) => {
        const head = line.match(/^\[(.+)\]$/);
        if (head) now = head[1];
        if (!done && now === section && line.match(new RegExp(`^#?${name} = `))) {
            done = true;
            return `${name} = ${value}`;
        }
        return line;
    });
    if (!done) throw new Error(`no key ${key} in the configuration`);
    return lines.join("\n");
}

/** Forwards TCP connections until it is cut. */
class Relay {
    constructor(from, to) {
        this.from = from;
        this.to = to;
        this.sockets = new Set();
        this.listener = null;
    }

    async heal() {
        if (this.listener) return;
        this.listener = net.createServer((client) => {
            const server = net.connect(this.to, "127.0.0.1");
            for (const s of [client, server]) {
                this.sockets.add(s);
                s.on("error", () => s.destroy());
                s.on("close", () => {
                    this.sockets.delete(s);
                    client.destroy();
                    server.destroy();
                });
            }
            client.pipe(server).pipe(client);
        });
        await new Promise((resolve, reject) => {
            this.listener.once("error", reject);
            this.listener.listen(this.from, "127.0.0.1", resolve);
        });
    }

    async cut() {
        if (!this.listener) return;
        const closed = new Promise((resolve) => this.listener.close(resolve));
        this.listener = null;
        for (const s of this.sockets) s.destroy();
        await closed;
    }
}
