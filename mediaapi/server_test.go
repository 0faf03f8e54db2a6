package mediaapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"parley/federation/fedclient"
	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk/simdisk"
	"parley/storage/intern"
	"parley/storage/leveldb"
	"parley/user"
)

var ctx = context.Background()

var epoch = time.Unix(1_700_000_000, 0)

const (
	v1Download  = "/_matrix/client/v1/media/download/"
	v1Thumbnail = "/_matrix/client/v1/media/thumbnail/"
	v3          = "/_matrix/media/v3/"
)

// users are the tokens that fakeAuth knows.
type fakeAuth map[string]intern.UID

func (a fakeAuth) Authenticate(r *http.Request) (user.Session, error) {
	uid, ok := a[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if !ok {
		return user.Session{}, httpx.Err(http.StatusUnauthorized, "M_MISSING_TOKEN", "no")
	}
	return user.Session{UID: uid, Suspended: uid == 3}, nil
}

type fakeOrigin struct{}

func (fakeOrigin) Origin(r *http.Request) (mxid.ServerName, error) {
	if r.Header.Get("Authorization") != "X-Matrix" {
		return "", httpx.Err(http.StatusUnauthorized, "M_UNAUTHORIZED", "no")
	}
	return "other", nil
}

// server is a repository on real HTTP.
type server struct {
	t      testing.TB
	s      *Service
	cfg    Config
	clock  *clock.Fake
	remote *fakeRemote
	http   *httptest.Server
}

func newServer(t testing.TB, change ...func(*Config)) *server {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	must(t, err)
	c, err := storage.NewCommitter(kv)
	must(t, err)
	v := vault.OpenMemory()
	blobs, err := blob.Open(t.TempDir(), blob.Options{})
	must(t, err)
	f := &server{t: t, clock: clock.NewFake(epoch), remote: &fakeRemote{files: map[string]remoteFile{}}}
	f.cfg = Config{ServerName: "me.example", KV: kv, Commit: c, Vault: v, Blobs: blobs, Remote: f.remote, Clock: f.clock,
		Log: slog.New(slog.DiscardHandler), MaxUpload: 40 << 20}
	for _, fn := range change {
		fn(&f.cfg)
	}
	f.start()
	t.Cleanup(func() {
		f.http.Close()
		f.s.Close()
		c.Close()
		kv.Close()
	})
	return f
}

func (f *server) start() {
	f.t.Helper()
	var err error
	f.s, err = New(f.cfg)
	must(f.t, err)
	e := echo.New()
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		if c.Response().Committed {
			return
		}
		if he, ok := err.(*echo.HTTPError); ok {
			err = httpx.Err(he.Code, "M_UNRECOGNIZED", "no")
		}
		httpx.WriteError(c.Response(), err)
	}
	f.s.Register(e, fakeAuth{"alice": 1, "bob": 2, "suspended": 3})
	f.s.RegisterFederation(e, fakeOrigin{})
	f.http = httptest.NewServer(e)
}

// restart opens the repository anew on the same data.
func (f *server) restart(change ...func(*Config)) {
	f.t.Helper()
	f.http.Close()
	must(f.t, f.s.Close())
	for _, fn := range change {
		fn(&f.cfg)
	}
	f.start()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answer is a response that has been read.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

func (f *server) do(method, path, token string, body io.Reader, headers ...string) *answer {
	f.t.Helper()
	a, err := f.try(method, path, token, body, headers...)
	must(f.t, err)
	return a
}

func (f *server) try(method, path, token string, body io.Reader, headers ...string) (*answer, error) {
	r, err := http.NewRequest(method, f.http.URL+path, body)
	if err != nil {
		return nil, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return &answer{f.t, res.StatusCode, res.Header, b}, err
}

func (f *server) get(path, token string, headers ...string) *answer {
	f.t.Helper()
	return f.do("GET", path, token, nil, headers...)
}

// upload uploads and returns "server/mediaId".
func (f *server) upload(content []byte, typ, name string) string {
	f.t.Helper()
	path := v3 + "upload"
	if name != "" {
		path += "?filename=" + urlQuery(name)
	}
	a := f.do("POST", path, "alice", bytes.NewReader(content), "Content-Type", typ)
	a.ok()
	return a.uri()
}

func (a *answer) ok() *answer {
	a.t.Helper()
	if a.status != 200 {
		a.t.Fatalf("status %d: %.200s", a.status, a.body)
	}
	return a
}

// fails checks an error answer.
func (a *answer) fails(status int, code string) {
	a.t.Helper()
	var e struct{ Errcode string }
	_ = json.Unmarshal(a.body, &e)
	if a.status != status || e.Errcode != code {
		a.t.Errorf("%d %s (%.100s), want %d %s", a.status, e.Errcode, a.body, status, code)
	}
}

func (a *answer) uri() string {
	a.t.Helper()
	var u struct {
		ContentURI string `json:"content_uri"`
	}
	must(a.t, json.Unmarshal(a.body, &u))
	file, ok := strings.CutPrefix(u.ContentURI, "mxc://")
	if !ok {
		a.t.Fatalf("%s", a.body)
	}
	return file
}

func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// fakeRemote is all other servers.
type fakeRemote struct {
	files map[string]remoteFile
	calls chan string // if not nil, every call is told
	gate  chan struct{}
}

type remoteFile struct {
	content          []byte
	typ, disposition string
	err              error // instead of an answer
	breaks           bool  // the connection ends early
}

func (r *fakeRemote) DownloadMedia(ctx context.Context, to mxid.ServerName, id string, limit int64) (*fedclient.Media, error) {
	name := string(to) + "/" + id
	if r.calls != nil {
		r.calls <- name
	}
	if r.gate != nil {
		select {
		case <-r.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f, ok := r.files[name]
	if !ok {
		return nil, httpx.NotFound("no such file")
	}
	if f.err != nil {
		return nil, f.err
	}
	var body io.Reader = bytes.NewReader(f.content)
	if f.breaks {
		body = io.MultiReader(bytes.NewReader(f.content[:len(f.content)/2]), &brokenReader{})
	}
	return &fedclient.Media{ContentType: f.typ, ContentDisposition: f.disposition,
		Body: io.NopCloser(&limitedReader{body, limit})}, nil
}

type brokenReader struct{}

func (*brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return n, fedclient.ErrTooLarge
	}
	return n, err
}

func urlQuery(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// newShrinker is a service that can only make thumbnails.
func newShrinker() *Service {
	return &Service{cfg: Config{DecodeMemory: defaultDecodeMemory}, decodeMem: semaphore.NewWeighted(defaultDecodeMemory)}
}

// memoryContent is an open file with these bytes.
func memoryContent(d *simdisk.Disk, b []byte) (*content, error) {
	must := d.MkdirAll("/")
	if must != nil {
		return nil, must
	}
	f, err := d.OpenFile("/fuzz", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	return &content{io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), &blob.File{Closer: f}}, nil
}
