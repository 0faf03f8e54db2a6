package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"parley/internal/mxid"
	"parley/storage"
)

func newKeyPrefix(family string) storage.Range { return storage.K(family).Prefix() }

type messages = map[mxid.UserID]map[mxid.DeviceID]json.RawMessage

func text(s string) json.RawMessage { return encode(map[string]string{"body": s}) }

// inbox reads the bodies of a device's messages.
func (f *fixture) inbox(u mxid.UserID, d mxid.DeviceID, since uint64) (bodies []string, next uint64) {
	f.n.t.Helper()
	events, next, err := f.ToDevice(ctx, f.uidOf(u), d, since, f.commit.Head(), 100_000)
	must(f.n.t, err)
	for _, raw := range events {
		var e struct {
			Sender  mxid.UserID
			Type    string
			Content struct{ Body string }
		}
		must(f.n.t, json.Unmarshal(raw, &e))
		bodies = append(bodies, e.Content.Body)
	}
	return bodies, next
}

func (f *fixture) wantInbox(u mxid.UserID, d mxid.DeviceID, want ...string) {
	f.n.t.Helper()
	if got, _ := f.inbox(u, d, 0); !slices.Equal(got, want) {
		f.n.t.Fatalf("messages %q, want %q", got, want)
	}
}

func TestSendToDevice(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone, laptop), f.user("bob", phone, laptop)
	l := f.hub.Listen(uint32(f.uidOf(bob)))
	defer l.Close()
	must(t, f.SendToDevice(ctx, alice, "PHONE\x001", "m.test", messages{bob: {phone: text("one"), "GONE": text("lost")}, "@nobody:here.example": {"*": text("lost")}}))
	select {
	case <-l.C:
	default:
		t.Error("not woken")
	}
	must(t, f.SendToDevice(ctx, alice, "PHONE\x001", "m.test", messages{bob: {phone: text("again")}}))
	must(t, f.SendToDevice(ctx, alice, "PHONE\x002", "m.test", messages{bob: {"*": text("all"), laptop: text("only")}}))
	must(t, f.SendToDevice(ctx, bob, "PHONE\x002", "m.test", messages{bob: {"*": text("own")}}))
	f.wantInbox(bob, phone, "one", "all", "own")
	f.wantInbox(bob, laptop, "only", "own")
	f.wantInbox(alice, phone)
	f.reopen()
	f.wantInbox(bob, phone, "one", "all", "own")

	events, _, err := f.ToDevice(ctx, f.uidOf(bob), phone, 0, f.commit.Head(), 1)
	must(t, err)
	if len(events) != 1 || string(events[0]) != `{"content":{"body":"one"},"sender":"@alice:here.example","type":"m.test"}` {
		t.Fatalf("%s", events)
	}
}

func TestToDevicePagesAndAcks(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone), f.user("bob", phone)
	uid := f.uidOf(bob)
	for i := range 10 {
		must(t, f.SendToDevice(ctx, alice, fmt.Sprint(i), "m.test", messages{bob: {phone: text(fmt.Sprint(i))}}))
	}
	var since uint64
	var all []string
	for {
		events, next, err := f.ToDevice(ctx, uid, phone, since, f.commit.Head(), 3)
		must(t, err)
		if len(events) == 0 {
			break
		}
		if len(events) > 3 || next <= since {
			t.Fatalf("%d events, position %d after %d", len(events), next, since)
		}
		for _, e := range events {
			all = append(all, strings.Split(string(e), `"`)[5])
		}
		since = next
	}
	if len(all) != 10 || !slices.IsSorted(all) {
		t.Fatalf("%q", all)
	}
	_, fifth, err := f.ToDevice(ctx, uid, phone, 0, f.commit.Head(), 5)
	must(t, err)
	events, _, err := f.ToDevice(ctx, uid, phone, 0, fifth, 100)
	must(t, err)
	if len(events) != 5 {
		t.Fatalf("%d messages up to a position", len(events))
	}
	must(t, f.AckToDevice(ctx, uid, phone, fifth))
	must(t, f.AckToDevice(ctx, uid, phone, fifth))
	f.wantInbox(bob, phone, "5", "6", "7", "8", "9")
	must(t, f.AckToDevice(ctx, uid, phone, math.MaxUint64))
	f.wantInbox(bob, phone)
	rows, err := f.now(ctx).scan(newKeyPrefix("td"), false, 0)
	must(t, err)
	if len(rows) != 1 {
		t.Fatalf("%d rows left", len(rows))
	}
}

