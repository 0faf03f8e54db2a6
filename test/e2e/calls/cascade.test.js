// Element Call, unmodified, in a call of users of several parley servers: each
// browser's media goes to its own server and nowhere else.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { call, login, register } from "../lib/http.js";
import { startServers } from "../lib/servers.js";
import { until } from "../lib/wait.js";
import { launch } from "./lib/browser.js";
import { Caller } from "./lib/caller.js";
import { servePages } from "./lib/element.js";

const modes = ["compatibility", "matrix_2_0"];
let place, browser, pages;

before(async () => {
    place = await startServers(3);
    browser = await launch({ fps: 4 });
    pages = await servePages(modes);
}, { timeout: 300_000 });

after(async () => {
    await browser?.close();
    await pages?.close();
    await place?.stop();
}, { timeout: 60_000 });

/** A user of each server with a page, joined in a new encrypted room of the first. */
async function gather(servers) {
    const users = [];
    for (const s of servers) users.push(await login(s, await register(s, `user-${s.label}`)));
    const [first, ...others] = users;
    const { room_id } = await call(servers[0], "POST", "/_matrix/client/v3/createRoom", {
        token: first.access_token,
        body: {
            preset: "private_chat",
            invite: others.map((u) => u.user_id),
            initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
        },
    });
    for (const [i, u] of others.entries()) {
        const path = `/_matrix/client/v3/join/${encodeURIComponent(room_id)}`;
        await call(servers[i + 1], "POST", path, { token: u.access_token, body: {}, query: { server_name: servers[0].name } });
    }
    const people = [];
    for (const [i, u] of users.entries()) people.push(await Caller.open(browser, pages.url, servers[i].label, servers[i], u, room_id, { viewport: { width: 640, height: 480 } }));
    return people;
}

function scenario(name, count, body) {
    test(name, { timeout: 600_000 }, async (t) => {
        const servers = place.servers.slice(0, count);
        let people = [];
        try {
            people = await gather(servers);
            await body(people, t);
        } catch (e) {
            for (const p of people) t.diagnostic(await p.diagnosis());
            for (const s of servers) t.diagnostic(`server ${s.label}: ${await s.log()}`);
            throw e;
        } finally {
            for (const p of people) await p.close().catch(() => {});
        }
    });
}

/** All signalling and all media of a person's call go to their own server. */
async function staysAtHome(person) {
    const home = [person.server.mediaPort, person.server.realPort].map((port) => `127.0.0.1:${port}`); // by UDP and TCP
    const ends = await person.farEnds();
    assert.ok(ends.length > 0 && ends.every((e) => home.includes(e)), `${person.name}: media goes to ${ends} instead of ${home}`);
    const signalling = person.requested.filter((u) => u.startsWith("ws"));
    assert.ok(signalling.length > 0);
    for (const u of signalling) assert.equal(new URL(u).host, new URL(person.server.url).host, `${person.name}: where signalling goes`);
}

/** What a person's browser asked of other servers, as "METHOD path". */
function askedElsewhere(person, people) {
    const foreign = people.filter((p) => p !== person).map((p) => new URL(p.server.url).host);
    return [...new Set(person.requested.filter((u) => foreign.includes(new URL(u).host)).map((u) => new URL(u).pathname))].sort();
}

for (const mode of modes) {
    for (const count of [2, 3]) {
        describe(`${mode}, ${count} servers`, () => {
            scenario("all see and hear each other, each by their own server only", count, async (people) => {
                for (const [i, p] of people.entries()) await p.join(mode, i === 0 ? "start_call" : "join_existing");
                const everyone = (n) => Promise.all(people.flatMap((p) => [p.sees(n), p.hears(n)]));
                await everyone(count - 1);
                for (const p of people) {
                    assert.ok(await p.gotKeysEncrypted(), "the keys come encrypted");
                    await staysAtHome(p);
                    assert.deepEqual(askedElsewhere(p, people), ["/livekit/jwt/get_token"], `${p.name}: requests to other servers`);
                }
                const [first, second] = people;
                await first.press("incall_mute");
                await second.hears(count - 2);
                await first.press("incall_mute");
                await second.hears(count - 1);
                await first.press("incall_videomute");
                await second.sees(count - 2);
                await first.press("incall_videomute");
                await second.sees(count - 1);

                await second.leave();
                await first.sees(count - 2);
                await second.join(mode);
                await everyone(count - 1);
                for (const p of people) await staysAtHome(p);
            });
        });
    }
}

for (const mode of modes) {
    describe(`${mode}, a server dies`, () => {
        scenario("the others go on; its users come back by themselves once it is back", 2, async ([first, second], t) => {
            await first.join(mode, "start_call");
            await second.join(mode);
            await Promise.all([first.sees(1), second.hears(1)]);
            const [made] = await second.connections();
            await second.server.kill();
            await first.sees(0);
            await second.server.start();
            const back = Date.now();
            await until(async () => (await second.connections(made))[1], "its user is back", { timeout: 120_000, every: 100 });
            t.diagnostic(`back after ${Date.now() - back} ms`);
            await Promise.all([first.sees(1), first.hears(1), second.sees(1), second.hears(1)]);
            await staysAtHome(second);
        });
    });
}
