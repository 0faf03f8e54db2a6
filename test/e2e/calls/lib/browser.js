// A headless Chromium with a made-up camera and microphone, and the pages that
// it opens.

import { createServer } from "node:http";
import { promises as fs, existsSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { chromium } from "playwright-core";

const here = path.dirname(fileURLToPath(import.meta.url));
const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".json": "application/json", ".wasm": "application/wasm", ".svg": "image/svg+xml" };

/** Where Chromium is: PARLEY_CHROMIUM, or as Debian installs it. */
export function chromiumPath() {
    const file = process.env.PARLEY_CHROMIUM ?? "/usr/bin/chromium";
    if (!existsSync(file)) throw new Error(`no browser at ${file}: install the package chromium or set PARLEY_CHROMIUM`);
    return file;
}

/** Starts Chromium. The camera gives few frames, so that slow machines manage several layers. */
export async function launch({ fps = 10 } = {}) {
    const dir = await fs.mkdtemp(path.join(os.tmpdir(), "parley-voice-"));
    const voice = path.join(dir, "voice.wav");
    await fs.writeFile(voice, speech());
    const browser = await chromium.launch({
        executablePath: chromiumPath(),
        headless: true,
        args: [
            "--no-sandbox",
            "--use-fake-ui-for-media-stream",
            `--use-fake-device-for-media-stream=fps=${fps}`,
            "--auto-select-tab-capture-source-by-title=call",
            `--use-file-for-fake-audio-capture=${voice}`,
            "--autoplay-policy=no-user-gesture-required",
            "--disable-background-timer-throttling",
            "--disable-backgrounding-occluded-windows",
            "--disable-renderer-backgrounding",
            "--force-prefers-reduced-motion",
            "--disable-features=WebRtcHideLocalIpsWithMdns,CalculateNativeWinOcclusion",
        ],
    });
    browser.on("disconnected", () => fs.rm(dir, { recursive: true, force: true }));
    return browser;
}

/** Something like speech, as a WAV file of four seconds: syllables of a buzzing voice whose pitch moves. */
function speech() {
    const rate = 48_000;
    const data = Buffer.alloc(4 * rate * 2);
    let phase = 0;
    for (let i = 0; i < data.length / 2; i++) {
        const t = i / rate;
        phase += (140 + 50 * Math.sin(2 * Math.PI * 0.5 * t) + 20 * Math.sin(2 * Math.PI * 5 * t)) / rate;
        let buzz = 0;
        for (let n = 1; n <= 20; n++) buzz += Math.sin(2 * Math.PI * n * phase) / n ** (1 + 0.5 * Math.sin(2 * Math.PI * 1.5 * t));
        const syllable = Math.max(0, Math.sin(2 * Math.PI * 3 * t)) ** 0.5;
        const breath = 0.02 * (Math.random() * 2 - 1);
        data.writeInt16LE(Math.round(32_767 * Math.max(-1, Math.min(1, 0.25 * syllable * (buzz + breath)))), 2 * i);
    }
    const head = Buffer.alloc(44);
    head.write("RIFF");
    head.writeUInt32LE(36 + data.length, 4);
    head.write("WAVEfmt ", 8);
    head.writeUInt32LE(16, 16);
    head.writeUInt16LE(1, 20);
    head.writeUInt16LE(1, 22);
    head.writeUInt32LE(rate, 24);
    head.writeUInt32LE(2 * rate, 28);
    head.writeUInt16LE(2, 32);
    head.writeUInt16LE(16, 34);
    head.write("data", 36);
    head.writeUInt32LE(data.length, 40);
    return Buffer.concat([head, data]);
}

/** Bundles a page's script; gives its text. */
export async function bundle(entry, { define } = {}) {
    const made = await build({
        entryPoints: [path.resolve(here, "../page", entry)],
        bundle: true,
        write: false,
        format: "esm",
        target: "chrome120",
        logLevel: "error",
        define: { global: "globalThis", ...define },
        loader: { ".wasm": "file" },
        outdir: "/",
    });
    return made.outputFiles.find((f) => f.path.endsWith(".js")).text;
}

/**
 * Serves pages on this machine: `files` are {"/path": text}, `folders` are
 * {"/prefix/": folder}. Gives {url, close()}.
 */
export async function serve(files, folders = {}) {
    const server = createServer(async (req, res) => {
        const { pathname } = new URL(req.url, "http://localhost");
        try {
            const body = files[pathname] ?? (await fromFolder(folders, decodeURIComponent(pathname)));
            res.writeHead(200, { "Content-Type": types[path.extname(pathname)] ?? "text/html", "Access-Control-Allow-Origin": "*" });
            res.end(body);
        } catch {
            res.writeHead(404).end();
        }
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        close: () => new Promise((resolve) => (server.close(resolve), server.closeAllConnections())),
    };
}

async function fromFolder(folders, pathname) {
    const prefix = Object.keys(folders).find((p) => pathname.startsWith(p));
    if (!prefix || pathname.includes("..")) throw new Error("not here");
    return fs.readFile(path.join(folders[prefix], pathname.slice(prefix.length) || "index.html"));
}

/** The folder of an npm package. */
export const packageFolder = (name) => path.resolve(here, "../../node_modules", name);

/** Collects what a page prints. */
export function watch(page, name) {
    const lines = [];
    const add = (text) => {
        lines.push(text);
        if (lines.length > 400) lines.shift();
        if (process.env.PARLEY_E2E_LOG) process.stderr.write(`${name}: ${text}\n`);
    };
    page.on("console", (m) => add(`${m.type()}: ${m.text()}`));
    page.on("pageerror", (e) => add(`error: ${e}`));
    page.on("crash", () => add("the page crashed"));
    return lines;
}
