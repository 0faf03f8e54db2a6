// livekit-client, unmodified, in Chromium: in single and dual peer connection
// mode, with and without end-to-end encryption.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { promises as fs } from "node:fs";
import path from "node:path";

import { until } from "../lib/wait.js";
import { call as httpCall, request } from "../lib/http.js";
import { backend, livekit } from "./lib/backend.js";
import { bundle, launch, packageFolder, serve } from "./lib/browser.js";
import { Person } from "./lib/person.js";

let place, browser, pages, alice, bob, carol, dave;
let rooms = 0;
const room = (name) => `${name} ${++rooms}`;
const openPage = (name) => Person.open(browser, pages.url, name, place);

before(async () => {
    place = await backend();
    browser = await launch();
    const worker = path.join(packageFolder("livekit-client"), "dist/livekit-client.e2ee.worker.mjs");
    pages = await serve({
        "/": '<!doctype html><meta charset="utf-8"><title>call</title><script type="module" src="/seat.js"></script>',
        "/seat.js": await bundle("seat.js"),
        "/e2ee-worker.js": await fs.readFile(worker),
    });
    [alice, bob, carol, dave] = await Promise.all(["Alice", "Bob", "Carol", "Dave"].map(openPage));
}, { timeout: 300_000 });

after(async () => {
    await browser?.close();
    await pages?.close();
    await place?.stop();
}, { timeout: 60_000 });

/** A test that shows what the pages know when it fails, and leaves the call. */
function scenario(name, people, body) {
    test(name, { timeout: 240_000 }, async (t) => {
        const here = people();
        try {
            await body(t);
        } catch (e) {
            for (const p of here) t.diagnostic(await p.diagnosis());
            t.diagnostic(`server: ${(await place.log()) ?? ""}`);
            throw e;
        } finally {
            await Promise.all(here.map((p) => p.leave().catch(() => {})));
        }
    });
}
const both = () => [alice, bob];

/** A camera that costs little. */
const small = { width: 320, height: 180, simulcast: false };

/** Alice and Bob in a new call; Alice publishes what is asked for. */
async function call(options = {}, { microphone = false, camera = false } = {}) {
    const name = room("call");
    await alice.join(name, options);
    await bob.join(name, options);
    await Promise.all([alice.meets(bob), bob.meets(alice)]);
    if (microphone) await alice.microphone();
    if (camera) await alice.camera(true, camera === true ? {} : camera);
    return name;
}

