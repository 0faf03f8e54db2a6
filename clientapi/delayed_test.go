package clientapi

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"parley/internal/await"
	"parley/room"
)

const delayed4140 = c0 + "/unstable/org.matrix.msc4140"

// count is how many events of a type a room's timeline has.
func (c *client) count(room, typ string) (n int) {
	c.t.Helper()
	for _, ev := range c.get(rp(room, "/messages") + "?dir=b&limit=100").ok().list("chunk") {
		if ev.(map[string]any)["type"] == typ {
			n++
		}
	}
	return n
}

func TestDelayedEventsOfToday(t *testing.T) {
	s := newServer(t)
	must(t, s.rooms.Start())
	alice := s.register("alice")
	id := alice.createRoom(nil)
	later := func(path string, ms int) string {
		return alice.put(rp(id, path)+fmt.Sprintf("?org.matrix.msc4140.delay=%d", ms), obj{"x": path}).ok().str("delay_id")
	}
	msg := later("/send/m.x/t", 5000)
	if again := later("/send/m.x/t", 5000); again != msg {
		t.Error("the same transaction gives another event")
	}
	if again := alice.put(rp(id, "/send/m.x/t")+"?org.matrix.msc4140.delay=9", nil).ok().str("delay_id"); again != msg {
		t.Error("the same transaction, said shorter, gives another event")
	}
	state := later("/state/m.y/k", 60_000)
	list := alice.get(delayed4140 + "/delayed_events").ok()
	if n := len(list.list("delayed_events")); n != 2 {
		t.Fatalf("%d scheduled", n)
	}
	first := list.at("delayed_events", 0).(map[string]any)
	if first["delay_id"] != msg || first["room_id"] != id || first["type"] != "m.x" || first["delay_ms"] != 5000.0 ||
		first["scheduled_at"] != float64(s.clock.Now().UnixMilli()) || first["state_key"] != nil || first["finalised_ts"] != nil {
		t.Errorf("listed as %v", first)
	}
	if second := list.at("delayed_events", 1).(map[string]any); second["delay_id"] != state || second["state_key"] != "k" {
		t.Errorf("listed as %v", second)
	}

	// Whoever has the ID may restart: no token.
	s.clock.Advance(4 * time.Second)
	s.send("POST", p(delayed4140+"/delayed_events/%s/restart", msg), "", nil).ok()
	s.clock.Advance(4999 * time.Millisecond)
	s.clock.Wait()
	if n := alice.count(id, "m.x"); n != 0 {
		t.Fatal("sent early")
	}
	s.clock.Advance(time.Millisecond)
	await.Until(t, "sent", func() bool { return alice.count(id, "m.x") == 1 })
	done := alice.get(p(delayed4140+"/delayed_events/%s", msg)).ok()
	ev := alice.get(rp(id, "/event/%s", done.str("event_id"))).ok()
	if ev.str("unsigned", "org.matrix.msc4140.delay_id") != msg || ev.at("unsigned", "transaction_id") != nil {
		t.Errorf("the sender gets %s", ev.Raw)
	}
	if got := done.at("finalised_ts"); got != float64(s.clock.Now().UnixMilli()) {
		t.Errorf("finalised at %v", got)
	}
	// Clients of today know no other answer than this for what is over.
	for _, action := range []string{"restart", "cancel"} {
		s.send("POST", p(delayed4140+"/delayed_events/%s/%s", msg, action), "", nil).fails(404, "M_NOT_FOUND")
	}
	s.send("POST", p(delayed4140+"/delayed_events/%s/send", msg), "", nil).ok()

	// The action in the body.
	body := p(delayed4140+"/delayed_events/%s", state)
	s.send("POST", body, "", obj{"action": "dance"}).fails(400, "M_INVALID_PARAM")
	s.send("POST", body, "", obj{}).fails(400, "M_MISSING_PARAM")
	s.send("POST", body, "", obj{"action": "restart"}).ok()
	alice.post(body, obj{"action": "send"}).ok()
	alice.get(rp(id, "/state/m.y/k")).ok()
	s.send("POST", body+"/cancel", "", nil).fails(404, "M_NOT_FOUND")
	s.send("POST", body+"/dance", "", nil).fails(404, "M_UNRECOGNIZED")
	s.send("POST", p(delayed4140+"/delayed_events/%s/send", "unknown"), "", nil).fails(404, "M_NOT_FOUND")

	gone := later("/send/m.x/u", 5000)
	s.send("POST", p(delayed4140+"/delayed_events/%s/cancel", gone), "", nil).ok()
	s.send("POST", p(delayed4140+"/delayed_events/%s/cancel", gone), "", nil).ok()
	s.clock.Advance(time.Hour)
	s.clock.Wait()
	if n := len(alice.get(delayed4140 + "/delayed_events").ok().list("delayed_events")); n != 0 {
		t.Errorf("%d scheduled in the end", n)
	}
	if n := alice.count(id, "m.x"); n != 1 {
		t.Errorf("%d sent", n)
	}
}

