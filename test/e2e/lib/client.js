// A user with matrix-js-sdk and its Rust cryptography.

import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { VerificationPhase, VerificationRequestEvent, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/verification.js";
import { CryptoEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

import { login, password, register } from "./http.js";
import { until } from "./wait.js";

export { sdk };

const quiet = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => quiet };
if (process.env.PARLEY_E2E_LOG) logger.enableAll?.();
else {
    logger.disableAll?.();
    for (const level of ["trace", "debug", "info", "log", "warn", "error"]) console[level] = () => {};
}

/** The secret storage keys of users, which a person would have written down. */
const recoveryKeys = new Map();

/** A device of a user: an SDK client that syncs, and what it has received. */
export class Device {
    /** A new account with its first device. */
    static async signUp(server, name, options) {
        return Device.logIn(server, await register(server, name), options);
    }

    /** A new device of an account. */
    static async logIn(server, userId, { crypto = true } = {}) {
        const device = new Device(server, await login(server, userId));
        await device.start(crypto);
        return device;
    }

    constructor(server, session) {
        this.server = server;
        this.userId = session.user_id;
        this.deviceId = session.device_id;
        this.token = session.access_token;
        this.toDevice = [];
        this.sdk = sdk.createClient({
            baseUrl: server.url,
            userId: this.userId,
            deviceId: this.deviceId,
            accessToken: this.token,
            logger: process.env.PARLEY_E2E_LOG ? undefined : quiet,
            timelineSupport: true,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => {
                    const known = recoveryKeys.get(this.userId);
                    return known && keys[known.id] ? [known.id, known.key] : null;
                },
                cacheSecretStorageKey: (id, _info, key) => recoveryKeys.set(this.userId, { id, key }),
            },
        });
    }

    get crypto() {
        return this.sdk.getCrypto();
    }

    async start(crypto = true) {
        if (crypto) await this.sdk.initRustCrypto({ useIndexedDB: false });
        this.sdk.on(sdk.ClientEvent.ToDeviceEvent, (ev) => this.toDevice.push(ev));
        // As Element does: what is being sent isn't in the timeline yet. Otherwise
        // the SDK takes a gap for none when it knows an event behind it.
        await this.sdk.startClient({ initialSyncLimit: 20, pollTimeout: 10_000, pendingEventOrdering: sdk.PendingEventOrdering.Detached });
        await until(() => this.sdk.getSyncState() === "SYNCING" || this.sdk.getSyncState() === "PREPARED", `first sync of ${this.name}`);
    }

    get name() {
        return `${this.userId} ${this.deviceId}`;
    }

    stop() {
        this.sdk.stopClient();
    }

    /** Makes cross-signing keys, secret storage and a key backup. */
    async secure() {
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: (make) => this.authorised(make) });
        await this.crypto.bootstrapSecretStorage({
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
            createSecretStorageKey: async () => {
                const key = await this.crypto.createRecoveryKeyFromPassphrase();
                return key;
            },
        });
        await until(() => this.crypto.isCrossSigningReady(), `cross-signing of ${this.name}`);
    }

    /** Takes the account's cross-signing keys from secret storage and signs this device. */
    async adoptIdentity() {
        await until(() => this.crypto.userHasCrossSigningKeys(this.userId, true), `${this.name} knows the account's keys`);
        await this.crypto.bootstrapCrossSigning({});
    }

    /** Answers user-interactive authentication with the password. */
    async authorised(make) {
        try {
            return await make(null);
        } catch (e) {
            if (e.httpStatus !== 401 || !e.data?.session) throw e;
            return make({
                type: "m.login.password",
                identifier: { type: "m.id.user", user: this.userId },
                password,
                session: e.data.session,
            });
        }
    }

    /** The room once the client knows it with a membership. */
    room(roomId, membership = "join") {
        return until(() => {
            const room = this.sdk.getRoom(roomId);
            return room?.getMyMembership() === membership && room;
        }, `${this.userId} sees ${membership} in the room`);
    }

    /** Makes a room; encrypted unless told otherwise. */
    async createRoom({ encrypted = true, ...options } = {}) {
        const initial_state = options.initial_state ?? [];
        if (encrypted) {
            initial_state.push({ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } });
        }
        const { room_id } = await this.sdk.createRoom({ ...options, initial_state });
        await this.room(room_id);
        return room_id;
    }

    /** Invites a device's user, who joins once the invitation has arrived. */
    async bring(roomId, ...others) {
        for (const other of others) {
            await this.sdk.invite(roomId, other.userId);
            await other.room(roomId, "invite");
            await other.sdk.joinRoom(roomId);
            await other.room(roomId);
            await until(() => this.sdk.getRoom(roomId).getMember(other.userId)?.membership === "join", `${this.userId} sees ${other.userId} join`);
        }
    }

    async say(roomId, body) {
        const { event_id } = await this.sdk.sendTextMessage(roomId, body);
        return event_id;
    }

    /** Sends a text and presses "retry" until it is sent. */
    async insist(roomId, body, options) {
        const room = this.sdk.getRoom(roomId);
        const lost = (e) => {
            if (e.httpStatus >= 400 && e.httpStatus < 500) throw e;
        };
        if (await this.sdk.sendTextMessage(roomId, body).catch(lost)) return;
        await until(async () => {
            const failed = room.getPendingEvents().find((ev) => ev.status === sdk.EventStatus.NOT_SENT);
            // It may have arrived although the answer didn't, and come back by sync.
            return !failed || this.sdk.resendEvent(failed, room).catch(lost);
        }, `${this.userId} sends "${body}"`, options);
    }

    /** Pages back to the beginning of what this user may see, through all gaps. */
    async wholeTimeline(roomId) {
        const room = this.sdk.getRoom(roomId);
        const events = [];
        for (let timeline = room.getLiveTimeline(); timeline; timeline = timeline.getNeighbouringTimeline("b")) {
            while (timeline.getPaginationToken("b") && !timeline.getNeighbouringTimeline("b")) {
                await this.sdk.paginateEventTimeline(timeline, { backwards: true, limit: 250 });
            }
            events.unshift(...timeline.getEvents());
        }
        await Promise.all(events.map((ev) => ev.getDecryptionPromise()));
        return events;
    }

    /** The decrypted text messages that a user has sent, oldest first. */
    async heard(roomId, from) {
        return (await this.wholeTimeline(roomId))
            .filter((ev) => ev.getSender() === from.userId && ev.getType() === "m.room.message")
            .map((ev) => (ev.isDecryptionFailure() ? "(can't be decrypted)" : ev.getContent().body));
    }

    /** Waits for an event that a test can recognise. */
    sees(roomId, recognise, what) {
        return until(
            () => this.sdk.getRoom(roomId)?.getLiveTimeline().getEvents().find((ev) => !ev.isRedacted() && recognise(ev)),
            `${this.userId} sees ${what}`,
        );
    }

    /** Waits for a decrypted text message. */
    hears(roomId, body) {
        return this.sees(roomId, (ev) => ev.getType() === "m.room.message" && ev.getContent().body === body, `"${body}"`);
    }

    /** Waits until a state event has a content that a test accepts. */
    seesState(roomId, type, stateKey, accept, what) {
        return until(() => {
            const ev = this.sdk.getRoom(roomId)?.currentState.getStateEvents(type, stateKey);
            return ev && accept(ev.getContent()) && ev;
        }, `${this.userId} sees ${what}`);
    }
}

