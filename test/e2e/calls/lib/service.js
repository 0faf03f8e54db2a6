// A stand-in for the service that gives tokens of a foreign LiveKit server, so
// that calls over it, or over it and parley together, can be tested.

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const hash = (list) => createHash("sha256").update(JSON.stringify(list)).digest("base64").replace(/=+$/, "");

/**
 * Serves /sfu/get and /get_token for a LiveKit backend. It knows by `users`
 * whose a device is, and asks nobody for more. Gives {url, users, close()}.
 */
export async function tokenService(livekit) {
    const users = new Map();
    const server = createServer(async (req, res) => {
        res.setHeader("Access-Control-Allow-Origin", "*");
        res.setHeader("Access-Control-Allow-Headers", "*");
        if (req.method === "OPTIONS") return res.end();
        let text = "";
        for await (const part of req) text += part;
        const path = new URL(req.url, "http://localhost").pathname;
        let body = {};
        try {
            body = JSON.parse(text || "{}");
        } catch {
            // An empty probe.
        }
        const answer = answers[path]?.(body, users);
        if (!answer) return res.writeHead(404).end("{}");
        const { url, token } = livekit.admit(answer.alias, answer.identity, { ttl: 3600 });
        res.setHeader("Content-Type", "application/json");
        res.end(JSON.stringify({ url, jwt: token }));
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { users, url: `http://127.0.0.1:${server.address().port}`, close: () => new Promise((resolve) => (server.close(resolve), server.closeAllConnections())) };
}

const answers = {
    "/sfu/get": (b, users) => b.room && { alias: hash([b.room, "m.call#ROOM"]), identity: `${users.get(b.device_id)}:${b.device_id}` },
    "/get_token": (b) => b.room_id && { alias: hash([b.room_id, b.slot_id]), identity: hash([b.member.claimed_user_id, b.member.claimed_device_id, b.member.id]) },
};
