package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"parley/internal/mxid"
	"parley/room"
)

// Actor is a user of one of the servers. Its methods fail the test when they
// don't work, and return the actor, so that a script reads like a story.
type Actor struct {
	net *Net
	srv *Server
	id  mxid.UserID
	in  string // the room that Say and Sees are about
}

// As speaks for a user, "@alice:a". The account is made when it is first
// needed.
func (n *Net) As(who string) *Actor {
	n.t.Helper()
	local, short, ok := strings.Cut(strings.TrimPrefix(who, "@"), ":")
	s := n.srv[short]
	if !ok || s == nil {
		n.t.Fatalf("no such user: %s", who)
	}
	a := &Actor{net: n, srv: s, id: mxid.NewUserID(local, s.name)}
	if exists, err := s.Users().Exists(context.Background(), a.id); err != nil {
		n.t.Fatal(err)
	} else if !exists {
		if _, err := s.Users().Register(context.Background(), local, "password-of-"+local, false, false); err != nil {
			n.t.Fatal(err)
		}
	}
	return a
}

// ID is the user's whole ID.
func (a *Actor) ID() mxid.UserID { return a.id }

// Room is a room's ID by the name that a script gave it.
func (n *Net) Room(name string) mxid.RoomID { return n.rooms[name] }

func (a *Actor) do(what string, err error) *Actor {
	a.net.t.Helper()
	if err != nil {
		a.net.t.Fatalf("%s of %s: %v", what, a.srv.short, err)
	}
	return a
}

// Create makes a room. change may be nil.
func (a *Actor) Create(name string, change func(*room.CreateParams)) *Actor {
	a.net.t.Helper()
	p := room.CreateParams{Creator: a.id}
	if change != nil {
		change(&p)
	}
	id, err := a.srv.Rooms().Create(context.Background(), p)
	a.net.rooms[name], a.in = id, name
	return a.do("create", err)
}

// In chooses the room that the next methods are about.
func (a *Actor) In(name string) *Actor { a.in = name; return a }

func (a *Actor) member(target mxid.UserID, via ...string) room.MembershipParams {
	p := room.MembershipParams{Room: a.net.rooms[a.in], Sender: a.id, Target: target}
	for _, v := range via {
		p.Via = append(p.Via, a.net.srv[v].name)
	}
	return p
}

// TryJoin joins through servers and returns the error.
func (a *Actor) TryJoin(name string, via ...string) error {
	a.in = name
	return a.srv.Rooms().Join(context.Background(), a.member(a.id, via...))
}

// Join joins through servers.
func (a *Actor) Join(name string, via ...string) *Actor {
	a.net.t.Helper()
	return a.do("join", a.TryJoin(name, via...))
}

// Invite, Kick, Ban, Leave and Knock do what they say.
func (a *Actor) Invite(b *Actor) *Actor {
	a.net.t.Helper()
	return a.do("invite", a.srv.Rooms().Invite(context.Background(), a.member(b.id)))
}

// Kick puts a user out.
func (a *Actor) Kick(b *Actor) *Actor {
	a.net.t.Helper()
	return a.do("kick", a.srv.Rooms().Kick(context.Background(), a.member(b.id)))
}

// Ban bans a user.
func (a *Actor) Ban(b *Actor) *Actor {
	a.net.t.Helper()
	return a.do("ban", a.srv.Rooms().Ban(context.Background(), a.member(b.id)))
}

// Leave leaves the room, or declines.
func (a *Actor) Leave() *Actor {
	a.net.t.Helper()
	return a.do("leave", a.srv.Rooms().Leave(context.Background(), a.member(a.id)))
}

// Knock asks to be let in.
func (a *Actor) Knock(name string, via ...string) *Actor {
	a.net.t.Helper()
	a.in = name
	return a.do("knock", a.srv.Rooms().Knock(context.Background(), a.member(a.id, via...)))
}

// Say sends a message. Texts are unique in a test: they are what Sees looks
// for, and what may not be found in logs or rows afterwards.
func (a *Actor) Say(text string) *Actor {
	a.net.t.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	id, err := a.srv.Rooms().Send(context.Background(), room.SendParams{Room: a.net.rooms[a.in], Sender: a.id, Type: "m.room.message", Content: content})
	a.net.said[text] = id
	return a.do("say", err)
}

// Set sends a state event.
func (a *Actor) Set(typ, key, content string) *Actor {
	a.net.t.Helper()
	_, err := a.srv.Rooms().Send(context.Background(), room.SendParams{Room: a.net.rooms[a.in], Sender: a.id, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	return a.do("set", err)
}

// Sees waits until the user can read a message.
func (a *Actor) Sees(texts ...string) *Actor {
	a.net.t.Helper()
	for _, text := range texts {
		a.net.Until(fmt.Sprintf("a user of %s sees %q", a.srv.short, text), func() bool {
			_, err := a.srv.Rooms().EventFor(context.Background(), a.net.rooms[a.in], a.id, a.net.said[text])
			return err == nil
		})
	}
	return a
}

// Is waits until the user's server gives them a membership of a room.
func (a *Actor) Is(name string, m room.Membership) *Actor {
	a.net.t.Helper()
	a.in = name
	a.net.Until("membership "+m.String(), func() bool {
		got, err := a.srv.Rooms().Membership(context.Background(), a.net.rooms[name], a.id)
		return err == nil && got == m
	})
	return a
}

// Converged checks that all servers with users in a room agree on its state.
func (n *Net) Converged() {
	n.t.Helper()
	for name, id := range n.rooms {
		first, of := "", ""
		for _, short := range n.order {
			in, err := n.srv[short].Rooms().InRoom(context.Background(), id)
			if err != nil {
				n.t.Fatal(err)
			}
			if !in {
				continue
			}
			state := n.srv[short].stateOf(id)
			if of != "" && state != first {
				n.t.Errorf("%s and %s disagree on %s:\n%s\n---\n%s", of, short, name, first, state)
			}
			first, of = state, short
		}
	}
}

func (s *Server) stateOf(id mxid.RoomID) string {
	s.net.t.Helper()
	ctx := context.Background()
	rid, _, _, err := s.Rooms().Lookup(ctx, id)
	if err != nil {
		s.net.t.Fatal(err)
	}
	evs, err := s.Rooms().StateAt(ctx, rid, 0)
	if err != nil {
		s.net.t.Fatal(err)
	}
	var lines []string
	for _, ev := range evs {
		lines = append(lines, fmt.Sprintf("%s|%s|%s", ev.Type, *ev.StateKey, string(ev.ID)))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
