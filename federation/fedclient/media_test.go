package fedclient

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"parley/internal/httpx"
	"parley/internal/netguard"
)

func multipartAnswer(parts string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", `multipart/mixed; boundary="B"`)
		fmt.Fprint(rw, strings.ReplaceAll(parts, "\n", "\r\n"))
	}
}

const goodParts = "--B\nContent-Type: application/json\n\n{}\n--B\nContent-Type: image/png\nContent-Disposition: inline; filename=x.png\nContent-Transfer-Encoding: quoted-printable\n\nraw=3Dbytes\n--B--\n"

func readMedia(m *Media, err error) (string, error) {
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(m.Body)
	return string(b) + "|" + m.ContentType + "|" + m.ContentDisposition, errors.Join(err, m.Body.Close())
}

func TestDownloadMedia(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	w.handles(multipartAnswer(goodParts))
	got, err := readMedia(w.client.DownloadMedia(t.Context(), to, "me/dia", 11))
	if err != nil || got != "raw=3Dbytes|image/png|inline; filename=x.png" {
		t.Errorf("%q %v", got, err)
	}
	if s := w.last(); s.uri != "/_matrix/federation/v1/media/download/me%2Fdia?timeout_ms=20000" || s.origin != us {
		t.Errorf("%+v", s)
	}
	got, err = readMedia(w.client.DownloadThumbnail(t.Context(), to, "m", ThumbnailSize{32, 48, true, false}, 1000))
	if err != nil || !strings.HasPrefix(got, "raw=3Dbytes|") {
		t.Errorf("%q %v", got, err)
	}
	if s := w.last(); s.uri != "/_matrix/federation/v1/media/thumbnail/m?animated=false&height=48&method=crop&timeout_ms=20000&width=32" {
		t.Errorf("%+v", s)
	}
	if _, err = readMedia(w.client.DownloadMedia(t.Context(), to, "m", 10)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestBadMedia(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	for name, parts := range map[string]string{
		"truncated":      strings.TrimSuffix(goodParts, "\n--B--\n"),
		"one part":       "--B\nContent-Type: application/json\n\n{}\n--B--\n",
		"no parts":       "",
		"huge metadata":  "--B\n\n" + strings.Repeat("x", 200<<10) + "\n--B\n\nfile\n--B--\n",
		"other boundary": strings.ReplaceAll(goodParts, "--B", "--C"),
		"endless header": "--B\n" + strings.Repeat("X: y\n", 100_000) + "\n{}\n--B\n\nfile\n--B--\n",
	} {
		w.handles(multipartAnswer(parts))
		if got, err := readMedia(w.client.DownloadMedia(t.Context(), to, "m", 1<<20)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	w.handles(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		fmt.Fprint(rw, "hello")
	})
	var be *BadAnswerError
	if _, err := w.client.DownloadMedia(t.Context(), to, "m", 100); !errors.As(err, &be) {
		t.Errorf("%v", err)
	}
}

func TestMediaFallback(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	w.handles(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_matrix/federation") {
			httpx.WriteError(rw, httpx.Err(404, "M_UNRECOGNIZED", "?"))
			return
		}
		rw.Header().Set("Content-Type", "image/gif")
		fmt.Fprint(rw, "old")
	})
	got, err := readMedia(w.client.DownloadMedia(t.Context(), to, "m", 100))
	if err != nil || got != "old|image/gif|" {
		t.Errorf("%q %v", got, err)
	}
	if s := w.last(); s.origin != "" || s.uri != "/_matrix/media/v3/download/b.example:"+fmt.Sprint(w.port)+"/m?allow_redirect=false&allow_remote=false&timeout_ms=20000" {
		t.Errorf("%+v", s)
	}
	if _, err = readMedia(w.client.DownloadThumbnail(t.Context(), to, "m", ThumbnailSize{Width: 1, Height: 1}, 2)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	w.answers(404, `{"errcode":"M_NOT_FOUND"}`)
	before := w.count("/")
	var re *RemoteError
	if _, err := w.client.DownloadMedia(t.Context(), to, "m", 100); !errors.As(err, &re) || w.count("/") != before+1 {
		t.Errorf("a missing file was asked for twice: %v", err)
	}
}

func TestMediaLocation(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	location := ""
	w.handles(func(rw http.ResponseWriter, r *http.Request) {
		multipartAnswer("--B\nContent-Type: application/json\n\n{}\n--B\nLocation: "+location+"\n\n\n--B--\n")(rw, r)
	})
	w.wellKnown(func(rw http.ResponseWriter, r *http.Request) { // stands for a content network
		switch r.URL.Path {
		case "/.well-known/redirect":
			http.Redirect(rw, r, "/.well-known/file", http.StatusFound)
		case "/.well-known/down":
			http.Redirect(rw, r, "http://"+r.Host+"/.well-known/file", http.StatusFound)
		case "/.well-known/file":
			rw.Header().Set("Content-Type", "image/webp")
			fmt.Fprint(rw, "file")
		default:
			http.NotFound(rw, r)
		}
	})
	cdn := "https://" + string(w.server("cdn.example")) + "/.well-known/"
	for _, name := range []string{"file", "redirect"} {
		location = cdn + name
		if got, err := readMedia(w.client.DownloadMedia(t.Context(), to, "m", 100)); err != nil || got != "file|image/webp|" {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if s := w.last(); s.origin != "" {
			t.Error("the request to the content network is signed")
		}
	}
	w.names["inside.example"] = append(w.names["inside.example"], netip.MustParseAddr("10.0.0.1"))
	for _, bad := range []string{
		"http://" + string(w.server("cdn.example")) + "/.well-known/file", "ftp://x/", "/relative", "https://", "https://user:pw@cdn.example/", "::", cdn + "down", cdn + "missing",
		"https://inside.example/x", "https://10.0.0.1/x", "https://[::1]/x",
	} {
		location = bad
		if got, err := readMedia(w.client.DownloadMedia(t.Context(), to, "m", 100)); err == nil {
			t.Errorf("%s: %q", bad, got)
		}
	}
	location = "https://inside.example/x"
	if _, err := w.client.DownloadMedia(t.Context(), to, "m", 100); !errors.Is(err, netguard.ErrForbidden) {
		t.Errorf("%v", err)
	}
	location = cdn + "file"
	if _, err := readMedia(w.client.DownloadMedia(t.Context(), to, "m", 3)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

func FuzzMultipart(f *testing.F) {
	f.Add(strings.ReplaceAll(goodParts, "\n", "\r\n"), `multipart/mixed; boundary="B"`)
	f.Fuzz(func(t *testing.T, body, typ string) {
		a := &answer{header: http.Header{"Content-Type": {typ}}, body: io.NopCloser(strings.NewReader(body))}
		if p, err := filePart(a); err == nil {
			_, _ = io.Copy(io.Discard, p)
		}
	})
}
