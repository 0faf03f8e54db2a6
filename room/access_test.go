package room

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"parley/internal/mxid"
)

// story is what happens to bob in a room where alice writes. Each step is
// followed by a message "m<i>" with a reply "t<i>" in its thread and a
// reference "r<i>" to it.
type story struct {
	name  string
	steps []string
}

var stories = []story{
	{"never in it", []string{"", ""}},
	{"invited", []string{"", "invite", ""}},
	{"knocked", []string{"", "knock", ""}},
	{"joined", []string{"", "join", ""}},
	{"invited, joined", []string{"", "invite", "join"}},
	{"left", []string{"", "join", "leave", ""}},
	{"kicked", []string{"", "join", "kick", ""}},
	{"banned", []string{"", "join", "ban", ""}},
	{"left, then banned", []string{"", "join", "leave", "ban", ""}},
	{"back again", []string{"", "join", "leave", "join", ""}},
	{"left, invited again", []string{"", "join", "leave", "invite", ""}},
	{"declined", []string{"", "invite", "leave", ""}},
	{"left and forgot", []string{"", "join", "leave", "forget"}},
	{"renamed", []string{"", "join", "rename", "leave", ""}},
}

// played is a story in a room, with what bob should see by the rules of the
// specification.
type played struct {
	*rig
	room     mxid.RoomID
	messages []mxid.EventID
	replies  []mxid.EventID
	refs     []mxid.EventID
	at       []Membership // bob's membership when message i was sent
	joins    []bool       // whether bob joined after message i
	now      Membership
	ever     bool // bob was joined at some time
	forgot   bool
	hv       string
}

func play(t *testing.T, s story, hv string) *played {
	p := &played{rig: newRig(t), hv: hv}
	p.room = p.create(CreateParams{Preset: "public_chat", InitialState: []StateInput{
		{Type: typeHistory, Content: json.RawMessage(`{"history_visibility":"` + hv + `"}`)},
		{Type: typeJoinRules, Content: json.RawMessage(`{"join_rule":"public"}`)},
	}})
	for i, step := range s.steps {
		p.step(step)
		p.at, p.joins = append(p.at, p.now), append(p.joins, false)
		p.write(i)
	}
	p.ok(p.state(p.room, alice, typeJoinRules, "", `{"join_rule":"public"}`))
	p.ok(p.join(p.room, carol)) // a newcomer whom those who left mustn't learn of
	p.ok(p.state(p.room, alice, typeTopic, "", `{"topic":"secret"}`))
	return p
}

func (p *played) step(step string) {
	m := MembershipParams{Room: p.room, Sender: alice, Target: bob}
	own := MembershipParams{Room: p.room, Sender: bob, Target: bob}
	switch step {
	case "invite":
		p.ok(p.s.Invite(p.ctx, m))
		p.now = Invite
	case "knock":
		p.ok(p.state(p.room, alice, typeJoinRules, "", `{"join_rule":"knock"}`))
		p.ok(p.s.Knock(p.ctx, own))
		p.now = Knock
	case "join":
		p.ok(p.s.Join(p.ctx, own))
		p.now, p.ever = Join, true
		for i := range p.joins {
			p.joins[i] = true
		}
	case "rename":
		name := "new name"
		p.ok(p.s.UpdateProfile(p.ctx, bob, &name, nil))
	case "leave":
		p.ok(p.s.Leave(p.ctx, own))
		p.now = Leave
	case "kick":
		p.ok(p.s.Kick(p.ctx, m))
		p.now = Leave
	case "ban":
		p.ok(p.s.Ban(p.ctx, m))
		p.now = Ban
	case "forget":
		p.ok(p.s.Forget(p.ctx, p.room, bob))
		p.forgot = true
	}
}

// write sends the i-th message with its child events, at second i+1 of 1970.
func (p *played) write(i int) {
	send := func(text, rel string, to mxid.EventID, ms int64) mxid.EventID {
		content := map[string]any{"body": text, "msgtype": "m.text"}
		if rel != "" {
			content["m.relates_to"] = map[string]any{"rel_type": rel, "event_id": string(to)}
		}
		js, err := json.Marshal(content)
		p.ok(err)
		id, err := p.s.Send(p.ctx, SendParams{Room: p.room, Sender: alice, Type: "m.room.message", Content: js, Timestamp: int64(i+1)*1000 + ms})
		p.ok(err)
		return id
	}
	m := send(fmt.Sprintf("m%d", i), "", "", 0)
	p.messages = append(p.messages, m)
	p.replies = append(p.replies, send(fmt.Sprintf("t%d", i), "m.thread", m, 1))
	p.refs = append(p.refs, send(fmt.Sprintf("r%d", i), "m.reference", m, 2))
}

// readable says whether bob may look into the room at all.
func (p *played) readable() bool {
	return p.now == Join || p.hv == "world_readable" || p.ever && !p.forgot
}

