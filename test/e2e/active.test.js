// Files that would like to be programs: HTML, SVG, XML, scripts, PDF and files
// that are several things at once, opened in Chromium in every way a page can,
// within the server's own origin, with a token where Chromium wouldn't send
// one. None of them may run. The same files on a server without rules do, which
// shows that the test would see it.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

import { call, login, register, request } from "./lib/http.js";
import { startPair } from "./lib/servers.js";

/** What every payload does when it runs; N is its number. */
const script = `try{console.log("ran:N")}catch(e){};try{localStorage.setItem("ran","N")}catch(e){};try{parent.postMessage("ran:N","*")}catch(e){}`;
const html = `<!doctype html><html><head><title>x</title></head><body onload='${script}'><img src=x onerror='${script}'><script>${script}</script></body></html>`;
const xhtml = `<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body><script>${script}</script></body></html>`;
const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload='${script}'><script>${script}</script><foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><img src="x" onerror='${script}'/></body></foreignObject></svg>`;
const xslt = `<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="#s"?><!DOCTYPE d [<!ATTLIST xsl:stylesheet id ID #REQUIRED>]><d><xsl:stylesheet id="s" version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/"><html><body><script>${script}</script></body></html></xsl:template></xsl:stylesheet></d>`;
const pdf = `%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.alert\\(1\\);console.println\\("ran:N"\\))>>>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\ntrailer<</Root 1 0 R>>`;
const multipart = `--b\r\nContent-Type: text/html\r\n\r\n${html}\r\n--b--\r\n`;
const mhtml = `From: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/related; boundary="b"; type="text/html"\r\n\r\n--b\r\nContent-Type: text/html\r\nContent-Location: http://localhost/\r\n\r\n${html}\r\n--b--\r\n`;
const utf16 = (s) => Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from(s, "utf16le")]);
const utf7 = html.replaceAll("<", "+ADw-").replaceAll(">", "+AD4-");
const gifJS = `GIF89a/*${"\0".repeat(8)}*/=1;${script}`;
const bmpJS = `BM=1;/*${"\0".repeat(30)}*/${script}`;
const pngHTML = Buffer.concat([Buffer.from([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10]), Buffer.from(html)]);
const jpegHTML = Buffer.concat([Buffer.from([0xff, 0xd8, 0xff, 0xe0]), Buffer.from(html)]);
const pdfHTML = `%PDF-1.4\n${html}`;
const crlf = "a\r\nContent-Type: text/html\r\n\r\n.html";

/** [content type, content, file name] */
const payloads = [
    ["text/html", html, "page.html"],
    ["text/html; charset=utf-8", html],
    ["TEXT/HTML", html],
    ["text/html; charset=utf-7", utf7],
    ["text/html; charset=utf-16", utf16(html)],
    ["text/html;x=image/png", html, "a.png"],
    ["text/html, image/png", html],
    ["image/png, text/html", html],
    ["image/png;text/html", html],
    ["image/png\ttext/html", html],
    ["application/xhtml+xml", xhtml, "page.xhtml"],
    ["application/vnd.wap.xhtml+xml", xhtml],
    ["image/svg+xml", svg, "a.svg"],
    ["image/svg+xml; charset=utf-8", svg],
    ["IMAGE/SVG+XML", svg, "a.png"],
    ["image/svg", svg],
    ["text/xml", xhtml],
    ["text/xml", svg],
    ["text/xml", xslt],
    ["application/xml", xslt, "a.xml"],
    ["application/xml", svg],
    ["application/xslt+xml", xslt],
    ["text/xsl", xslt],
    ["application/rss+xml", xhtml],
    ["application/atom+xml", xhtml],
    ["application/mathml+xml", `<math xmlns="http://www.w3.org/1998/Math/MathML"><script xmlns="http://www.w3.org/1999/xhtml">${script}</script></math>`],
    ["application/vnd.mozilla.xul+xml", xhtml],
    ["application/foo+xml", xhtml],
    ["text/javascript", script, "a.js"],
    ["application/javascript", script],
    ["application/x-javascript", script],
    ["text/ecmascript", script],
    ["module/javascript", `export default 1;${script}`],
    ["application/json", script],
    ["application/json", html],
    ["application/ld+json", html],
    ["text/css", `@import "javascript:${script}";body{background:url("javascript:1")}</style>${html}`],
    ["text/plain", html, "a.html"],
    ["text/plain", script],
    ["text/csv", script],
    ["text/vtt", `WEBVTT\n\n00:00.000 --> 99:00.000\n${html}`],
    ["application/pdf", pdf, "a.pdf"],
    ["application/pdf", pdfHTML],
    ["multipart/x-mixed-replace; boundary=b", multipart],
    ["multipart/mixed; boundary=b", multipart],
    ["message/rfc822", mhtml, "a.mht"],
    ["multipart/related; boundary=b", mhtml],
    ["application/x-mimearchive", mhtml],
    ["image/gif", gifJS],
    ["image/bmp", bmpJS],
    ["image/png", pngHTML],
    ["image/jpeg", jpegHTML],
    ["image/webp", html],
    ["image/avif", svg],
    ["image/x-icon", html],
    ["video/mp4", html],
    ["audio/ogg", html],
    ["font/woff2", html],
    ["application/octet-stream", html],
    ["application/octet-stream", script],
    ["", html],
    ["unknown/unknown", html],
    ["*/*", html],
    ["application/hta", html, "a.hta"],
    ["text/cache-manifest", "CACHE MANIFEST\nFALLBACK: / /"],
    ["application/manifest+json", `{"start_url":"javascript:${"1"}"}`],
    ["text/html", html, crlf],
    ["image/png", html, `";inline;x="a.html`],
].map(([type, content, name], i) => {
    const body = Buffer.isBuffer(content) ? content : Buffer.from(content);
    return { id: i, type, name, body: Buffer.from(body.toString("latin1").replaceAll("ran:N", `ran:${i}`), "latin1") };
});

