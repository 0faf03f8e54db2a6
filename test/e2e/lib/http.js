// Plain requests, for what a test wants to see as it is on the wire.

import { createHmac } from "node:crypto";

import { sharedSecret } from "./servers.js";

/** Sends a request to a server and returns {status, body}. */
export async function request(server, method, path, { token, body, query, headers } = {}) {
    const url = new URL(server.url + path);
    for (const [k, v] of Object.entries(query ?? {})) url.searchParams.set(k, v);
    const raw = body instanceof Uint8Array;
    const res = await fetch(url, {
        method,
        headers: {
            ...(token && { Authorization: `Bearer ${token}` }),
            ...(body && !raw && { "Content-Type": "application/json" }),
            ...headers,
        },
        body: body && !raw ? JSON.stringify(body) : body,
    });
    const text = await res.text();
    let json;
    try {
        json = JSON.parse(text);
    } catch {
        json = text;
    }
    return { status: res.status, body: json };
}

/** Like request, but fails unless the answer is 200; returns the body. */
export async function call(server, method, path, options) {
    const { status, body } = await request(server, method, path, options);
    if (status !== 200) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(body)}`);
    return body;
}

export const password = "correct horse battery staple";

let accounts = 0;

/** Makes an account with a name that isn't taken, and returns its user ID. */
export async function register(server, name) {
    const username = `${name}-${++accounts}`;
    const { user_id } = await call(server, "POST", "/_matrix/client/v3/register", {
        body: { username, password, auth: { type: "m.login.dummy" }, inhibit_login: true },
    });
    return user_id;
}

/** Logs in and returns the answer. */
export function login(server, user, more = {}) {
    return call(server, "POST", "/_matrix/client/v3/login", {
        body: { type: "m.login.password", identifier: { type: "m.id.user", user }, password, ...more },
    });
}

/** Makes an account as programs do that know the shared secret. */
export async function registerBySecret(server, username, secret = sharedSecret) {
    const path = "/_synapse/admin/v1/register";
    const { nonce } = await call(server, "GET", path);
    const mac = createHmac("sha1", secret).update(`${nonce}\0${username}\0${password}\0notadmin`).digest("hex");
    return request(server, "POST", path, { body: { nonce, username, password, admin: false, mac } });
}
