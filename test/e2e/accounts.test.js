// Accounts, sessions and devices.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { call, login, password, register, registerBySecret, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";

let net;
let a;
before(async () => {
    net = await startPair();
    a = net.a;
});
after(() => net?.stop());

const v3 = "/_matrix/client/v3";
const whoami = (token) => request(a, "GET", `${v3}/account/whoami`, { token });

async function isLoggedOut(token) {
    const { status, body } = await whoami(token);
    assert.equal(status, 401);
    assert.equal(body.errcode, "M_UNKNOWN_TOKEN");
}

test("anybody can register where registration is open", async () => {
    const flows = await request(a, "POST", `${v3}/register`, { body: {} });
    assert.equal(flows.status, 401);
    assert.ok(flows.body.session);
    assert.ok(flows.body.flows.some((f) => f.stages.length === 1 && f.stages[0] === "m.login.dummy"));

    const auth = { type: "m.login.dummy", session: flows.body.session };
    const made = await call(a, "POST", `${v3}/register`, { body: { username: "Open.One", password, auth } });
    assert.equal(made.user_id, `@open.one:${a.name}`);
    assert.equal((await whoami(made.access_token)).body.user_id, made.user_id);

    const again = await request(a, "POST", `${v3}/register`, { body: { username: "open.one", password, auth: { type: "m.login.dummy" } } });
    assert.equal(again.body.errcode, "M_USER_IN_USE");
    assert.equal((await request(a, "GET", `${v3}/register/available`, { query: { username: "open.one" } })).body.errcode, "M_USER_IN_USE");
    assert.equal((await call(a, "GET", `${v3}/register/available`, { query: { username: "open.two" } })).available, true);

    for (const username of ["two words", "ü", "a".repeat(300), "a/../b#"]) {
        const bad = await request(a, "POST", `${v3}/register`, { body: { username, password, auth: { type: "m.login.dummy" } } });
        assert.equal(bad.body.errcode, "M_INVALID_USERNAME", username);
    }
    const weak = await request(a, "POST", `${v3}/register`, { body: { username: "weak", password: "123", auth: { type: "m.login.dummy" } } });
    assert.equal(weak.body.errcode, "M_WEAK_PASSWORD");
});

test("a registration token is good for one account", async () => {
    const token = await a.command("token", "new", "--uses", "1");
    const valid = (t) => call(a, "GET", "/_matrix/client/v1/register/m.login.registration_token/validity", { query: { token: t } });
    assert.equal((await valid(token)).valid, true);
    assert.equal((await valid("nonsense")).valid, false);

    const withToken = (username, t) =>
        request(a, "POST", `${v3}/register`, { body: { username, password, auth: { type: "m.login.registration_token", token: t } } });
    assert.equal((await withToken("by-token", token)).status, 200);
    assert.equal((await withToken("by-token-2", token)).status, 401);
    assert.equal((await withToken("by-token-2", "nonsense")).status, 401);
    assert.equal((await valid(token)).valid, false);
});

test("programs that know the shared secret make accounts", async () => {
    const { status, body } = await registerBySecret(a, "by-secret");
    assert.equal(status, 200, JSON.stringify(body));
    assert.equal((await whoami(body.access_token)).body.user_id, `@by-secret:${a.name}`);
    assert.equal((await registerBySecret(a, "by-guess", "wrong")).status, 403);
});

test("the operator makes accounts", async () => {
    const printed = await a.command("user", "add", "by-operator");
    const [, made] = printed.match(/password +(\S+)/);
    const session = await call(a, "POST", `${v3}/login`, {
        body: { type: "m.login.password", identifier: { type: "m.id.user", user: "by-operator" }, password: made },
    });
    assert.equal(session.user_id, `@by-operator:${a.name}`);
});

test("login by name and by user ID, and not with a wrong password", async () => {
    const user = await register(a, "login");
    const localpart = user.slice(1).split(":")[0];
    for (const name of [user, localpart]) {
        const session = await login(a, name, { device_id: "PHONE", initial_device_display_name: "my phone" });
        assert.equal(session.user_id, user);
        assert.equal(session.device_id, "PHONE");
    }
    for (const [u, p] of [[user, "wrong password"], ["@nobody:" + a.name, password], [`@${localpart}:elsewhere.example`, password]]) {
        const bad = await request(a, "POST", `${v3}/login`, {
            body: { type: "m.login.password", identifier: { type: "m.id.user", user: u }, password: p },
        });
        assert.equal(bad.status, 403);
        assert.equal(bad.body.errcode, "M_FORBIDDEN");
    }
    const flows = await call(a, "GET", `${v3}/login`);
    assert.ok(flows.flows.some((f) => f.type === "m.login.password"));
});

test("a new login on a device ends the old session there", async () => {
    const user = await register(a, "relogin");
    const first = await login(a, user, { device_id: "ONE" });
    const second = await login(a, user, { device_id: "ONE" });
    await isLoggedOut(first.access_token);
    assert.equal((await whoami(second.access_token)).status, 200);
});

test("refresh gives new tokens, and old ones end", async () => {
    const user = await register(a, "refresh");
    const session = await login(a, user, { refresh_token: true });
    assert.ok(session.refresh_token);
    assert.ok(session.expires_in_ms > 0);
    const next = await call(a, "POST", `${v3}/refresh`, { body: { refresh_token: session.refresh_token } });
    assert.notEqual(next.access_token, session.access_token);
    assert.equal((await whoami(next.access_token)).body.device_id, session.device_id);
    await isLoggedOut(session.access_token);
    const reused = await request(a, "POST", `${v3}/refresh`, { body: { refresh_token: session.refresh_token } });
    assert.equal(reused.status, 401);
    assert.equal((await request(a, "POST", `${v3}/refresh`, { body: { refresh_token: "nonsense" } })).status, 401);
});