for (const mode of ["v1", "v0"]) {
    describe(mode === "v1" ? "one peer connection" : "two peer connections", () => {
        scenario("both publish microphone and camera, see and hear each other", both, async () => {
            await call({ mode });
            const paths = await alice.do((seat) => seat.log.filter((l) => l.kind === "ws").map((l) => l.text));
            assert.match(paths.join(), mode === "v1" ? /\/rtc\/v1$/ : /\/rtc$/);
            await Promise.all(both().map((p) => p.microphone().then(() => p.camera())));
            await Promise.all([alice.sees(bob, { width: 1280 }), bob.sees(alice, { width: 1280 }), alice.hears(bob), bob.hears(alice)]);
            await bob.speaks(alice);
        });

        scenario("who comes late gets what is published already", both, async () => {
            const name = room("late");
            await alice.join(name, { mode });
            await alice.microphone();
            await alice.camera(true, small);
            await bob.join(name, { mode });
            await Promise.all([bob.sees(alice), bob.hears(alice)]);
            await alice.leave();
            await bob.misses(alice);
        });

        scenario("mute and unmute, camera off and on, unpublish", both, async () => {
            await call({ mode }, { microphone: true, camera: small });
            await Promise.all([bob.sees(alice), bob.hears(alice)]);
            await alice.microphone(false);
            await bob.until((seat, id) => seat.publication(id, "microphone").isMuted, alice.identity, "the microphone is muted");
            await bob.quiet(alice, "microphone");
            await alice.camera(false);
            await bob.until((seat, id) => seat.publication(id, "camera").isMuted, alice.identity, "the camera is off");
            await bob.quiet(alice, "camera");
            await alice.microphone(true);
            await alice.camera(true, small);
            await Promise.all([bob.sees(alice), bob.hears(alice)]);
            await alice.do(async (seat) => {
                const me = seat.room.localParticipant;
                await me.unpublishTrack(me.getTrackPublication("camera").track);
            });
            await bob.until((seat, id) => !seat.publication(id, "camera"), alice.identity, "the camera is unpublished");
            await alice.camera(true, small);
            await bob.sees(alice);
            await bob.hears(alice);
        });

        scenario("a second video and the screen beside the camera", both, async () => {
            await call({ mode }, { camera: small });
            await alice.do(async (seat) => {
                const [track] = (await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 180 } })).getVideoTracks();
                await seat.room.localParticipant.publishTrack(track, { source: "unknown", name: "second", simulcast: false });
            });
            await alice.do((seat) => seat.room.localParticipant.setScreenShareEnabled(true, { audio: false }));
            await Promise.all([bob.sees(alice, { source: "unknown", width: 320, most: 320 }), bob.sees(alice)]);
            await bob.sees(alice, { source: "screen_share", frames: 1, width: 400 });
            await alice.do((seat) => seat.room.localParticipant.setScreenShareEnabled(false));
            await bob.until((seat, id) => !seat.publication(id, "screen_share"), alice.identity, "the screen isn't shared any more");
            await bob.sees(alice);
        });

        scenario("adaptive stream gives the layer that fits, and nobody sends more", both, async () => {
            const name = room("adaptive");
            await alice.join(name, { mode, options: { dynacast: true } });
            await bob.join(name, { mode, options: { adaptiveStream: true } });
            await alice.camera();
            const size = (to) => bob.do((seat, [id, to]) => seat.resize(id, "camera", to), [alice.identity, to]);
            await bob.sees(alice, { most: 320 });
            await alice.sendsUpTo("q");
            await size([1280, 720]);
            await bob.sees(alice, { width: 1280 });
            await alice.sendsUpTo("f");
            await size([560, 315]);
            await bob.sees(alice, { width: 640, most: 640 });
            await alice.sendsUpTo("h");
            await size(null);
            await alice.sendsUpTo(undefined);
            await size([320, 180]);
            await bob.sees(alice, { most: 320 });
            await alice.sendsUpTo("q");
        });

        scenario("data messages, long texts, functions of others", both, async () => {
            await call({ mode });
            await dataArrives(alice, bob, { reliable: true, topic: "a topic" });
            await dataArrives(bob, alice, { reliable: true, to: [alice.identity] });
            await dataArrives(alice, bob, { reliable: false });
            await alice.do((seat, id) => seat.room.localParticipant.publishData(new TextEncoder().encode("not for Bob"), { reliable: true, destinationIdentities: [id] }), "nobody");
            await bob.do((seat) => seat.room.registerTextStreamHandler("long", async (reader) => (seat.long = await reader.readAll())));
            await alice.do((seat) => seat.room.localParticipant.sendText("0123456789".repeat(10_000), { topic: "long" }));
            await bob.until((seat) => seat.long?.length === 100_000, undefined, "the long text is here");
            await bob.do((seat) => seat.room.localParticipant.registerRpcMethod("double", async ({ payload }) => String(2 * payload)));
            const answer = await alice.do((seat, id) => seat.room.localParticipant.performRpc({ destinationIdentity: id, method: "double", payload: "21" }), bob.identity);
            assert.equal(answer, "42");
            const wrong = await bob.do((seat) => seat.messages.filter((m) => m.text === "not for Bob").length);
            assert.equal(wrong, 0, "what is addressed to another");
        });

        scenario("attributes and names change", both, async () => {
            await call({ mode });
            await alice.do((seat) => seat.room.localParticipant.setAttributes({ hand: "raised", mood: "good" }));
            await bob.until((seat, id) => seat.other(id).attributes.hand === "raised" && seat.other(id).attributes.mood === "good", alice.identity, "the attributes are here");
            await alice.do((seat) => seat.room.localParticipant.setAttributes({ hand: "" }));
            await bob.until((seat, id) => !seat.other(id).attributes.hand && seat.other(id).attributes.mood === "good", alice.identity, "an attribute is gone");
            await alice.do((seat) => seat.room.localParticipant.setMetadata("something"));
            await bob.until((seat, id) => seat.other(id).metadata === "something", alice.identity, "the metadata is here");
        });

        scenario("unsubscribe and subscribe again", both, async () => {
            await call({ mode }, { microphone: true, camera: small });
            const subscribe = (on) => bob.do((seat, [id, on]) => seat.other(id).trackPublications.forEach((p) => p.setSubscribed(on)), [alice.identity, on]);
            for (let n = 0; n < 3; n++) {
                await Promise.all([bob.sees(alice), bob.hears(alice)]);
                await subscribe(false);
                await bob.until((seat, id) => !seat.publication(id, "camera").track && !seat.publication(id, "microphone").track, alice.identity, "nothing is subscribed");
                await subscribe(true);
            }
            await Promise.all([bob.sees(alice), bob.hears(alice)]);
            await bob.do((seat, id) => seat.publication(id, "camera").setEnabled(false), alice.identity);
            await bob.quiet(alice, "camera");
            await bob.do((seat, id) => seat.publication(id, "camera").setEnabled(true), alice.identity);
            await bob.sees(alice);
        });

        scenario("a lost signalling connection is resumed, and what changed is told", both, async () => {
            await call({ mode }, { camera: small });
            await bob.sees(alice);
            bob.relay.cut();
            await bob.until((seat) => seat.room.state !== "connected", undefined, "the loss is noticed");
            await alice.microphone();
            await alice.camera(false);
            bob.relay.heal();
            await bob.until((seat) => seat.room.state === "connected", undefined, "the call is resumed");
            assert.ok((await bob.signals()).includes("S>C reconnect"), "resumed, not joined anew");
            assert.equal(await bob.do((seat) => seat.room.localParticipant.sid), bob.sid, "the participant is the same");
            await bob.until((seat, id) => seat.publication(id, "camera").isMuted, alice.identity, "the camera is off");
            await bob.hears(alice);
            await alice.camera(true, small);
            await bob.sees(alice);
            await bob.microphone();
            await alice.hears(bob);
            await dataArrives(alice, bob, { reliable: true });
        });

        scenario("a network that is gone for a while, or loses much", () => [alice, dave], async () => {
            // Dave's packets go through a relay.
            const name = room("network");
            await alice.join(name, { mode });
            await alice.camera(true, small);
            if (!dave.packets) await dave.relayPackets(await mediaPort());
            await dave.join(name, { mode });
            await dave.microphone();
            await Promise.all([dave.sees(alice), alice.hears(dave)]);
            dave.packets.loss = 20;
            await dave.sees(alice, { frames: 30 });
            dave.packets.loss = 100;
            dave.relay.cut();
            await dave.quiet(alice, "camera");
            dave.packets.loss = 0;
            dave.relay.heal();
            await dave.until((seat) => seat.room.state === "connected", undefined, "the call goes on");
            await Promise.all([dave.sees(alice), alice.hears(dave)]);
        });

        scenario("who is away for too long joins anew", both, async () => {
            await call({ mode }, { camera: small });
            await bob.microphone();
            await Promise.all([bob.sees(alice), alice.hears(bob)]);
            await bob.do((seat) => seat.room.simulateScenario("full-reconnect"));
            await bob.happened("reconnected");
            await bob.until((seat, before) => seat.room.state === "connected" && seat.room.localParticipant.sid !== before, bob.sid, "joined anew");
            await Promise.all([bob.sees(alice), alice.hears(bob)]);
        });

        scenario("the token is renewed before it ends", both, async () => {
            await call({ mode, ttl: 3 }, { camera: small });
            await bob.sees(alice);
            const [given, later] = [claims(bob.token), claims(await bob.until((seat) => seat.tokens.at(-1), undefined, "a new token"))];
            assert.equal(later.sub, given.sub);
            assert.deepEqual(later.video.room, given.video.room);
            assert.ok(later.exp >= given.exp, "the new token lives longer");
            // Only a server that lets tests make tokens can give one that ends soon.
            await until(() => place.kind !== "livekit" || Date.now() / 1000 > given.exp + 1, "the first token has ended");
            bob.relay.cut();
            await bob.until((seat) => seat.room.state !== "connected", undefined, "the loss is noticed");
            bob.relay.heal();
            await bob.until((seat) => seat.room.state === "connected", undefined, "the call is resumed");
            assert.equal(await bob.do((seat) => seat.room.localParticipant.sid), bob.sid, "the participant is the same");
            await bob.sees(alice);
        });

        scenario("a second device with the same identity takes the place of the first", () => [alice, bob, carol], async () => {
            const name = await call({ mode }, { camera: small });
            await bob.sees(alice);
            await carol.join(name, { mode, as: alice.name });
            await alice.until((seat) => seat.room.state === "disconnected", undefined, "put out");
            const why = await alice.do((seat) => seat.events.find((e) => e.name === "disconnected").text);
            assert.equal(why, "2", "the reason is the duplicate identity");
            await carol.camera(true, small);
            await bob.sees(carol);
            await carol.meets(bob);
        });

        scenario("end-to-end encryption: only the key shows the picture", both, async () => {
            await call({ mode, passphrase: "our secret" }, { microphone: true, camera: true });
            await Promise.all([bob.sees(alice, { width: 1280 }), bob.hears(alice)]);
            assert.ok(await bob.do((seat, id) => seat.publication(id, "camera").isEncrypted && seat.publication(id, "microphone").isEncrypted, alice.identity), "declared as encrypted");
            await dataArrives(alice, bob, { reliable: true });
            await bob.do((seat) => seat.keys.setKey("another secret"));
            let before = await bob.arriving(alice, "camera");
            await until(async () => {
                await new Promise((resolve) => setTimeout(resolve, 1000));
                const now = await bob.arriving(alice, "camera");
                const blind = now.framesDecoded === before.framesDecoded && now.packetsReceived > before.packetsReceived;
                before = now;
                return blind;
            }, "without the key nothing is seen");
            await bob.do((seat) => seat.keys.setKey("our secret"));
            await bob.sees(alice);
        });
    });
}

