package node_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"parley/internal/config"
	"parley/internal/mxid"
	"parley/internal/node"
	"parley/keys/pgp"
	"parley/room"
)

// benchServer is a node on a disk, with a room of people.
func benchServer(b *testing.B, people int) (*node.Node, mxid.RoomID, []mxid.UserID) {
	b.Helper()
	c, err := config.Parse(`server_name = "bench.example"`)
	if err != nil {
		b.Fatal(err)
	}
	c.DataDir, c.ListenClient, c.ListenHTTPS, c.ListenMetrics = b.TempDir(), "127.0.0.1:0", "", ""
	c.CallsUDP, c.PasswordMemory = netip.AddrPort{}, 64<<10
	n, err := node.New(b.Context(), node.Options{Config: c, LogTo: &lockedBuffer{}})
	if err != nil {
		b.Fatal(err)
	}
	if err := n.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Close(context.Background()) })
	var who []mxid.UserID
	for i := range people {
		a, err := n.Users().Register(b.Context(), fmt.Sprint("user", i), "", false, false)
		if err != nil {
			b.Fatal(err)
		}
		who = append(who, a.UserID)
	}
	id, err := n.Rooms().Create(b.Context(), room.CreateParams{Creator: who[0], Preset: "public_chat"})
	if err != nil {
		b.Fatal(err)
	}
	for _, u := range who[1:] {
		if err := n.Rooms().Join(b.Context(), room.MembershipParams{Room: id, Sender: u, Target: u}); err != nil {
			b.Fatal(err)
		}
	}
	return n, id, who
}

// talk has one person send so many messages.
func talk(b *testing.B, n *node.Node, id mxid.RoomID, who mxid.UserID, events int) {
	b.Helper()
	content := []byte(`{"msgtype":"m.text","body":"` + strings.Repeat("something that somebody said ", 8) + `"}`)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range events / 64 {
				if _, err := n.Rooms().Send(context.Background(), room.SendParams{Room: id, Sender: who, Type: "m.room.message", Content: content}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func benchEvents() int {
	if n, err := strconv.Atoi(os.Getenv("PARLEY_BENCH_EVENTS")); err == nil {
		return n
	}
	return 10_000
}

// BenchmarkEraseAccount erases accounts of which one has sent
// PARLEY_BENCH_EVENTS events (10,000 if not set), the others nothing: "large-ms"
// is the time until it is gone, "p99-ms" that of the others. The aim is a
// second for 100,000 events.
func BenchmarkEraseAccount(b *testing.B) {
	const people = 30
	n, id, who := benchServer(b, people)
	talk(b, n, id, who[1], benchEvents())
	erase := func(u mxid.UserID) time.Duration {
		start := time.Now()
		if err := n.Users().Erase(context.Background(), u); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	for b.Loop() {
		var took []time.Duration
		for _, u := range who[2:] {
			took = append(took, erase(u))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(float64(erase(who[1]).Microseconds())/1000, "large-ms")
	}
}

// counter counts what is written.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// residentKB is the memory of this process that is in RAM now, or was at most.
func residentKB(b *testing.B, field string) int64 {
	b.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("no /proc")
	}
	_, rest, _ := strings.Cut(string(raw), field+":")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkExport writes the archive of somebody in a room with
// PARLEY_BENCH_EVENTS events, encrypted, for the second time, when the server's
// caches are as full as they get: "more-MB" is by how much the greatest memory
// of the process is above that. The aim is 64 MB, whatever the size.
func BenchmarkExport(b *testing.B) {
	n, id, who := benchServer(b, 2)
	talk(b, n, id, who[1], benchEvents())
	a, err := n.Users().Account(b.Context(), who[1])
	if err != nil {
		b.Fatal(err)
	}
	write := func() int64 {
		to, out := &pgp.Recipients{}, &counter{}
		if err := to.AddPassphrase("a long passphrase"); err != nil {
			b.Fatal(err)
		}
		enc, err := pgp.Encrypt(out, to, pgp.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(n.Exports().Write(b.Context(), enc, who[1], a.UID), enc.Close()); err != nil {
			b.Fatal(err)
		}
		return out.n
	}
	write()
	for b.Loop() {
		if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // the greatest memory from now on
			b.Skip("no /proc")
		}
		before, start := residentKB(b, "VmRSS"), time.Now()
		size := write()
		b.ReportMetric(float64(size)/1e6, "archive-MB")
		b.ReportMetric(float64(size)/1e6/time.Since(start).Seconds(), "MB/s")
		b.ReportMetric(float64(residentKB(b, "VmHWM")-before)/1000, "more-MB")
	}
}