let net, browser, token;
before(async () => {
    net = await startPair({ config: { "media.unauthenticated": "true" } });
    const user = await register(net.a, "mallory");
    token = (await login(net.a, user)).access_token;
    browser = await chromium.launch({ executablePath: process.env.PARLEY_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
});
after(async () => {
    await browser?.close();
    await net?.stop();
});

/** A page that holds a file in every way there is. */
const holder = (url) => `<!doctype html><title>holder</title>
<iframe src="${url}"></iframe><iframe sandbox="allow-scripts allow-same-origin" src="${url}"></iframe>
<img src="${url}"><object data="${url}"></object><embed src="${url}">
<link rel="stylesheet" href="${url}"><video src="${url}" muted autoplay></video>
<script src="${url}"></script><script type="module" src="${url}"></script>
<script>
addEventListener("message", (e) => console.log(String(e.data)));
try { new Worker("${url}") } catch {}
try { navigator.serviceWorker?.register("${url}").catch(() => {}) } catch {}
</script>`;

/**
 * Opens each payload as a page and inside a page of the same origin; returns
 * the numbers of those that ran.
 */
async function run(origin, urls, headers) {
    const context = await browser.newContext({ extraHTTPHeaders: headers, acceptDownloads: true });
    await context.route(`${origin}/holder/*`, (route) => {
        const id = Number(new URL(route.request().url()).pathname.split("/").at(-1));
        return route.fulfill({ contentType: "text/html", body: holder(urls[id]) });
    });
    const ran = new Map();
    const note = (how, text) => {
        const id = /ran:(\d+)/.exec(text)?.[1];
        if (id !== undefined) ran.set(Number(id), [...(ran.get(Number(id)) ?? []), how]);
    };
    const work = urls.flatMap((url, id) => [["opened", url], ["held", `${origin}/holder/${id}`]]);
    await Promise.all([1, 2, 3].map(async () => {
        const page = await context.newPage();
        let how;
        page.on("console", (m) => note(how, m.text()));
        page.on("dialog", (d) => (note(how, `ran:${d.message()}`), d.dismiss()));
        page.on("download", (d) => d.cancel().catch(() => {}));
        for (let next; (next = work.shift()); ) {
            how = next[0];
            await page.goto(next[1], { waitUntil: "load", timeout: 3000 }).catch(() => {}); // a download isn't a page
            await page.waitForTimeout(50);
        }
    }));
    const page = await context.newPage();
    await context.route(`${origin}/empty`, (route) => route.fulfill({ contentType: "text/html", body: "" }));
    await page.goto(`${origin}/empty`);
    const stored = await page.evaluate(() => localStorage.getItem("ran"));
    const workers = await page.evaluate(async () => (await navigator.serviceWorker?.getRegistrations())?.length ?? 0);
    await context.close();
    return { ran, stored, workers };
}

test("files that would be programs run on a server without rules", async () => {
    const server = createServer((req, res) => {
        const p = payloads[Number(req.url.slice(1))];
        if (!p) return res.writeHead(404).end();
        try {
            res.setHeader("Content-Type", p.type);
        } catch {
            res.setHeader("Content-Type", "text/html");
        }
        res.end(p.body);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const origin = `http://localhost:${server.address().port}`;
    const { ran, stored } = await run(origin, payloads.map((p) => `${origin}/${p.id}`), {});
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    assert.ok(ran.size >= 20, `${ran.size} ran: the test sees it`);
    assert.ok(stored !== null, "and so in the server's origin");
    for (const way of ["opened", "held"]) assert.ok([...ran.values()].some((hows) => hows.includes(way)), `some when ${way}`);
});

// Row OS9. Row OM8.
test(`none of ${payloads.length} files that would be programs runs in the server's origin`, async () => {
    assert.ok(payloads.length >= 50);
    const files = [];
    for (const p of payloads) {
        const { content_uri } = await call(net.a, "POST", "/_matrix/media/v3/upload", {
            token,
            body: p.body,
            query: p.name ? { filename: p.name } : {},
            headers: /^[\x20-\x7e\t]+$/.test(p.type) ? { "Content-Type": p.type } : {},
        });
        files.push(content_uri.slice("mxc://".length));
    }
    const there = await request(net.a, "GET", `/_matrix/client/v1/media/download/${files[0]}`, { token });
    assert.equal(there.status, 200);
    for (const [path, headers] of [
        ["/_matrix/client/v1/media/download", { Authorization: `Bearer ${token}` }],
        ["/_matrix/media/v3/download", {}],
    ]) {
        const { ran, stored, workers } = await run(net.a.url, files.map((f) => `${net.a.url}${path}/${f}`), headers);
        const which = [...ran].map(([id, hows]) => `${payloads[id].type} (${id}) ${hows}`);
        assert.deepEqual(which, [], `ran at ${path}`);
        assert.equal(stored, null);
        assert.equal(workers, 0);
    }
    // As thumbnails, and under a name of the address's choice.
    const others = files.flatMap((f) => [`${net.a.url}/_matrix/client/v1/media/thumbnail/${f}?width=32&height=32&animated=true`, `${net.a.url}/_matrix/client/v1/media/download/${f}/x.html`]);
    const { ran, stored } = await run(net.a.url, others.filter((_, i) => i % 8 < 2), { Authorization: `Bearer ${token}` });
    assert.deepEqual([...ran], []);
    assert.equal(stored, null);
});
