package node_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"parley/admin"
	"parley/internal/await"
	"parley/internal/mxid"
	"parley/internal/node"
)

// startWithMedia starts a server with files where s3 says, or in a folder.
func startWithMedia(t *testing.T, dir, s3 string) *server {
	t.Helper()
	return startServerWith(t, dir, func(o *node.Options) { o.Config.MediaS3 = s3 })
}

func signUp(t *testing.T, s *server, name string) *person {
	t.Helper()
	p := &person{t: t, s: s, http: http.DefaultClient}
	var who struct {
		Token string `json:"access_token"`
	}
	p.json("POST", "/_matrix/client/v3/register", map[string]any{"username": name, "password": "correct horse", "auth": map[string]string{"type": "m.login.dummy"}}, &who)
	p.token = who.Token
	return p
}

func (p *person) upload(content string) (uri string) {
	p.t.Helper()
	var a struct {
		URI string `json:"content_uri"`
	}
	p.do("POST", "/_matrix/media/v3/upload?filename=secretname.txt", "text/plain", strings.NewReader(content), &a)
	return a.URI
}

// status of a download.
func (p *person) download(uri string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), "GET", p.s.http+"/_matrix/client/v1/media/download/"+strings.TrimPrefix(uri, "mxc://"), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	res, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// TestOrdersAboutFiles: an operator hides and erases files by address, by user
// and by room, without seeing any.
func TestOrdersAboutFiles(t *testing.T) {
	s := startWithMedia(t, t.TempDir(), "")
	defer s.Close(t.Context())
	alice := signUp(t, s, "alice")
	var room struct {
		ID string `json:"room_id"`
	}
	alice.json("POST", "/_matrix/client/v3/createRoom", map[string]any{}, &room)
	shared, avatar, other := alice.upload("shared"), alice.upload("avatar"), alice.upload("other")
	alice.json("PUT", "/_matrix/client/v3/rooms/"+room.ID+"/state/m.room.avatar", map[string]any{"url": avatar}, nil)
	alice.json("PUT", "/_matrix/client/v3/rooms/"+room.ID+"/send/m.room.message/x", map[string]any{"msgtype": "m.image", "body": "x", "info": map[string]any{"thumbnail_file": map[string]any{"url": shared}}}, nil)
	for i := range 250 { // more than a page
		alice.json("PUT", fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.room.message/%d", room.ID, i), map[string]any{"msgtype": "m.text", "body": "mxc://no uri"}, nil)
	}

	order := func(o admin.MediaOrder, want int, statuses ...int) {
		t.Helper()
		c, err := admin.Dial(filepath.Join(s.dir, "control.sock"))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Media(t.Context(), o); n != want || err != nil {
			t.Errorf("%+v: %d, %v", o, n, err)
		}
		for i, uri := range []string{shared, avatar, other} {
			if got, _ := alice.download(uri); got != statuses[i] {
				t.Errorf("%+v: file %d answers %d", o, i, got)
			}
		}
	}
	order(admin.MediaOrder{Do: admin.MediaQuarantine, Room: mxid.RoomID(room.ID)}, 2, 404, 404, 200)
	order(admin.MediaOrder{Do: admin.MediaRelease, URIs: []string{avatar, other}}, 1, 404, 200, 200)
	order(admin.MediaOrder{Do: admin.MediaQuarantine, User: "alice"}, 2, 404, 404, 404)
	order(admin.MediaOrder{Do: admin.MediaRelease, User: "@alice:canary.example"}, 3, 200, 200, 200)
	order(admin.MediaOrder{Do: admin.MediaDelete, URIs: []string{other}}, 1, 200, 200, 404)
	order(admin.MediaOrder{Do: admin.MediaDelete, User: "alice"}, 2, 404, 404, 404)
	for _, bad := range []admin.MediaOrder{{}, {Do: "read", User: "alice"}, {Do: admin.MediaDelete}, {Do: admin.MediaDelete, User: "nobody"}, {Do: admin.MediaDelete, Room: "!x:y"},
		{Do: admin.MediaDelete, User: "alice", Room: "!x:y"}, {Do: admin.MediaDelete, URIs: []string{"https://x"}}, {Do: admin.MediaDelete, User: "@a:elsewhere"}} {
		if n, err := s.Control().Media(t.Context(), bad); err == nil {
			t.Errorf("%+v: %d", bad, n)
		}
	}
}

// s3Service starts a real S3 service and returns where it keeps its data and
// the URLs of empty buckets.
func s3Service(t *testing.T, buckets ...string) (store string, urls []string) {
	t.Helper()
	bin := os.Getenv("PARLEY_TEST_S3")
	if bin == "" {
		t.Skip("PARLEY_TEST_S3 isn't set to a versitygw program: go build -o FILE github.com/versity/versitygw/cmd/versitygw in test/tools")
	}
	store = t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	folders := []string{"meta"}
	for _, b := range buckets { // a folder is a bucket
		folders = append(folders, "data/"+b)
	}
	for _, d := range folders {
		if err := os.MkdirAll(filepath.Join(store, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	gw := exec.Command(bin, "--port", addr, "--quiet", "posix", "--sidecar", filepath.Join(store, "meta"), filepath.Join(store, "data"))
	gw.Env = append(os.Environ(), "ROOT_ACCESS_KEY=key", "ROOT_SECRET_KEY=topsecretvalue")
	if err := gw.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Process.Kill(); _ = gw.Wait() })
	await.Until(t, "the S3 service to answer", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	for _, b := range buckets {
		urls = append(urls, "s3://key:topsecretvalue@"+addr+"/"+b+"?region=us-east-1&secure=false")
	}
	return store, urls
}

// TestFilesInS3 runs a whole server on a real S3 service. Row OS9.
func TestFilesInS3(t *testing.T) {
	store, urls := s3Service(t, "files")
	dir, url := t.TempDir(), urls[0]
	s := startWithMedia(t, dir, url)
	alice := signUp(t, s, "alice")
	content := strings.Repeat("secretcontent ", 1_000_000)
	uri := alice.upload(content)
	if status, got := alice.download(uri); status != 200 || got != content {
		t.Fatalf("%d, %d bytes", status, len(got))
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s2 := startWithMedia(t, dir, url)
	defer s2.Close(t.Context())
	alice.s = s2
	if status, got := alice.download(uri); status != 200 || got != content {
		t.Errorf("after a restart: %d, %d bytes", status, len(got))
	}
	objects := objectsIn(t, filepath.Join(store, "data", "files"))
	if len(objects) != 1 {
		t.Errorf("objects %v", objects)
	}
	if n, err := s2.Control().Media(t.Context(), admin.MediaOrder{Do: admin.MediaDelete, URIs: []string{uri}}); n != 1 || err != nil {
		t.Error(n, err)
	}
	if objects := objectsIn(t, filepath.Join(store, "data", "files")); len(objects) != 0 {
		t.Errorf("objects %v", objects)
	}
	for _, log := range [][]byte{s.log.Bytes(), s2.log.Bytes()} {
		if bytes.Contains(log, []byte("topsecretvalue")) {
			t.Error("the secret is in the log")
		}
	}
}

// objectsIn lists a bucket as its folder shows it; nothing in it may tell.
func objectsIn(t *testing.T, bucket string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(bucket, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(d.Name()) || bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s tells something", p)
		}
		names = append(names, d.Name())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
