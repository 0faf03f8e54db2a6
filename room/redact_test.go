package room

import (
	"fmt"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/storage"
)

func redaction(version string, who mxid.UserID, target mxid.EventID) draft {
	d := draft{typ: typeRedaction, sender: who, content: []byte(`{}`), redacts: target}
	if redactsInContent(version) {
		d.redacts, d.content = "", []byte(fmt.Sprintf(`{"redacts":%q}`, string(target)))
	}
	return d
}

func TestRedactionPower(t *testing.T) {
	for _, v := range Versions() {
		r := newRig(t)
		room, _ := r.sharedRoom(v)
		r.ok(r.join(room, bob))
		of := map[mxid.UserID]mxid.EventID{}
		for _, u := range []mxid.UserID{alice, bob} {
			of[u] = r.say(room, u, "x")
		}
		redact := func(by, target mxid.UserID) error {
			_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: by, Type: typeRedaction, Redacts: of[target]})
			return err
		}
		r.refused(redact(bob, alice), "M_FORBIDDEN")
		r.ok(redact(bob, bob))
		of[bob] = r.say(room, bob, "y")
		r.ok(redact(alice, bob))
		if v == "1" || v == "2" {
			continue // the rules go by the server in the event ID, which the rig can't forge
		}
		// A redaction by another server's user without power does nothing.
		last := r.load(room, r.say(room, alice, "z"))
		ev := r.receive(room, r.foreign(room, redaction(v, dave, last.ID), last))
		if ev.Flags != 0 {
			t.Errorf("version %s: flags %b", v, ev.Flags)
		}
		if r.load(room, last.ID).Flags&FlagRedacted != 0 {
			t.Errorf("version %s: redacted without power", v)
		}
		r.verify(room)
	}
}

// TestRedactionFirst: a redaction that comes before its target is applied when
// the target comes.
func TestRedactionFirst(t *testing.T) {
	for _, v := range []string{"3", "11", "12"} {
		r := newRig(t)
		room, base := r.sharedRoom(v)
		target := r.foreign(room, text(dave, "secret"), base)
		red := r.receive(room, r.foreign(room, redaction(v, dave, mxid.EventID(target.EventID())), base))
		if red.Flags != 0 {
			t.Fatalf("flags %b", red.Flags)
		}
		ev := r.receive(room, target)
		if ev.Flags&FlagRedacted == 0 || ev.RedactedBy != red.Num || content(ev, "body") != "" {
			t.Fatalf("version %s: flags %b content %s", v, ev.Flags, ev.Content())
		}
		r.verify(room)
	}
}

// TestWaitingInBatch: child, redaction and their target may come in one batch.
func TestWaitingInBatch(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	target := r.foreign(room, text(dave, "secret"), base)
	id := mxid.EventID(target.EventID())
	child := r.foreign(room, draft{typ: "m.room.message", sender: dave, content: []byte(fmt.Sprintf(`{"body":"x","msgtype":"m.text","m.relates_to":{"rel_type":"m.reference","event_id":%q}}`, string(id)))}, base)
	red := r.foreign(room, redaction("12", dave, id), base)
	r.work(room, func(w *work) error {
		for _, pdu := range []gomatrixserverlib.PDU{child, red, target} {
			if _, err := w.receive(pdu); err != nil {
				return err
			}
		}
		return nil
	})
	ev := r.load(room, id)
	if ev.Flags&FlagRedacted == 0 {
		t.Fatal("not redacted")
	}
	for _, prefix := range []storage.Key{storage.K("rw"), storage.K("re")} {
		rows := 0
		for _, err := range r.kv.Scan(r.ctx, prefix.U32(uint32(ev.RID)).Prefix(), false, 0) {
			r.ok(err)
			rows++
		}
		if want := map[byte]int{'w': 0, 'e': 1}[prefix[1]]; rows != want {
			t.Fatalf("%d %s rows, want %d", rows, prefix[:2], want)
		}
	}
	r.verify(room)
}

