package mediaapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/httpx"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk/simdisk"
	"parley/storage/leveldb"
)

func TestUploadAndDownload(t *testing.T) {
	f := newServer(t)
	content := noise(1, 20<<20)
	file := f.upload(content, "image/png", "my cat.png")
	server, id, _ := strings.Cut(file, "/")
	if server != "me.example" || len(id) != 43 || !validMediaID(id) {
		t.Fatalf("content_uri %s", file)
	}
	a := f.get(v1Download+file, "bob").ok()
	if !bytes.Equal(a.body, content) {
		t.Fatalf("%d bytes", len(a.body))
	}
	for h, want := range map[string]string{
		"Content-Type":                 "image/png",
		"Content-Disposition":          `inline; filename="my cat.png"`,
		"Content-Security-Policy":      "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';",
		"Cross-Origin-Resource-Policy": "cross-origin",
		"X-Content-Type-Options":       "nosniff",
		"Content-Length":               fmt.Sprint(len(content)),
		"Accept-Ranges":                "bytes",
		"Cache-Control":                "private, max-age=31536000, immutable",
	} {
		if got := a.header.Get(h); got != want {
			t.Errorf("%s: %q, want %q", h, got, want)
		}
	}
	etag := a.header.Get("ETag")
	if strings.Contains(etag, id) || etag == "" {
		t.Errorf("ETag %s", etag)
	}

	a = f.get(v1Download+file, "bob", "Range", "bytes=65530-131100")
	if a.status != 206 || !bytes.Equal(a.body, content[65530:131101]) {
		t.Errorf("range: %d, %d bytes", a.status, len(a.body))
	}
	a = f.get(v1Download+file, "bob", "Range", "bytes=-5")
	if a.status != 206 || !bytes.Equal(a.body, content[len(content)-5:]) {
		t.Errorf("suffix range: %d, %d bytes", a.status, len(a.body))
	}
	if a = f.get(v1Download+file, "bob", "Range", "bytes=99999999-"); a.status != 416 {
		t.Errorf("range past the end: %d", a.status)
	}
	if a = f.get(v1Download+file, "bob", "If-None-Match", etag); a.status != 304 || len(a.body) > 0 {
		t.Errorf("conditional: %d", a.status)
	}
	if a = f.do("HEAD", v1Download+file, "bob", nil); a.status != 200 || len(a.body) > 0 || a.header.Get("Content-Length") != fmt.Sprint(len(content)) {
		t.Errorf("head: %d", a.status)
	}
	a = f.get(v1Download+file+"/ot%2Fher%20n%C3%A4me.html", "bob").ok()
	_, params, err := mime.ParseMediaType(a.header.Get("Content-Disposition"))
	if err != nil || params["filename"] != "ot/her näme.html" {
		t.Errorf("other name: %q", a.header.Get("Content-Disposition"))
	}
	f.get(v1Download+file, "").fails(401, "M_MISSING_TOKEN")
	f.get(v1Download+"me.example/"+strings.Repeat("A", 43), "bob").fails(404, "M_NOT_FOUND")
}

func TestConfig(t *testing.T) {
	f := newServer(t)
	for _, path := range []string{v3 + "config", "/_matrix/media/r0/config", "/_matrix/client/v1/media/config"} {
		if a := f.get(path, "alice").ok(); strings.TrimSpace(string(a.body)) != `{"m.upload.size":41943040}` {
			t.Errorf("%s: %s", path, a.body)
		}
		f.get(path, "").fails(401, "M_MISSING_TOKEN")
	}
}

