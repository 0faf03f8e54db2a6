package sync

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"testing"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"parley/internal/await"
	"parley/internal/mxid"
	"parley/room"
)

// discard is a response that goes nowhere.
type discard struct {
	h http.Header
	n int
}

func (d *discard) Header() http.Header { return d.h }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(b []byte) (int, error) {
	d.n += len(b)
	return len(b), nil
}

// run does one sync without keeping the answer and returns its size.
func (c *client) run(q url.Values) int {
	req := httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/?"+q.Encode(), nil)
	rec := &discard{h: http.Header{}}
	must(c.r.t, c.r.sync.Sync(echo.New().NewContext(req, rec), c.who))
	return rec.n
}

// manyRooms makes rooms with alice and some others in them, and 20 messages.
func (r *rig) manyRooms(rooms, members, messages int) []mxid.RoomID {
	r.t.Helper()
	users := make([]mxid.UserID, members-1)
	for i := range users {
		users[i] = mxid.NewUserID(fmt.Sprintf("m%d", i), serverName)
		r.register(users[i])
	}
	out := make([]mxid.RoomID, rooms)
	for i := range out {
		out[i] = r.create(room.CreateParams{Preset: "public_chat", Name: fmt.Sprintf("room %d", i)})
	}
	var g errgroup.Group
	g.SetLimit(32)
	for _, id := range out {
		g.Go(func() error {
			for _, u := range users {
				if err := r.rooms.Join(r.ctx, room.MembershipParams{Room: id, Sender: u, Target: u}); err != nil {
					return err
				}
			}
			for i := range messages {
				u := users[i%min(len(users), 8)]
				_, err := r.rooms.Send(r.ctx, room.SendParams{Room: id, Sender: u, Type: "m.room.message",
					Content: []byte(fmt.Sprintf(`{"msgtype":"m.text","body":"message %d, of the length that people usually write in chats"}`, i))})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(r.t, g.Wait())
	return out
}

// BenchmarkIncremental is a sync of a user with 2,000 rooms after one message.
func BenchmarkIncremental(b *testing.B) {
	r := newRig(b)
	rooms := r.manyRooms(2000, 2, 1)
	a := r.as(alice, "A")
	a.sync()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		r.say(rooms[i%len(rooms)], bobIn(r, rooms[i%len(rooms)]), "x")
		since := a.since
		a.sync()
		b.StartTimer()
		a.run(url.Values{"since": {since}})
	}
}

func bobIn(*rig, mxid.RoomID) mxid.UserID { return mxid.NewUserID("m0", serverName) }

// BenchmarkInitial is a lazy initial sync of many rooms with 200 members each,
// reported for 500 rooms.
func BenchmarkInitial(b *testing.B) {
	const rooms = 100
	r := newRig(b)
	r.manyRooms(rooms, 200, 20)
	a := r.as(alice, "A")
	q := url.Values{"filter": {`{"room":{"timeline":{"limit":20},"state":{"lazy_load_members":true}}}`}}
	for _, cold := range []bool{true, false} {
		b.Run(fmt.Sprintf("cold=%v", cold), func(b *testing.B) {
			n := 0
			for b.Loop() {
				if cold {
					b.StopTimer()
					r.restart()
					b.StartTimer()
				}
				n = a.run(q)
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)*500/rooms, "ms/500rooms")
			b.ReportMetric(float64(n)/rooms, "B/room")
		})
	}
}

// BenchmarkFanOut is one message in a room where 1,000 clients wait.
func BenchmarkFanOut(b *testing.B) {
	const clients = 1000
	r := newRig(b)
	id := r.manyRooms(1, clients, 1)[0]
	cs := make([]*client, clients-1)
	since := make([]string, len(cs))
	for i := range cs {
		cs[i] = r.as(mxid.NewUserID(fmt.Sprintf("m%d", i), serverName), "D")
		cs[i].sync()
		since[i] = cs[i].since
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		var g errgroup.Group
		for i, c := range cs {
			g.Go(func() error { _ = c.run(url.Values{"since": {since[i]}, "timeout": {"60000"}}); return nil })
		}
		await.Until(b, "all wait", func() bool { return waiting(r) == len(cs) })
		b.StartTimer()
		r.say(id, alice, "x")
		_ = g.Wait()
		b.StopTimer()
		now := Token{Pos: r.commit.Head(), Typing: 1 << 62, ToDevice: r.commit.Head()}.String()
		for i := range since {
			since[i] = now
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(cs)), "us/client")
}

// TestIdleMemory keeps 10,000 syncs waiting and looks at what each costs.
func TestIdleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("needs 10,000 goroutines")
	}
	const n = 10_000
	r := newRig(t)
	a := r.as(alice, "A")
	a.sync()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	var g errgroup.Group
	e := echo.New()
	for range n {
		g.Go(func() error {
			req, err := http.NewRequest(http.MethodGet, "/?timeout=60000&since="+a.since, nil)
			if err != nil {
				return err
			}
			return r.sync.Sync(e.NewContext(req, &discard{h: http.Header{}}), a.who)
		})
	}
	await.Until(t, "all wait", func() bool { return waiting(r) == n })
	each := int(heap()-before) / n
	goroutines := runtime.NumGoroutine()
	r.say(r.create(room.CreateParams{}), alice, "wake up")
	must(t, g.Wait())
	t.Logf("%d bytes for each, %d goroutines in all", each, goroutines)
	if each > 24<<10 || goroutines > n+100 {
		t.Errorf("%d bytes for each waiting sync, %d goroutines", each, goroutines)
	}
}