// sees says whether bob may see message i, by the rules of the specification.
func (p *played) sees(i int) bool {
	if !p.readable() {
		return false
	}
	switch {
	case p.hv == "world_readable", p.at[i] == Join:
		return true
	case p.hv == "shared":
		return p.joins[i]
	case p.hv == "invited":
		return p.at[i] == Invite
	}
	return false
}

// number finds i of an event among the messages, replies and references.
func (p *played) number(ev *Event) int {
	for _, list := range [][]mxid.EventID{p.messages, p.replies, p.refs} {
		for i, id := range list {
			if id == ev.ID {
				return i
			}
		}
	}
	return -1
}

// endpoint reads with everything it has and returns, for each message, whether
// it (or something of it) was shown.
type endpoint struct {
	name string
	read func(p *played) (shown []bool, err error)
}

// shownIn marks the messages among some events.
func (p *played) shownIn(shown []bool, lists ...[]*Event) []bool {
	for _, list := range lists {
		for _, ev := range list {
			if i := p.number(ev); i >= 0 {
				shown[i] = true
			}
		}
	}
	return shown
}

// each reads once per message.
func each(read func(p *played, i int) ([]*Event, error)) func(p *played) ([]bool, error) {
	return func(p *played) ([]bool, error) {
		shown := make([]bool, len(p.messages))
		for i := range shown {
			evs, err := read(p, i)
			if err == nil {
				p.shownIn(shown, evs)
			}
		}
		return shown, nil
	}
}

var endpoints = []endpoint{
	{"messages backwards", func(p *played) ([]bool, error) { return p.page(true) }},
	{"messages forwards", func(p *played) ([]bool, error) { return p.page(false) }},
	{"event", each(func(p *played, i int) ([]*Event, error) {
		ev, err := p.s.EventFor(p.ctx, p.room, bob, p.messages[i])
		return []*Event{ev}, err
	})},
	{"context", each(func(p *played, i int) ([]*Event, error) {
		c, err := p.s.Context(p.ctx, p.room, bob, p.messages[i], 100, EventFilter{})
		if err != nil {
			return nil, err
		}
		return append(append(c.Before, c.After...), c.Event), nil
	})},
	{"relations", each(func(p *played, i int) ([]*Event, error) {
		page, err := p.s.Relations(p.ctx, RelationsParams{Room: p.room, User: bob, Event: p.messages[i], Backwards: true, Limit: 100})
		return page.Events, err
	})},
	{"relations, recursive", each(func(p *played, i int) ([]*Event, error) {
		page, err := p.s.Relations(p.ctx, RelationsParams{Room: p.room, User: bob, Event: p.messages[i], Recurse: true, RelType: "m.thread", Limit: 100})
		return page.Events, err
	})},
	{"threads", func(p *played) ([]bool, error) {
		roots, _, err := p.s.Threads(p.ctx, p.room, bob, false, "", 100)
		return p.shownIn(make([]bool, len(p.messages)), roots), err
	}},
	{"time forwards", each(func(p *played, i int) ([]*Event, error) {
		ev, err := p.s.TimestampToEvent(p.ctx, p.room, bob, int64(i+1)*1000, true)
		return []*Event{ev}, err
	})},
	{"time backwards", each(func(p *played, i int) ([]*Event, error) {
		ev, err := p.s.TimestampToEvent(p.ctx, p.room, bob, int64(i+1)*1000, false)
		return []*Event{ev}, err
	})},
	{"sync timeline", func(p *played) ([]bool, error) {
		w, err := p.s.Window(p.ctx, WindowParams{RID: p.rid(p.room), User: bob, To: LiveOrd(p.commit.Head()), Limit: 100})
		return p.shownIn(make([]bool, len(p.messages)), w.Events), err
	}},
	{"bundled aggregations", func(p *played) ([]bool, error) { return p.bundled() }},
}

// page reads the whole history with small pages.
func (p *played) page(back bool) ([]bool, error) {
	shown := make([]bool, len(p.messages))
	from := Ord(0)
	for range 1000 {
		page, err := p.s.Messages(p.ctx, MessagesParams{Room: p.room, User: bob, From: from, Backwards: back, Limit: 2})
		if err != nil {
			return shown, err
		}
		p.shownIn(shown, page.Events)
		if !page.More {
			return shown, nil
		}
		from = page.End
	}
	return shown, fmt.Errorf("paging doesn't end")
}

// bundled formats every message for bob, as if it had been shown, and looks
// for the texts of children.
func (p *played) bundled() ([]bool, error) {
	shown := make([]bool, len(p.messages))
	if !p.readable() {
		return shown, nil // no endpoint writes an event for them
	}
	for _, id := range p.messages {
		js, err := p.s.FormatClient(p.ctx, p.load(p.room, id), FormatOptions{Viewer: bob, Aggregate: true})
		if err != nil {
			return shown, err
		}
		for i := range shown {
			if strings.Contains(string(js), fmt.Sprintf(`"t%d"`, i)) || strings.Contains(string(js), string(p.refs[i])) {
				shown[i] = true
			}
		}
	}
	return shown, nil
}