// TestActiveContent: what a browser might run must be a download.
func TestActiveContent(t *testing.T) {
	f := newServer(t)
	for typ, inline := range map[string]bool{
		"text/html": false, "text/html; charset=utf-8": false, "TEXT/HTML": false, "application/xhtml+xml": false,
		"image/svg+xml": false, "image/svg+xml; x=image/png": false, "text/xml": false, "application/xml": false, "application/rss+xml": false,
		"application/javascript": false, "text/javascript": false, "module/javascript": false, "application/x-shockwave-flash": false,
		"application/pdf": false, "multipart/x-mixed-replace": false, "message/rfc822": false, "text/vtt": false,
		"image/png, text/html": false, "image/png;text/html": false, "image/png\ttext/html": false, "image/": false, "/png": false,
		"": false, "png": false, "image/png; =": false, "*/*": false, "text/html;image/png": false, " text/html": false,
		"image/png": true, "IMAGE/PNG": true, "image/jpeg; charset=x": true, "text/plain; charset=utf-8": true, "text/css": true,
		"video/mp4": true, "audio/ogg": true, "application/json": true, "text/csv": true, "image/avif": true,
	} {
		body := "<script>alert(1)</script>"
		a := f.do("POST", v3+"upload?filename=a.html", "alice", strings.NewReader(body), "Content-Type", typ).ok()
		a = f.get(v1Download+a.uri(), "bob").ok()
		if string(a.body) != body {
			t.Errorf("%q: %q", typ, a.body)
		}
		kind, _, _ := strings.Cut(a.header.Get("Content-Disposition"), ";")
		if (kind == "inline") != inline || (kind != "inline" && kind != "attachment") {
			t.Errorf("%q: %s", typ, a.header.Get("Content-Disposition"))
		}
		if _, _, err := mime.ParseMediaType(a.header.Get("Content-Type")); err != nil {
			t.Errorf("%q became %q", typ, a.header.Get("Content-Type"))
		}
		if a.header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(a.header.Get("Content-Security-Policy"), "sandbox;") {
			t.Errorf("%q: headers %v", typ, a.header)
		}
	}
}

// TestForeignUses: files don't become programs, styles or plug-ins of pages.
// Row S15.
func TestForeignUses(t *testing.T) {
	f := newServer(t, func(c *Config) { c.Legacy = true })
	file := f.upload([]byte("alert(1)"), "text/javascript", "a.js")
	for use, allowed := range map[string]bool{"script": false, "worker": false, "serviceworker": false, "object": false, "embed": false, "style": false,
		"": true, "empty": true, "image": true, "video": true, "audio": true, "document": true} {
		for _, path := range []string{v1Download, v3 + "download/"} {
			a := f.get(path+file, "bob", "Sec-Fetch-Dest", use)
			if allowed {
				a.ok()
			} else {
				a.fails(403, "M_FORBIDDEN")
			}
		}
	}
}