describe("both kinds of clients", () => {
    scenario("a client with one connection and one with two see and hear each other", both, async () => {
        const name = room("mixed");
        await alice.join(name, { mode: "v1" });
        await bob.join(name, { mode: "v0" });
        await Promise.all(both().map((p) => p.microphone().then(() => p.camera(true, small))));
        await Promise.all([alice.sees(bob), bob.sees(alice), alice.hears(bob), bob.hears(alice)]);
    });

    for (const codec of ["vp9", "av1", "h264"]) {
        scenario(`the camera with ${codec}`, both, async () => {
            const name = room(codec);
            await alice.join(name, { options: { dynacast: true } });
            await bob.join(name, { options: { adaptiveStream: true } });
            await bob.do((seat, id) => (seat.sizes.camera = [640, 360]));
            await alice.camera(true, { width: 640, height: 360, codec });
            await bob.sees(alice, { width: 640 });
            const type = await bob.do((seat, id) => seat.publication(id, "camera").mimeType, alice.identity);
            assert.equal(type.toLowerCase(), `video/${codec}`);
            await bob.do((seat, id) => seat.resize(id, "camera", [160, 90]), alice.identity);
            await bob.sees(alice, { most: 320 });
            await bob.do((seat, id) => seat.resize(id, "camera", [640, 360]), alice.identity);
            await bob.sees(alice, { width: 640 });
        });
    }
});

