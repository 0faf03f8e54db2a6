// Runs in the browser: a small Matrix client that shows Element Call as a
// widget, as Element does. Messages to devices are encrypted by the SDK.

import { ClientWidgetApi, OpenIDRequestState, Widget, WidgetDriver } from "matrix-widget-api";
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.disableAll?.();

const host = {
    /** Lines about what the widget asked for and what it got. */
    log: [],
    client: null,
    messaging: null,
    actions: [],

    /** Logs in with a session that the test has made, and syncs. */
    async start({ baseUrl, userId, deviceId, accessToken }) {
        const client = sdk.createClient({ baseUrl, userId, deviceId, accessToken, timelineSupport: true });
        host.client = client;
        await client.initRustCrypto({ useIndexedDB: false });
        const ready = new Promise((resolve) => client.on(sdk.ClientEvent.Sync, (state) => state === "PREPARED" && resolve()));
        await client.startClient({ initialSyncLimit: 20, pollTimeout: 10_000, pendingEventOrdering: sdk.PendingEventOrdering.Detached });
        await ready;
    },

    /** Opens Element Call in a frame. */
    open({ roomId, path, params }) {
        host.close();
        const { client } = host;
        const widgetId = `call-${Math.random().toString(36).slice(2)}`;
        const search = new URLSearchParams({
            widgetId,
            parentUrl: location.href,
            roomId,
            userId: client.getUserId(),
            deviceId: client.getDeviceId(),
            baseUrl: client.baseUrl,
            perParticipantE2EE: "true",
            skipLobby: "true",
            confineToRoom: "true",
            header: "none",
            lang: "en",
            ...params,
        });
        const url = `${location.origin}${path}index.html#?${search}`;
        const frame = document.createElement("iframe");
        frame.allow = "camera; microphone; display-capture; autoplay";
        frame.style = "width:100vw;height:100vh;border:0";
        document.body.append(frame);
        const widget = new Widget({ id: widgetId, creatorUserId: client.getUserId(), type: "m.custom", name: "Call", url, waitForIframeLoad: false, data: {} });
        const messaging = new ClientWidgetApi(widget, frame, new Driver(client, roomId));
        host.messaging = messaging;
        host.frame = frame;
        messaging.on("ready", () => note("the widget is ready"));
        messaging.setViewedRoomId(roomId);
        for (const action of ["io.element.join", "im.vector.hangup", "io.element.close", "io.element.device_mute", "set_always_on_screen"]) {
            messaging.on(`action:${action}`, (ev) => {
                ev.preventDefault();
                host.actions.push(action);
                note(`action ${action} ${JSON.stringify(ev.detail.data)}`);
                messaging.transport.reply(ev.detail, action === "set_always_on_screen" ? { success: true } : {});
            });
        }
        host.feed(messaging, roomId);
        frame.src = url;
    },

    /** Gives the widget what comes in by sync. */
    feed(messaging, roomId) {
        const { client } = host;
        const seen = new Set();
        const event = (ev) => {
            if (ev.getRoomId() !== roomId || ev.isSending() || ev.isState() || seen.has(ev.getId())) return;
            if (ev.isEncrypted() && !ev.getClearContent()) return void ev.once(sdk.MatrixEventEvent.Decrypted, () => event(ev));
            seen.add(ev.getId());
            note(`feed ${ev.getType()}`);
            messaging.feedEvent(ev.getEffectiveEvent()).catch((e) => note(`feeding ${ev.getType()}: ${e}`));
        };
        const state = (ev) => {
            if (ev.getRoomId() !== roomId) return;
            note(`state ${ev.getType()}`);
            messaging.feedStateUpdate(ev.getEffectiveEvent()).catch((e) => note(`feeding state ${ev.getType()}: ${e}`));
        };
        const sticky = (added, updated) => [...added, ...updated.map((u) => u.current)].forEach(event);
        const toDevice = ({ message, encryptionInfo }) => {
            note(`to device ${message.type} of ${message.sender}, ${encryptionInfo ? "encrypted" : "in clear"}`);
            messaging.feedToDevice(message, !!encryptionInfo).catch((e) => note(`feeding to-device: ${e}`));
        };
        const handlers = [
            [client, sdk.RoomEvent.Timeline, event],
            [client, sdk.RoomStateEvent.Events, state],
            [client.getRoom(roomId), "RoomStickyEvents.Update", sticky],
            [client, sdk.ClientEvent.ReceivedToDeviceMessage, toDevice],
        ];
        for (const [from, name, handler] of handlers) from.on(name, handler);
        host.stopFeeding = () => handlers.forEach(([from, name, handler]) => from.off(name, handler));
    },

    /** Takes the widget away, as a client does when its user closes the call. */
    close() {
        host.stopFeeding?.();
        host.messaging?.stop();
        host.frame?.remove();
        host.messaging = host.frame = host.stopFeeding = null;
        host.actions = [];
    },

    knows: (roomId) => host.client.getRoom(roomId)?.getMyMembership() === "join",
};

const started = performance.now();
function note(text) {
    host.log.push(`${Math.round(performance.now() - started)} ${text}`);
    if (host.log.length > 300) host.log.shift();
}

/** Does for the widget what it may do in its room, with the client. */
class Driver extends WidgetDriver {
    constructor(client, roomId) {
        super();
        this.client = client;
        this.roomId = roomId;
    }

    async validateCapabilities(requested) {
        return requested;
    }