func TestFileNames(t *testing.T) {
	f := newServer(t)
	for _, name := range []string{"a.txt", "with space", `quo"te\`, "日本語.png", "new\nline\r\nX-Evil: 1", "../../etc/passwd", "\x00", "a;b=c", "😀", strings.Repeat("ä", 200)} {
		file := f.upload([]byte("x"), "text/plain", name)
		a := f.get(v1Download+file, "bob").ok()
		_, params, err := mime.ParseMediaType(a.header.Get("Content-Disposition"))
		if err != nil || params["filename"] != name || a.header.Get("X-Evil") != "" {
			t.Errorf("%q: %q (%v)", name, a.header.Get("Content-Disposition"), err)
		}
	}
	file := f.upload([]byte("x"), "text/plain", strings.Repeat("ä", 600))
	_, params, err := mime.ParseMediaType(f.get(v1Download+file, "bob").header.Get("Content-Disposition"))
	if err != nil || params["filename"] != strings.Repeat("ä", maxName/2) {
		t.Errorf("long name: %d bytes, %v", len(params["filename"]), err)
	}
	file = f.upload([]byte("x"), "text/plain", "")
	if got := f.get(v1Download+file, "bob").header.Get("Content-Disposition"); got != "inline" {
		t.Errorf("no name: %q", got)
	}
}

func TestStrangePaths(t *testing.T) {
	f := newServer(t)
	for _, p := range []string{
		"me.example/..%2F..%2Fetc%2Fpasswd", "me.example/..", "me.example/a%00b", "me.example/a.b", "me.example/%2e%2e",
		"..%2F..%2Fetc/passwd", "a%20b/abc", "me.example:99999/abc", "me.example/" + strings.Repeat("a", 300), "[::g]/abc", "a%5Cb/abc",
		"me.example/ä", "127.0.0.1%2F..%2F/abc",
	} {
		if a := f.get(v1Download+p, "bob"); a.status != 404 {
			t.Errorf("%s: %d %s", p, a.status, a.body)
		}
	}
}

func TestUploadLimits(t *testing.T) {
	f := newServer(t, func(c *Config) { c.MaxUpload, c.UserQuota = 100_000, 250_000 })
	f.do("POST", v3+"upload", "alice", bytes.NewReader(make([]byte, 100_001))).fails(413, "M_TOO_LARGE")
	// Without a length in advance.
	f.do("POST", v3+"upload", "alice", io.MultiReader(bytes.NewReader(make([]byte, 100_001)))).fails(413, "M_TOO_LARGE")
	f.upload(make([]byte, 100_000), "a/b", "")
	f.upload(make([]byte, 100_000), "a/b", "")
	f.do("POST", v3+"upload", "alice", bytes.NewReader(make([]byte, 60_000))).fails(403, "M_FORBIDDEN")
	f.do("POST", v3+"upload", "alice", io.MultiReader(bytes.NewReader(make([]byte, 60_000)))).fails(403, "M_FORBIDDEN")
	f.do("POST", v3+"upload", "bob", bytes.NewReader(make([]byte, 60_000))).ok()
	f.upload(nil, "a/b", "")
	f.do("POST", v3+"upload", "", strings.NewReader("x")).fails(401, "M_MISSING_TOKEN")
	if n := blobCount(t, f); n != 4 {
		t.Errorf("%d files on disk", n)
	}
}

// blobCount counts files on disk, half written ones included.
func blobCount(t *testing.T, f *server) (n int) {
	t.Helper()
	_, err := f.cfg.Blobs.Sweep(ctx, func(blob.ID) (bool, error) { n++; return true, nil })
	must(t, err)
	return n
}

// TestInterruptedUpload: a client that hangs up leaves nothing behind.
func TestInterruptedUpload(t *testing.T) {
	f := newServer(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.http.URL, "http://"))
	must(t, err)
	fmt.Fprintf(conn, "POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\nContent-Length: 1000000\r\n\r\n")
	_, err = conn.Write(make([]byte, 200_000))
	must(t, err)
	await.Until(t, "the upload to begin", func() bool { return f.uploading() == 1 })
	must(t, conn.Close())
	await.Until(t, "the upload to end", func() bool { return f.uploading() == 0 })
	if n := blobCount(t, f); n != 0 {
		t.Errorf("%d files", n)
	}
	if rows := countRows(t, f, "m"); rows != 0 {
		t.Errorf("%d rows", rows)
	}
	must(t, f.s.Sweep(ctx)) // destroys the key
}

func (f *server) uploading() int {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.s.uploads[1]
}

func countRows(t *testing.T, f *server, prefix string) (n int) {
	t.Helper()
	for _, err := range f.cfg.KV.Scan(ctx, storage.Key(prefix).Prefix(), false, 0) {
		must(t, err)
		n++
	}
	return n
}

func TestAnnouncedUpload(t *testing.T) {
	f := newServer(t)
	create := func() string { return f.do("POST", "/_matrix/media/v1/create", "alice", nil).ok().uri() }
	put := func(file, token, body string) *answer {
		return f.do("PUT", v3+"upload/"+file+"?filename=n.txt", token, strings.NewReader(body), "Content-Type", "text/plain")
	}
	file := create()
	f.get(v1Download+file+"?timeout_ms=0", "bob").fails(504, "M_NOT_YET_UPLOADED")

	waiting := make(chan *answer)
	for range 3 {
		go func() {
			a, err := f.try("GET", v1Download+file, "bob", nil)
			if err != nil {
				t.Error(err)
			}
			waiting <- a
		}()
	}
	await.Until(t, "downloads to wait", func() bool {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		for _, a := range f.s.arrivals {
			return a.waiters == 3
		}
		return false
	})
	put(file, "bob", "x").fails(403, "M_FORBIDDEN")
	put(file, "alice", "hello").ok()
	for range 3 {
		if a := <-waiting; a.status != 200 || string(a.body) != "hello" || a.header.Get("Content-Disposition") != "inline; filename=n.txt" {
			t.Errorf("%d %s %v", a.status, a.body, a.header)
		}
	}
	put(file, "alice", "again").fails(409, "M_CANNOT_OVERWRITE_MEDIA")
	put("me.example/"+strings.Repeat("x", 43), "alice", "x").fails(404, "M_NOT_FOUND")
	put("other.example/abc", "alice", "x").fails(404, "M_NOT_FOUND")
	if len(f.s.arrivals) != 0 {
		t.Errorf("%d waits left", len(f.s.arrivals))
	}

	old := create()
	f.clock.Advance(announceFor)
	put(old, "alice", "x").fails(404, "M_NOT_FOUND")
	f.get(v1Download+old, "bob").fails(404, "M_NOT_FOUND")
	for range maxAnnounced {
		create()
	}
	f.do("POST", "/_matrix/media/v1/create", "alice", nil).fails(429, "M_LIMIT_EXCEEDED")
	f.do("POST", "/_matrix/media/v1/create", "bob", nil).ok()
	f.clock.Advance(announceFor)
	create()
	must(t, f.s.Sweep(ctx))
	if n := countRows(t, f, "mm"); n != 2 {
		t.Errorf("%d records after the sweep", n)
	}
}

// TestTwoUploadsToOneID: only one of them becomes the file.
func TestTwoUploadsToOneID(t *testing.T) {
	f := newServer(t)
	file := f.do("POST", "/_matrix/media/v1/create", "alice", nil).ok().uri()
	results := make(chan int)
	for i := range 4 {
		go func() {
			a, err := f.try("PUT", v3+"upload/"+file, "alice", bytes.NewReader(noise(uint64(i), 300_000)))
			if err != nil {
				t.Error(err)
			}
			results <- a.status
		}()
	}
	count := map[int]int{}
	for range 4 {
		count[<-results]++
	}
	if count[200] != 1 || count[409] != 3 {
		t.Errorf("%v", count)
	}
	if n := blobCount(t, f); n != 1 {
		t.Errorf("%d files on disk", n)
	}
}

func TestLegacyEndpoints(t *testing.T) {
	f := newServer(t)
	f.remote.files["other.example/abc"] = remoteFile{content: []byte("remote"), typ: "text/plain"}
	before := f.upload([]byte("frozen"), "text/plain", "")
	check := func(file, token string, status int) {
		t.Helper()
		for _, v := range []string{"v3", "r0", "v1"} {
			a := f.get("/_matrix/media/"+v+"/download/"+file, token)
			if a.status != status {
				t.Errorf("%s: %d %s, want %d", v, a.status, a.body, status)
			}
		}
	}
	check(before, "", 404)
	check(before, "alice", 404) // a token doesn't open the old door
	check("other.example/abc", "", 404)

	f.restart(func(c *Config) { c.Legacy = true })
	open := f.upload([]byte("open"), "text/plain", "")
	check(before, "", 404)
	check(open, "", 200)
	check("other.example/abc?allow_remote=false", "", 404)
	check("other.example/abc", "", 200)
	f.remote.files["other.example/def"] = remoteFile{content: []byte("remote"), typ: "text/plain"}

	f.restart(func(c *Config) { c.Legacy = false })
	after := f.upload([]byte("after"), "text/plain", "")
	check(open, "", 200) // what could be had goes on
	check("other.example/abc", "", 200)
	check("other.example/def", "", 404) // not fetched for strangers any more
	f.get(v1Download+"other.example/def", "alice").ok()
	check("other.example/def", "", 404)
	check(after, "", 404)
	for _, file := range []string{before, open, after} {
		f.get(v1Download+file, "bob").ok()
	}
}

// parts reads an answer to another server.
func (a *answer) parts() (meta string, file []byte, header map[string][]string) {
	a.t.Helper()
	typ, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || typ != "multipart/mixed" {
		a.t.Fatalf("%q", a.header.Get("Content-Type"))
	}
	r := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	first, err := r.NextPart()
	must(a.t, err)
	m, err := io.ReadAll(first)
	must(a.t, err)
	if first.Header.Get("Content-Type") != "application/json" {
		a.t.Errorf("first part %v", first.Header)
	}
	second, err := r.NextPart()
	must(a.t, err)
	b, err := io.ReadAll(second)
	must(a.t, err)
	if _, err := r.NextPart(); err != io.EOF {
		a.t.Errorf("third part: %v", err)
	}
	return string(m), b, second.Header
}

func TestFederation(t *testing.T) {
	f := newServer(t)
	content := noise(2, 3_000_000)
	file := f.upload(content, "video/mp4", "ü.mp4")
	_, id, _ := strings.Cut(file, "/")
	const path = "/_matrix/federation/v1/media/"
	f.get(path+"download/"+id, "").fails(401, "M_UNAUTHORIZED")
	signed := []string{"Authorization", "X-Matrix"}
	a := f.get(path+"download/"+id, "", signed...).ok()
	meta, body, h := a.parts()
	if meta != "{}" || !bytes.Equal(body, content) || h["Content-Type"][0] != "video/mp4" || h["Content-Disposition"][0] != "inline; filename*=utf-8''%C3%BC.mp4" {
		t.Errorf("%s, %d bytes, %v", meta, len(body), h)
	}
	f.get(path+"thumbnail/"+id+"?width=32&height=32", "", signed...).fails(400, "M_UNKNOWN")
	f.get(path+"download/nope", "", signed...).fails(404, "M_NOT_FOUND")
	f.get(path+"download/..%2Fx", "", signed...).fails(404, "M_NOT_FOUND")
	// Files of third servers aren't passed on.
	f.remote.files["third.example/abc"] = remoteFile{content: []byte("x")}
	f.get(v1Download+"third.example/abc", "alice").ok()
	f.get(path+"download/abc", "", signed...).fails(404, "M_NOT_FOUND")

	pic := f.upload(pngFile(gradient(200, 100)), "image/png", "")
	_, id, _ = strings.Cut(pic, "/")
	a = f.get(path+"thumbnail/"+id+"?width=32&height=32&method=crop", "", signed...).ok()
	_, body, h = a.parts()
	if w, hh := size(t, body); w != 32 || hh != 32 || h["Content-Type"][0] != "image/png" {
		t.Errorf("%dx%d %v", w, hh, h)
	}
	waiting := f.do("POST", "/_matrix/media/v1/create", "alice", nil).ok().uri()
	_, id, _ = strings.Cut(waiting, "/")
	f.get(path+"download/"+id+"?timeout_ms=0", "", signed...).fails(504, "M_NOT_YET_UPLOADED")
}

func TestRemoteFiles(t *testing.T) {
	f := newServer(t)
	content := noise(3, 5_000_000)
	f.remote.files["other.example/abc"] = remoteFile{content: content, typ: "image/webp", disposition: `attachment; filename="x.webp"`}
	f.remote.calls, f.remote.gate = make(chan string, 100), make(chan struct{})
	results := make(chan *answer)
	for range 10 {
		go func() {
			a, err := f.try("GET", v1Download+"other.example/abc", "alice", nil)
			if err != nil {
				t.Error(err)
			}
			results <- a
		}()
	}
	await.Until(t, "everybody to wait", func() bool {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		return f.s.fetches[1] == 10
	})
	close(f.remote.gate)
	for range 10 {
		a := <-results
		if a.status != 200 || !bytes.Equal(a.body, content) || a.header.Get("Content-Disposition") != "inline; filename=x.webp" {
			t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.header)
		}
	}
	f.get(v1Download+"other.example/abc", "bob").ok()
	if len(f.remote.calls) != 1 {
		t.Errorf("fetched %d times", len(f.remote.calls))
	}
	f.get(v1Download+"other.example:8448/abc", "bob").fails(404, "M_NOT_FOUND")
}

func TestRemoteFailures(t *testing.T) {
	f := newServer(t, func(c *Config) { c.MaxUpload = 100_000 })
	f.remote.calls = make(chan string, 1000)
	f.remote.files = map[string]remoteFile{
		"o/large":   {content: make([]byte, 100_001)},
		"o/broken":  {content: make([]byte, 50_000), breaks: true},
		"o/down":    {err: httpx.Err(502, "M_UNKNOWN", "down")},
		"o/waiting": {err: httpx.Err(504, "M_NOT_YET_UPLOADED", "wait")},
		"o/odd":     {content: []byte("x"), typ: "not a type\n", disposition: "inline; filename=\"a\nb\""},
	}
	for id, want := range map[string]string{"large": "502 M_TOO_LARGE", "broken": "502 M_UNKNOWN", "down": "502 M_UNKNOWN", "waiting": "504 M_NOT_YET_UPLOADED", "gone": "404 M_NOT_FOUND"} {
		for range 3 { // the answer is remembered
			var status int
			var code string
			fmt.Sscanf(want, "%d %s", &status, &code)
			f.get(v1Download+"o/"+id, "alice").fails(status, code)
		}
	}
	if len(f.remote.calls) != 5 {
		t.Errorf("%d calls", len(f.remote.calls))
	}
	a := f.get(v1Download+"o/odd", "alice").ok()
	if a.header.Get("Content-Type") != octetStream || a.header.Get("Content-Disposition") != "attachment" {
		t.Errorf("%v", a.header)
	}
	if n := blobCount(t, f); n != 1 {
		t.Errorf("%d files on disk", n)
	}
	must(t, f.s.Sweep(ctx))
	f.remote.files["o/down"] = remoteFile{content: []byte("up again")}
	f.clock.Advance(failureLife)
	f.get(v1Download+"o/down", "alice").ok()
}

// TestRemoteCacheLimit: the copies that nobody has used for longest go first.
// TestCrawl: nobody makes the server fetch without end. Row S17.
func TestCrawl(t *testing.T) {
	f := newServer(t)
	for i := range fetchesPerMinute {
		f.get(v1Download+fmt.Sprintf("o/f%d", i), "alice").fails(404, "M_NOT_FOUND")
	}
	f.get(v1Download+"o/more", "alice").fails(429, "M_LIMIT_EXCEEDED")
	f.get(v1Download+"o/f1", "alice").fails(404, "M_NOT_FOUND") // known: no fetch
	f.get(v1Download+"o/more", "bob").fails(404, "M_NOT_FOUND")
	f.clock.Advance(time.Minute)
	f.remote.files["o/new"] = remoteFile{content: []byte("x")}
	f.get(v1Download+"o/new", "alice").ok()
}

func TestRemoteCacheLimit(t *testing.T) {
	f := newServer(t, func(c *Config) { c.RemoteCache = 1_000_000 })
	for i := range 8 {
		f.remote.files[fmt.Sprintf("o/f%d", i)] = remoteFile{content: noise(uint64(i), 200_000)}
	}
	get := func(i int) { f.get(v1Download+fmt.Sprintf("o/f%d", i), "alice").ok() }
	get(0)
	get(1)
	f.clock.Advance(48 * time.Hour)
	get(0) // used again
	for i := 2; i < 5; i++ {
		get(i)
	}
	await.Until(t, "room to be made", func() bool { return f.s.cachedBytes() <= 1_000_000 })
	f.remote.calls = make(chan string, 100)
	get(0)
	if len(f.remote.calls) != 0 {
		t.Error("a file in use was removed")
	}
	get(1)
	if len(f.remote.calls) != 1 {
		t.Error("the oldest file was kept")
	}
	await.Until(t, "room to be made", func() bool { return f.s.cachedBytes() <= 1_000_000 })
	want := f.s.cachedBytes()
	f.restart()
	if got := f.s.cachedBytes(); got != want {
		t.Errorf("%d bytes counted at start, %d before", got, want)
	}
	local := f.upload(make([]byte, 1000), "a/b", "")
	for i := range 8 {
		get(i)
	}
	f.get(v1Download+local, "alice").ok()
}

// TestSameFileTwice: nothing that is stored, answered or listed shows that two
// uploads are the same file, and sizes only say about how large it is.
// Row OS9. Row M12.
func TestSameFileTwice(t *testing.T) {
	dir := t.TempDir()
	f := newServer(t, func(c *Config) {
		blobs, err := blob.Open(dir, blob.Options{})
		must(t, err)
		c.Blobs = blobs
	})
	content := bytes.Repeat([]byte("the same "), 10_000)
	one, two := f.upload(content, "text/plain", "a.txt"), f.upload(content, "text/plain", "a.txt")
	other := f.upload(content[:len(content)-100], "image/png", "b.png")
	if one == two || f.get(v1Download+one, "bob").header.Get("ETag") == f.get(v1Download+two, "bob").header.Get("ETag") {
		t.Error("the same address or tag")
	}
	seen, sizes := map[string]bool{}, map[int]bool{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		sizes[len(b)] = true
		for ; len(b) >= 16; b = b[16:] {
			if seen[string(b[:16])] {
				t.Error("files have a block in common")
			}
			seen[string(b[:16])] = true
		}
		return err
	}))
	if len(sizes) != 1 {
		t.Errorf("sizes on disk %v", sizes)
	}
	for _, file := range []string{one, two, other} {
		if a := f.get(v1Download+file, "bob").ok(); !bytes.Equal(a.body, content[:len(a.body)]) || len(a.body) < len(content)-100 {
			t.Error("another content")
		}
	}
}

func TestPaddedSizes(t *testing.T) {
	last := int64(0)
	for _, n := range []int64{0, 1, 4055, 4056, 4096, 5000, 65_536, 65_537, 1 << 20, 1<<20 + 1, 100 << 20, 100<<20 + 1, 5<<30 - 1} {
		p := padded(n)
		if p < n || p < last || n > 10_000 && float64(p-n) > 0.04*float64(n) || padded(p) != p {
			t.Errorf("%d becomes %d", n, p)
		}
		last = p
	}
}

// TestNothingReadableOnDisk looks for what people wrote in every byte.
// Row OS9. Row OM14.
func TestNothingReadableOnDisk(t *testing.T) {
	dir := t.TempDir()
	kv, err := leveldb.Open(filepath.Join(dir, "kv"), leveldb.Options{})
	must(t, err)
	c, err := storage.NewCommitter(kv)
	must(t, err)
	v, err := vault.Open(vault.Options{Dir: filepath.Join(dir, "vault")})
	must(t, err)
	blobs, err := blob.Open(filepath.Join(dir, "media"), blob.Options{})
	must(t, err)
	f := newServer(t, func(cfg *Config) { cfg.KV, cfg.Commit, cfg.Vault, cfg.Blobs = kv, c, v, blobs })
	defer func() { c.Close(); kv.Close(); v.Close() }()
	f.remote.files["canary.server/canaryremoteid"] = remoteFile{content: []byte("canary-remote-content"), typ: "text/x-canaryremotetype", disposition: "inline; filename=canaryremotename"}
	file := f.upload(bytes.Repeat([]byte("canary-content "), 1000), "text/x-canarytype", "canary-name.txt")
	f.get(v1Download+"canary.server/canaryremoteid", "alice").ok()
	_, id, _ := strings.Cut(file, "/")
	must(t, kv.CompactRange(ctx, storage.Range{}))
	must(t, f.s.Close())
	must(t, c.Close())
	must(t, kv.Close())
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		for _, canary := range []string{"canary", id, "me.example"} {
			if bytes.Contains(b, []byte(canary)) || strings.Contains(p[len(dir):], canary) {
				t.Errorf("%q in %s", canary, p[len(dir):])
			}
		}
		return err
	}))
}

func TestDelete(t *testing.T) {
	f := newServer(t, func(c *Config) { c.UserQuota = 1_000_000 })
	pic := f.upload(pngFile(gradient(300, 300)), "image/png", "")
	other := f.upload([]byte("other"), "text/plain", "")
	f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").ok()
	f.remote.files["o/abc"] = remoteFile{content: []byte("x")}
	f.get(v1Download+"o/abc", "bob").ok()
	_, id, _ := strings.Cut(pic, "/")
	k := f.s.key("me.example", id)
	row, err := f.cfg.KV.Get(ctx, k.row())
	must(t, err)
	must(t, f.s.Delete(ctx, "me.example", id))
	f.get(v1Download+pic, "bob").fails(404, "M_NOT_FOUND")
	f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").fails(404, "M_NOT_FOUND")
	if _, err := f.cfg.Vault.Unseal(k.row(), row); !errors.Is(err, vault.ErrDestroyed) {
		t.Errorf("an old copy of the record opens: %v", err)
	}
	if err := f.s.Delete(ctx, "me.example", id); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	f.get(v1Download+other, "bob").ok()
	if n := blobCount(t, f); n != 2 {
		t.Errorf("%d files on disk", n)
	}
	quota, err := f.cfg.KV.Get(ctx, quotaRow(1))
	must(t, err)
	if used, err := decodeQuota(quota); err != nil || used != 5+perFile {
		t.Errorf("%d bytes in use, %v", used, err)
	}
	must(t, f.s.Delete(ctx, "o", "abc"))
	if f.s.cachedBytes() != 0 {
		t.Errorf("%d bytes cached", f.s.cachedBytes())
	}
}

func TestDeleteUser(t *testing.T) {
	f := newServer(t)
	var files []string
	for i := range 5 {
		files = append(files, f.upload(noise(uint64(i), 1000), "a/b", ""))
	}
	f.do("POST", "/_matrix/media/v1/create", "alice", nil).ok()
	bobs := f.do("POST", v3+"upload", "bob", strings.NewReader("bob")).ok().uri()
	must(t, f.s.DeleteUser(ctx, 1))
	for _, file := range files {
		f.get(v1Download+file, "bob").fails(404, "M_NOT_FOUND")
	}
	f.get(v1Download+bobs, "bob").ok()
	await.Until(t, "one file on disk, with a record, a blob, an owner, a quota", func() bool {
		return blobCount(t, f) == 1 && countRows(t, f, "m") == 4
	})
	must(t, f.s.DeleteUser(ctx, 1))
}

// TestSweepAfterCrash: a removal that ended after the key was destroyed.
func TestSweepAfterCrash(t *testing.T) {
	f := newServer(t)
	file := f.upload([]byte("x"), "a/b", "")
	f.remote.files["o/abc"] = remoteFile{content: []byte("x")}
	f.get(v1Download+"o/abc", "bob").ok()
	_, id, _ := strings.Cut(file, "/")
	must(t, f.cfg.Vault.Destroy(f.s.key("me.example", id).ref(), f.s.key("o", "abc").ref()))
	f.get(v1Download+file, "bob").fails(404, "M_NOT_FOUND")
	f.restart(func(c *Config) { c.RemoteCache = 100 })
	must(t, f.s.Sweep(ctx))
	if n := blobCount(t, f); n != 0 {
		t.Errorf("%d files on disk", n)
	}
	if n := countRows(t, f, "mm") + countRows(t, f, "mb") + countRows(t, f, "mc"); n != 0 {
		t.Errorf("%d rows", n)
	}
	if f.s.cachedBytes() != 0 {
		t.Errorf("%d bytes cached", f.s.cachedBytes())
	}
}

func TestFullDisk(t *testing.T) {
	d := simdisk.New(1)
	blobs, err := blob.Open("/media", blob.Options{FS: d})
	must(t, err)
	f := newServer(t, func(c *Config) { c.Blobs = blobs })
	old := f.upload(noise(1, 50_000), "a/b", "")
	d.SetCapacity(d.Used() + 100_000)
	f.do("POST", v3+"upload", "alice", bytes.NewReader(make([]byte, 500_000))).fails(503, "M_UNKNOWN")
	f.get(v1Download+old, "bob").ok()
	f.remote.files["o/abc"] = remoteFile{content: make([]byte, 500_000)}
	f.get(v1Download+"o/abc", "bob").fails(503, "M_UNKNOWN")
	d.SetCapacity(0)
	f.upload(make([]byte, 500_000), "a/b", "")
	f.get(v1Download+"o/abc", "bob").ok()
	if n := blobCount(t, f); n != 3 {
		t.Errorf("%d files", n)
	}
}

// TestDamagedFile: a flipped bit must never be served.
func TestDamagedFile(t *testing.T) {
	d := simdisk.New(1)
	blobs, err := blob.Open("/media", blob.Options{FS: d})
	must(t, err)
	f := newServer(t, func(c *Config) { c.Blobs = blobs })
	content := noise(1, 500_000)
	file := f.upload(content, "a/b", "")
	var id blob.ID
	_, err = blobs.Sweep(ctx, func(i blob.ID) (bool, error) { id = i; return true, nil })
	must(t, err)
	must(t, d.Flip("/media/"+id.String()[:2]+"/"+id.String()[2:], 300_000*8))
	a, err := f.try("GET", v1Download+file, "bob", nil)
	if err == nil && a.status == 200 && len(a.body) >= 300_000 {
		t.Errorf("%d bytes served", len(a.body))
	}
	if a != nil && len(a.body) > 0 && !bytes.HasPrefix(content, a.body) {
		t.Error("other bytes served")
	}
}

func TestTooManyUploadsAtOnce(t *testing.T) {
	f := newServer(t)
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range maxUploads {
		wg.Go(func() {
			a, err := f.try("POST", v3+"upload", "alice", &gatedReader{release})
			if err != nil || a.status != 200 {
				t.Errorf("%v %v", a, err)
			}
		})
	}
	await.Until(t, "uploads to begin", func() bool { return f.uploading() == maxUploads })
	f.do("POST", v3+"upload", "alice", strings.NewReader("x")).fails(429, "M_LIMIT_EXCEEDED")
	f.do("POST", v3+"upload", "bob", strings.NewReader("x")).ok()
	close(release)
	wg.Wait()
	f.upload([]byte("x"), "a/b", "")
}

type gatedReader struct{ release chan struct{} }

func (g *gatedReader) Read([]byte) (int, error) { <-g.release; return 0, io.EOF }

func TestSuspendedUsersOnlyRead(t *testing.T) {
	f := newServer(t)
	file := f.upload([]byte("x"), "a/b", "")
	f.get(v1Download+file, "suspended").ok()
	f.do("POST", v3+"upload", "suspended", strings.NewReader("x")).fails(403, "M_USER_SUSPENDED")
	f.do("POST", "/_matrix/media/v1/create", "suspended", nil).fails(403, "M_USER_SUSPENDED")
}

// TestNoURLPreview: links aren't visited, and clients are told, but not
// strangers. Row CO16.
func TestNoURLPreview(t *testing.T) {
	f := newServer(t)
	visited := make(chan string, 10)
	trap := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { visited <- r.URL.Path }))
	defer trap.Close()
	for _, p := range []string{"/_matrix/client/v1/media/preview_url", v3 + "preview_url", "/_matrix/media/r0/preview_url"} {
		f.get(p+"?url="+urlQuery(trap.URL+"/canary"), "alice").fails(403, "M_FORBIDDEN")
		f.get(p, "").fails(401, "M_MISSING_TOKEN")
	}
	if len(visited) > 0 {
		t.Error("the server went there")
	}
}
