package blob

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/internal/netguard"
	"parley/storage"
)

const (
	testKey    = "parleytest"
	testSecret = "se/cr+et secret"
)

// gateway starts versitygw on a folder and returns its address and how to kill
// it. PARLEY_TEST_S3 is the program (test/run builds it from test/tools).
func gateway(t *testing.T, dir, address string) (addr string, kill func()) {
	t.Helper()
	bin := os.Getenv("PARLEY_TEST_S3")
	if bin == "" {
		t.Skip("PARLEY_TEST_S3 isn't set to a versitygw program: go build -o FILE github.com/versity/versitygw/cmd/versitygw in test/tools")
	}
	if address == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		address = l.Addr().String()
		must(t, l.Close())
	}
	cmd := exec.Command(bin, "--port", address, "--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+testKey, "ROOT_SECRET_KEY="+testSecret)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	for _, d := range []string{"meta", "data"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o700))
	}
	must(t, cmd.Start())
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	kill = func() { _ = cmd.Process.Kill(); <-exited }
	t.Cleanup(kill)
	await.Until(t, "the S3 service to answer", func() bool {
		select {
		case <-exited:
			t.Fatalf("versitygw ended:\n%s", out.String())
		default:
		}
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return address, kill
}

func location(t *testing.T, address, path string) S3Location {
	t.Helper()
	at, err := ParseS3("s3://" + url.UserPassword(testKey, testSecret).String() + "@" + address + "/" + path + "?region=us-east-1&secure=false")
	must(t, err)
	return at
}

// inBucket opens a store in a new bucket of a real service.
func inBucket(t *testing.T) (*Store, *bucket, *clock.Fake) {
	t.Helper()
	addr, _ := gateway(t, t.TempDir(), "")
	at := location(t, addr, "media/of.me")
	clk := clock.NewFake(time.Now())
	if _, err := OpenS3(ctx, at, S3Options{Clock: clk}); err == nil || !strings.Contains(err.Error(), `no bucket "media"`) {
		t.Fatalf("without a bucket: %v", err)
	}
	makeBucket(t, at)
	s, err := OpenS3(ctx, at, S3Options{Clock: clk})
	must(t, err)
	return s, s.place.(*bucket), clk
}

func makeBucket(t *testing.T, at S3Location) {
	t.Helper()
	other := at
	other.Bucket = "other"
	_, err := OpenS3(ctx, other, S3Options{})
	if err == nil {
		t.Fatal("opened a bucket that isn't there")
	}
	c := &bucket{at: at}
	c.core = clientOf(t, at)
	must(t, c.core.MakeBucket(ctx, at.Bucket, minio.MakeBucketOptions{}))
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

// TestS3 runs a store on a real S3 service.
// Row OS9: names in a bucket say nothing.
func TestS3(t *testing.T) {
	s, b, clk := inBucket(t)
	for _, n := range []int{1, 1000, headSize, headSize + 1, partSize - 1, partSize, partSize + 1, 2*windowSize + 12345} {
		content := noise(n)
		id := write(t, s, content)
		got, err := read(s, id)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes: %d read, %v", n, len(got), err)
		}
		readPieces(t, s, id, content)
		must(t, s.Remove(id, id))
		must(t, s.Remove(id))
		if _, err := s.Open(id); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after removal: %v", err)
		}
	}

	var ids []ID
	for range 5 {
		ids = append(ids, write(t, s, []byte("x")))
	}
	telling := 0
	for o := range b.core.Client.ListObjects(ctx, b.at.Bucket, minio.ListObjectsOptions{Recursive: true, WithMetadata: true}) {
		must(t, o.Err)
		if !regexp.MustCompile(`^of\.me/[0-9a-f]{32}$`).MatchString(o.Key) {
			telling++
		}
	}
	if telling > 0 {
		t.Errorf("%d telling names", telling)
	}
	for _, id := range ids[1:] {
		s.Settled(id)
	}
	named := func(id ID) (bool, error) { return id == ids[1], nil }
	if n, err := s.Sweep(ctx, named); n != 0 || err != nil {
		t.Errorf("young files: %d removed, %v", n, err)
	}
	clk.Advance(youngFor + time.Hour)
	if n, err := s.Sweep(ctx, named); n != 3 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	var left []ID
	must(t, s.List(ctx, func(id ID) error { left = append(left, id); return nil }))
	if len(left) != 2 {
		t.Errorf("%d left", len(left))
	}
	boom := errors.New("boom")
	if err := s.List(ctx, func(ID) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
}

// readPieces reads at offsets in every order that readers have.
func readPieces(t *testing.T, s *Store, id ID, content []byte) {
	t.Helper()
	f, err := s.Open(id)
	must(t, err)
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		off := rng.IntN(len(content))
		p := make([]byte, rng.IntN(200_000)+1)
		n, err := f.ReadAt(p, int64(off))
		if want := min(len(p), len(content)-off); n != want || (err == io.EOF) != (want < len(p)) || !bytes.Equal(p[:n], content[off:off+n]) {
			t.Fatalf("%d of %d at %d: %v", n, len(p), off, err)
		}
	}
	if _, err := f.ReadAt(make([]byte, 1), int64(len(content))); err != io.EOF {
		t.Errorf("past the end: %v", err)
	}
}

