// Serves Element Call and the page that shows it.

import { promises as fs } from "node:fs";
import path from "node:path";

import { bundle, packageFolder, serve } from "./browser.js";

/** Pictures and times for machines of few cores: small, and no hurry. */
const modest = (config) => ({
    media_quality: { video: { max_resolution: 180, max_framerate: 4, max_bitrate: 150_000, simulcast_layers: [{ height: 90, bitrate: 50_000 }] } },
    matrix_rtc_session: { ...config.matrix_rtc_session, delegated_delayed_leave: { delay_ms: 3_600_000, restart_ms: 300_000, restart_timeout_ms: 30_000 } },
});

/** Serves Element Call under /MODE/, with small pictures. Gives {url, close()}. */
export async function servePages(modes) {
    const element = path.join(packageFolder("@element-hq/element-call-embedded"), "dist");
    const config = JSON.parse(await fs.readFile(path.join(element, "config.json")));
    const files = {
        "/": '<!doctype html><meta charset="utf-8"><title>call</title><style>body{margin:0}</style><script type="module" src="/host.js"></script>',
        "/host.js": await bundle("host.js"),
    };
    const folders = { "/pkg/": path.join(packageFolder("@matrix-org/matrix-sdk-crypto-wasm"), "pkg") };
    for (const mode of modes) {
        files[`/${mode}/config.json`] = JSON.stringify({ ...config, matrix_rtc_mode: mode, ...modest(config) });
        folders[`/${mode}/`] = element;
    }
    return serve(files, folders);
}
