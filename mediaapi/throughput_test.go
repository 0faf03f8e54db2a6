package mediaapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"parley/storage/blob"
)

// bigFile is the size that the benchmarks move.
const bigFile = 100 << 20

// plainServer is what the repository is compared with: net/http's file server,
// and uploads that are written to a file, synced and renamed.
func plainServer(b *testing.B) *httptest.Server {
	dir := b.TempDir()
	files := http.FileServer(http.Dir(dir))
	return httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			files.ServeHTTP(w, r)
			return
		}
		tmp, err := os.CreateTemp(dir, "new")
		if err == nil {
			_, err = io.Copy(tmp, r.Body)
		}
		if err == nil {
			err = tmp.Sync()
		}
		if err == nil {
			err = tmp.Close()
		}
		if err == nil {
			err = os.Rename(tmp.Name(), filepath.Join(dir, "file"))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
}

// BenchmarkThroughput compares the repository with a plain file server, over
// HTTP and HTTPS on the loopback interface, with files of 100 MiB:
//
//	go test ./mediaapi -run XXX -bench Throughput -benchtime 10x
func BenchmarkThroughput(b *testing.B) {
	f := newServer(b, func(c *Config) {
		c.MaxUpload = 2 * bigFile
		blobs, err := blob.Open(b.TempDir(), blob.Options{})
		must(b, err)
		c.Blobs = blobs
	})
	content := noise(1, bigFile)
	secure := httptest.NewUnstartedServer(f.http.Config.Handler)
	secure.StartTLS()
	defer secure.Close()
	for _, scheme := range []string{"http", "https"} {
		plain := plainServer(b)
		ours := f.http
		if scheme == "https" {
			ours = secure
			plain.StartTLS()
		} else {
			plain.Start()
		}
		b.Run(scheme+"/up/plain", func(b *testing.B) { up(b, plain.Client(), plain.URL, content) })
		b.Run(scheme+"/up/parley", func(b *testing.B) { up(b, ours.Client(), ours.URL+v3+"upload", content) })
		file := f.upload(content, "application/octet-stream", "")
		b.Run(scheme+"/down/plain", func(b *testing.B) { down(b, plain.Client(), plain.URL+"/file") })
		b.Run(scheme+"/down/parley", func(b *testing.B) { down(b, ours.Client(), ours.URL+v1Download+file) })
		plain.Close()
	}
}

func up(b *testing.B, c *http.Client, url string, content []byte) {
	b.SetBytes(int64(len(content)))
	defer cpu(b)()
	for b.Loop() {
		answerOf(b, c, "POST", url, newReader(content))
	}
}

func down(b *testing.B, c *http.Client, url string) {
	b.SetBytes(bigFile)
	defer cpu(b)()
	for b.Loop() {
		if n := answerOf(b, c, "GET", url, nil); n != bigFile {
			b.Fatalf("%d bytes", n)
		}
	}
}

// cpu reports what the process used, client included: on a machine that has
// other work it says more than the time that passed.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Milliseconds())/float64(b.N), "cpu-ms/op") }
}

// newReader hides what a reader of memory could do faster than a network.
func newReader(content []byte) io.Reader {
	return struct{ io.Reader }{io.NewSectionReader(readerAt(content), 0, int64(len(content)))}
}

type readerAt []byte

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return copy(p, r[off:]), nil }

func answerOf(b *testing.B, c *http.Client, method, url string, body io.Reader) int64 {
	r, err := http.NewRequest(method, url, body)
	must(b, err)
	if body != nil {
		r.ContentLength = bigFile
	}
	r.Header.Set("Authorization", "Bearer alice")
	res, err := c.Do(r)
	must(b, err)
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	must(b, err)
	if res.StatusCode != http.StatusOK {
		b.Fatalf("status %d", res.StatusCode)
	}
	return n
}
