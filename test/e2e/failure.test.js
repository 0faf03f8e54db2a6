// Servers that die, freeze and lose sight of each other: everything arrives
// exactly once.

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";

import { Device, stopAll } from "./lib/client.js";
import { startPair } from "./lib/servers.js";
import { eventually, eventuallyList, until } from "./lib/wait.js";

// Back-off between servers grows while one is away; waiting for it is part of
// the test.
const patient = { timeout: Number(process.env.PARLEY_E2E_PATIENCE ?? 240) * 1000, every: 200 };

let net, alice, bob, roomId;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice");
    bob = await Device.signUp(net.b, "bob");
    await alice.secure();
    await bob.secure();
    roomId = await alice.createRoom();
    await alice.bring(roomId, bob);
    await alice.say(roomId, "hello");
    await bob.hears(roomId, "hello");
});
afterEach(async () => {
    if (!net.b.process) await net.b.start();
    net.b.resume();
    await net.heal();
});
after(async () => {
    stopAll(alice, bob);
    await net?.stop();
});

const numbered = (who, n) => Array.from({ length: n }, (_, i) => `${who} ${i}`);

/** Sends texts in order, each until it is sent. */
async function sayAll(device, bodies, each = () => {}) {
    for (const [i, body] of bodies.entries()) {
        await each(i);
        await device.insist(roomId, body, patient);
    }
}

/** What each side has of a kind of messages is exactly this. */
async function exactly(device, from, kind, bodies) {
    const heard = async () => (await device.heard(roomId, from)).filter((b) => b.startsWith(kind) || b.startsWith("("));
    await eventuallyList(heard, bodies, `${device.userId} has what ${from.userId} said`, patient);
}

test("Bob's server is killed in the middle of it and comes back", async () => {
    const [mine, his] = [numbered("kill A", 60), numbered("kill B", 60)];
    let killed = false;
    await Promise.all([
        sayAll(alice, mine, async (i) => {
            if (i === 20) {
                await net.b.kill();
                killed = true;
            }
            if (i === 45) await net.b.start();
        }),
        sayAll(bob, his),
    ]);
    assert.ok(killed);
    for (const who of [alice, bob]) {
        await exactly(who, alice, "kill A", mine);
        await exactly(who, bob, "kill B", his);
    }
});

test("Alice's server is killed while requests are under way", async () => {
    const mine = numbered("again A", 40);
    await sayAll(alice, mine, async (i) => {
        if (i === 10 || i === 25) {
            const dead = net.a.kill();
            void dead.then(() => net.a.start());
        }
    });
    for (const who of [alice, bob]) await exactly(who, alice, "again A", mine);
});

test("the servers are cut off from each other, talk on, and heal", async () => {
    await net.cut();
    const [mine, his] = [numbered("cut A", 30), numbered("cut B", 30)];
    await Promise.all([sayAll(alice, mine), sayAll(bob, his)]);
    await alice.sdk.setRoomTopic(roomId, "set while cut off");
    // A new device of Bob's that Alice's server can't hear of now.
    const tablet = await Device.logIn(net.b, bob.userId);
    try {
        await tablet.adoptIdentity();
        await alice.sdk.sendToDevice("org.example.test", new Map([[bob.userId, new Map([[bob.deviceId, { n: 1 }]])]]));
        await bob.sdk.sendToDevice("org.example.test", new Map([[alice.userId, new Map([[alice.deviceId, { n: 2 }]])]]));
        assert.equal(bob.toDevice.filter((e) => e.getType() === "org.example.test").length, 0);

        await net.heal();
        for (const who of [alice, bob]) {
            await exactly(who, alice, "cut A", mine);
            await exactly(who, bob, "cut B", his);
        }
        await bob.seesState(roomId, "m.room.topic", "", (c) => c.topic === "set while cut off", "the topic");
        for (const who of [alice, bob]) {
            await until(() => who.toDevice.some((e) => e.getType() === "org.example.test"), `${who.userId} gets the to-device message`, patient);
        }
        await until(async () => {
            const devices = await alice.crypto.getUserDeviceInfo([bob.userId]);
            if (!devices.get(bob.userId)?.has(tablet.deviceId)) return false;
            return (await alice.crypto.getDeviceVerificationStatus(bob.userId, tablet.deviceId))?.signedByOwner;
        }, "Alice's client knows Bob's new device", patient);
        await alice.say(roomId, "for the new device");
        await tablet.hears(roomId, "for the new device");
        for (const who of [alice, bob]) {
            assert.equal(who.toDevice.filter((e) => e.getType() === "org.example.test").length, 1, `${who.userId} got it once`);
        }
    } finally {
        tablet.stop();
    }
});

test("Bob's server freezes and thaws", async () => {
    net.b.pause();
    const mine = numbered("freeze A", 20);
    await sayAll(alice, mine);
    net.b.resume();
    const his = numbered("freeze B", 5);
    await sayAll(bob, his);
    for (const who of [alice, bob]) {
        await exactly(who, alice, "freeze A", mine);
        await exactly(who, bob, "freeze B", his);
    }
});

test("conflicting changes on both sides of a cut end the same", async () => {
    await alice.sdk.setPowerLevel(roomId, bob.userId, 50);
    await bob.seesState(roomId, "m.room.power_levels", "", (c) => c.users?.[bob.userId] === 50, "his level");
    await net.cut();
    await alice.sdk.setRoomTopic(roomId, "Alice's topic");
    await bob.sdk.setRoomTopic(roomId, "Bob's topic");
    await bob.sdk.setRoomName(roomId, "Bob's name");
    await alice.sdk.setPowerLevel(roomId, bob.userId, 0);
    await net.heal();
    await alice.say(roomId, "after the cut, from Alice");
    await bob.say(roomId, "after the cut, from Bob");
    await until(() => bob.hears(roomId, "after the cut, from Alice"), "Bob hears Alice", patient);
    await until(() => alice.hears(roomId, "after the cut, from Bob"), "Alice hears Bob", patient);
    const stateOf = async (d) => {
        const state = await d.sdk.roomState(roomId);
        return state.map((e) => `${e.type} ${e.state_key} ${e.event_id}`).sort();
    };
    await eventually(async () => JSON.stringify(await stateOf(bob)) === JSON.stringify(await stateOf(alice)), true, "both servers have the same state", patient);
    const topic = (await alice.sdk.roomState(roomId)).find((e) => e.type === "m.room.topic");
    assert.equal(topic.content.topic, "Alice's topic", "Bob had lost his power");
});