test("logout ends one session, logout/all every one", async () => {
    const user = await register(a, "logout");
    const [one, two, three] = [await login(a, user), await login(a, user), await login(a, user)];
    await call(a, "POST", `${v3}/logout`, { token: one.access_token, body: {} });
    await isLoggedOut(one.access_token);
    assert.equal((await whoami(two.access_token)).status, 200);
    await call(a, "POST", `${v3}/logout/all`, { token: two.access_token, body: {} });
    await isLoggedOut(two.access_token);
    await isLoggedOut(three.access_token);
    await isLoggedOut("nonsense");
    const missing = await request(a, "GET", `${v3}/account/whoami`);
    assert.equal(missing.status, 401);
    assert.equal(missing.body.errcode, "M_MISSING_TOKEN");
});

test("devices are listed, renamed and deleted with the password", async () => {
    const user = await register(a, "devices");
    const one = await login(a, user, { device_id: "ONE", initial_device_display_name: "first" });
    const two = await login(a, user, { device_id: "TWO" });
    const three = await login(a, user, { device_id: "THREE" });
    const token = one.access_token;
    const ids = async () => (await call(a, "GET", `${v3}/devices`, { token })).devices.map((d) => d.device_id).sort();
    assert.deepEqual(await ids(), ["ONE", "THREE", "TWO"]);

    await call(a, "PUT", `${v3}/devices/TWO`, { token, body: { display_name: "renamed" } });
    assert.equal((await call(a, "GET", `${v3}/devices/TWO`, { token })).display_name, "renamed");
    assert.equal((await request(a, "GET", `${v3}/devices/NONE`, { token })).status, 404);

    const ask = await request(a, "DELETE", `${v3}/devices/TWO`, { token, body: {} });
    assert.equal(ask.status, 401);
    assert.ok(ask.body.flows.some((f) => f.stages.includes("m.login.password")));
    const auth = (p) => ({ type: "m.login.password", identifier: { type: "m.id.user", user }, password: p, session: ask.body.session });
    const wrong = await request(a, "DELETE", `${v3}/devices/TWO`, { token, body: { auth: auth("wrong password") } });
    assert.equal(wrong.status, 401);
    assert.equal(wrong.body.errcode, "M_FORBIDDEN");
    assert.equal((await whoami(two.access_token)).status, 200);
    await call(a, "DELETE", `${v3}/devices/TWO`, { token, body: { auth: auth(password) } });
    await isLoggedOut(two.access_token);

    const more = await request(a, "POST", `${v3}/delete_devices`, { token, body: { devices: ["THREE"] } });
    if (more.status === 401) {
        const again = { ...auth(password), session: more.body.session };
        await call(a, "POST", `${v3}/delete_devices`, { token, body: { devices: ["THREE"], auth: again } });
    }
    await isLoggedOut(three.access_token);
    assert.deepEqual(await ids(), ["ONE"]);
});

test("a changed password ends other sessions; a deactivated account is gone", async () => {
    const user = await register(a, "password");
    const one = await login(a, user);
    const other = await login(a, user);
    const uia = async (path, body, pass) => {
        const ask = await request(a, "POST", path, { token: one.access_token, body });
        assert.equal(ask.status, 401);
        const auth = { type: "m.login.password", identifier: { type: "m.id.user", user }, password: pass, session: ask.body.session };
        return request(a, "POST", path, { token: one.access_token, body: { ...body, auth } });
    };
    const fresh = "another horse battery staple";
    assert.equal((await uia(`${v3}/account/password`, { new_password: fresh, logout_devices: true }, password)).status, 200);
    await isLoggedOut(other.access_token);
    assert.equal((await whoami(one.access_token)).status, 200);
    await assert.rejects(login(a, user));
    const session = await call(a, "POST", `${v3}/login`, {
        body: { type: "m.login.password", identifier: { type: "m.id.user", user }, password: fresh },
    });
    assert.equal((await uia(`${v3}/account/deactivate`, {}, fresh)).status, 200);
    await isLoggedOut(session.access_token);
    await isLoggedOut(one.access_token);
    const taken = await request(a, "POST", `${v3}/register`, {
        body: { username: user.slice(1).split(":")[0], password, auth: { type: "m.login.dummy" } },
    });
    assert.equal(taken.body.errcode, "M_USER_IN_USE");
});

test("sessions survive a restart", async () => {
    const user = await register(a, "restart");
    const session = await login(a, user, { refresh_token: true });
    await a.restart();
    assert.equal((await whoami(session.access_token)).body.user_id, user);
    await call(a, "POST", `${v3}/refresh`, { body: { refresh_token: session.refresh_token } });
});

test("what doesn't exist is answered as the specification says", async () => {
    const unknown = await request(a, "GET", "/_matrix/client/v3/nothing/here");
    assert.equal(unknown.status, 404);
    assert.equal(unknown.body.errcode, "M_UNRECOGNIZED");
    const method = await request(a, "DELETE", `${v3}/login`);
    assert.equal(method.status, 405);
    assert.equal(method.body.errcode, "M_UNRECOGNIZED");
    const versions = await call(a, "GET", "/_matrix/client/versions");
    assert.ok(versions.versions.includes("v1.11"));
});
