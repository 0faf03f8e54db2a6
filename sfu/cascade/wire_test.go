package cascade

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDecode(t *testing.T) {
	id := pid("x")
	for _, c := range []struct {
		name string
		in   string
		ok   bool
	}{
		{"a part", `{"k":"parts","r":1,"ver":2,"parts":[{"p":1,"id":"` + id + `","ts":[{"t":2,"mime":"video/VP8","v":true,"ls":[{"q":0,"w":1},{"q":2}]}]}]}`, true},
		{"unknown members", `{"k":"new","x":1}`, true},
		{"not JSON", `{"k":`, false},
		{"an identity that isn't a hash", `{"k":"parts","parts":[{"p":1,"id":"@alice:example.org:PHONE"}]}`, false},
		{"no identity", `{"k":"parts","parts":[{"p":1}]}`, false},
		{"two tracks of one number", `{"k":"parts","parts":[{"p":1,"id":"` + id + `","ts":[{"t":2,"mime":""},{"t":2,"mime":""}]}]}`, false},
		{"too many tracks", `{"k":"parts","parts":[{"p":1,"id":"` + id + `","ts":[{"t":1},{"t":2},{"t":3},{"t":4},{"t":5}]}]}`, false},
		{"too many layers", `{"k":"parts","parts":[{"p":1,"id":"` + id + `","ts":[{"t":1,"ls":[{},{},{},{}]}]}]}`, false},
		{"a layer of no quality", `{"k":"parts","parts":[{"p":1,"id":"` + id + `","ts":[{"t":1,"ls":[{"q":3}]}]}]}`, false},
		{"an unknown source", `{"k":"parts","parts":[{"p":1,"id":"` + id + `","ts":[{"t":1,"src":5}]}]}`, false},
		{"a flow without SSRC", `{"k":"flow","flows":[{"l":0}]}`, false},
		{"a flow of no layer", `{"k":"flow","flows":[{"l":3,"s":1}]}`, false},
		{"a long alias", `{"k":"open","alias":"` + strings.Repeat("a", 65) + `"}`, false},
		{"a large number", `{"k":"open","r":4294967296}`, false},
		{"too long", `{"k":"` + strings.Repeat("a", maxWire) + `"}`, false},
	} {
		if _, err := decode([]byte(c.in)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzDecode: what is taken is within the limits and survives being written.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"k":"parts","r":1,"ver":2,"end":true,"parts":[{"p":1,"id":"` + pid("x") + `","ts":[{"t":2,"mime":"video/VP8","ls":[{"q":1,"b":3}]}]}],"gone":[3]}`))
	f.Add([]byte(`{"k":"flow","flows":[{"l":1,"s":2,"x":3}],"blob":"AAAA","to":["x"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(m.encode())
		if err != nil && len(m.encode()) <= maxWire {
			t.Fatalf("what was taken is refused: %v", err)
		}
		if err == nil && !reflect.DeepEqual(m.encode(), again.encode()) {
			t.Fatal("a message changes on its way")
		}
		r := newReplica(3)
		r.apply(m)
		if len(r.parts) > 3 {
			t.Fatal("too many participants")
		}
	})
}

// FuzzOffer: descriptions of strangers.
func FuzzOffer(f *testing.F) {
	f.Add([]byte(`{"v":1,"nonce":"n","ufrag":"abcd","pwd":"0123456789012345678901","candidates":["1.2.3.4:5","[::1]:6"]}`))
	s := &Service{cfg: Config{Guard: anywhere{}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Offer
		if json.Unmarshal(b, &o) == nil && o.sound() && len(s.addresses(o.Candidates)) > maxCandidates {
			t.Fatal("too many addresses")
		}
	})
}

// TestReplica: what is told arrives; what is missing is asked for.
func TestReplica(t *testing.T) {
	one, two := part{Part: 1, PID: pid("1")}, part{Part: 2, PID: pid("2"), Tracks: []track{{Track: 3, Mime: "audio/opus"}}}
	l, r := newLedger(), newReplica(100)
	send := func(ms []*message) (c changes, resync bool) {
		for _, m := range ms {
			got, err := decode(m.encode())
			must(t, err)
			x, again := r.apply(got)
			c.parts, c.gone, resync = append(c.parts, x.parts...), append(c.gone, x.gone...), resync || again
		}
		return c, resync
	}
	l.set(map[uint32]part{1: one})
	if c, _ := send(l.snapshot()); len(c.parts) != 1 || len(r.parts) != 1 {
		t.Fatalf("snapshot: %+v", c)
	}
	if c, _ := send(l.set(map[uint32]part{1: one, 2: two})); len(c.parts) != 1 || c.parts[0].Part != 2 {
		t.Fatalf("a new one: %+v", c)
	}
	if ms := l.set(map[uint32]part{1: one, 2: two}); len(ms) != 0 {
		t.Error("nothing has changed")
	}
	if _, resync := send([]*message{l.digest()}); resync {
		t.Error("the digests differ")
	}
	l.set(map[uint32]part{2: two}) // lost
	two.Tracks = nil
	if c, resync := send(l.set(map[uint32]part{2: two})); !resync || len(c.parts) != 0 {
		t.Errorf("a gap: %+v, resync %v", c, resync)
	}
	two.PID = pid("3")
	if _, resync := send(append(l.set(map[uint32]part{2: two}), l.digest())); resync {
		t.Error("asked twice")
	}
	c, _ := send(l.snapshot())
	if len(c.gone) != 1 || c.gone[0] != 1 || len(c.parts) != 1 || !reflect.DeepEqual(r.parts, l.parts) {
		t.Errorf("snapshot: %+v", c)
	}
	again := l.snapshot()
	if c, _ := send(append(again, again...)); len(c.parts)+len(c.gone) != 0 {
		t.Errorf("the same again: %+v", c)
	}
	r.parts[9] = one // as if by a fault
	if _, resync := send([]*message{l.digest()}); !resync {
		t.Error("the digests agree")
	}
	many := map[uint32]part{}
	for n := range uint32(300) {
		many[n] = part{Part: n, PID: pid("x")}
	}
	ms := l.set(many)
	send(append(ms, l.snapshot()...))
	if len(r.parts) != 100 || len(ms) < 2 {
		t.Errorf("%d participants in %d messages", len(r.parts), len(ms))
	}
	if c, _ := send(func() []*message { l.set(nil); return l.snapshot() }()); len(c.gone) != 100 {
		t.Errorf("an empty snapshot leaves %d", len(r.parts))
	}
}

// TestMachine: the states of a link in virtual time.
func TestMachine(t *testing.T) {
	start := time.Unix(1_000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	type step struct {
		at    float64
		ev    event
		need  int // 1 needed, -1 not
		do    action
		state state
	}
	for name, steps := range map[string][]step{
		"up and idle": {
			{0, evTick, -1, doNothing, idle}, {1, evTick, 1, doAsk, asking}, {2, evAnswered, 0, doNothing, connecting}, {3, evHello, 0, doNothing, up},
			{100, evTick, 1, doNothing, up}, {101, evTick, -1, doNothing, up}, {130, evTick, 0, doNothing, up}, {131, evTick, 0, doDrop, idle},
		},
		"needed again in time": {
			{0, evTick, 1, doAsk, asking}, {0, evOffered, 0, doNothing, connecting}, {0, evHello, 0, doNothing, up},
			{1, evTick, -1, doNothing, up}, {20, evTick, 1, doNothing, up}, {40, evTick, 0, doNothing, up},
		},
		"refused, with longer and longer breaks": {
			{0, evTick, 1, doAsk, asking}, {1, evRefused, 0, doDrop, waiting}, {1.9, evTick, 0, doNothing, waiting}, {2.1, evTick, 0, doAsk, asking},
			{3, evRefused, 0, doDrop, waiting}, {4.9, evTick, 0, doNothing, waiting}, {5.1, evTick, 0, doAsk, asking},
		},
		"never connects": {
			{0, evTick, 1, doAsk, asking}, {1, evAnswered, 0, doNothing, connecting}, {15.9, evTick, 0, doNothing, connecting}, {16, evTick, 0, doDrop, waiting},
			{16, evLost, 0, doNothing, waiting}, {17.1, evTick, 0, doAsk, asking},
		},
		"no answer at all": {{0, evTick, 1, doAsk, asking}, {24, evTick, 0, doNothing, asking}, {25, evTick, 0, doDrop, waiting}},
		"lost":             {{0, evOffered, 0, doNothing, connecting}, {1, evHello, 1, doNothing, up}, {2, evTick, 1, doNothing, up}, {60, evLost, 0, doDrop, waiting}, {61.1, evTick, 0, doAsk, asking}},
		"dialled meanwhile": {
			{0, evTick, 1, doAsk, asking}, {1, evRefused, 0, doDrop, waiting}, {1.2, evOffered, 0, doNothing, connecting}, {1.3, evRefused, 0, doDrop, waiting},
		},
		"a server without a cascade": {{0, evTick, 1, doAsk, asking}, {1, evAbsent, 0, doDrop, waiting}, {3_000, evTick, 1, doNothing, waiting}, {3_602, evTick, 1, doAsk, asking}},
		"bye":                        {{0, evOffered, 0, doNothing, connecting}, {1, evHello, -1, doNothing, up}, {2, evBye, 0, doDrop, idle}, {3, evHello, 0, doNothing, idle}},
		"not needed any more":        {{0, evTick, 1, doAsk, asking}, {1, evRefused, 0, doDrop, waiting}, {1.5, evTick, -1, doNothing, waiting}, {3, evTick, 0, doNothing, idle}},
	} {
		m := machine{jitter: func() float64 { return 0.5 }}
		for i, s := range steps {
			var got action
			if s.need != 0 && s.ev == evTick {
				got = m.need(s.need > 0, at(s.at))
			} else {
				got = m.step(s.ev, at(s.at))
			}
			if got != s.do || m.state != s.state {
				t.Errorf("%s, step %d: action %d in state %d, want %d in %d", name, i, got, m.state, s.do, s.state)
				break
			}
			if next := m.next(); m.state != idle && m.needed && m.state != up && !next.After(at(s.at)) {
				t.Errorf("%s, step %d: nothing is due", name, i)
			}
		}
	}
}
