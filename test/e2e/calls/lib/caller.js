// A user with a page in which a Matrix client shows Element Call.

import { call } from "../../lib/http.js";
import { until } from "../../lib/wait.js";
import { watch } from "./browser.js";

/** Keeps every peer connection of a frame for its statistics. */
function keepConnections() {
    const Real = window.RTCPeerConnection;
    window.connections = [];
    window.RTCPeerConnection = class extends Real {
        constructor(...args) {
            super(...args);
            window.connections.push(this);
        }
    };
}

/** In the call's frame: what arrives, [{kind, id, frames, width, packets, energy}]. */
async function arriving() {
    const list = [];
    for (const c of window.connections ?? []) {
        if (c.connectionState === "closed") continue;
        for (const s of (await c.getStats()).values()) {
            if (s.type !== "inbound-rtp") continue;
            list.push({ kind: s.kind, id: `${s.mid} ${s.ssrc}`, frames: s.framesDecoded ?? 0, received: s.framesReceived, width: s.frameWidth ?? 0, packets: s.packetsReceived, lost: s.packetsLost, energy: s.totalAudioEnergy ?? 0 });
        }
    }
    return list;
}

/** In the call's frame: the far ends of all connections over which media comes or goes, ["address:port", …]. */
async function farEnds() {
    const ends = new Set();
    for (const c of window.connections ?? []) {
        if (c.connectionState === "closed") continue;
        const stats = await c.getStats();
        for (const s of stats.values()) {
            const far = s.type === "candidate-pair" && s.bytesReceived > 0 && stats.get(s.remoteCandidateId);
            if (far) ends.add(`${far.address ?? far.ip}:${far.port}`);
        }
    }
    return [...ends];
}

export class Caller {
    /** Opens a page and logs a session in there. With `foreign` in the options, the client is told of that token service instead of its server's. */
    static async open(browser, address, name, server, session, roomId, { foreign, viewport = { width: 1280, height: 800 } } = {}) {
        const caller = new Caller();
        Object.assign(caller, { name, server, session, roomId });
        caller.context = await browser.newContext({ viewport });
        await caller.context.addInitScript(keepConnections);
        if (foreign) {
            foreign.users.set(session.device_id, session.user_id);
            const json = { rtc_transports: [{ type: "livekit", livekit_service_url: foreign.url }] };
            await caller.context.route(/\/rtc\/transports/, (route) => route.fulfill({ json, headers: { "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*" } }));
        }
        caller.page = await caller.context.newPage();
        caller.printed = watch(caller.page, name);
        caller.requested = [];
        caller.page.on("request", (r) => caller.requested.push(r.url()));
        caller.page.on("websocket", (w) => caller.requested.push(w.url()));
        await caller.page.goto(address, { timeout: 120_000 });
        await caller.page.waitForFunction(() => window.host, undefined, { timeout: 120_000 });
        const { user_id: userId, device_id: deviceId, access_token: accessToken } = session;
        await caller.page.evaluate((s) => window.host.start(s), { baseUrl: server.url, userId, deviceId, accessToken });
        await until(() => caller.page.evaluate((id) => window.host.knows(id), roomId), `${name} knows the room`);
        return caller;
    }

    /** Opens Element Call and waits until it is in the call. */
    async join(mode, intent = "join_existing") {
        await this.page.evaluate((o) => window.host.open(o), { roomId: this.roomId, path: `/${mode}/`, params: { intent } });
        await until(() => this.page.evaluate(() => window.host.actions.includes("io.element.join")), `${this.name}: Element Call joins`, { timeout: 120_000, every: 200 });
    }

    /** The frame of Element Call. */
    get frame() {
        return this.page.frames().find((f) => f.url().includes("widgetId="));
    }

    /** How many connections for media have been made, and how many of those after the first `from` are open. */
    connections(from = 0) {
        return this.frame.evaluate((n) => [window.connections.length, window.connections.slice(n).filter((c) => c.connectionState === "connected").length], from);
    }

