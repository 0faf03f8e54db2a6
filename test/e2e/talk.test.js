// What people do in a room besides sending text: typing, receipts, markers,
// redactions, edits, reactions, replies, threads. Seen from both servers.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Device, sdk, stopAll } from "./lib/client.js";
import { call, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { eventually, until } from "./lib/wait.js";

let net, alice, bob, roomId;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice");
    bob = await Device.signUp(net.b, "bob");
    roomId = await alice.createRoom({ encrypted: false, name: "talk" });
    await alice.bring(roomId, bob);
});
after(async () => {
    stopAll(alice, bob);
    await net?.stop();
});

const v3 = "/_matrix/client/v3";
const v1 = "/_matrix/client/v1";
const inRoom = (rest) => `${v3}/rooms/${encodeURIComponent(roomId)}${rest}`;
const pairs = () => [[alice, bob], [bob, alice]];

test("typing is seen and ends", async () => {
    for (const [who, other] of pairs()) {
        const typing = () => other.sdk.getRoom(roomId).getMember(who.userId).typing;
        await who.sdk.sendTyping(roomId, true, 20_000);
        await until(typing, `${other.userId} sees ${who.userId} type`);
        await who.sdk.sendTyping(roomId, false, 0);
        await until(() => !typing(), `${other.userId} sees ${who.userId} stop`);
    }
    await alice.sdk.sendTyping(roomId, true, 1000);
    const member = bob.sdk.getRoom(roomId).getMember(alice.userId);
    await until(() => member.typing, "Bob sees Alice type");
    await until(() => !member.typing, "typing ends by itself");
});

test("public receipts cross servers, private ones stay with their owner", async () => {
    const id = await alice.say(roomId, "read me");
    const ev = await bob.hears(roomId, "read me");
    await bob.sdk.sendReceipt(ev, sdk.ReceiptType.ReadPrivate);
    const unreadOf = () => bob.sdk.getRoom(roomId).getUnreadNotificationCount();
    await eventually(unreadOf, 0, "Bob's unread count after a private receipt");
    assert.notEqual(alice.sdk.getRoom(roomId).getEventReadUpTo(bob.userId), id, "Alice knows nothing of it");

    await bob.sdk.sendReadReceipt(ev);
    await until(() => alice.sdk.getRoom(roomId).getEventReadUpTo(bob.userId) === id, "Alice sees Bob's public receipt");
    for (const d of [alice, bob]) {
        const initial = await call(d.server, "GET", `${v3}/sync`, { token: d.token });
        const receipts = initial.rooms.join[roomId].ephemeral.events.filter((e) => e.type === "m.receipt");
        const text = JSON.stringify(receipts);
        assert.equal(text.includes("m.read.private"), d === bob, `${d.userId} and the private receipt`);
    }
});

test("unread counts rise with messages and mentions, and fall with receipts", async () => {
    const unread = (kind) => bob.sdk.getRoom(roomId).getUnreadNotificationCount(kind);
    await bob.sdk.sendReadReceipt(await bob.hears(roomId, "read me"));
    await eventually(() => unread("total"), 0, "nothing unread");
    await alice.say(roomId, "one");
    await alice.sdk.sendMessage(roomId, { msgtype: "m.text", body: "for Bob", "m.mentions": { user_ids: [bob.userId] } });
    const last = await bob.hears(roomId, "for Bob");
    const counts = async () => {
        const s = await call(net.b, "GET", `${v3}/sync`, { token: bob.token });
        const { notification_count: n, highlight_count: h } = s.rooms.join[roomId].unread_notifications;
        return [n, h];
    };
    await eventually(counts, [2, 1], "two messages, one mention");
    await bob.sdk.sendReadReceipt(last);
    await eventually(counts, [0, 0], "all is read");
});

test("read markers", async () => {
    const id = await alice.say(roomId, "read up to here");
    await bob.hears(roomId, "read up to here");
    await bob.sdk.setRoomReadMarkers(roomId, id);
    await until(() => bob.sdk.getRoom(roomId).getAccountData("m.fully_read")?.getContent().event_id === id, "Bob's marker comes back by sync");
});

test("redactions take content away on both servers", async () => {
    for (const [who, other] of pairs()) {
        const body = `secret of ${who.userId}`;
        const id = await who.say(roomId, body);
        const seen = await other.hears(roomId, body);
        await who.sdk.redactEvent(roomId, id, undefined, { reason: "slip" });
        await until(() => seen.isRedacted(), `${other.userId} sees it go`);
        for (const d of [alice, bob]) {
            const raw = await call(d.server, "GET", inRoom(`/event/${encodeURIComponent(id)}`), { token: d.token });
            assert.deepEqual(raw.content, {});
            assert.equal(raw.unsigned.redacted_because.content.reason, "slip");
        }
    }
    const id = await alice.say(roomId, "Alice's own");
    await bob.hears(roomId, "Alice's own");
    const denied = await request(net.b, "PUT", inRoom(`/redact/${encodeURIComponent(id)}/nope`), { token: bob.token, body: {} });
    assert.equal(denied.status, 403);
});

