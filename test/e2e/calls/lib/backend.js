// Where the calls take place: a parley server with accounts and rooms, or any
// server of the LiveKit protocol whose key we know.

import { createHmac } from "node:crypto";

import { call, login, register } from "../../lib/http.js";
import { startPair } from "../../lib/servers.js";

/** Gives the backend that the environment asks for. */
export const backend = () => livekit() ?? Parley.start();

/** The LiveKit server that the environment names, if any. */
export function livekit() {
    const { PARLEY_CALLS_LIVEKIT: url, PARLEY_CALLS_KEY: key = "devkey", PARLEY_CALLS_SECRET: secret = "secret" } = process.env;
    return url && new LiveKit(url, key, secret);
}

const base64 = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A LiveKit server; tokens are made here. */
export class LiveKit {
    kind = "livekit";

    constructor(url, key, secret) {
        Object.assign(this, { url, key, secret, signalling: new URL(url).host });
    }

    /** A token for a person and a room; ttl in seconds. */
    admit(room, person, { ttl = 600, grants = {} } = {}) {
        const now = Math.floor(Date.now() / 1000);
        const claims = {
            iss: this.key, sub: person, name: person, nbf: now - 5, exp: now + ttl,
            video: { roomJoin: true, room, canUpdateOwnMetadata: true, ...grants },
        };
        const text = `${base64({ alg: "HS256", typ: "JWT" })}.${base64(claims)}`;
        const token = `${text}.${createHmac("sha256", this.secret).update(text).digest("base64url")}`;
        return { url: this.url, token, identity: person };
    }

    log() {}
    stop() {}
}

/** Two parley servers; rooms and accounts are made when they are first named. */
export class Parley {
    kind = "parley";

    static async start(options) {
        const parley = new Parley();
        parley.pair = await startPair(options);
        parley.server = parley.pair.a;
        parley.signalling = new URL(parley.server.url).host;
        parley.people = new Map();
        parley.rooms = new Map();
        return parley;
    }

    /** The session of a person with a short name. */
    async person(name) {
        if (!this.people.has(name)) this.people.set(name, register(this.server, name.toLowerCase()).then((id) => login(this.server, id)));
        return this.people.get(name);
    }

    /** The room with a short name, joined by the person. */
    async room(name, person) {
        const who = await this.person(person);
        if (!this.rooms.has(name)) {
            const body = { preset: "public_chat", name };
            this.rooms.set(name, call(this.server, "POST", "/_matrix/client/v3/createRoom", { token: who.access_token, body }).then((r) => r.room_id));
        }
        const id = await this.rooms.get(name);
        await call(this.server, "POST", `/_matrix/client/v3/join/${encodeURIComponent(id)}`, { token: who.access_token, body: {} });
        return id;
    }

    async admit(room, person) {
        const who = await this.person(person);
        const id = await this.room(room, person);
        const path = `/_matrix/client/v3/user/${encodeURIComponent(who.user_id)}/openid/request_token`;
        const openid_token = await call(this.server, "POST", path, { token: who.access_token, body: {} });
        const body = { room: id, openid_token, device_id: who.device_id };
        const { url, jwt } = await call(this.server, "POST", "/livekit/jwt/sfu/get", { body });
        return { url, token: jwt, identity: `${who.user_id}:${who.device_id}` };
    }

    /** The next time, a person with that name is a new account. */
    forget(name) {
        this.people.delete(name);
    }

    log() {
        return this.server.log();
    }

    stop() {
        return this.pair.stop();
    }
}
