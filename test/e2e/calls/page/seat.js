// Runs in the browser: one participant of a call with livekit-client, and
// everything that a test may want to know about it.

import { SignalRequest, SignalResponse } from "@livekit/protocol";
import * as lk from "livekit-client";

const started = performance.now();
const now = () => Math.round(performance.now() - started);

/** What happened in this page, oldest first; the newest 2000. */
const log = [];
function note(kind, text) {
    log.push({ t: now(), kind, text });
    if (log.length > 2000) log.shift();
}

/** Keeps a peer connection for its statistics as long as it isn't closed. */
const connections = [];
const RealConnection = window.RTCPeerConnection;
window.RTCPeerConnection = class extends RealConnection {
    constructor(...args) {
        super(...args);
        connections.push(this);
        const n = connections.length;
        for (const what of ["iceConnectionState", "connectionState", "signalingState"]) {
            this.addEventListener(`${what.toLowerCase()}change`, () => note("pc", `${n} ${what} ${this[what]}`));
        }
    }

    // With a relay for packets, the server is only known at the relay's port, and
    // doesn't hear where this page is, as it would go there directly.
    async addIceCandidate(candidate, ...rest) {
        const moved = relayed(candidate?.candidate);
        if (moved === "") return;
        if (moved) {
            note("pc", `candidate ${moved}`);
            candidate = { ...(candidate.toJSON?.() ?? candidate), candidate: moved };
        }
        return super.addIceCandidate(candidate, ...rest);
    }
    setRemoteDescription(description) {
        return super.setRemoteDescription({ type: description.type, sdp: lines(description.sdp, relayed) });
    }
    async createOffer(...args) {
        return silent(await super.createOffer(...args));
    }
    async createAnswer(...args) {
        return silent(await super.createAnswer(...args));
    }
    set onicecandidate(f) {
        super.onicecandidate = f && ((ev) => (seat.relayPort && ev.candidate ? undefined : f(ev)));
    }
    get onicecandidate() {
        return super.onicecandidate;
    }
};

/** A candidate of the server at the relay; "" if it can't be relayed, the same without a relay. */
function relayed(candidate) {
    if (!seat.relayPort || !candidate) return candidate;
    const parts = candidate.split(" ");
    if (parts[2].toLowerCase() !== "udp" || parts[4].includes(":")) return "";
    parts[4] = "127.0.0.1";
    parts[5] = seat.relayPort;
    return parts.join(" ");
}

const lines = (sdp, change) =>
    sdp.split("\r\n").map((l) => (l.startsWith("a=candidate:") ? change(l.slice(2)) && `a=${change(l.slice(2))}` : l)).filter((l, i, all) => l !== "" || i === all.length - 1).join("\r\n");

const silent = (d) => (seat.relayPort ? { type: d.type, sdp: lines(d.sdp, () => "") } : d);

/** Notes each signalling message by its name, both ways. */
const RealSocket = window.WebSocket;
window.WebSocket = class extends RealSocket {
    constructor(url, protocols) {
        super(url, protocols);
        const { pathname, searchParams } = new URL(url);
        const again = searchParams.get("reconnect") ? " reconnect" : "";
        note("ws", `open ${pathname}${again}`);
        this.addEventListener("message", (ev) => signal("S>C", SignalResponse, ev.data));
        this.addEventListener("close", (ev) => note("ws", `closed ${ev.code} ${ev.reason}`));
    }
    send(data) {
        signal("C>S", SignalRequest, data);
        super.send(data);
    }
};

async function signal(way, type, data) {
    const at = { t: now(), kind: way, text: "?" };
    log.push(at);
    try {
        const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
        const { message } = type.fromBinary(bytes);
        at.name = message.case;
        at.text = `${message.case} ${brief(message.value)}`;
        if (message.case === "refreshToken") seat.tokens.push(message.value);
    } catch (e) {
        at.text = `can't be read: ${e}`;
    }
}

function brief(value) {
    const text = JSON.stringify(value, (k, v) => {
        if (typeof v === "bigint") return Number(v);
        if (k === "sdp") return `<${v.length} B, m=${[...v.matchAll(/^m=(.)/gm)].map((m) => m[1]).join("")}>`;
        return v;
    });
    return text === undefined ? "" : text.slice(0, 600);
}