    /** The far ends of the call's media, as "address:port". */
    farEnds() {
        return this.frame.evaluate(farEnds);
    }

    async leave() {
        await this.press("incall_leave");
        await until(() => this.page.evaluate(() => window.host.actions.some((a) => a === "io.element.close" || a === "im.vector.hangup")), `${this.name}: Element Call hangs up`);
        await this.page.evaluate(() => window.host.close());
    }

    /** Clicks a button of the call by its test ID, however slowly the page is drawn. */
    press(id) {
        return this.frame.getByTestId(id).first().evaluate((button) => button.click(), undefined, { timeout: 60_000 });
    }

    /** Waits until exactly so many videos decode new frames, all of at least a width. */
    sees(count, { width = 0 } = {}) {
        return this.#rising("video", count, (now, then) => now.frames >= then.frames + 2 && now.width >= width, `sees ${count} videos of at least ${width}`);
    }

    /** Waits until exactly so many sounds are heard. */
    hears(count) {
        return this.#rising("audio", count, (now, then) => now.packets > then.packets + 5 && now.energy > then.energy, `hears ${count}`);
    }

    async #rising(kind, count, rises, what) {
        let before = [];
        let last = [];
        await until(
            async () => {
                last = ((await this.frame?.evaluate(arriving)) ?? []).filter((s) => s.kind === kind);
                const rising = last.filter((s) => rises(s, before.find((b) => b.id === s.id) ?? { frames: Infinity, packets: Infinity, energy: Infinity }));
                before = last;
                return rising.length === count;
            },
            () => `${this.name} ${what}: ${JSON.stringify(last)}`,
            { timeout: 120_000, every: 2500 },
        );
    }

    /** Waits until the room has so many members of the call, as this client knows it. */
    membershipsAre(count) {
        let last;
        return until(
            async () => {
                last = await this.page.evaluate((roomId) => {
                    const room = window.host.client.getRoom(roomId);
                    const state = room.currentState.getStateEvents("org.matrix.msc3401.call.member").filter((ev) => Object.keys(ev.getContent()).length > 0);
                    const sticky = [...room._unstable_getStickyEvents()].filter((ev) => ev.getType() === "org.matrix.msc4143.rtc.member" && ev.getContent().application);
                    return [...state, ...sticky].map((ev) => ev.getSender());
                }, this.roomId);
                return last.length === count;
            },
            () => `${this.name} knows ${count} members of the call: ${last}`,
            { timeout: 90_000, every: 500 },
        );
    }

    /** Whether keys have come by encrypted messages, and none in clear. */
    async gotKeysEncrypted() {
        const lines = await this.page.evaluate(() => window.host.log.filter((l) => l.includes("to device io.element.call.encryption_keys")));
        return lines.length > 0 && lines.every((l) => l.endsWith("encrypted"));
    }

    /** Ends the page without any farewell, as a crash of the browser does. */
    async crash() {
        const cdp = await this.context.newCDPSession(this.page);
        cdp.send("Page.crash").catch(() => {});
        await until(() => this.printed.includes("the page crashed"), `${this.name}'s page crashes`);
    }

    async close() {
        await this.context.close();
    }

    async diagnosis() {
        const ask = (fn, of = this.page) => Promise.race([of.evaluate(fn), new Promise((resolve) => setTimeout(() => resolve("no answer"), 10_000).unref())]).catch((e) => `no answer: ${e}`);
        const log = await ask(() => window.host.log.slice(-60).join("\n"));
        const stats = this.frame ? await ask(arriving, this.frame) : "no frame";
        const screen = await ask(() => document.body.innerText.slice(0, 500), this.frame ?? this.page);
        return `--- ${this.name} ${this.session.user_id}\n${log}\nshown: ${screen}\narrives: ${JSON.stringify(stats)}\nprinted:\n${this.printed.filter((l) => !l.startsWith("debug")).slice(-60).join("\n")}`;
    }
}
