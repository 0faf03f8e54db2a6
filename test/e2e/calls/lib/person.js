// One participant of a call: a page with livekit-client in it.

import assert from "node:assert/strict";

import { until } from "../../lib/wait.js";
import { watch } from "./browser.js";
import { PacketRelay, Relay } from "./relay.js";

export class Person {
    /** Opens a page of `browser` that is at `address`. */
    static async open(browser, address, name, backend) {
        const person = new Person();
        person.name = name;
        person.backend = backend;
        person.context = await browser.newContext({ viewport: { width: 1400, height: 900 } });
        person.page = await person.context.newPage();
        person.printed = watch(person.page, name);
        person.relay = await Relay.to(backend.signalling);
        await person.page.goto(address, { timeout: 120_000 });
        await person.page.waitForFunction(() => window.seat, undefined, { timeout: 120_000 });
        return person;
    }

    async close() {
        await this.context.close();
        await this.relay.close();
        this.packets?.close();
    }

    /** Runs a function in the page: fn(seat, argument). */
    do(fn, argument) {
        return this.page.evaluate(`(async (argument) => (${fn})(window.seat, argument))(${JSON.stringify(argument) ?? "undefined"})`);
    }

    /** Joins the call of a room. Options of the seat's join(), and `grants` and `ttl` for the token. */
    async join(room, { mode = "v1", ttl, grants, as, ...rest } = {}) {
        const { url, token, identity } = await this.backend.admit(room, as ?? this.name, { ttl, grants });
        this.relay.heal();
        const address = new URL(url);
        address.hostname = "127.0.0.1";
        address.port = this.relay.port;
        this.identity = identity;
        this.token = token;
        this.mode = mode;
        const here = await this.do((seat, options) => seat.join(options), { url: address.href.replace(/\/$/, ""), token, mode, ...rest });
        assert.equal(here.identity, identity, "the identity in the call");
        this.sid = here.sid;
        return here;
    }

    leave() {
        return this.do((seat) => seat.leave());
    }

    microphone(on = true) {
        return this.do((seat, on) => seat.room.localParticipant.setMicrophoneEnabled(on), on).then(() => {});
    }

    camera(on = true, { width = 1280, height = 720, simulcast = true, codec = "vp8" } = {}) {
        return this.do(
            async (seat, { on, width, height, simulcast, codec }) => {
                await seat.room.localParticipant.setCameraEnabled(on, { resolution: { width, height } }, { simulcast, videoCodec: codec });
            },
            { on, width, height, simulcast, codec },
        );
    }

    /** Waits until something in the page is true: fn(seat, argument). */
    until(fn, argument, what, options) {
        return until(() => this.do(fn, argument), `${this.name}: ${what}`, { every: 100, ...options });
    }

    /** Waits until another person is here. */
    meets(other) {
        return this.until((seat, id) => !!seat.other(id), other.identity, `${other.name} is here`);
    }

    misses(other) {
        return this.until((seat, id) => !seat.other(id), other.identity, `${other.name} is gone`);
    }

    arriving(other, source) {
        return this.do((seat, [id, source]) => seat.arriving(id, source), [other.identity, source]);
    }

    /** Waits for at least so many more decoded frames of at least a width (and at most another). */
    async sees(other, { source = "camera", frames = 8, width = 0, most = Infinity } = {}) {
        let first, last;
        await until(
            async () => {
                last = await this.arriving(other, source);
                // A new subscription counts anew.
                if (!last || (first && last.framesDecoded < first.framesDecoded)) first = undefined;
                const fits = last && last.frameWidth >= width && last.frameWidth <= most;
                if (!fits) return void (first = undefined);
                first ??= last;
                return last.framesDecoded - first.framesDecoded >= frames;
            },
            () => `${this.name} sees ${frames} frames of ${other.name}'s ${source} at ${width} to ${most}: ${JSON.stringify(last)}`,
            { every: 100, timeout: 90_000 },
        );
        return last;
    }

    /** Waits for sound: packets, and energy in what is played. */
    async hears(other, { source = "microphone", energy = true } = {}) {
        let first, last;
        await until(
            async () => {
                last = await this.arriving(other, source);
                if (!last || (first && last.packetsReceived < first.packetsReceived)) first = undefined;
                if (!last) return false;
                first ??= last;
                return last.packetsReceived - first.packetsReceived >= 20 && (!energy || last.totalAudioEnergy > first.totalAudioEnergy);
            },
            () => `${this.name} hears ${other.name}'s ${source}: ${JSON.stringify(last)}`,
            { every: 100 },
        );
        return last;
    }

    /** Waits until the server says that another speaks. */
    speaks(other) {
        return this.until((seat, id) => seat.events.some((e) => e.name === "activeSpeakersChanged" && e.text.includes(id)), other.identity, `${other.name} is told as a speaker`);
    }

    /** Sends the packets of the next calls through a relay, which may lose some. */
    async relayPackets(port) {
        this.packets = await PacketRelay.to(port);
        await this.do((seat, port) => (seat.relayPort = port), this.packets.port);
    }

    /** Waits until nothing of a track arrives for a time. */
    async quiet(other, source, { still = 1500, few = 0 } = {}) {
        let since, packets;
        await until(
            async () => {
                const got = (await this.arriving(other, source))?.packetsReceived ?? 0;
                if (packets === undefined || got > packets + few) since = Date.now();
                packets = got;
                return Date.now() - since >= still;
            },
            `${this.name}: ${other.name}'s ${source} is still`,
            { every: 250 },
        );
    }

    /**
     * Waits until the best layer that is sent of a local video is `rid` ("" is
     * the only layer of a video without simulcast), or none is (undefined).
     */
    async sendsUpTo(rid, source = "camera") {
        const order = ["", "q", "h", "f"];
        const read = () => this.do((seat, source) => seat.leaving(source), source);
        let before = await read();
        let moving = [];
        await until(
            async () => {
                await new Promise((resolve) => setTimeout(resolve, 1000));
                const now = await read();
                moving = Object.keys(now).filter((r) => now[r].frames > (before[r]?.frames ?? 0));
                before = now;
                return moving.sort((a, b) => order.indexOf(b) - order.indexOf(a))[0] === rid;
            },
            () => `${this.name} sends layers up to ${rid}: sends ${moving}; ${JSON.stringify(before)}`,
            { timeout: 90_000 },
        );
    }

    /** Names of the room events so far. */
    events() {
        return this.do((seat) => seat.events.map((e) => e.name));
    }

    async happened(name, count = 1) {
        await this.until((seat, [name, count]) => seat.events.filter((e) => e.name === name).length >= count, [name, count], `the event ${name}`);
    }

    /** Names of the signalling messages so far: ["C>S offer", …]. */
    signals() {
        return this.do((seat) => seat.log.filter((l) => l.name).map((l) => `${l.kind} ${l.name}`));
    }

    async diagnosis() {
        const told = this.do((seat) => seat.diagnosis()).catch((e) => `no diagnosis: ${e}`);
        const late = new Promise((resolve) => setTimeout(() => resolve("the page doesn't answer"), 15_000).unref());
        return `--- ${this.name} (${this.mode})\n${await Promise.race([told, late])}\nprinted:\n${this.printed.slice(-40).join("\n")}`;
    }
}
