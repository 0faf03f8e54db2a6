package room

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
	"parley/storage/storagetest"
)

// paperKV is a store that forgets nothing, and knows what can be read of it.
type paperKV struct{ storagetest.Paper }

// readable is all that the keys which are left open of the rows ever written.
func (p *paperKV) readable(s *Service) (text string) {
	var out strings.Builder
	p.Each(func(row storage.Pair) {
		out.Write(row.Key)
		out.Write(row.Value)
		if string(row.Key[:2]) == "ej" {
			if b, err := s.openBody(storage.Key(row.Key), row.Value); err == nil {
				out.WriteString(b.txn)
				out.Write(b.json)
			}
			return
		}
		for at := range min(len(row.Value), 10) {
			if plain, err := s.cfg.Vault.Unseal(row.Key, row.Value[at:]); err == nil {
				out.Write(plain)
			}
		}
	})
	return out.String()
}

// newPaperRig is a rig whose database forgets nothing.
func newPaperRig(t *testing.T) (*rig, *paperKV) {
	t.Helper()
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	p := &paperKV{storagetest.Paper{KV: kv}}
	r := &rig{t: t, kv: p, ctx: context.Background()}
	r.open(vault.OpenMemorySeed("a"), clock.Real{})
	t.Cleanup(func() {
		r.close()
		kv.Close()
	})
	return r, p
}

// restart opens the store again, as after the end of the process.
func (r *rig) restart(p *paperKV) {
	r.t.Helper()
	r.close()
	p.StopAfter(-1)
	r.open(r.s.cfg.Vault, r.s.cfg.Clock)
	r.ok(r.s.Start())
}

func (r *rig) wantReadable(p *paperKV, want bool, canaries ...string) {
	r.t.Helper()
	all := p.readable(r.s)
	for _, c := range canaries {
		if strings.Contains(all, c) != want {
			r.t.Fatalf("%q can be read: %v", c, !want)
		}
	}
}

// Row M8. What was redacted can't be had from any byte ever written once the
// redaction is accepted; after the end of the process at any step, once the
// server is up again. The events around it are as they were.
func TestRedactedContentIsGoneForGood(t *testing.T) {
	for step := -1; step < 5; step++ {
		r, p := newPaperRig(t)
		room := r.create(CreateParams{Version: "10"})
		r.say(room, alice, "canary before")
		id := r.say(room, alice, "canary secret")
		r.say(room, alice, "canary after")
		r.ok(r.state(room, alice, typeTopic, "", `{"topic":"canary topic"}`))
		r.wantReadable(p, true, "canary before", "canary secret", "canary after")
		p.StopAfter(step)
		_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: id, TxnKey: "t"})
		if step < 0 {
			r.ok(err)
			r.wantReadable(p, false, "canary secret")
		}
		r.restart(p)
		_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: id, TxnKey: "t"})
		r.ok(err)
		r.wantReadable(p, false, "canary secret")
		r.wantReadable(p, true, "canary before", "canary after", "canary topic")
		evs := r.timeline(room)
		var bodies []string
		for _, ev := range evs {
			if b := content(ev, "body"); b != "" {
				bodies = append(bodies, b)
			}
		}
		if !slices.Equal(bodies, []string{"canary before", "canary after"}) {
			t.Fatalf("step %d: %q", step, bodies)
		}
		for _, err := range r.kv.Scan(r.ctx, storage.K("pk").Prefix(), false, 0) {
			t.Fatalf("step %d: a key is still owed (%v)", step, err)
		}
		r.verify(room)
	}
}

// A run of events whose content was sealed anew stays whole when more of it
// goes, one by one and many at once.
func TestPruneSparesOthers(t *testing.T) {
	r, p := newPaperRig(t)
	room := r.create(CreateParams{})
	rid := r.rid(room)
	var ids []mxid.EventID
	for i := range 300 {
		ids = append(ids, r.say(room, alice, fmt.Sprintf("canary-%03d.", i)))
	}
	gone := map[int]bool{}
	prune := func(which ...int) {
		var ns []Num
		for _, i := range which {
			ns = append(ns, r.load(room, ids[i]).Num)
			gone[i] = true
		}
		r.ok(r.s.Prune(r.ctx, rid, ns))
		all := p.readable(r.s)
		for i := range ids {
			if strings.Contains(all, fmt.Sprintf("canary-%03d.", i)) == gone[i] {
				t.Fatalf("after %d: event %d", which, i)
			}
		}
	}
	prune(7)
	prune(8)
	prune(8, 9, 200)
	prune(100, 101, 102, 103, 104, 105, 299)
	rest := []int{}
	for i := range 150 {
		rest = append(rest, i)
	}
	prune(rest...)
	for i, id := range ids {
		if ev := r.load(room, id); (ev.Flags&FlagRedacted != 0) != gone[i] || gone[i] == (content(ev, "body") != "") {
			t.Fatalf("event %d: flags %b", i, ev.Flags)
		}
	}
	r.verify(room)
}

// erase destroys what belongs to a user's name, as the user package does.
func (r *rig) erase(user mxid.UserID) {
	r.t.Helper()
	uid, err := r.s.cfg.Intern.User(r.ctx, user)
	r.ok(err)
	r.ok(r.s.cfg.Vault.Destroy(vault.User(uint32(uid)), vault.Author(uint32(uid))))
	r.ok(r.s.ForgetAuthor(r.ctx, user, uid))
}

