// Element Call, unmodified, as a widget in a small Matrix client: users of one
// parley server in an encrypted room see and hear each other.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { promises as fs } from "node:fs";
import os from "node:os";
import path from "node:path";

import { call, login, register } from "../lib/http.js";
import { livekit, Parley } from "./lib/backend.js";
import { bundle, launch, packageFolder, serve } from "./lib/browser.js";
import { Caller } from "./lib/caller.js";
import { tokenService } from "./lib/service.js";

let place, browser, slow, pages, foreign;
const modes = ["compatibility", "matrix_2_0"];

before(async () => {
    place = await Parley.start();
    // With a LiveKit server, all calls are held there: it proves these tests.
    if (livekit()) foreign = await tokenService(livekit());
    browser = await launch({ fps: 6 });
    const element = path.join(packageFolder("@element-hq/element-call-embedded"), "dist");
    const config = JSON.parse(await fs.readFile(path.join(element, "config.json")));
    const files = {
        "/": '<!doctype html><meta charset="utf-8"><title>call</title><style>body{margin:0}</style><script type="module" src="/host.js"></script>',
        "/host.js": await bundle("host.js"),
    };
    const folders = { "/pkg/": path.join(packageFolder("@matrix-org/matrix-sdk-crypto-wasm"), "pkg") };
    for (const mode of modes) {
        files[`/${mode}/config.json`] = JSON.stringify({ ...config, matrix_rtc_mode: mode });
        // Five browsers on a machine of two cores can't make five pictures of 720p.
        const video = { max_resolution: 360, max_framerate: 5, max_bitrate: 300_000, simulcast_layers: [{ height: 180, bitrate: 100_000 }] };
        // And their pages take more than the usual two seconds to pass a request on.
        const matrix_rtc_session = { ...config.matrix_rtc_session, delegated_delayed_leave: { delay_ms: 3_600_000, restart_ms: 300_000, restart_timeout_ms: 30_000 } };
        files[`/small/${mode}/config.json`] = JSON.stringify({ ...config, matrix_rtc_mode: mode, media_quality: { video }, matrix_rtc_session });
        folders[`/${mode}/`] = folders[`/small/${mode}/`] = element;
    }
    pages = await serve(files, folders);
}, { timeout: 300_000 });

after(async () => {
    await browser?.close();
    await slow?.close();
    await pages?.close();
    await foreign?.close();
    await place?.stop();
}, { timeout: 60_000 });

/** Users of the server with a page each, joined in a new encrypted room. */
async function gather(names, small) {
    if (small) slow ??= await launch({ fps: 3 });
    const users = [];
    for (const name of names) users.push(await login(place.server, await register(place.server, name.toLowerCase())));
    const [first, ...others] = users;
    const { room_id } = await call(place.server, "POST", "/_matrix/client/v3/createRoom", {
        token: first.access_token,
        body: {
            preset: "private_chat",
            invite: others.map((u) => u.user_id),
            initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
        },
    });
    for (const u of others) {
        await call(place.server, "POST", `/_matrix/client/v3/join/${encodeURIComponent(room_id)}`, { token: u.access_token, body: {} });
    }
    const people = [];
    for (const [i, u] of users.entries()) people.push(await Caller.open(small ? slow : browser, pages.url, names[i], place.server, u, room_id, { foreign, viewport: small ? { width: 900, height: 700 } : undefined }));
    return people;
}

function scenario(name, names, mode, body) {
    test(name, { timeout: 600_000 }, async (t) => {
        let people = [];
        try {
            people = await gather(names, mode.startsWith("small/"));
            await body(people, mode);
        } catch (e) {
            for (const p of people) t.diagnostic(await p.diagnosis());
            t.diagnostic(`server: ${await place.log()}`);
            throw e;
        } finally {
            for (const p of people) await p.close().catch(() => {});
        }
    });
}

for (const mode of modes) {
    describe(mode, () => {
        scenario("two see and hear each other; mute, camera, screen, leave, rejoin", ["Alice", "Bob"], mode, async ([alice, bob]) => {
            await alice.join(mode, "start_call");
            await bob.join(mode);
            const everyone = (n) => Promise.all([alice, bob].flatMap((p) => [p.sees(n), p.hears(n)]));
            await everyone(1);
            await Promise.all([alice.sees(1, { width: 1280 }), bob.sees(1, { width: 1280 })]);
            assert.ok(await alice.gotKeysEncrypted(), "the keys come encrypted");

            await alice.press("incall_mute");
            await bob.hears(0);
            await alice.press("incall_mute");
            await bob.hears(1);
            await alice.press("incall_videomute");
            await bob.sees(0);
            await alice.press("incall_videomute");
            await bob.sees(1);
            await alice.press("incall_screenshare");
            await bob.sees(2);
            await alice.press("incall_screenshare");
            await bob.sees(1);

            await bob.leave();
            await alice.sees(0);
            await alice.membershipsAre(1);
            await bob.join(mode);
            await everyone(1);
            await alice.membershipsAre(2);

            // A browser that crashes leaves no ghost.
            await bob.crash();
            await alice.membershipsAre(1);
            await alice.sees(0);
        });
    });
}

// On two cores it takes four minutes, and twice as long beside anything else.
const few = os.availableParallelism() < 4 && !process.env.PARLEY_CALLS_FIVE;
describe("five", { skip: few && "this machine has fewer than four cores; PARLEY_CALLS_FIVE=1 runs it all the same" }, () => {
    for (const mode of modes) {
        scenario(`five see and hear each other (${mode})`, ["Ann", "Ben", "Cat", "Dan", "Eve"], `small/${mode}`, async (people, mode) => {
            for (const [i, p] of people.entries()) await p.join(mode, i === 0 ? "start_call" : "join_existing");
            await Promise.all(people.map((p) => p.sees(4)));
            await Promise.all(people.map((p) => p.hears(4)));
            await people[0].leave();
            const rest = people.slice(1);
            await Promise.all(rest.flatMap((p) => [p.sees(3), p.hears(3)]));
            await people[0].join(mode, "join_existing");
            await Promise.all(people.flatMap((p) => [p.sees(4), p.hears(4)]));
        });
    }
});
