package mediaapi

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"parley/storage/disk/simdisk"
)

// TestRanges: parts of a file, also across the pieces that it is encrypted in.
// spec: RFC 9110, "Range Requests"
func TestRanges(t *testing.T) {
	f := newServer(t)
	content := noise(1, 300_000)
	file := f.upload(content, "video/mp4", "")
	etag := f.get(v1Download+file, "bob").ok().header.Get("ETag")
	for _, c := range []struct {
		header, ifRange string
		status          int
		from, to        int // of the answer
	}{
		{"bytes=0-0", "", 206, 0, 1},
		{"bytes=65535-65536", "", 206, 65535, 65537},
		{"bytes=65536-131071", "", 206, 65536, 131072},
		{"bytes=1-299998", "", 206, 1, 299_999},
		{"bytes=299999-", "", 206, 299_999, 300_000},
		{"bytes=299999-400000", "", 206, 299_999, 300_000},
		{"bytes=-1", "", 206, 299_999, 300_000},
		{"bytes=-400000", "", 206, 0, 300_000},
		{"bytes=0-", etag, 206, 0, 300_000},
		{"bytes=5-9", etag, 206, 5, 10},
		{"bytes=5-9", `"other"`, 200, 0, 300_000},
		{"bytes=5-9", "W/" + etag, 200, 0, 300_000},
		{"bytes=5-9", "Tue, 15 Nov 1994 12:45:26 GMT", 200, 0, 300_000},
		{"bytes=300000-", "", 416, 0, 0},
		{"bytes=9-5", "", 416, 0, 0},
		{"bytes=a-b", "", 416, 0, 0},
		{"bytes=99999999999999999999-", "", 416, 0, 0},
		{"lines=1-2", "", 416, 0, 0},
		{"", "", 200, 0, 300_000},
	} {
		headers := []string{"Range", c.header}
		if c.ifRange != "" {
			headers = append(headers, "If-Range", c.ifRange)
		}
		a := f.get(v1Download+file, "bob", headers...)
		if a.status != c.status {
			t.Errorf("%s, if %s: %d", c.header, c.ifRange, a.status)
			continue
		}
		if a.status != 416 && !bytes.Equal(a.body, content[c.from:c.to]) {
			t.Errorf("%s: %d bytes", c.header, len(a.body))
		}
		if want := "bytes " + strconv.Itoa(c.from) + "-" + strconv.Itoa(c.to-1) + "/300000"; a.status == 206 && a.header.Get("Content-Range") != want {
			t.Errorf("%s: %s", c.header, a.header.Get("Content-Range"))
		}
		if a.status == 416 && a.header.Get("Content-Range") != "bytes */300000" && c.header != "bytes=a-b" && c.header != "lines=1-2" && c.header != "bytes=9-5" && !strings.Contains(c.header, "9999999999") {
			t.Errorf("%s: %s", c.header, a.header.Get("Content-Range"))
		}
	}
	a := f.get(v1Download+file, "bob", "Range", "bytes=0-9,200000-200009")
	_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	must(t, err)
	r := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, from := range []int{0, 200_000} {
		p, err := r.NextPart()
		must(t, err)
		b, err := io.ReadAll(p)
		if err != nil || !bytes.Equal(b, content[from:from+10]) || p.Header.Get("Content-Type") != "video/mp4" {
			t.Errorf("part at %d: %d bytes, %v", from, len(b), err)
		}
	}
	for _, tag := range []string{etag, `"x", ` + etag, "*"} {
		if a := f.get(v1Download+file, "bob", "If-None-Match", tag); a.status != 304 || len(a.body) > 0 || a.header.Get("Content-Disposition") != "" && a.header.Get("Content-Length") != "" {
			t.Errorf("If-None-Match %s: %d", tag, a.status)
		}
	}
	if a := f.get(v1Download+file, "bob", "If-Match", `"other"`); a.status != 412 {
		t.Errorf("If-Match: %d", a.status)
	}
}

// FuzzRange: whatever is asked for, the answer is a part of the file, all of
// it, or a refusal, and never more than the file many times over.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-5,0-3", "bytes=9-5", "bytes=", "x=1-2", "bytes=0-,0-,0-,0-"} {
		f.Add(s, `"a"`)
	}
	content := noise(1, 1000)
	d := simdisk.New(1)
	f.Fuzz(func(t *testing.T, header, ifRange string) {
		body, err := memoryContent(d, content)
		must(t, err)
		defer body.Close()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Range", header)
		r.Header.Set("If-Range", ifRange)
		w := httptest.NewRecorder()
		serve(echo.New().NewContext(r, w), body, "video/mp4", "inline", key{1}, "")
		switch got := w.Body.Bytes(); w.Code {
		case 200:
			if !bytes.Equal(got, content) {
				t.Errorf("%d bytes", len(got))
			}
		case 206:
			if len(got) > 1000+len(header)*200 {
				t.Errorf("%d bytes of 1000 for %q", len(got), header)
			}
			if w.Header().Get("Content-Range") != "" && !bytes.Contains(content, got) {
				t.Error("not a part of the file")
			}
		case 416:
		default:
			t.Errorf("status %d", w.Code)
		}
	})
}