// Row CO17. Row M14. What somebody wrote is gone with their key, from every
// room and in every room version: readers see redacted events, other servers
// get pruned copies, and the room goes on.
func TestErasedAuthor(t *testing.T) {
	for _, v := range []string{"1", "6", "10", "11", "12"} {
		r, p := newPaperRig(t)
		room := r.create(CreateParams{Creator: bob, Version: v, Preset: "public_chat"})
		r.ok(r.s.Join(r.ctx, MembershipParams{Room: room, Sender: alice, Content: map[string]json.RawMessage{"displayname": json.RawMessage(`"canary name"`)}}))
		said := r.say(room, alice, "canary text")
		r.ok(r.state(room, alice, typeMember, string(alice), `{"membership":"join","displayname":"canary other name"}`))
		r.ok(r.state(room, bob, typeMember, string(carol), `{"membership":"invite","reason":"kept"}`))
		kept := r.say(room, bob, "kept text")
		_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.reaction", TxnKey: "canarydevice",
			Content: json.RawMessage(fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"canary key"}}`, string(kept)))})
		r.ok(err)
		r.wantReadable(p, true, "canary name", "canary other name", "canary text", "canary key", "canarydevice", "kept")
		r.erase(alice)
		check := func() {
			t.Helper()
			r.wantReadable(p, false, "canary")
			r.wantReadable(p, true, "kept text", `"reason":"kept"`)
			for _, ev := range r.timeline(room) {
				if strings.Contains(string(ev.JSON), "canary") {
					t.Fatalf("version %s: %s", v, ev.JSON)
				}
			}
			if ev := r.load(room, said); ev.Flags&FlagRedacted == 0 || content(ev, "body") != "" {
				t.Fatalf("version %s: flags %b", v, ev.Flags)
			}
			if r.membership(room, alice) != Join {
				t.Fatal("not joined any more")
			}
			r.verify(room)
		}
		check()
		r.restart(p)
		check()
		uid, err := r.s.cfg.Intern.User(r.ctx, alice)
		r.ok(err)
		asked, _, err := r.s.Authored(r.ctx, r.rid(room), uid, 0, 100)
		r.ok(err)
		if len(asked) != 4 { // two member events, a message and a reaction
			t.Fatalf("version %s: %d events to be redacted elsewhere", v, len(asked))
		}
		for _, id := range asked {
			_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: id, TxnKey: "erase" + string(id)})
			r.ok(err)
		}
		last := r.timeline(room)
		if red := last[len(last)-1]; red.Redacts != asked[3] || red.Flags&FlagRedacted != 0 {
			t.Fatalf("version %s: the redaction has nothing to say: %s", v, red.JSON)
		}
		r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: alice, Target: alice}))
		r.say(room, bob, "life goes on")
		check2 := r.timeline(room)
		if content(check2[len(check2)-1], "body") != "life goes on" {
			t.Fatal("the room doesn't go on")
		}
		r.verify(room)
	}
}

// What an erased user's friends send of them later isn't kept either.
func TestErasedAuthorComesBackFromElsewhere(t *testing.T) {
	r, p := newPaperRig(t)
	room, base := r.sharedRoom("10")
	r.ok(r.join(room, bob))
	r.erase(bob)
	about := state(dave, typeMember, string(bob), `{"membership":"leave","reason":"canary reason","displayname":"canary name"}`)
	r.receive(room, r.foreign(room, about, base))
	r.wantReadable(p, false, "canary")
	r.restart(p)
	r.wantReadable(p, false, "canary")
}

// Row M9. A room that the last local member left is purged a day later, and not
// before; the end of the process in between changes nothing.
func TestEmptyRoomsArePurged(t *testing.T) {
	for step := -1; step < 8; step++ {
		r, p := newPaperRig(t)
		fake := clock.NewFake(time.Date(2026, 5, 1, 8, 30, 0, 0, time.UTC))
		r.close()
		r.open(r.s.cfg.Vault, fake)
		room := r.create(CreateParams{Preset: "public_chat", AliasName: "canaryalias", Name: "canary room name", Public: true})
		other := r.create(CreateParams{Name: "kept room"})
		r.say(room, alice, "canary text")
		r.ok(r.join(room, bob))
		r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: alice, Target: alice}))
		fake.Advance(30 * time.Hour)
		r.ok(r.s.PurgeEmpty(r.ctx)) // bob is still there
		r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: bob, Target: bob}))
		fake.Advance(23 * time.Hour)
		r.ok(r.s.PurgeEmpty(r.ctx))
		fake.Advance(3 * time.Hour)
		r.wantReadable(p, true, "canary room name", "canary text", "canaryalias")
		rid := r.rid(room)
		p.StopAfter(step)
		err := r.s.PurgeEmpty(r.ctx)
		if step < 0 {
			r.ok(err)
		}
		r.restart(p)
		r.ok(r.s.PurgeEmpty(r.ctx))
		r.wantReadable(p, false, "canary")
		r.wantReadable(p, true, "kept room")
		if _, _, known, err := r.s.Lookup(r.ctx, room); known || err != nil {
			t.Fatalf("step %d: still known (%v)", step, err)
		}
		for row, err := range r.kv.Scan(r.ctx, storage.Range{}, false, 0) {
			r.ok(err)
			if f := string(row.Key[:2]); len(row.Key) >= 6 && storage.ReadU32(row.Key, 2) == uint32(rid) && strings.Contains("ej em ep xb tl tt rc sn ag mh mr re rw th tH rr rp nc sk fs pk gr aL pD", f) {
				t.Fatalf("step %d: a row %s is left", step, f)
			}
		}
		if rooms, err := r.s.UserRooms(r.ctx, alice); err != nil || len(rooms) != 1 || rooms[0].Room != other {
			t.Fatalf("step %d: rooms %v (%v)", step, rooms, err)
		}
		again := r.create(CreateParams{AliasName: "canaryalias"})
		r.say(again, alice, "new life")
		r.verify(again)
	}
}
