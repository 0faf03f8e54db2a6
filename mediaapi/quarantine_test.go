package mediaapi

import (
	"strings"
	"testing"
	"time"
)

// TestQuarantine: files in quarantine are for nobody, here or elsewhere, and
// come back when they are released.
func TestQuarantine(t *testing.T) {
	f := newServer(t)
	pic := f.upload(pngFile(gradient(300, 300)), "image/png", "")
	other := f.upload([]byte("x"), "text/plain", "")
	f.remote.files["o/abc"] = remoteFile{content: []byte("x")}
	f.remote.files["o/never"] = remoteFile{content: []byte("x")}
	f.get(v1Thumbnail+pic+"?width=32&height=32", "bob").ok()
	f.get(v1Download+"o/abc", "bob").ok()
	uris := []string{"mxc://" + pic, "mxc://o/abc", "mxc://o/never"}
	if n, err := f.s.Quarantine(ctx, uris, true); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := f.s.Quarantine(ctx, uris, true); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	_, id, _ := strings.Cut(pic, "/")
	f.remote.calls = make(chan string, 10)
	hidden := func() {
		t.Helper()
		for _, path := range []string{v1Download + pic, v1Thumbnail + pic + "?width=32&height=32", v1Thumbnail + pic + "?width=64&height=64",
			v1Download + "o/abc", v1Download + "o/never", v3 + "download/" + pic} {
			f.get(path, "bob").fails(404, "M_NOT_FOUND")
		}
		f.get("/_matrix/federation/v1/media/download/"+id, "", "Authorization", "X-Matrix").fails(404, "M_NOT_FOUND")
		f.get("/_matrix/federation/v1/media/thumbnail/"+id+"?width=32&height=32", "", "Authorization", "X-Matrix").fails(404, "M_NOT_FOUND")
	}
	hidden()
	f.get(v1Download+other, "bob").ok()
	f.restart()
	f.clock.Advance(30 * 24 * time.Hour)
	must(t, f.s.Sweep(ctx))
	hidden()
	if len(f.remote.calls) != 0 {
		t.Error("a file in quarantine was fetched")
	}
	if n, err := f.s.Quarantine(ctx, uris, false); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	for _, path := range []string{v1Download + pic, v1Thumbnail + pic + "?width=32&height=32", v1Download + "o/abc", v1Download + "o/never"} {
		f.get(path, "bob").ok()
	}
	for _, bad := range []string{"", "mxc://", "mxc://o", "https://o/abc", "mxc://o/a/b", "mxc://o/../x", "mxc:///x"} {
		if _, err := f.s.Quarantine(ctx, []string{bad}, true); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestQuarantineUser(t *testing.T) {
	f := newServer(t)
	var files []string
	for range 3 {
		files = append(files, f.upload([]byte("x"), "text/plain", ""))
	}
	bobs := f.do("POST", v3+"upload", "bob", nil).ok().uri()
	if n, err := f.s.QuarantineUser(ctx, 1, true); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	for _, file := range files {
		f.get(v1Download+file, "bob").fails(404, "M_NOT_FOUND")
	}
	f.get(v1Download+bobs, "alice").ok()
	later := f.upload([]byte("x"), "text/plain", "")
	f.get(v1Download+later, "bob").ok()
	if n, err := f.s.QuarantineUser(ctx, 1, false); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	f.get(v1Download+files[0], "bob").ok()
}
