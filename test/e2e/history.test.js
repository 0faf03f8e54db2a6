// What those who come late, or have gone, may read.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Device, stopAll } from "./lib/client.js";
import { call, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { eventually, eventuallyList, until } from "./lib/wait.js";

let net, alice, anna, bob;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice", { crypto: false });
    anna = await Device.signUp(net.a, "anna", { crypto: false });
    bob = await Device.signUp(net.b, "bob", { crypto: false });
});
after(async () => {
    stopAll(alice, anna, bob);
    await net?.stop();
});

/** All texts that a user can page to, oldest first. */
async function texts(device, roomId) {
    const out = [];
    for (let from, more = true; more; ) {
        const page = await call(device.server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/messages`, {
            token: device.token,
            query: { dir: "b", limit: 5, ...(from && { from }) },
        });
        out.unshift(...page.chunk.filter((e) => e.type === "m.room.message").map((e) => e.content.body).reverse());
        more = page.end !== undefined && page.end !== from;
        from = page.end;
    }
    return out;
}

const before5 = ["b0", "b1", "b2", "b3", "b4"];

async function roomWith(visibility) {
    return alice.createRoom({
        encrypted: false,
        preset: "public_chat",
        initial_state: [{ type: "m.room.history_visibility", state_key: "", content: { history_visibility: visibility } }],
    });
}

const expected = {
    world_readable: { joiner: [...before5, "invited", "after"], outsider: true },
    shared: { joiner: [...before5, "invited", "after"], outsider: false },
    invited: { joiner: ["invited", "after"], outsider: false },
    joined: { joiner: ["after"], outsider: false },
};

for (const [visibility, want] of Object.entries(expected)) {
    test(`history visibility ${visibility}`, async () => {
        const roomId = await roomWith(visibility);
        for (const body of before5) await alice.say(roomId, body);

        const outside = await request(net.a, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/messages`, { token: anna.token, query: { dir: "b" } });
        assert.equal(outside.status, want.outsider ? 200 : 403);

        for (const late of [anna, bob]) {
            await alice.sdk.invite(roomId, late.userId);
            await late.room(roomId, "invite");
        }
        await alice.say(roomId, "invited");
        for (const late of [anna, bob]) {
            await late.sdk.joinRoom(roomId);
            await late.room(roomId);
            await until(() => alice.sdk.getRoom(roomId).getMember(late.userId).membership === "join", "the join is seen");
        }
        await alice.say(roomId, "after");
        for (const late of [anna, bob]) {
            await late.hears(roomId, "after");
            await eventually(() => texts(late, roomId), want.joiner, `what ${late.userId} may read`);
        }
    });
}

test("who leaves reads on to the end of their time, and no further", async () => {
    for (const who of [anna, bob]) {
        const roomId = await roomWith("shared");
        await who.sdk.joinRoom(roomId, { viaServers: [net.a.name] });
        await who.room(roomId);
        await until(() => alice.sdk.getRoom(roomId).getMember(who.userId)?.membership === "join", "the join is seen");
        await alice.say(roomId, "while there");
        await who.hears(roomId, "while there");
        await who.sdk.leave(roomId);
        await until(() => alice.sdk.getRoom(roomId).getMember(who.userId).membership === "leave", "the leave is seen");
        const id = await alice.say(roomId, "behind their back");
        await alice.hears(roomId, "behind their back");
        assert.deepEqual(await texts(who, roomId), ["while there"]);
        const single = await request(who.server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/event/${encodeURIComponent(id)}`, { token: who.token });
        assert.ok([403, 404].includes(single.status), `status ${single.status}`);
    }
});

test("a long history is fetched from the other server as far as it goes", async () => {
    const roomId = await roomWith("shared");
    const all = Array.from({ length: 150 }, (_, i) => `long ${i}`);
    for (const body of all) await alice.say(roomId, body);
    await bob.sdk.joinRoom(roomId, { viaServers: [net.a.name] });
    await bob.room(roomId);
    await eventuallyList(() => texts(bob, roomId), all, "Bob pages back to the beginning", { timeout: 90_000 });
});