func TestDelayedEventLimits(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	id := alice.createRoom(nil)
	path := rp(id, "/send/m.x/%s", "t")
	for _, bad := range []string{"0", "-1", "x", "", "1.5", "1e3"} {
		alice.put(path+"?org.matrix.msc4140.delay="+bad, obj{}).fails(400, "M_INVALID_PARAM")
	}
	a := alice.put(path+"?org.matrix.msc4140.delay=86400001", obj{}).fails(400, "M_UNKNOWN")
	if a.str("org.matrix.msc4140.errcode") != "M_MAX_DELAY_EXCEEDED" || a.at("org.matrix.msc4140.max_delay") != 86400000.0 {
		t.Errorf("too late: %s", a.Raw)
	}
	alice.put(path+"?org.matrix.msc4140.delay=99999999999999999999", obj{}).fails(400, "M_INVALID_PARAM")
	bob.put(path+"?org.matrix.msc4140.delay=1000", obj{}).fails(403, "M_FORBIDDEN")
	alice.put(rp(id, "/state/m.room.member/%s", bob.ID)+"?org.matrix.msc4140.delay=1000", obj{"membership": "invite"}).fails(400, "M_INVALID_PARAM")
	alice.put(rp(id, "/state/m.room.create/")+"?org.matrix.msc4140.delay=1000", obj{}).fails(400, "M_INVALID_PARAM")
	for i := range room.MaxScheduled {
		alice.put(rp(id, "/send/m.x/%s", fmt.Sprint("n", i))+"?org.matrix.msc4140.delay=90000", obj{}).ok()
	}
	a = alice.put(rp(id, "/send/m.x/more")+"?org.matrix.msc4140.delay=90000", obj{}).fails(429, "M_LIMIT_EXCEEDED")
	if a.Header.Get("Retry-After") != "90" {
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	}
	caps := alice.get(v3 + "/capabilities").ok()
	for _, name := range []string{"m.delayed_events", "org.matrix.msc4140.delayed_events"} {
		if caps.at("capabilities", name, "max_scheduled") != 100.0 || caps.at("capabilities", name, "max_delay_ms") != 86400000.0 {
			t.Errorf("%s: %v", name, caps.at("capabilities", name))
		}
	}
}

// The form of the proposal: an endpoint of its own, and management by the owner
// only.
func TestDelayedEventsProposed(t *testing.T) {
	for prefix, path := range map[string]string{v3: v1, delayed4140: delayed4140} {
		s := newServer(t)
		alice, bob := s.register("alice"), s.register("bob")
		id := alice.createRoom(obj{"preset": "public_chat"})
		bob.join(id)
		put := p(prefix+"/rooms/%s/delayed_event/m.x/%s", id, "t")
		alice.put(put, obj{"content": obj{}}).fails(400, "M_BAD_JSON")
		alice.put(put, obj{"delay_ms": 5}).fails(400, "M_BAD_JSON")
		alice.put(put, obj{"delay_ms": -5, "content": obj{}}).fails(400, "M_INVALID_PARAM")
		alice.put(put, obj{"delay_ms": 86400001, "content": obj{}}).fails(403, "M_FORBIDDEN")
		msg := alice.put(put, obj{"delay_ms": 5000, "content": obj{"a": 1}}).ok().str("delay_id")
		if again := alice.put(put, obj{"delay_ms": 5000, "content": obj{"a": 1}}).ok().str("delay_id"); again != msg {
			t.Error("the same transaction gives another event")
		}
		state := alice.put(p(prefix+"/rooms/%s/delayed_event/m.y/%s", id, "u"), obj{"delay_ms": 5000, "state_key": "", "content": obj{}}).ok().str("delay_id")
		one := p(path+"/delayed_events/%s", state)
		if a := alice.get(one).ok(); a.at("state_key") != "" || a.at("finalised_ts") != nil {
			t.Errorf("%s", a.Raw)
		}
		bob.get(one).fails(404, "M_NOT_FOUND")
		s.send("GET", one, "", nil).fails(401, "M_MISSING_TOKEN")
		if path == v1 {
			s.send("POST", one+"/send", "", nil).fails(401, "M_MISSING_TOKEN")
			bob.post(one+"/send", obj{}).fails(404, "M_NOT_FOUND")
		}
		alice.post(one+"/send", obj{}).ok()
		alice.get(rp(id, "/state/m.y/")).ok()
		alice.post(one+"/send", obj{}).ok()
		if path == v1 {
			alice.post(one+"/restart", obj{}).fails(409, "M_UNKNOWN")
			alice.post(one+"/cancel", obj{}).fails(409, "M_UNKNOWN")
		}
		alice.post(p(path+"/delayed_events/%s/cancel", msg), obj{}).ok()
		if a := alice.get(p(path+"/delayed_events/%s", msg)).ok(); a.at("finalised_ts") == nil || a.at("event_id") != nil || a.at("error") != nil {
			t.Errorf("cancelled: %s", a.Raw)
		}
	}
}