/** Two users compare emoji, in the room they share, until each trusts the other. */
export async function verify(a, b, roomId) {
    const incoming = new Promise((resolve) => b.sdk.once(CryptoEvent.VerificationRequestReceived, resolve));
    const mine = await a.crypto.requestVerificationDM(b.userId, roomId);
    const theirs = await incoming;
    await theirs.accept();
    await until(() => mine.phase === VerificationPhase.Ready, "the request is accepted");
    const verifier = await mine.startVerification("m.sas.v1");
    const other = await until(() => theirs.verifier, "the other side starts to verify");
    const shown = [];
    const compare = (v) =>
        new Promise((resolve, reject) => {
            v.on(VerifierEvent.ShowSas, async (sas) => {
                shown.push(JSON.stringify(sas.sas.emoji));
                await until(() => shown.length === 2, "both sides show emoji");
                if (shown[0] !== shown[1]) reject(new Error(`the emoji differ: ${shown}`));
                await sas.confirm();
            });
            v.verify().then(resolve, reject);
        });
    await Promise.all([compare(verifier), compare(other)]);
    for (const [from, to] of [[a, b], [b, a]]) {
        await until(async () => (await from.crypto.getUserVerificationStatus(to.userId)).isCrossSigningVerified(), `${from.userId} trusts ${to.userId}`);
    }
}

/** Stops devices at the end of a test. */
export function stopAll(...devices) {
    for (const d of devices) d?.stop();
}
