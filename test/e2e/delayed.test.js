// Delayed and sticky events with the SDK's own calls for them: what a client in
// a call does to be seen there, and not to be seen when it is gone.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Device, stopAll } from "./lib/client.js";
import { call, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { eventually, eventuallyList, until } from "./lib/wait.js";

const member = "org.matrix.msc3401.call.member";
const rtc = "org.matrix.msc4143.rtc.member";
const patient = { timeout: 120_000, every: 200 };

let net, alice, bob, roomId;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice", { crypto: false });
    bob = await Device.signUp(net.b, "bob", { crypto: false });
    roomId = await alice.createRoom({ encrypted: false, name: "calls" });
    await alice.bring(roomId, bob);
});
after(async () => {
    stopAll(alice, bob);
    await net?.stop();
});

const keyOf = (d) => `_${d.userId}_${d.deviceId}_m.call`;
const stateOf = (d, who) => d.sdk.getRoom(roomId).currentState.getStateEvents(member, keyOf(who))?.getContent();
const join = (d) => d.sdk.sendStateEvent(roomId, member, { application: "m.call" }, keyOf(d));
const leaveLater = async (d, delay) => (await d.sdk._unstable_sendDelayedStateEvent(roomId, { delay }, member, {}, keyOf(d))).delay_id;
const stickyOf = (d) =>
    [...d.sdk.getRoom(roomId)._unstable_getStickyEvents()].map((ev) => ev.getContent().name).filter(Boolean).sort();
const stick = (d, name, key = name) => d.sdk._unstable_sendStickyEvent(roomId, 3_600_000, null, rtc, { name, msc4354_sticky_key: key });

test("a member without power may be in a call, and leaves it when it goes quiet", async () => {
    await join(bob);
    await until(() => stateOf(alice, bob)?.application, "Alice sees Bob in the call");
    const id = await leaveLater(bob, 12_000);
    for (let i = 0; i < 3; i++) {
        await new Promise((r) => setTimeout(r, 5000)); // less than the delay
        await bob.sdk._unstable_restartScheduledDelayedEvent(id);
        assert.equal(stateOf(alice, bob).application, "m.call", "Bob is still there");
    }
    await eventually(() => stateOf(alice, bob), {}, "Bob goes when he doesn't restart it any more", patient);
    await assert.rejects(bob.sdk._unstable_restartScheduledDelayedEvent(id), { errcode: "M_NOT_FOUND" });
    const found = await bob.sdk._unstable_getDelayedEvent(id);
    assert.ok(found.event_id && found.finalised_ts, JSON.stringify(found));
});

test("sending at once, cancelling, too long a delay", async () => {
    await join(bob);
    await until(() => stateOf(alice, bob)?.application, "Alice sees Bob in the call");
    const [sent, cancelled] = [await leaveLater(bob, 3_600_000), await leaveLater(bob, 3_600_000)];
    const list = async () => (await bob.sdk._unstable_getDelayedEvents()).delayed_events.map((e) => e.delay_id);
    await eventuallyList(list, [sent, cancelled], "what Bob has scheduled");
    await bob.sdk._unstable_cancelScheduledDelayedEvent(cancelled);
    // Whoever has the ID may send it, for example the media server.
    await call(net.b, "POST", `/_matrix/client/unstable/org.matrix.msc4140/delayed_events/${sent}/send`, { body: {} });
    await eventually(() => stateOf(alice, bob), {}, "Bob has left");
    assert.deepEqual(await list(), []);
    await assert.rejects(leaveLater(bob, 86_400_001), (e) => e.errcode === "M_UNKNOWN" && e.data["org.matrix.msc4140.max_delay"] === 86_400_000);
    const { status } = await request(net.b, "POST", `/_matrix/client/unstable/org.matrix.msc4140/delayed_events/${sent}x/send`, { body: {} });
    assert.equal(status, 404);
});

test("Bob's server is killed while he is in the call: he leaves when it is back", async () => {
    await join(bob);
    await until(() => stateOf(alice, bob)?.application, "Alice sees Bob in the call");
    await leaveLater(bob, 8000);
    await net.b.kill();
    await new Promise((r) => setTimeout(r, 9000)); // the delay passes
    assert.equal(stateOf(alice, bob).application, "m.call");
    await net.b.start();
    await eventually(() => stateOf(alice, bob), {}, "Bob has left", patient);
});

test("sticky events reach devices and servers that come later", async () => {
    await stick(alice, "alice");
    await stick(bob, "bob");
    for (const d of [alice, bob]) await eventuallyList(() => stickyOf(d), ["alice", "bob"], `${d.userId} sees both`, patient);
    for (let i = 0; i < 30; i++) await alice.say(roomId, `chatter ${i}`);
    await bob.hears(roomId, "chatter 29");

    const phone = await Device.logIn(net.b, bob.userId, { crypto: false });
    await eventuallyList(() => stickyOf(phone), ["alice", "bob"], "Bob's new device sees both", patient);
    await stick(alice, "alice moved", "alice");
    for (const d of [alice, bob, phone]) await eventuallyList(() => stickyOf(d), ["alice moved", "bob"], `${d.name} sees the change`, patient);
    phone.stop();

    const carol = await Device.signUp(net.b, "carol", { crypto: false });
    await alice.bring(roomId, carol);
    await eventuallyList(() => stickyOf(carol), ["alice moved", "bob"], "Carol, who joins later, sees both", patient);
    carol.stop();

    const { delay_id: id } = await alice.sdk._unstable_sendStickyDelayedEvent(roomId, 3_600_000, { delay: 3_600_000 }, null, rtc, { msc4354_sticky_key: "alice" });
    await alice.sdk._unstable_sendScheduledDelayedEvent(id);
    for (const d of [alice, bob]) await eventuallyList(() => stickyOf(d), ["bob"], `${d.userId} sees that Alice has left`, patient);
});