// A client in a call restarts often; a stranger who guesses is slowed down.
func TestDelayedEventRates(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Settings.RateLimits = true })
	alice := s.register("alice")
	id := alice.createRoom(nil)
	ev := alice.put(rp(id, "/send/m.x/t")+"?org.matrix.msc4140.delay=60000", obj{}).ok().str("delay_id")
	restart := p(delayed4140+"/delayed_events/%s/restart", ev)
	for range 20 {
		alice.post(restart, nil).ok()
		s.send("POST", restart, "", nil).ok()
	}
	spent := 0
	for ; spent < 2000; spent++ {
		if s.send("POST", p(delayed4140+"/delayed_events/%s/restart", fmt.Sprint(spent)), "", nil).Status == http.StatusTooManyRequests {
			break
		}
	}
	if spent >= 2000 {
		t.Error("guessing isn't limited")
	}
	alice.post(restart, nil).ok()

	// Somebody who has the ID and hammers on it.
	s.clock.Advance(20 * time.Second)
	for spent = 0; spent < 200; spent++ {
		if s.send("POST", restart, "", nil).Status == http.StatusTooManyRequests {
			break
		}
	}
	if spent < 20 || spent >= 200 {
		t.Errorf("%d restarts of one event at once", spent)
	}
	alice.post(restart, nil).ok()
}

func TestStickyParameter(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	id := alice.createRoom(nil)
	for _, bad := range []string{"-1", "x", ""} {
		alice.put(rp(id, "/send/m.x/t")+"?org.matrix.msc4354.sticky_duration_ms="+bad, obj{}).fails(400, "M_INVALID_PARAM")
	}
	for asked, want := range map[string]float64{"60000": 60_000, "3600001": 3_600_000} {
		ev := alice.put(rp(id, "/send/m.x/%s", asked)+"?org.matrix.msc4354.sticky_duration_ms="+asked, obj{}).ok().str("event_id")
		a := alice.get(rp(id, "/event/%s", ev)).ok()
		if a.at("msc4354_sticky", "duration_ms") != want || a.at("unsigned", "msc4354_sticky_duration_ttl_ms") != want {
			t.Errorf("%s", a.Raw)
		}
	}
	// Both at once: sticky from when it is sent.
	must(t, s.rooms.Start())
	d := alice.put(rp(id, "/send/m.z/t")+"?org.matrix.msc4354.sticky_duration_ms=60000&org.matrix.msc4140.delay=600000", obj{}).ok().str("delay_id")
	s.clock.Advance(10 * time.Minute)
	await.Until(t, "sent", func() bool { return alice.count(id, "m.z") == 1 })
	ev := alice.get(p(v1+"/delayed_events/%s", d)).ok().str("event_id")
	if ttl := alice.get(rp(id, "/event/%s", ev)).ok().at("unsigned", "msc4354_sticky_duration_ttl_ms"); ttl != 60_000.0 {
		t.Errorf("ttl %v", ttl)
	}
	s.clock.Advance(time.Minute)
	if ttl := alice.get(rp(id, "/event/%s", ev)).ok().at("unsigned", "msc4354_sticky_duration_ttl_ms"); ttl != nil {
		t.Errorf("ttl %v at the end", ttl)
	}
	old := alice.createRoom(obj{"room_version": "2"})
	alice.put(rp(old, "/send/m.x/t")+"?org.matrix.msc4354.sticky_duration_ms=1000", obj{}).fails(400, "M_UNSUPPORTED_ROOM_VERSION")
}

// Who is in a room may be in a call.
func TestCallPowers(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	id := alice.createRoom(obj{"preset": "public_chat"})
	bob.join(id)
	key := "_" + bob.ID + "_DEV_m.call"
	bob.put(p(v3+"/rooms/%s/state/org.matrix.msc3401.call.member/%s", id, key), obj{"application": "m.call"}).ok()
	bob.put(rp(id, "/send/org.matrix.msc4143.rtc.member/t")+"?org.matrix.msc4354.sticky_duration_ms=1000", obj{}).ok()
	versions := s.send("GET", c0+"/versions", "", nil).ok()
	for _, f := range []string{"org.matrix.msc4140", "org.matrix.msc4354", "org.matrix.msc4222"} {
		if versions.at("unstable_features", f) != true {
			t.Errorf("no %s", f)
		}
	}
	if versions.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("widgets can't read /versions")
	}
}
