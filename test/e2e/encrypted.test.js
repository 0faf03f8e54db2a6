// Alice on one server and Bob on the other: encrypted rooms of several
// versions, verification, many messages, a new device that restores history.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Device, stopAll, verify } from "./lib/client.js";
import { call } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { eventuallyList, until } from "./lib/wait.js";

const messages = 200;

let net, alice, bob;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice");
    bob = await Device.signUp(net.b, "bob");
    await alice.secure();
    await bob.secure();
});
after(async () => {
    stopAll(alice, bob);
    await net?.stop();
});

const numbered = (who, n) => Array.from({ length: n }, (_, i) => `${who} ${i}`);

async function sayAll(device, roomId, bodies) {
    for (const body of bodies) await device.say(roomId, body);
}

/** Both sides have exactly these messages of each, in order. */
async function bothHeard(roomId, fromAlice, fromBob) {
    for (const who of [alice, bob]) {
        await eventuallyList(() => who.heard(roomId, alice), fromAlice, `${who.userId} has Alice's messages`);
        await eventuallyList(() => who.heard(roomId, bob), fromBob, `${who.userId} has Bob's messages`);
    }
}

for (const version of ["12", "11", "10"]) {
    test(`an encrypted room of version ${version} over federation`, async () => {
        const roomId = await alice.createRoom({ room_version: version, name: `version ${version}` });
        assert.equal(alice.sdk.getRoom(roomId).getVersion(), version);
        await alice.sdk.invite(roomId, bob.userId);
        const invited = await bob.room(roomId, "invite");
        assert.equal(invited.name, `version ${version}`, "the invitation shows the room's name");
        await bob.sdk.joinRoom(roomId);
        await bob.room(roomId);
        await until(() => alice.sdk.getRoom(roomId).getMember(bob.userId)?.membership === "join", "Alice sees Bob join");
        assert.ok(await bob.crypto.isEncryptionEnabledInRoom(roomId));

        const [mine, his] = [numbered("from Alice", messages), numbered("from Bob", messages)];
        await Promise.all([sayAll(alice, roomId, mine), sayAll(bob, roomId, his)]);
        await bothHeard(roomId, mine, his);

        const raw = await call(net.b, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/messages`, {
            token: bob.token,
            query: { dir: "b", limit: 50 },
        });
        assert.ok(!JSON.stringify(raw).includes("from Alice"), "the servers see no text");
    });
}

test("Alice and Bob verify each other by comparing emoji", async () => {
    const roomId = await alice.createRoom({ is_direct: true });
    await alice.bring(roomId, bob);
    await verify(alice, bob, roomId);
});

test("each sees the other's devices as signed by their owner", async () => {
    for (const [who, whom] of [[alice, bob], [bob, alice]]) {
        await until(async () => {
            const status = await who.crypto.getDeviceVerificationStatus(whom.userId, whom.deviceId);
            return status?.signedByOwner && status.isVerified();
        }, `${who.userId} trusts the device of ${whom.userId}`);
    }
});

test("a new device of Bob's restores history from the key backup", async () => {
    const roomId = await alice.createRoom({ initial_state: [] });
    await alice.bring(roomId, bob);
    const [mine, his] = [numbered("old, from Alice", 20), numbered("old, from Bob", 20)];
    await sayAll(alice, roomId, mine);
    await sayAll(bob, roomId, his);
    await bothHeard(roomId, mine, his);
    const version = await until(() => bob.crypto.getActiveSessionBackupVersion(), "Bob's client makes backups");
    await until(async () => {
        const path = `/_matrix/client/v3/room_keys/keys/${encodeURIComponent(roomId)}`;
        const { sessions } = await call(net.b, "GET", path, { token: bob.token, query: { version } });
        return Object.keys(sessions).length === 2;
    }, "both sides' keys of this room are backed up");

    const tablet = await Device.logIn(net.b, bob.userId);
    try {
        await tablet.room(roomId);
        const before = await tablet.heard(roomId, alice);
        assert.ok(before.includes("(can't be decrypted)"), "without the backup there is nothing to read");
        await tablet.adoptIdentity();
        await tablet.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const { imported } = await tablet.crypto.restoreKeyBackup();
        assert.ok(imported >= 2, `${imported} keys imported`);
        await eventuallyList(() => tablet.heard(roomId, alice), mine, "the new device has Alice's messages");
        await eventuallyList(() => tablet.heard(roomId, bob), his, "the new device has Bob's messages");
        // Alice's device takes Bob's new one for his, and it reads what comes now.
        await until(async () => {
            const devices = await alice.crypto.getUserDeviceInfo([bob.userId]);
            if (!devices.get(bob.userId)?.has(tablet.deviceId)) return false;
            return (await alice.crypto.getDeviceVerificationStatus(bob.userId, tablet.deviceId))?.signedByOwner;
        }, "Alice's client knows the new device");
        await alice.say(roomId, "to all of Bob's devices");
        await tablet.hears(roomId, "to all of Bob's devices");
        await bob.hears(roomId, "to all of Bob's devices");
    } finally {
        tablet.stop();
    }
});