// TestS3Abort: a file that was given up leaves nothing, also when the process
// that sent it has died.
func TestS3Abort(t *testing.T) {
	s, b, clk := inBucket(t)
	unfinished := func() (n int) {
		for u := range b.core.Client.ListIncompleteUploads(ctx, b.at.Bucket, "", true) {
			must(t, u.Err)
			n++
		}
		return n
	}
	w, err := s.Create()
	must(t, err)
	_, err = w.Write(make([]byte, partSize+1))
	must(t, err)
	if unfinished() != 1 {
		t.Fatal("not sent in parts")
	}
	w.Abort()
	if _, err := w.Commit(); err == nil {
		t.Error("commit after abort")
	}
	if n := unfinished(); n != 0 {
		t.Errorf("%d unfinished uploads after abort", n)
	}

	w, err = s.Create()
	must(t, err)
	_, err = w.Write(make([]byte, partSize+1))
	must(t, err)
	clk.Advance(2 * youngFor)
	none := func(ID) (bool, error) { return false, nil }
	if _, err := s.Sweep(ctx, none); err != nil || unfinished() != 1 {
		t.Fatalf("an upload under way: %v", err)
	}
	after, err := OpenS3(ctx, b.at, S3Options{Clock: clk}) // the process was killed
	must(t, err)
	if _, err := after.Sweep(ctx, none); err != nil || unfinished() != 0 {
		t.Errorf("%d unfinished uploads after a crash, %v", unfinished(), err)
	}
}

// TestS3Killed: what was committed is there when the service was killed and
// comes back; until then, files are unavailable, not gone.
func TestS3Killed(t *testing.T) {
	dir := t.TempDir()
	addr, kill := gateway(t, dir, "")
	at := location(t, addr, "bucket")
	makeBucket(t, at)
	s, err := OpenS3(ctx, at, S3Options{Clock: clock.NewFake(time.Now())})
	must(t, err)
	content := noise(partSize + 100)
	id := write(t, s, content)
	open, err := s.Create()
	must(t, err)
	_, err = open.Write(content)
	must(t, err)
	kill()
	if _, err := open.Commit(); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Open(id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	if err := s.Remove(id); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("remove: %v", err)
	}
	if _, err := OpenS3(ctx, at, S3Options{Clock: clock.NewFake(time.Now())}); err != nil {
		t.Errorf("a server must start without its files: %v", err)
	}
	gateway(t, dir, addr)
	if got, err := read(s, id); err != nil || !bytes.Equal(got, content) {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}

// Row S13: only the configured service is reached, wherever it points.
func TestS3GoesNowhereElse(t *testing.T) {
	var hits int
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits++ }))
	defer trap.Close()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, trap.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer service.Close()
	at := location(t, strings.TrimPrefix(service.URL, "http://"), "bucket")
	s, err := OpenS3(ctx, at, S3Options{Clock: clock.NewFake(time.Now())})
	if err == nil {
		if _, err = s.Open(ID{1}); err == nil {
			t.Error("a redirection was followed")
		}
	}
	if _, err := s3Transport(at, nil).DialContext(ctx, "tcp", strings.TrimPrefix(trap.URL, "http://")); !errors.Is(err, netguard.ErrForbidden) {
		t.Errorf("dial elsewhere: %v", err)
	}
	if hits > 0 {
		t.Errorf("%d requests came to another host", hits)
	}
}