/** The participant of this page; tests work with it by evaluate(). */
const seat = {
    lk,
    log,
    room: null,
    relayPort: 0,
    tokens: [],
    messages: [],
    events: [],
    keys: null,

    /** Joins a call. mode: "v1" (one peer connection) or "v0" (two). */
    async join({ url, token, mode = "v1", passphrase, options = {}, connect = {} }) {
        await seat.leave();
        seat.tokens = [];
        seat.messages = [];
        seat.events = [];
        const encryption = passphrase && {
            keyProvider: (seat.keys = new lk.ExternalE2EEKeyProvider()),
            worker: new Worker("/e2ee-worker.js", { type: "module" }),
        };
        const room = new lk.Room({
            adaptiveStream: false,
            dynacast: false,
            singlePeerConnection: mode === "v1",
            encryption,
            publishDefaults: { videoCodec: "vp8", dtx: true, red: false },
            ...options,
        });
        seat.room = room;
        seat.listen(room);
        if (passphrase) {
            await seat.keys.setKey(passphrase);
            await room.setE2EEEnabled(true);
        }
        note("join", mode);
        const from = performance.now();
        await room.connect(url, token, { maxRetries: 3, peerConnectionTimeout: 60_000, websocketTimeout: 60_000, ...connect });
        note("join", `connected after ${Math.round(performance.now() - from)} ms`);
        return { sid: room.localParticipant.sid, identity: room.localParticipant.identity, took: performance.now() - from };
    },

    listen(room) {
        for (const name of Object.values(lk.RoomEvent)) {
            room.on(name, (...args) => {
                if (name === "connectionQualityChanged") return;
                const text = args.flat().map((a) => a?.identity ?? a?.trackSid ?? a?.message ?? (typeof a === "object" ? "" : String(a))).join(" ");
                note("event", `${name} ${text}`);
                seat.events.push({ name, text });
            });
        }
        room.on("trackSubscribed", (track, publication, who) => seat.show(track, publication, who));
        room.on("trackUnsubscribed", (track) => track.detach().forEach((e) => e.remove()));
        room.on("dataReceived", (bytes, who, kind, topic) => {
            seat.messages.push({ from: who?.identity, text: new TextDecoder().decode(bytes), reliable: kind === 0, topic });
        });
    },

    /** Plays a track; video in an element of the size that the page asked for. */
    show(track, publication, who) {
        const element = track.attach();
        element.id = `${who.identity} ${publication.source}`;
        if (track.kind === "video") seat.size(element, seat.sizes[publication.source] ?? seat.sizes.any);
        document.body.append(element);
    },
    sizes: { any: [320, 180] },
    size(element, [width, height]) {
        element.style = `width:${width}px;height:${height}px;display:block`;
    },
    resize(identity, source, size) {
        const element = document.getElementById(`${identity} ${source}`);
        if (size) seat.size(element, size);
        else element.style.display = "none";
    },

    async leave() {
        await seat.room?.disconnect();
        seat.room = null;
        for (const c of connections.splice(0)) c.close();
        for (const e of document.querySelectorAll("audio,video")) e.remove();
    },

    /** The server's ports that this page's connections have chosen. */
    async remotePorts() {
        const reports = await Promise.all(connections.filter((c) => c.connectionState === "connected").map((c) => c.getStats()));
        return reports.flatMap((r) => [...r.values()].filter((s) => s.type === "remote-candidate" && s.protocol === "udp").map((s) => s.port));
    },

    other: (identity) => seat.room.remoteParticipants.get(identity),
    publication: (identity, source) => seat.other(identity)?.getTrackPublication(source),

    /** Statistics of what arrives of a track; undefined if it isn't subscribed. */
    async arriving(identity, source) {
        const track = seat.publication(identity, source)?.track;
        if (!track) return undefined;
        const report = await track.getRTCStatsReport();
        const rtp = [...(report ?? [])].map(([, s]) => s).find((s) => s.type === "inbound-rtp");
        if (!rtp) return undefined;
        const { framesDecoded = 0, frameWidth = 0, frameHeight = 0, framesReceived = 0, keyFramesDecoded, packetsReceived, packetsLost, bytesReceived, totalAudioEnergy, freezeCount, jitterBufferDelay, jitterBufferEmittedCount } = rtp;
        return { framesDecoded, frameWidth, frameHeight, framesReceived, keyFramesDecoded, packetsReceived, packetsLost, bytesReceived, totalAudioEnergy, freezeCount, buffered: jitterBufferDelay / jitterBufferEmittedCount };
    },

    /** What leaves for each layer of a local track: {rid: {packets, frames, width, active}}. */
    async leaving(source) {
        const sender = seat.room.localParticipant.getTrackPublication(source)?.track?.sender;
        if (!sender) return {};
        const layers = {};
        for (const s of (await sender.getStats()).values()) {
            if (s.type === "outbound-rtp") layers[s.rid ?? ""] = { packets: s.packetsSent, frames: s.framesSent, width: s.frameWidth, active: s.active };
        }
        return layers;
    },

    /** Everything about this page that helps to understand a failure. */
    async diagnosis() {
        const stats = [];
        for (const [n, c] of connections.entries()) {
            stats.push(`connection ${n + 1}: ${c.connectionState} ice ${c.iceConnectionState} ${c.signalingState}`);
            if (c.connectionState === "closed") continue;
            for (const s of (await c.getStats()).values()) {
                if (s.type === "inbound-rtp") stats.push(`  in  ${s.kind} mid ${s.mid} packets ${s.packetsReceived} lost ${s.packetsLost} frames ${s.framesReceived}/${s.framesDecoded} ${s.frameWidth}x${s.frameHeight} pli ${s.pliCount} nack ${s.nackCount} ${s.trackIdentifier}`);
                if (s.type === "outbound-rtp") stats.push(`  out ${s.kind} mid ${s.mid} rid ${s.rid} active ${s.active} packets ${s.packetsSent} frames ${s.framesSent} ${s.frameWidth}x${s.frameHeight} pli ${s.pliCount} nack ${s.nackCount} limit ${s.qualityLimitationReason}`);
                if (s.type === "candidate-pair" && s.nominated) stats.push(`  pair ${s.state} rtt ${s.currentRoundTripTime} sent ${s.bytesSent} received ${s.bytesReceived} out ${s.availableOutgoingBitrate}`);
            }
        }
        const people = [...(seat.room?.remoteParticipants.values() ?? [])].map(
            (p) => `  ${p.identity} ${p.sid}: ${[...p.trackPublications.values()].map((t) => `${t.source} ${t.trackSid} ${t.isSubscribed ? "subscribed" : "not subscribed"}${t.isMuted ? " muted" : ""}`).join("; ")}`,
        );
        return [
            `room ${seat.room?.name} ${seat.room?.state}, I am ${seat.room?.localParticipant.identity}`,
            ...people,
            ...stats,
            ...log.slice(-120).map((l) => `  ${String(l.t).padStart(7)} ${l.kind} ${l.text}`),
        ].join("\n");
    },
};

lk.setLogLevel("debug");
lk.setLogExtension((level, message) => level >= 3 && note("sdk", `${message}`), undefined);
window.seat = seat;