// TestAccess checks every endpoint that shows events, for every visibility and
// everything that can have happened to the reader.
func TestAccess(t *testing.T) {
	for _, hv := range []string{"world_readable", "shared", "invited", "joined", "nonsense"} {
		for _, s := range stories {
			t.Run(hv+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				p := play(t, s, hv)
				if hv == "nonsense" {
					p.hv = "shared" // what isn't understood counts as shared
				}
				for _, e := range endpoints {
					shown, err := e.read(p)
					if err != nil && p.readable() {
						t.Errorf("%s: %v", e.name, err)
					}
					for i := range shown {
						if want := p.sees(i); shown[i] != want && !(e.name == "sync timeline" && !p.readable()) {
							t.Errorf("%s: message %d (bob was %v): shown %v, want %v", e.name, i, p.at[i], shown[i], want)
						}
					}
				}
				p.checkState(t)
			})
		}
	}
}

// checkState checks the endpoints that show state: the room's present one to
// those who are in it, that of their leaving to those who left, none to
// others. Who is invited again gets the invite's stripped state instead.
func (p *played) checkState(t *testing.T) {
	present := p.now == Join || p.hv == "world_readable"
	readable := p.readable() && (present || p.now != Invite)
	for name, read := range map[string]func() (string, error){
		"state": func() (string, error) {
			evs, err := p.s.State(p.ctx, p.room, bob)
			return texts(evs), err
		},
		"state event": func() (string, error) {
			_, err := p.s.StateEvent(p.ctx, p.room, bob, typeMember, string(carol))
			if err != nil {
				_, err2 := p.s.StateEvent(p.ctx, p.room, bob, typeCreate, "")
				return "", err2
			}
			return string(carol) + "secret", nil
		},
		"members": func() (string, error) {
			evs, err := p.s.Members(p.ctx, MembersParams{Room: p.room, User: bob})
			return texts(evs) + "secret", err
		},
		"members at": func() (string, error) {
			evs, err := p.s.Members(p.ctx, MembersParams{Room: p.room, User: bob, At: LiveOrd(p.commit.Head())})
			return texts(evs) + "secret", err
		},
	} {
		got, err := read()
		if (err == nil) != readable {
			t.Errorf("%s: readable %v, got %v", name, readable, err)
		}
		if err == nil && (strings.Contains(got, string(carol)) && strings.Contains(got, "secret")) != present {
			t.Errorf("%s: shows the present %v, want %v", name, !present, present)
		}
	}
}

func texts(evs []*Event) string {
	var b strings.Builder
	for _, ev := range evs {
		b.Write(ev.JSON)
	}
	return b.String()
}

// TestVisibilityChanges follows the exceptions for the events that change what
// is seen.
func TestVisibilityChanges(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Preset: "public_chat", InitialState: []StateInput{{Type: typeHistory, Content: json.RawMessage(`{"history_visibility":"joined"}`)}}})
	hv := func(v string) *Event {
		r.ok(r.state(room, alice, typeHistory, "", `{"history_visibility":"`+v+`"}`))
		ev, err := r.s.CurrentState(r.ctx, r.rid(room), typeHistory, "")
		r.ok(err)
		return ev
	}
	a := r.load(room, r.say(room, alice, "hidden"))
	b := hv("world_readable")
	c := r.load(room, r.say(room, alice, "open"))
	d := hv("joined")
	e := r.load(room, r.say(room, alice, "hidden again"))
	r.ok(r.join(room, bob))
	member := func() *Event {
		ev, err := r.s.CurrentState(r.ctx, r.rid(room), typeMember, string(bob))
		r.ok(err)
		return ev
	}
	joined := member()
	r.ok(r.s.Leave(r.ctx, MembershipParams{Room: room, Sender: bob, Target: bob}))
	left := member()
	r.ok(r.s.Ban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: bob}))
	banned := member()
	for name, x := range map[string]struct {
		ev   *Event
		want bool
	}{
		"before": {a, false}, "to world-readable": {b, true}, "world-readable": {c, true}, "from world-readable": {d, true}, "after": {e, false},
		"own join": {joined, true}, "own leave": {left, true}, "own ban after leaving": {banned, false},
	} {
		got, err := r.s.MayView(r.ctx, x.ev.RID, bob, []*Event{x.ev})
		r.ok(err)
		if (len(got) == 1) != x.want {
			t.Errorf("%s: shown %v, want %v", name, len(got) == 1, x.want)
		}
	}
}

func TestUnknownRoomLooksForbidden(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{})
	for _, id := range []mxid.RoomID{room, "!nosuch:a.example"} {
		_, err := r.s.Messages(r.ctx, MessagesParams{Room: id, User: bob, Backwards: true})
		r.refused(err, "M_FORBIDDEN")
		_, err = r.s.EventFor(r.ctx, id, bob, "$x")
		r.refused(err, "M_NOT_FOUND")
		_, err = r.s.Members(r.ctx, MembersParams{Room: id, User: bob})
		r.refused(err, "M_FORBIDDEN")
		_, _, err = r.s.Threads(r.ctx, id, bob, false, "", 0)
		r.refused(err, "M_FORBIDDEN")
	}
}
