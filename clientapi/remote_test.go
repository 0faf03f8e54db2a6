package clientapi

import (
	"context"
	"encoding/json"
	"testing"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// fakeRemote is another server's answers.
type fakeRemote struct {
	profile   map[string]json.RawMessage
	alias     mxid.RoomID
	via       []mxid.ServerName
	rooms     json.RawMessage
	hierarchy map[mxid.RoomID]json.RawMessage
	err       error
	asked     []mxid.ServerName
}

func (f *fakeRemote) QueryProfile(_ context.Context, to mxid.ServerName, _ mxid.UserID, _ string) (map[string]json.RawMessage, error) {
	f.asked = append(f.asked, to)
	return f.profile, f.err
}

func (f *fakeRemote) QueryDirectory(_ context.Context, to mxid.ServerName, _ mxid.RoomAlias) (mxid.RoomID, []mxid.ServerName, error) {
	f.asked = append(f.asked, to)
	return f.alias, f.via, f.err
}

func (f *fakeRemote) PublicRooms(_ context.Context, to mxid.ServerName, body json.RawMessage) (json.RawMessage, error) {
	f.asked = append(f.asked, to)
	return f.rooms, f.err
}

func (f *fakeRemote) Hierarchy(_ context.Context, to mxid.ServerName, room mxid.RoomID, _ bool) (json.RawMessage, error) {
	f.asked = append(f.asked, to)
	raw, ok := f.hierarchy[room]
	if !ok {
		return nil, httpx.NotFound("no")
	}
	return raw, f.err
}

func newFederated(t *testing.T) (*server, *fakeRemote) {
	f := &fakeRemote{hierarchy: map[mxid.RoomID]json.RawMessage{}}
	return newServer(t, func(c *Config) { c.Remote = f }), f
}

func TestRemoteProfile(t *testing.T) {
	s, f := newFederated(t)
	alice := s.register("alice")
	path := p(v3+"/profile/%s", "@bob:other.org")
	f.profile = map[string]json.RawMessage{"displayname": json.RawMessage(`"Bob"`)}
	if a := alice.get(path + "/displayname").ok(); a.str("displayname") != "Bob" || len(f.asked) != 1 || f.asked[0] != "other.org" {
		t.Errorf("%s, asked %v", a.Raw, f.asked)
	}
	alice.get(path+"/avatar_url").fails(404, "M_NOT_FOUND")
	f.err = httpx.Err(404, "M_NOT_FOUND", "no @bob here")
	if a := alice.get(path).fails(404, "M_NOT_FOUND"); a.str("error") == "no @bob here" {
		t.Error("a stranger's text is shown")
	}
	f.err = context.DeadlineExceeded
	alice.get(path).fails(502, "M_UNKNOWN")
	f.err = httpx.Err(401, "M_UNKNOWN_TOKEN", "who are you")
	alice.get(path).fails(502, "M_UNKNOWN") // must not look like the client's own logout
}

func TestRemoteDirectory(t *testing.T) {
	s, f := newFederated(t)
	alice := s.register("alice")
	path := p(v3+"/directory/room/%s", "#room:other.org")
	f.alias, f.via = "!room:other.org", []mxid.ServerName{"one.org", "not a name", "two.org"}
	if a := s.send("GET", path, "", nil).ok(); a.str("room_id") != "!room:other.org" || len(a.list("servers")) != 3 {
		t.Errorf("alias %s", a.Raw)
	}
	f.alias = "nonsense"
	s.send("GET", path, "", nil).fails(404, "M_NOT_FOUND")

	list := v3 + "/publicRooms?server=other.org"
	f.rooms = json.RawMessage(`{"chunk": [{"room_id": "!a:other.org"}], "next_batch": "x", "junk": 1}`)
	if a := alice.post(list, obj{}).ok(); a.str("chunk", 0, "room_id") != "!a:other.org" || a.str("next_batch") != "x" || a.Body["junk"] != nil {
		t.Errorf("publicRooms %s", a.Raw)
	}
	for _, bad := range []string{`[]`, `{"chunk": {}}`, ``} {
		f.rooms = json.RawMessage(bad)
		alice.post(list, obj{}).fails(502, "M_UNKNOWN")
	}
	// What isn't another server is answered here.
	f.asked = nil
	alice.post(v3+"/publicRooms?server=example.org", obj{}).ok()
	if len(f.asked) != 0 {
		t.Errorf("asked %v", f.asked)
	}
}

func TestRemoteHierarchy(t *testing.T) {
	s, f := newFederated(t)
	alice := s.register("alice")
	top := alice.createRoom(obj{"preset": "public_chat", "creation_content": obj{"type": "m.space"}})
	for _, id := range []string{"!far:other.org", "!gone:other.org"} {
		alice.put(rp(top, "/state/m.space.child/%s", id), obj{"via": []string{"other.org"}}).ok()
	}
	f.hierarchy["!far:other.org"] = json.RawMessage(`{
		"room": {"room_id": "!far:other.org", "room_type": "m.space", "join_rule": "public", "num_joined_members": 1, "membership": "join",
			"children_state": [
				{"type": "m.space.child", "state_key": "!open:other.org", "content": {"via": ["other.org"]}, "origin_server_ts": 1, "sender": "@a:other.org"},
				{"type": "m.space.child", "state_key": "!closed:other.org", "content": {"via": ["other.org"]}, "origin_server_ts": 2, "sender": "@a:other.org"},
				{"type": "m.space.child", "state_key": "!hidden:other.org", "content": {"via": ["other.org"]}, "origin_server_ts": 3, "sender": "@a:other.org"},
				{"type": "m.space.child", "state_key": "!novia:other.org", "content": {}, "origin_server_ts": 3, "sender": "@a:other.org"}]},
		"children": [
			{"room_id": "!open:other.org", "join_rule": "public", "num_joined_members": 3},
			{"room_id": "!closed:other.org", "join_rule": "invite", "num_joined_members": 3}],
		"inaccessible_children": ["!hidden:other.org"]}`)
	a := alice.get(p(v1+"/rooms/%s/hierarchy", top)).ok()
	var ids []string
	for i := range a.list("rooms") {
		ids = append(ids, a.str("rooms", i, "room_id"))
	}
	if len(ids) != 3 || ids[1] != "!far:other.org" || ids[2] != "!open:other.org" || a.at("rooms", 1, "membership") != nil {
		t.Errorf("hierarchy %v %s", ids, a.Raw)
	}
	sum := p(v1+"/room_summary/%s", "!far:other.org") + "?via=other.org"
	if a := alice.get(sum).ok(); a.str("room_type") != "m.space" {
		t.Errorf("summary %s", a.Raw)
	}
	f.asked = nil
	s.send("GET", sum, "", nil).fails(404, "M_NOT_FOUND")
	if len(f.asked) != 0 {
		t.Error("somebody without a token makes this server ask others")
	}
	f.hierarchy["!liar:other.org"] = f.hierarchy["!far:other.org"]
	alice.get(p(v1+"/room_summary/%s", "!liar:other.org")).fails(404, "M_NOT_FOUND")
}

func TestFederationHierarchy(t *testing.T) {
	s, _ := newFederated(t)
	alice := s.register("alice")
	top := alice.createRoom(obj{"preset": "public_chat", "creation_content": obj{"type": "m.space"}})
	open := alice.createRoom(obj{"preset": "public_chat", "name": "Open"})
	secret := alice.createRoom(obj{"preset": "private_chat"})
	for _, id := range []string{open, secret, "!far:third.org"} {
		alice.put(rp(top, "/state/m.space.child/%s", id), obj{"via": []string{"example.org"}, "suggested": id == secret}).ok()
	}
	ask := func(id string, suggested bool) (out federatedSpace) {
		raw, err := s.api.FederationHierarchy(ctx, "other.org", mxid.RoomID(id), suggested)
		must(t, err)
		must(t, json.Unmarshal(raw, &out))
		return out
	}
	h := ask(top, false)
	if string(h.Room.RoomID) != top || len(h.Room.Children) != 3 || len(h.Children) != 1 || string(h.Children[0].RoomID) != open ||
		len(h.Inaccessible) != 1 || h.Inaccessible[0] != secret {
		t.Errorf("hierarchy %d %d %d", len(h.Room.Children), len(h.Children), len(h.Inaccessible))
	}
	if h := ask(top, true); len(h.Room.Children) != 1 || len(h.Children) != 0 {
		t.Errorf("suggested %d %d", len(h.Room.Children), len(h.Children))
	}
	if h := ask(open, false); len(h.Room.Children) != 0 {
		t.Errorf("a room that is no space has %d children", len(h.Room.Children))
	}
	for _, id := range []mxid.RoomID{mxid.RoomID(secret), "!none:example.org"} {
		if _, err := s.api.FederationHierarchy(ctx, "other.org", id, false); err == nil {
			t.Error("a room that the server may not see is described")
		}
	}
	alice.put(rp(top, "/state/m.room.server_acl"), obj{"allow": []string{"*"}, "deny": []string{"other.org"}}).ok()
	if _, err := s.api.FederationHierarchy(ctx, "other.org", mxid.RoomID(top), false); err == nil {
		t.Error("the server ACL isn't applied")
	}
}