    async sendEvent(type, content, stateKey = null) {
        note(`send ${type} ${stateKey ?? ""} ${JSON.stringify(content).slice(0, 400)}`);
        const { client, roomId } = this;
        let sent;
        if (stateKey !== null) sent = await client.sendStateEvent(roomId, type, content, stateKey);
        else if (type === "m.room.redaction") sent = await client.redactEvent(roomId, content.redacts);
        else sent = await client.sendEvent(roomId, type, content);
        return { roomId, eventId: sent.event_id };
    }

    async sendStickyEvent(duration, type, content) {
        note(`send sticky ${type} ${JSON.stringify(content).slice(0, 400)}`);
        const sent = await this.client._unstable_sendStickyEvent(this.roomId, duration, null, type, content);
        return { roomId: this.roomId, eventId: sent.event_id };
    }

    async sendDelayedEvent(delay, type, content, stateKey = null) {
        note(`send in ${delay} ms ${type}`);
        const { client, roomId } = this;
        const sent = await (stateKey !== null
            ? client._unstable_sendDelayedStateEvent(roomId, { delay }, type, content, stateKey)
            : client._unstable_sendDelayedEvent(roomId, { delay }, null, type, content));
        return { roomId, delayId: sent.delay_id };
    }

    async sendDelayedStickyEvent(delay, duration, type, content) {
        note(`send sticky in ${delay} ms ${type}`);
        const sent = await this.client._unstable_sendStickyDelayedEvent(this.roomId, duration, { delay }, null, type, content);
        return { roomId: this.roomId, delayId: sent.delay_id };
    }

    async cancelScheduledDelayedEvent(id) {
        await this.client._unstable_cancelScheduledDelayedEvent(id);
    }

    async restartScheduledDelayedEvent(id) {
        await this.client._unstable_restartScheduledDelayedEvent(id);
    }

    async sendScheduledDelayedEvent(id) {
        await this.client._unstable_sendScheduledDelayedEvent(id);
    }

    async sendToDevice(type, encrypted, contents) {
        note(`send to devices ${type} ${encrypted ? "encrypted" : "in clear"} ${Object.keys(contents).join(" ")}`);
        if (!encrypted) {
            const map = new Map(Object.entries(contents).map(([user, devices]) => [user, new Map(Object.entries(devices))]));
            await this.client.sendToDevice(type, map);
            return;
        }
        const crypto = this.client.getCrypto();
        await crypto.getUserDeviceInfo(Object.keys(contents), true);
        for (const [userId, devices] of Object.entries(contents)) {
            for (const [deviceId, content] of Object.entries(devices)) {
                const batch = await crypto.encryptToDeviceMessages(type, [{ userId, deviceId }], content);
                if (!batch.batch.length) throw new Error(`no keys of ${userId} ${deviceId}`);
                await this.client.queueToDevice(batch);
            }
        }
    }

    state() {
        return this.client.getRoom(this.roomId).getLiveTimeline().getState(sdk.EventTimeline.FORWARDS);
    }

    async readRoomState(_roomId, type, stateKey) {
        const found = stateKey === undefined ? this.state().getStateEvents(type) : [this.state().getStateEvents(type, stateKey)];
        return found.filter(Boolean).map((ev) => ev.getEffectiveEvent());
    }

    async readRoomTimeline(_roomId, type, msgtype, stateKey, limit, since) {
        const events = [];
        for (const ev of this.client.getRoom(this.roomId).getLiveTimeline().getEvents().toReversed()) {
            if ((limit > 0 && events.length >= limit) || (since !== undefined && ev.getId() === since)) break;
            const fits = ev.getType() === type && !ev.isState() && (!msgtype || ev.getContent().msgtype === msgtype);
            if (fits && (stateKey === undefined || ev.getStateKey() === stateKey)) events.push(ev.getEffectiveEvent());
        }
        return events;
    }

    async readStickyEvents(roomId) {
        return [...this.client.getRoom(roomId)._unstable_getStickyEvents()].map((ev) => ev.getEffectiveEvent());
    }

    async readEventRelations(eventId, roomId, relation, type, from, to, limit, dir) {
        const { events, nextBatch, prevBatch } = await this.client.relations(roomId ?? this.roomId, eventId, relation ?? null, type ?? null, { from, to, limit, dir });
        return { chunk: events.map((ev) => ev.getEffectiveEvent()), nextBatch: nextBatch ?? undefined, prevBatch: prevBatch ?? undefined };
    }

    askOpenID(observer) {
        note("asks for an OpenID token");
        this.client.getOpenIdToken().then(
            (token) => observer.update({ state: OpenIDRequestState.Allowed, token }),
            (e) => (note(`no OpenID token: ${e}`), observer.update({ state: OpenIDRequestState.Blocked })),
        );
    }

    async getRtcTransports() {
        const rtc_transports = await this.client._unstable_getRTCTransports();
        note(`transports ${JSON.stringify(rtc_transports)}`);
        return { rtc_transports };
    }

    async getRtcLivekitToken(request) {
        return this.client._unstable_getLivekitToken(request);
    }

    async delegateRtcLivekitDelayedLeave(request) {
        return this.client._unstable_delegateDelayedLeave(request);
    }

    getKnownRooms() {
        return [this.roomId];
    }

    async getMediaConfig() {
        return this.client.getMediaConfig();
    }

    processError(error) {
        note(`refused: ${error}`);
        return error instanceof sdk.MatrixError ? { matrix_api_error: error.asWidgetApiErrorData() } : undefined;
    }
}

window.host = host;
