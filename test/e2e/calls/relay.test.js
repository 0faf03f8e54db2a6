// livekit-client in Chromium, with relays only: what a browser does in a network
// that lets nothing else through, or to show its address to nobody.

import { after, before, describe, test } from "node:test";
import path from "node:path";
import { promises as fs } from "node:fs";

import { call } from "../lib/http.js";
import { backend } from "./lib/backend.js";
import { bundle, launch, packageFolder, serve } from "./lib/browser.js";
import { Person } from "./lib/person.js";

let place, browser, pages, alice, bob;

before(async () => {
    place = await backend();
    browser = await launch();
    const worker = path.join(packageFolder("livekit-client"), "dist/livekit-client.e2ee.worker.mjs");
    pages = await serve({
        "/": '<!doctype html><meta charset="utf-8"><title>call</title><script type="module" src="/seat.js"></script>',
        "/seat.js": await bundle("seat.js"),
        "/e2ee-worker.js": await fs.readFile(worker),
    });
    [alice, bob] = await Promise.all(["Alice", "Bob"].map((name) => Person.open(browser, pages.url, name, place)));
}, { timeout: 300_000 });

after(async () => {
    await browser?.close();
    await pages?.close();
    await place?.stop();
}, { timeout: 60_000 });

/** A relay on the port of HTTPS, as for somebody whose network lets no UDP through. */
async function overTCP() {
    const { access_token: token } = await place.person("Alice");
    const { username, password } = await call(place.server, "GET", "/_matrix/client/v3/voip/turnServer", { token });
    return [{ urls: [`turn:127.0.0.1:${place.server.realPort}?transport=tcp`], username, credential: password }];
}

describe("relays only", { skip: !!process.env.PARLEY_CALLS_LIVEKIT }, () => {
    for (const [name, mode, iceServers] of [["v1", "v1"], ["v0", "v0"], ["v1 over TCP", "v1", overTCP]]) {
        test(name, { timeout: 240_000 }, async (t) => {
            const rtcConfig = { iceTransportPolicy: "relay", ...(iceServers && { iceServers: await iceServers() }) };
            try {
                await alice.join(`relayed ${name}`, { mode, connect: { rtcConfig } });
                await bob.join(`relayed ${name}`, { mode });
                await Promise.all([alice.meets(bob), bob.meets(alice)]);
                await Promise.all([alice, bob].map((p) => p.microphone()));
                await alice.camera(true, { width: 320, height: 180, simulcast: false });
                await Promise.all([bob.sees(alice), bob.hears(alice), alice.hears(bob)]);
            } catch (e) {
                for (const p of [alice, bob]) t.diagnostic(await p.diagnosis());
                t.diagnostic(`server: ${(await place.log()) ?? ""}`);
                throw e;
            } finally {
                await Promise.all([alice, bob].map((p) => p.leave().catch(() => {})));
            }
        });
    }
});