func TestToDeviceQueueIsBounded(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone), f.user("bob", phone)
	must(t, f.SendToDevice(ctx, alice, "first", "m.test", messages{bob: {phone: text("first")}}))
	o := f.owned(bob, f.uidOf(bob), phone)
	must(t, f.commit.Do(ctx, func(tx *storage.Tx) error {
		q, _, err := readQueue(tx.Get, o)
		q.count = maxQueued - 1
		tx.Put(o.key("td"), q.encode())
		return err
	}))
	must(t, f.SendToDevice(ctx, alice, "second", "m.test", messages{bob: {phone: text("second")}}))
	f.wantInbox(bob, phone, "first", "second")
	must(t, f.SendToDevice(ctx, alice, "third", "m.test", messages{bob: {phone: text("third")}}))
	f.wantInbox(bob, phone, "second", "third")
}

func TestToDeviceLimits(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	many := map[mxid.DeviceID]json.RawMessage{}
	for i := range maxMessages + 1 {
		many[mxid.DeviceID(fmt.Sprint(i))] = text("")
	}
	for name, c := range map[string]struct {
		typ  string
		msgs messages
		code string
	}{
		"no type":       {"", messages{}, "M_INVALID_PARAM"},
		"long type":     {strings.Repeat("x", 256), messages{}, "M_INVALID_PARAM"},
		"large":         {"m.x", messages{alice: {phone: text(strings.Repeat("x", maxMessageBytes))}}, "M_TOO_LARGE"},
		"many":          {"m.x", messages{alice: many}, "M_TOO_LARGE"},
		"no object":     {"m.x", messages{alice: {phone: json.RawMessage(`[]`)}}, "M_BAD_JSON"},
		"not a user ID": {"m.x", messages{"alice": {phone: text("")}}, "M_INVALID_PARAM"},
		"long device":   {"m.x", messages{alice: {mxid.DeviceID(strings.Repeat("x", 256)): text("")}}, "M_INVALID_PARAM"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, f.SendToDevice(ctx, alice, name, c.typ, c.msgs), c.code)
		})
	}
}

func TestToDeviceToAnotherServer(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	big := strings.Repeat("x", 60_000)
	msgs := messages{bob: {phone: text("hello"), laptop: text(big)}, alice: {"*": text("me")}}
	for i := range 10 {
		u := there.user(fmt.Sprint("u", i), phone)
		msgs[u] = map[mxid.DeviceID]json.RawMessage{"*": text(big)}
	}
	must(t, here.SendToDevice(ctx, alice, "1", "m.test", msgs))
	must(t, here.SendToDevice(ctx, alice, "1", "m.test", msgs))
	edus := here.queued()
	if len(edus) < 2 {
		t.Fatalf("%d EDUs of %d bytes", len(edus), len(edus[0].content))
	}
	for _, e := range edus {
		if len(e.content) > maxEDUBytes+1024 {
			t.Errorf("an EDU of %d bytes", len(e.content))
		}
		must(t, there.take(hereName, e)) // comes twice
	}
	there.reopen()
	n.pump()
	there.wantInbox(bob, phone, "hello")
	there.wantInbox(bob, laptop, big)
	there.wantInbox("@u7:there.example", phone, big)
	here.wantInbox(alice, laptop, "me")
}

func TestRing(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	prefix := storage.K("xd").U32(1)
	check := func(name string, want bool) {
		t.Helper()
		must(t, f.commit.Do(ctx, func(tx *storage.Tx) error {
			got, err := seen(tx, prefix, f.hash16("test", name), 4)
			if got != want {
				t.Errorf("%s seen: %v", name, got)
			}
			return err
		}))
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		check(name, false)
		check(name, true)
	}
	check("a", true)
	check("e", false) // in place of a
	check("b", true)
	check("a", false)
	rows, err := f.now(ctx).scan(newKeyPrefix("xd"), false, 0)
	must(t, err)
	if len(rows) != 9 {
		t.Errorf("%d rows", len(rows))
	}
}