describe("who may take part", { skip: livekit() && "only a homeserver knows" }, () => {
    const ask = async (name, room) => {
        const who = await place.person(name);
        const path = `/_matrix/client/v3/user/${encodeURIComponent(who.user_id)}/openid/request_token`;
        const openid_token = await request(place.server, "POST", path, { token: who.access_token, body: {} });
        return request(place.server, "POST", "/livekit/jwt/sfu/get", { body: { room, openid_token: openid_token.body, device_id: who.device_id } });
    };

    scenario("who isn't in the room gets no token", () => [alice], async () => {
        const name = room("closed");
        await alice.join(name);
        const id = await place.rooms.get(name);
        assert.equal((await ask("Alice", id)).status, 200);
        assert.equal((await ask("Mallory", id)).status, 401);
        assert.equal((await ask("Alice", "!nowhere:example.org")).status, 401);
        const { user_id } = await place.person("Alice");
        const forged = { room: id, device_id: "X", openid_token: { access_token: "wrong", token_type: "Bearer", matrix_server_name: user_id.split(":").slice(1).join(":"), expires_in: 60 } };
        assert.equal((await request(place.server, "POST", "/livekit/jwt/sfu/get", { body: forged })).status, 401);
    });

    for (const [how, act] of Object.entries({
        "is kicked": async (id, bob, alice) => post(`/rooms/${id}/kick`, alice, { user_id: bob.user_id }),
        "leaves the room": async (id, bob) => post(`/rooms/${id}/leave`, bob, {}),
        "logs out": async (id, bob) => post("/logout", bob, {}),
    })) {
        scenario(`who ${how} is out of the call`, both, async (t) => {
            const name = await call({}, { camera: small });
            await bob.sees(alice);
            await bob.camera(true, small);
            await alice.sees(bob);
            const [id, first, second] = await Promise.all([place.rooms.get(name), place.person("Alice"), place.person("Bob")]);
            const from = Date.now();
            await act(encodeURIComponent(id), second, first);
            await alice.misses(bob);
            t.diagnostic(`gone after ${Date.now() - from} ms`);
            await bob.until((seat) => seat.room.state === "disconnected", undefined, "put out");
            await assert.rejects(bob.do((seat, o) => seat.join(o), { url: `ws://127.0.0.1:${bob.relay.port}/livekit/sfu`, token: bob.token }), "the old token doesn't let in");
            await place.forget("Bob");
        });
    }

    const post = (path, who, body) => httpCall(place.server, "POST", `/_matrix/client/v3${path}`, { token: who.access_token, body });
});

/** The server's UDP port for media, from a candidate that it has given. */
async function mediaPort() {
    const pairs = await alice.do((seat) => seat.remotePorts());
    return pairs[0];
}

const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
let messages = 0;

/** Sends a message until it arrives (once it must, when it is reliable), from who sent it. */
async function dataArrives(from, to, { reliable, topic, to: only }) {
    const text = `message ${++messages}`;
    const send = () => from.do((seat, [text, options]) => seat.room.localParticipant.publishData(new TextEncoder().encode(text), options), [text, { reliable, topic, destinationIdentities: only }]);
    await send();
    const got = await until(
        async () => {
            const here = await to.do((seat, text) => seat.messages.filter((m) => m.text === text), text);
            if (!here.length && !reliable) await send();
            return here.length > 0 && here;
        },
        `${to.name} gets "${text}" of ${from.name}`,
        { every: 200 },
    );
    assert.equal(got[0].from, from.identity, "the sender");
    assert.equal(got[0].topic ?? undefined, topic);
    if (reliable) assert.equal(got.length, 1, "a reliable message arrives once");
}
