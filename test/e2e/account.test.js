// The page on which people see, take and erase what the server holds on them, in
// Chromium, with a room that is on two servers.
// Row OS17. Row OS18. Row OM20. Row CO17.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

import { call, login, password, register, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";
import { until } from "./lib/wait.js";

let net, browser;
before(async () => {
    net = await startPair();
    browser = await chromium.launch({ executablePath: process.env.PARLEY_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
});
after(async () => {
    await browser?.close();
    await net?.stop();
});

test("a person looks, takes everything along, and is erased, here and elsewhere", { timeout: 120_000 }, async () => {
    const alice = await login(net.a, await register(net.a, "alice"));
    const bob = await login(net.b, await register(net.b, "bob"));
    const aName = alice.user_id.slice(alice.user_id.indexOf(":") + 1);
    const { room_id } = await call(net.a, "POST", "/_matrix/client/v3/createRoom", { token: alice.access_token, body: { preset: "private_chat", invite: [bob.user_id] } });
    const path = `/_matrix/client/v3/rooms/${encodeURIComponent(room_id)}`;
    await until(async () => (await request(net.b, "POST", `/_matrix/client/v3/join/${encodeURIComponent(room_id)}?server_name=${encodeURIComponent(aName)}`, { token: bob.access_token, body: {} })).status === 200, "bob joins");
    for (const i of [1, 2, 3]) {
        await call(net.b, "PUT", `${path}/send/m.room.message/${i}`, { token: bob.access_token, body: { msgtype: "m.text", body: `bob's words ${i}` } });
    }
    const seen = async () => {
        const { chunk } = await call(net.a, "GET", `${path}/messages?dir=b&limit=50`, { token: alice.access_token });
        return chunk.filter((e) => e.type === "m.room.message").map((e) => e.content.body);
    };
    await until(async () => (await seen()).filter((body) => body?.startsWith("bob's words")).length === 3, "alice reads bob's words");

    const page = await (await browser.newContext({ acceptDownloads: true })).newPage();
    const faults = [];
    page.on("pageerror", (e) => faults.push(String(e)));
    page.on("console", (m) => m.type() === "error" && faults.push(m.text()));
    page.on("request", (r) => new URL(r.url()).origin === new URL(net.b.url).origin || faults.push(`asks ${r.url()}`));
    page.on("dialog", (d) => d.accept());
    await page.goto(`${net.b.url}/_parley/account/`);
    await page.fill("#login [name=user]", bob.user_id);
    await page.fill("#login [name=password]", password);
    await page.click("#login button:not([type=button])");
    await page.waitForSelector("#page:not([hidden])");
    assert.equal((await page.textContent("#who")).trim(), bob.user_id);
    assert.match(await page.textContent("#flows"), new RegExp(aName), "the page says which server gets what is sent");

    await page.fill("#export [name=passphrase]", "twelve characters and more");
    await page.click("#export button");
    const link = page.locator("#exports").getByText("Download");
    await link.waitFor();
    const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
    const archive = await readFile(await download.path());
    assert.ok(archive.length > 1000 && !archive.includes("bob's words"), "the archive is encrypted");

    await page.fill("#erase [name=id]", bob.user_id);
    await page.fill("#erase [name=password]", password);
    await page.click("#erase button");
    await page.waitForSelector("#gone:not([hidden])");
    assert.match(await page.textContent("#gone-servers"), new RegExp(`${aName}: asked`));
    await until(async () => (await seen()).every((body) => body === undefined), "alice sees redacted events");
    assert.equal((await request(net.b, "GET", "/_matrix/client/v3/account/whoami", { token: bob.access_token })).status, 401);
    assert.deepEqual(faults, []);
});
