// Files across servers: encrypted attachments, thumbnails, who may fetch what.

import assert from "node:assert/strict";
import { createHash, randomBytes, webcrypto } from "node:crypto";
import { after, before, test } from "node:test";
import { deflateSync, crc32 } from "node:zlib";

import { Device, stopAll } from "./lib/client.js";
import { call, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";

let net, alice, bob;
before(async () => {
    net = await startPair();
    alice = await Device.signUp(net.a, "alice");
    bob = await Device.signUp(net.b, "bob");
});
after(async () => {
    stopAll(alice, bob);
    await net?.stop();
});

const sha256 = (data) => createHash("sha256").update(data).digest("base64").replace(/=+$/, "");
const base64url = (b) => Buffer.from(b).toString("base64url");

/** Encrypts a file as m.encrypted files are: AES-CTR with 64 bits of counter. */
async function encrypt(plain) {
    const key = randomBytes(32);
    const iv = Buffer.concat([randomBytes(8), Buffer.alloc(8)]);
    const k = await webcrypto.subtle.importKey("raw", key, "AES-CTR", false, ["encrypt"]);
    const data = Buffer.from(await webcrypto.subtle.encrypt({ name: "AES-CTR", counter: iv, length: 64 }, k, plain));
    return {
        data,
        info: {
            v: "v2",
            key: { kty: "oct", k: base64url(key), alg: "A256CTR", ext: true, key_ops: ["encrypt", "decrypt"] },
            iv: iv.toString("base64").replace(/=+$/, ""),
            hashes: { sha256: sha256(data) },
        },
    };
}

async function decrypt(data, info) {
    assert.equal(sha256(data), info.hashes.sha256);
    const k = await webcrypto.subtle.importKey("raw", Buffer.from(info.key.k, "base64url"), "AES-CTR", false, ["decrypt"]);
    return Buffer.from(await webcrypto.subtle.decrypt({ name: "AES-CTR", counter: Buffer.from(info.iv, "base64"), length: 64 }, k, data));
}

/** Fetches media by the authenticated endpoint of the client's own server. */
async function fetchMedia(device, mxc, { kind = "download", query = {} } = {}) {
    const url = new URL(`${device.server.url}/_matrix/client/v1/media/${kind}/${mxc.slice("mxc://".length)}`);
    for (const [k, v] of Object.entries(query)) url.searchParams.set(k, v);
    const res = await fetch(url, { headers: { Authorization: `Bearer ${device.token}` } });
    return { status: res.status, headers: res.headers, data: Buffer.from(await res.arrayBuffer()) };
}

/** A picture with a colour in each quarter. */
function png(width, height) {
    const rows = Buffer.alloc((1 + 3 * width) * height);
    for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
            rows.set([x < width / 2 ? 255 : 20, y < height / 2 ? 255 : 20, (x * y) & 255], y * (1 + 3 * width) + 1 + 3 * x);
        }
    }
    const chunk = (type, data) => {
        const body = Buffer.concat([Buffer.from(type), data]);
        const out = Buffer.alloc(body.length + 8);
        out.writeUInt32BE(data.length, 0);
        body.copy(out, 4);
        out.writeUInt32BE(crc32(body), out.length - 4);
        return out;
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    header.set([8, 2, 0, 0, 0], 8);
    const magic = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
    return Buffer.concat([magic, chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}

/** Width and height of a PNG or JPEG. */
function dimensions(data) {
    if (data[0] === 137) return [data.readUInt32BE(16), data.readUInt32BE(20)];
    for (let at = 2; at < data.length; at += 2 + data.readUInt16BE(at + 2)) {
        if (data[at + 1] >= 0xc0 && data[at + 1] <= 0xc2) return [data.readUInt16BE(at + 7), data.readUInt16BE(at + 5)];
    }
    throw new Error("neither PNG nor JPEG");
}

test("20 MB of encrypted attachment go from Alice's server to Bob's", async () => {
    const roomId = await alice.createRoom();
    await alice.bring(roomId, bob);
    const plain = randomBytes(20 << 20);
    const { data, info } = await encrypt(plain);
    const { content_uri } = await alice.sdk.uploadContent(new Blob([data]), { type: "application/octet-stream", includeFilename: false });
    assert.match(content_uri, /^mxc:\/\//);
    await alice.sdk.sendMessage(roomId, {
        msgtype: "m.file",
        body: "film.bin",
        file: { ...info, url: content_uri },
        info: { size: plain.length, mimetype: "video/mp4" },
    });
    const ev = await bob.sees(roomId, (e) => e.getContent().body === "film.bin", "the attachment");
    const { status, data: received } = await fetchMedia(bob, ev.getContent().file.url);
    assert.equal(status, 200);
    assert.equal(sha256(await decrypt(received, ev.getContent().file)), sha256(plain));
    const again = await fetchMedia(bob, ev.getContent().file.url);
    assert.equal(sha256(again.data), sha256(received), "the copy on Bob's server is the same");
});

test("names, types and headers of files", async () => {
    const { content_uri } = await alice.sdk.uploadContent(new Blob(["<script>alert(1)</script>"]), { type: "text/html", name: "pàge.html" });
    for (const who of [alice, bob]) {
        const { status, headers, data } = await fetchMedia(who, content_uri);
        assert.equal(status, 200);
        assert.equal(data.toString(), "<script>alert(1)</script>");
        assert.match(headers.get("content-disposition"), /^attachment/, "HTML is not shown in the server's origin");
        assert.match(headers.get("content-security-policy") ?? "", /sandbox/);
        assert.equal(headers.get("cross-origin-resource-policy"), "cross-origin");
    }
});

test("thumbnails on both servers", async () => {
    const picture = png(800, 400);
    const { content_uri } = await alice.sdk.uploadContent(new Blob([picture]), { type: "image/png", name: "quarters.png" });
    for (const who of [alice, bob]) {
        const scaled = await fetchMedia(who, content_uri, { kind: "thumbnail", query: { width: 320, height: 240, method: "scale" } });
        assert.equal(scaled.status, 200);
        assert.match(scaled.headers.get("content-type"), /^image\//);
        const [w, h] = dimensions(scaled.data);
        assert.ok(w >= 320 && w <= 800 && Math.abs(w / h - 2) < 0.05, `scaled to ${w}x${h}`);
        const cropped = await fetchMedia(who, content_uri, { kind: "thumbnail", query: { width: 96, height: 96, method: "crop" } });
        assert.equal(cropped.status, 200);
        const [cw, ch] = dimensions(cropped.data);
        assert.ok(cw === ch && cw >= 96, `cropped to ${cw}x${ch}`);
    }
});

test("who may fetch what", async () => {
    const { content_uri } = await alice.sdk.uploadContent(new Blob(["x"]), { type: "text/plain" });
    const path = content_uri.slice("mxc://".length);
    const without = await request(net.a, "GET", `/_matrix/client/v1/media/download/${path}`);
    assert.equal(without.status, 401);
    const old = await request(net.a, "GET", `/_matrix/media/v3/download/${path}`);
    assert.equal(old.status, 404, "the endpoints that ask for no token are closed");
    assert.equal((await fetchMedia(alice, `mxc://${net.a.name}/nothing`)).status, 404);
    assert.equal((await fetchMedia(bob, `mxc://${net.a.name}/nothing`)).status, 404);
    const config = await call(net.a, "GET", "/_matrix/client/v1/media/config", { token: alice.token });
    assert.ok(config["m.upload.size"] >= 20 << 20);
});

test("media that is made first and filled later", async () => {
    const { content_uri } = await call(net.a, "POST", "/_matrix/media/v1/create", { token: alice.token, body: {} });
    const early = await fetchMedia(alice, content_uri, { query: { timeout_ms: 100 } });
    assert.equal(early.status, 504);
    const waiting = fetchMedia(alice, content_uri, { query: { timeout_ms: 20_000 } });
    const path = content_uri.slice("mxc://".length);
    const put = () => request(net.a, "PUT", `/_matrix/media/v3/upload/${path}`, { token: alice.token, body: Buffer.from("late"), headers: { "Content-Type": "text/plain" } });
    assert.equal((await put()).status, 200);
    assert.equal((await waiting).data.toString(), "late");
    assert.equal((await put()).status, 409);
});
