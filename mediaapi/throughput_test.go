package mediaapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
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
// HTTP and HTTPS on the loopback interface, with files of 100 MiB. The two take
// turns, and the medians of their times and of the times of the CPU, client
// included, are reported: on a machine that has other work, the latter say
// more.
//
//	go test ./mediaapi -run XXX -bench Throughput -benchtime 15x
func BenchmarkThroughput(b *testing.B) {
	f := newServer(b, func(c *Config) {
		c.MaxUpload = 2 * bigFile
		blobs, err := blob.Open(b.TempDir(), blob.Options{})
		must(b, err)
		c.Blobs = blobs
	})
	content := noise(1, bigFile)
	file := f.upload(content, "application/octet-stream", "")
	for _, scheme := range []string{"http", "https"} {
		plain, ours := plainServer(b), f.http
		if scheme == "https" {
			ours = httptest.NewUnstartedServer(f.http.Config.Handler)
			ours.StartTLS()
			defer ours.Close()
			plain.StartTLS()
		} else {
			plain.Start()
		}
		defer plain.Close()
		b.Run(scheme+"/up", func(b *testing.B) {
			compare(b,
				func() { answerOf(b, plain.Client(), "POST", plain.URL, newReader(content)) },
				func() { answerOf(b, ours.Client(), "POST", ours.URL+v3+"upload", newReader(content)) })
		})
		b.Run(scheme+"/down", func(b *testing.B) {
			compare(b,
				func() { whole(b, answerOf(b, plain.Client(), "GET", plain.URL+"/file", nil)) },
				func() { whole(b, answerOf(b, ours.Client(), "GET", ours.URL+v1Download+file, nil)) })
		})
	}
}

func whole(b *testing.B, n int64) {
	if n != bigFile {
		b.Fatalf("%d bytes", n)
	}
}

// compare runs two in turn, each first every other time.
func compare(b *testing.B, runs ...func()) {
	var wall, used [2][]float64
	for i := 0; b.Loop(); i++ {
		for j := range 2 {
			which := (i + j) % 2
			began, before := time.Now(), cpuTime(b)
			runs[which]()
			wall[which] = append(wall[which], time.Since(began).Seconds())
			used[which] = append(used[which], (cpuTime(b) - before).Seconds())
		}
	}
	plain, ours := median(wall[0]), median(wall[1])
	b.ReportMetric(0, "ns/op") // both together: says nothing
	b.ReportMetric(bigFile/1e6/plain, "plain-MB/s")
	b.ReportMetric(bigFile/1e6/ours, "parley-MB/s")
	b.ReportMetric(plain/ours, "ratio")
	b.ReportMetric(median(used[0])*1000, "plain-cpu-ms")
	b.ReportMetric(median(used[1])*1000, "parley-cpu-ms")
}

func median(v []float64) float64 {
	sort.Float64s(v)
	return v[len(v)/2]
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