// TestRedactionErases: what was redacted can't be found in any row.
func TestRedactionErases(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	id := r.say(room, alice, "secret")
	if _, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: id}); err != nil {
		t.Fatal(err)
	}
	ev := r.load(room, id)
	row, err := r.kv.Get(r.ctx, keyJSON(ev.RID, ev.Num))
	r.ok(err)
	b, err := r.s.openBody(keyJSON(ev.RID, ev.Num), row)
	r.ok(err)
	if string(b.json) != string(ev.JSON) || content(ev, "body") != "" {
		t.Fatalf("stored %s", b.json)
	}
	evs := r.timeline(room)
	if got := evs[len(evs)-2]; got.ID != id || got.Flags&FlagRedacted == 0 {
		t.Fatal("the ring has the event unredacted")
	}
}

// TestRedactedState: redacting a state event leaves it in the state with the
// fields that the rules need.
func TestRedactedState(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Name: "n"})
	ev, err := r.s.CurrentState(r.ctx, r.rid(room), typeName, "")
	r.ok(err)
	_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: ev.ID})
	r.ok(err)
	if got := r.current(room, typeName, ""); got != "{}" {
		t.Fatalf("name %s", got)
	}
	r.ok(r.state(room, alice, typeName, "", `{"name":"n"}`))
	if got := r.current(room, typeName, ""); got != `{"name":"n"}` {
		t.Fatalf("name %s", got)
	}
	member, err := r.s.CurrentState(r.ctx, r.rid(room), typeMember, string(alice))
	r.ok(err)
	_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: member.ID})
	r.ok(err)
	r.say(room, alice, "still here")
	r.verify(room)
}

// TestRelations: relation and thread rows follow events and redactions, in
// either order of arrival.
func TestRelationRows(t *testing.T) {
	r := newRig(t)
	room, base := r.sharedRoom("12")
	rid := r.rid(room)
	root := r.load(room, r.say(room, alice, "root"))
	reply := func(rel string, target mxid.EventID) *Event {
		id, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: "m.room.message", Content: []byte(fmt.Sprintf(`{"body":"x","msgtype":"m.text","m.relates_to":{"rel_type":%q,"event_id":%q}}`, rel, string(target)))})
		r.ok(err)
		return r.load(room, id)
	}
	kinds := func(parent Num) (out []relKind) {
		for p, err := range r.kv.Scan(r.ctx, keyRelations(rid, parent).Prefix(), false, 0) {
			r.ok(err)
			rel, err := decodeRelation(p)
			r.ok(err)
			out = append(out, rel.kind)
		}
		return out
	}
	tRow := func() thread {
		row, err := r.kv.Get(r.ctx, keyThread(rid, root.Num))
		if err != nil {
			return thread{}
		}
		th, err := decodeThread(row)
		r.ok(err)
		return th
	}
	one := reply("m.thread", root.ID)
	two := reply("m.thread", root.ID)
	reply("m.annotation", root.ID)
	reply("org.example.own", root.ID)
	if got := fmt.Sprint(kinds(root.Num)); got != "[0 1 3 3]" {
		t.Fatalf("relations %s", got)
	}
	if th := tRow(); th.count != 2 || th.last != two.Num || th.latest != two.Ord || len(th.locals) != 1 {
		t.Fatalf("thread %+v", th)
	}
	for i, ev := range []*Event{two, one} {
		_, err := r.s.Send(r.ctx, SendParams{Room: room, Sender: alice, Type: typeRedaction, Redacts: ev.ID})
		r.ok(err)
		if th := tRow(); th.count != 1-i || (i == 0 && th.last != one.Num) {
			t.Fatalf("thread %+v", th)
		}
	}
	if got := fmt.Sprint(kinds(root.Num)); got != "[0 1]" {
		t.Fatalf("relations %s", got)
	}
	order := 0
	for _, err := range r.kv.Scan(r.ctx, storage.K("th").U32(uint32(rid)).Prefix(), false, 0) {
		r.ok(err)
		order++
	}
	if order != 0 {
		t.Fatalf("%d rows of empty threads", order)
	}
	// The parent comes last.
	parent := r.foreign(room, text(dave, "parent"), base)
	child := reply("m.reference", mxid.EventID(parent.EventID()))
	ev := r.receive(room, parent)
	if got := fmt.Sprint(kinds(ev.Num)); got != "[4]" {
		t.Fatalf("relations %s of event %d", got, child.Num)
	}
}