func TestS3WrongKey(t *testing.T) {
	addr, _ := gateway(t, t.TempDir(), "")
	at := location(t, addr, "bucket")
	makeBucket(t, at)
	at.SecretKey = "wrong-secret"
	_, err := OpenS3(ctx, at, S3Options{})
	if err == nil || strings.Contains(err.Error(), at.SecretKey) {
		t.Errorf("%v", err)
	}
}

func clientOf(t *testing.T, at S3Location) minio.Core {
	t.Helper()
	core, err := newCore(at, nil)
	must(t, err)
	return core
}

func TestParseS3(t *testing.T) {
	at, err := ParseS3("s3://AKIA:se%2Fcret@s3.example.org:9000/my.bucket/pre/fix?region=eu-central-1&secure=false")
	must(t, err)
	want := S3Location{Host: "s3.example.org:9000", Bucket: "my.bucket", Prefix: "pre/fix/", Region: "eu-central-1", Plain: true, AccessKey: "AKIA", SecretKey: "se/cret"}
	if at != want {
		t.Errorf("%#v", at)
	}
	for _, shown := range []string{fmt.Sprint(at), fmt.Sprintf("%+v %#v %s", at, at, at)} {
		if strings.Contains(shown, "cret@") || strings.Contains(shown, "se/cret") || strings.Contains(shown, "AKIA") {
			t.Errorf("shown: %s", shown)
		}
	}
	for address, raw := range map[string]string{
		"h:443": "s3://a:b@h/bucket", "h:80": "s3://a:b@h/bucket?secure=false", "[::1]:443": "s3://a:b@[::1]/bucket", "[::1]:9": "s3://a:b@[::1]:9/bucket",
	} {
		if at, err := ParseS3(raw); err != nil || at.address() != address {
			t.Errorf("%s: %s, %v", raw, at.address(), err)
		}
	}
	for _, bad := range []string{
		"", "http://a:b@h/bucket", "s3://h/bucket", "s3://a@h/bucket", "s3://a:@h/bucket", "s3://:b@h/bucket", "s3://a:b@/bucket",
		"s3://a:b@h", "s3://a:b@h/", "s3://a:b@h/B", "s3://a:b@h/bu", "s3://a:b@h/bucket/../x?y=1", "s3://a:b@h/bucket?secure=maybe",
		"s3://a:b@h/bucket?x=1", "s3://a:b@h/bucket?region=a&region=b", "s3://a:b@h:99999/bucket", "s3://a:b@h/bucket/a%20b", "s3://a:topsecret/x@h/bucket",
		"s3:a:b@h/bucket", "s3://a:b@h/bucket?%zz", "s3://a:b@h/bucket?region=A%20B",
	} {
		if _, err := ParseS3(bad); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseS3(f *testing.F) {
	f.Add("s3://a:b@h:1/bucket/prefix?region=x&secure=false")
	f.Fuzz(func(t *testing.T, raw string) {
		at, err := ParseS3(raw)
		if err == nil && (at.Bucket == "" || at.Host == "" || at.SecretKey == "" || strings.Contains(at.Prefix, " ")) {
			t.Errorf("%q", raw)
		}
	})
}
