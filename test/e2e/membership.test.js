// Who may come in, and who has to go, on both servers.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Device, stopAll } from "./lib/client.js";
import { call, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { eventually, until } from "./lib/wait.js";

let net, alice, anna, bob, beth;
before(async () => {
    net = await startPair();
    [alice, anna] = await Promise.all([Device.signUp(net.a, "alice", { crypto: false }), Device.signUp(net.a, "anna", { crypto: false })]);
    [bob, beth] = await Promise.all([Device.signUp(net.b, "bob", { crypto: false }), Device.signUp(net.b, "beth", { crypto: false })]);
});
after(async () => {
    stopAll(alice, anna, bob, beth);
    await net?.stop();
});

const plain = (options) => ({ encrypted: false, ...options });
const viaA = () => ({ viaServers: [net.a.name] });
const rules = (join_rule, more = {}) => [{ type: "m.room.join_rules", state_key: "", content: { join_rule, ...more } }];

/** A user's membership as another user's client has it. */
const seen = (by, roomId, who) => by.sdk.getRoom(roomId)?.getMember(who.userId)?.membership;
const sees = (by, roomId, who, membership) => until(() => seen(by, roomId, who) === membership, `${by.userId} sees ${who.userId} as ${membership}`);

async function refused(promise, errcode = "M_FORBIDDEN") {
    await assert.rejects(promise, (e) => {
        assert.equal(e.errcode, errcode, e.message);
        return true;
    });
}

async function cantTalk(device, roomId) {
    const path = `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/send/m.room.message/${Math.random()}`;
    const { status, body } = await request(device.server, "PUT", path, { token: device.token, body: { msgtype: "m.text", body: "let me in" } });
    assert.deepEqual([status, body.errcode], [403, "M_FORBIDDEN"]);
}

test("public rooms: anybody joins, by alias too, and leaves", async () => {
    const alias = `open-${Date.now()}`;
    const roomId = await alice.createRoom(plain({ preset: "public_chat", room_alias_name: alias, visibility: "public", name: "Open" }));
    await anna.sdk.joinRoom(roomId);
    await bob.sdk.joinRoom(`#${alias}:${net.a.name}`);
    await beth.sdk.joinRoom(roomId, viaA());
    for (const by of [alice, anna, bob, beth]) {
        await by.room(roomId);
        for (const who of [alice, anna, bob, beth]) await sees(by, roomId, who, "join");
    }
    const directory = await call(net.b, "POST", "/_matrix/client/v3/publicRooms", {
        token: bob.token, query: { server: net.a.name }, body: { filter: { generic_search_term: "Open" } },
    });
    assert.ok(directory.chunk.some((r) => r.room_id === roomId && r.num_joined_members === 4));
    const resolved = await call(net.b, "GET", `/_matrix/client/v3/directory/room/${encodeURIComponent(`#${alias}:${net.a.name}`)}`);
    assert.equal(resolved.room_id, roomId);

    await bob.sdk.leave(roomId);
    await sees(alice, roomId, bob, "leave");
    await cantTalk(bob, roomId);
    await bob.sdk.joinRoom(roomId, viaA());
    await sees(alice, roomId, bob, "join");
    await bob.sdk.sendTextMessage(roomId, "back again");
    for (const by of [alice, anna, beth]) await by.hears(roomId, "back again");
});

test("invite-only rooms: only the invited come in; invitations can be declined", async () => {
    const roomId = await alice.createRoom(plain({ preset: "private_chat" }));
    await refused(anna.sdk.joinRoom(roomId));
    await refused(bob.sdk.joinRoom(roomId, viaA()));
    await alice.sdk.invite(roomId, bob.userId);
    await bob.room(roomId, "invite");
    await bob.sdk.leave(roomId);
    await sees(alice, roomId, bob, "leave");
    await refused(bob.sdk.joinRoom(roomId, viaA()));
    await alice.bring(roomId, anna, bob, beth);
    // Members of the other server invite, too, unless it takes power.
    await call(net.a, "PUT", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/state/m.room.power_levels`, {
        token: alice.token, body: { ...(await powers(alice, roomId)), invite: 50 },
    });
    await bob.seesState(roomId, "m.room.power_levels", "", (c) => c.invite === 50, "the new power levels");
    await refused(bob.sdk.invite(roomId, "@somebody:elsewhere.example"));
});

const powers = (d, roomId) =>
    call(d.server, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/state/m.room.power_levels`, { token: d.token });

test("kicks and bans reach both servers; bans are lifted", async () => {
    const roomId = await alice.createRoom(plain({ preset: "public_chat" }));
    for (const [d, how] of [[anna, {}], [bob, viaA()], [beth, viaA()]]) {
        await d.sdk.joinRoom(roomId, how);
        await d.room(roomId);
    }
    for (const who of [anna, bob]) {
        await alice.sdk.kick(roomId, who.userId, "enough");
        for (const by of [alice, beth]) await sees(by, roomId, who, "leave");
        await who.room(roomId, "leave");
        await cantTalk(who, roomId);
        await who.sdk.joinRoom(roomId, viaA()); // a kick is no ban
        for (const by of [alice, beth]) await sees(by, roomId, who, "join");
    }
    for (const who of [anna, bob]) {
        await alice.sdk.ban(roomId, who.userId, "out");
        for (const by of [alice, beth]) await sees(by, roomId, who, "ban");
        await who.room(roomId, "ban");
        await refused(who.sdk.joinRoom(roomId, viaA()));
        await alice.sdk.unban(roomId, who.userId);
        await sees(beth, roomId, who, "leave");
        await who.sdk.joinRoom(roomId, viaA());
        for (const by of [alice, beth]) await sees(by, roomId, who, "join");
    }
    await refused(bob.sdk.kick(roomId, anna.userId));
    await refused(bob.sdk.ban(roomId, alice.userId));
});

test("power levels: given to a user of the other server, used there, taken back", async () => {
    for (const version of ["11", "12"]) {
        const roomId = await alice.createRoom(plain({ preset: "public_chat", room_version: version }));
        await bob.sdk.joinRoom(roomId, viaA());
        await beth.sdk.joinRoom(roomId, viaA());
        await sees(alice, roomId, beth, "join");
        const topic = (d, t) => d.sdk.setRoomTopic(roomId, t);
        await refused(topic(bob, "not yet"));
        await alice.sdk.setPowerLevel(roomId, bob.userId, 50);
        await bob.seesState(roomId, "m.room.power_levels", "", (c) => c.users?.[bob.userId] === 50, "his new level");
        await topic(bob, "Bob's topic");
        for (const by of [alice, beth]) await by.seesState(roomId, "m.room.topic", "", (c) => c.topic === "Bob's topic", "the topic");
        await bob.sdk.kick(roomId, beth.userId);
        await sees(alice, roomId, beth, "leave");
        await refused(bob.sdk.setPowerLevel(roomId, bob.userId, 100));
        await alice.sdk.setPowerLevel(roomId, bob.userId, 0);
        await bob.seesState(roomId, "m.room.power_levels", "", (c) => !c.users?.[bob.userId], "his level gone");
        await refused(topic(bob, "not any more"));
        if (version === "12") {
            // Creators don't stand in the levels, and may change what they protect.
            const now = await powers(alice, roomId);
            assert.equal(now.users?.[alice.userId], undefined);
            const put = (content) => request(net.a, "PUT", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/state/m.room.power_levels`, { token: alice.token, body: content });
            assert.equal((await put({ ...now, notifications: { room: 90 } })).status, 200);
            assert.ok([400, 403].includes((await put({ ...now, users: { [alice.userId]: 100 } })).status));
        }
    }
});

test("knocking: asked, let in or turned away, from both servers", async () => {
    const roomId = await alice.createRoom(plain({ preset: "private_chat", initial_state: rules("knock"), name: "Knock" }));
    for (const who of [anna, bob]) {
        await who.sdk.knockRoom(roomId, { viaServers: [net.a.name], reason: "please" });
        await sees(alice, roomId, who, "knock");
        const asking = await who.room(roomId, "knock");
        assert.equal(asking.name, "Knock");
        await refused(who.sdk.joinRoom(roomId, viaA()));
        await alice.sdk.kick(roomId, who.userId, "no");
        await who.room(roomId, "leave");
        await who.sdk.knockRoom(roomId, { viaServers: [net.a.name] });
        await sees(alice, roomId, who, "knock");
        await alice.sdk.invite(roomId, who.userId);
        await who.room(roomId, "invite");
        await who.sdk.joinRoom(roomId, viaA());
        await sees(alice, roomId, who, "join");
    }
    // Who has knocked may simply join once the room is public.
    await beth.sdk.knockRoom(roomId, { viaServers: [net.a.name] });
    await sees(alice, roomId, beth, "knock");
    await alice.sdk.sendStateEvent(roomId, "m.room.join_rules", { join_rule: "public" }, "");
    await until(() => beth.sdk.joinRoom(roomId, viaA()).catch((e) => e.errcode === "M_FORBIDDEN" ? false : Promise.reject(e)), "Beth gets in");
    await sees(alice, roomId, beth, "join");
});

test("restricted rooms: members of another room come in", async () => {
    const club = await alice.createRoom(plain({ preset: "public_chat", name: "Club" }));
    for (const version of ["10", "12"]) {
        const allow = [{ type: "m.room_membership", room_id: club }];
        const roomId = await alice.createRoom(plain({ preset: "private_chat", room_version: version, initial_state: rules("restricted", { allow }) }));
        for (const who of [anna, bob]) {
            await refused(who.sdk.joinRoom(roomId, viaA()));
            await who.sdk.joinRoom(club, viaA());
            await sees(alice, club, who, "join");
            await who.sdk.joinRoom(roomId, viaA());
            await sees(alice, roomId, who, "join");
            await who.sdk.leave(club);
            await sees(alice, club, who, "leave");
        }
        // Bob's server is in both rooms now and decides by itself.
        await refused(beth.sdk.joinRoom(roomId, viaA()));
        await alice.sdk.invite(roomId, beth.userId);
        await beth.room(roomId, "invite");
        await beth.sdk.joinRoom(roomId, viaA());
        await sees(alice, roomId, beth, "join");
    }
});

test("rooms are upgraded, and members follow", async () => {
    const old = await alice.createRoom(plain({ preset: "public_chat", room_version: "10", name: "Old house" }));
    await bob.sdk.joinRoom(old, viaA());
    await sees(alice, old, bob, "join");
    const { replacement_room } = await alice.sdk.upgradeRoom(old, "12");
    const tombstone = await bob.seesState(old, "m.room.tombstone", "", (c) => c.replacement_room === replacement_room, "the tombstone");
    await bob.sdk.joinRoom(tombstone.getContent().replacement_room, viaA());
    const fresh = await bob.room(replacement_room);
    await until(() => fresh.name === "Old house", "the new room has the old name");
    assert.equal(fresh.getVersion(), "12");
});

test("forgotten rooms are gone", async () => {
    const roomId = await alice.createRoom(plain({ preset: "public_chat" }));
    await bob.sdk.joinRoom(roomId, viaA());
    await bob.room(roomId);
    await bob.sdk.leave(roomId);
    await bob.room(roomId, "leave");
    await bob.sdk.forget(roomId);
    const sync = await call(net.b, "GET", "/_matrix/client/v3/sync", { token: bob.token, query: { filter: JSON.stringify({ room: { include_leave: true } }) } });
    assert.ok(!sync.rooms?.leave?.[roomId]);
    const messages = await request(net.b, "GET", `/_matrix/client/v3/rooms/${encodeURIComponent(roomId)}/messages`, { token: bob.token, query: { dir: "b" } });
    assert.equal(messages.status, 403);
});

test("spaces list their rooms over federation", async () => {
    const space = await alice.createRoom(plain({ preset: "public_chat", name: "Space", creation_content: { type: "m.space" } }));
    const child = await alice.createRoom(plain({ preset: "public_chat", name: "Child" }));
    await alice.sdk.sendStateEvent(space, "m.space.child", { via: [net.a.name] }, child);
    const names = async (d) => {
        const answer = await call(d.server, "GET", `/_matrix/client/v1/rooms/${encodeURIComponent(space)}/hierarchy`, { token: d.token });
        return answer.rooms.map((r) => r.name);
    };
    await eventually(() => names(alice), ["Space", "Child"], "the space on its own server");
    await bob.sdk.joinRoom(space, viaA());
    await bob.room(space);
    await eventually(() => names(bob), ["Space", "Child"], "the space on the other server");
});