test("edits", async () => {
    for (const [who, other] of pairs()) {
        const id = await who.say(roomId, `first thought of ${who.userId}`);
        const seen = await other.hears(roomId, `first thought of ${who.userId}`);
        const fresh = { msgtype: "m.text", body: `second thought of ${who.userId}` };
        await who.sdk.sendMessage(roomId, {
            msgtype: "m.text",
            body: `* ${fresh.body}`,
            "m.new_content": fresh,
            "m.relates_to": { rel_type: "m.replace", event_id: id },
        });
        await until(() => seen.getContent().body === fresh.body, `${other.userId} sees the edit`);
        const raw = await call(other.server, "GET", inRoom(`/event/${encodeURIComponent(id)}`), { token: other.token });
        assert.equal(raw.unsigned["m.relations"]["m.replace"].content["m.new_content"].body, fresh.body);
    }
});

test("reactions, once each", async () => {
    const id = await alice.say(roomId, "react to this");
    await bob.hears(roomId, "react to this");
    const react = (d, key) =>
        d.sdk.sendEvent(roomId, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: id, key } });
    const { event_id } = await react(bob, "👍");
    await react(alice, "👍");
    const keys = (d) =>
        d.sdk.getRoom(roomId).relations.getChildEventsForEvent(id, "m.annotation", "m.reaction")?.getRelations().map((r) => r.getRelation().key) ?? [];
    for (const d of [alice, bob]) await eventually(() => keys(d), ["👍", "👍"], `${d.userId} sees the reactions`);
    const again = await request(net.b, "PUT", inRoom("/send/m.reaction/again"), {
        token: bob.token, body: { "m.relates_to": { rel_type: "m.annotation", event_id: id, key: "👍" } },
    });
    assert.deepEqual([again.status, again.body.errcode], [400, "M_DUPLICATE_ANNOTATION"]);
    await bob.sdk.redactEvent(roomId, event_id);
    for (const d of [alice, bob]) await eventually(() => keys(d), ["👍"], `${d.userId} sees one taken back`);
    const list = await call(net.b, "GET", `${v1}/rooms/${encodeURIComponent(roomId)}/relations/${encodeURIComponent(id)}/m.annotation`, { token: bob.token });
    assert.deepEqual(list.chunk.map((e) => e.sender), [alice.userId]);
});

test("replies", async () => {
    const id = await alice.say(roomId, "a question");
    const question = await bob.hears(roomId, "a question");
    await bob.sdk.sendMessage(roomId, { msgtype: "m.text", body: "an answer", "m.relates_to": { "m.in_reply_to": { event_id: question.getId() } } });
    const answer = await alice.hears(roomId, "an answer");
    assert.equal(answer.replyEventId, id);
});

test("threads", async () => {
    const root = await alice.say(roomId, "a thread begins");
    await bob.hears(roomId, "a thread begins");
    const inThread = (d, body) =>
        d.sdk.sendMessage(roomId, { msgtype: "m.text", body, "m.relates_to": { rel_type: "m.thread", event_id: root, is_falling_back: true, "m.in_reply_to": { event_id: root } } });
    for (const [who, other] of [...pairs(), ...pairs()]) {
        const body = `thread ${who.userId} ${Math.random()}`;
        await inThread(who, body);
        await other.hears(roomId, body);
    }
    for (const d of [alice, bob]) {
        const at = `${v1}/rooms/${encodeURIComponent(roomId)}`;
        await eventually(async () => {
            const raw = await call(d.server, "GET", inRoom(`/event/${encodeURIComponent(root)}`), { token: d.token });
            const thread = raw.unsigned["m.relations"]?.["m.thread"];
            return [thread?.count, thread?.current_user_participated];
        }, [4, true], `the thread's summary for ${d.userId}`);
        const threads = await call(d.server, "GET", `${at}/threads`, { token: d.token });
        assert.ok(threads.chunk.some((e) => e.event_id === root));
        const list = await call(d.server, "GET", `${at}/relations/${encodeURIComponent(root)}/m.thread`, { token: d.token, query: { limit: 2 } });
        assert.equal(list.chunk.length, 2);
        assert.ok(list.next_batch);
        const rest = await call(d.server, "GET", `${at}/relations/${encodeURIComponent(root)}/m.thread`, { token: d.token, query: { from: list.next_batch } });
        const ids = [...list.chunk, ...rest.chunk].map((e) => e.event_id);
        assert.equal(new Set(ids).size, 4);
    }
});

test("a message is sent once however often its request is repeated", async () => {
    const path = inRoom("/send/m.room.message/same-transaction");
    const body = { msgtype: "m.text", body: "only once" };
    const answers = await Promise.all(Array.from({ length: 5 }, () => call(net.a, "PUT", path, { token: alice.token, body })));
    assert.equal(new Set(answers.map((x) => x.event_id)).size, 1);
    await bob.hears(roomId, "only once");
    await alice.say(roomId, "after it");
    await bob.hears(roomId, "after it");
    assert.equal((await bob.heard(roomId, alice)).filter((b) => b === "only once").length, 1);
});
