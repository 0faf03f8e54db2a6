package room

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
)

func TestAliases(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{AliasName: "one", Public: true})
	const one, two mxid.RoomAlias = "#one:a.example", "#two:a.example"
	if got := gjson.Get(r.current(room, typeAlias, ""), "alias").Str; got != string(one) {
		t.Fatalf("canonical alias %s", got)
	}
	_, err := r.s.Create(r.ctx, CreateParams{Creator: bob, AliasName: "one"})
	r.refused(err, "M_ROOM_IN_USE")
	got, via, err := r.s.ResolveAlias(r.ctx, one)
	r.ok(err)
	if got != room || len(via) != 1 || via[0] != "a.example" {
		t.Fatalf("resolved to another room, or via %v", via)
	}
	_, _, err = r.s.ResolveAlias(r.ctx, two)
	r.refused(err, "M_NOT_FOUND")
	r.refused(r.s.SetAlias(r.ctx, two, room, bob), "M_FORBIDDEN")
	r.refused(r.s.SetAlias(r.ctx, "#x:b.example", room, alice), "M_INVALID_PARAM")
	r.refused(r.s.SetAlias(r.ctx, one, room, alice), "M_ROOM_IN_USE")
	r.ok(r.join(room, bob))
	r.ok(r.s.SetAlias(r.ctx, two, room, bob))
	list, err := r.s.Aliases(r.ctx, room, alice)
	r.ok(err)
	if len(list) != 2 {
		t.Fatalf("%d aliases", len(list))
	}
	_, err = r.s.Aliases(r.ctx, room, carol)
	r.refused(err, "M_FORBIDDEN")
	r.refused(r.state(room, alice, typeAlias, "", `{"alias":"#none:a.example"}`), "M_BAD_ALIAS")
	r.refused(r.state(room, alice, typeAlias, "", `{"alias":"nonsense"}`), "M_INVALID_PARAM")
	r.ok(r.state(room, alice, typeAlias, "", `{"alias":"#one:a.example","alt_aliases":["#two:a.example","#far:b.example"]}`))
	r.refused(r.s.DeleteAlias(r.ctx, one, bob), "M_FORBIDDEN")
	r.ok(r.s.DeleteAlias(r.ctx, two, bob))
	r.ok(r.s.DeleteAlias(r.ctx, one, alice))
	r.refused(r.s.DeleteAlias(r.ctx, one, alice), "M_NOT_FOUND")
}

func TestPublicRooms(t *testing.T) {
	r := newRig(t)
	byName := map[string]mxid.RoomID{}
	for i, name := range []string{"small", "Middle", "large"} {
		p := CreateParams{Name: name, Public: true}
		if name == "Middle" {
			p.CreationContent = map[string]json.RawMessage{"type": json.RawMessage(`"m.space"`)}
		}
		room := r.create(p)
		byName[name] = room
		for j := range 3 * i {
			r.ok(r.join(room, mxid.UserID(fmt.Sprintf("@u%d:a.example", j))))
		}
	}
	hidden := r.create(CreateParams{Name: "hidden"})
	names := func(search string, types []*string, since string, limit int) ([]string, string, int) {
		t.Helper()
		rooms, next, _, total, err := r.s.PublicRooms(r.ctx, search, types, since, limit)
		r.ok(err)
		out := []string{}
		for _, pr := range rooms {
			out = append(out, pr.Name)
		}
		return out, next, total
	}
	space := "m.space"
	for _, c := range []struct {
		search string
		types  []*string
		want   string
	}{
		{"", nil, "[large Middle small]"}, {"MID", nil, "[Middle]"}, {"none", nil, "[]"},
		{"", []*string{&space}, "[Middle]"}, {"", []*string{nil}, "[large small]"}, {"", []*string{}, "[]"},
	} {
		if got, _, _ := names(c.search, c.types, "", 10); fmt.Sprint(got) != c.want {
			t.Errorf("%q: %v, want %s", c.search, got, c.want)
		}
	}
	var all []string
	since := ""
	for {
		page, next, total := names("", nil, since, 1)
		if total != 3 {
			t.Fatalf("total %d", total)
		}
		all = append(all, page...)
		if since = next; since == "" {
			break
		}
	}
	if fmt.Sprint(all) != "[large Middle small]" {
		t.Fatalf("pages %v", all)
	}
	_, _, _, _, err := r.s.PublicRooms(r.ctx, "", nil, "garbage", 1)
	r.refused(err, "M_INVALID_PARAM")

	r.refused(r.s.SetVisibility(r.ctx, hidden, bob, true), "M_FORBIDDEN")
	r.ok(r.s.SetVisibility(r.ctx, hidden, alice, true))
	r.ok(r.s.SetVisibility(r.ctx, byName["large"], alice, false))
	if got, _, _ := names("", nil, "", 10); fmt.Sprint(got) != "[Middle hidden small]" && fmt.Sprint(got) != "[Middle small hidden]" {
		t.Fatalf("rooms %v", got)
	}
}

func TestUpgrade(t *testing.T) {
	for _, c := range [][2]string{{"1", "11"}, {"9", "12"}, {"12", "12"}, {"12", "10"}, {"11", "6"}} {
		r := newRig(t)
		room := r.create(CreateParams{Version: c[0], Preset: "public_chat", Public: true, AliasName: "up", Name: "N", Topic: "T",
			InitialState: []StateInput{{typeEncryption, "", json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2"}`)}}})
		r.ok(r.join(room, bob))
		r.ok(r.state(room, alice, typePowerLevels, "", string(withUser(t, r.current(room, typePowerLevels, ""), bob, 50))))
		r.ok(r.s.Ban(r.ctx, MembershipParams{Room: room, Sender: alice, Target: carol, Reason: "spam"}))
		_, err := r.s.Upgrade(r.ctx, room, bob, c[1], nil)
		r.refused(err, "M_FORBIDDEN")
		_, err = r.s.Upgrade(r.ctx, room, alice, "nope", nil)
		r.refused(err, "M_UNSUPPORTED_ROOM_VERSION")
		next, err := r.s.Upgrade(r.ctx, room, alice, c[1], []mxid.UserID{"@else:b.example"})
		r.ok(err)
		if got := gjson.Get(r.current(room, typeTombstone, ""), "replacement_room").Str; got != string(next) {
			t.Fatalf("%v: tombstone names %q", c, got)
		}
		create := r.current(next, typeCreate, "")
		if gjson.Get(create, "predecessor.room_id").Str != string(room) || gjson.Get(create, "room_version").Str != c[1] {
			t.Fatalf("%v: create event %s", c, create)
		}
		if had := gjson.Get(create, "predecessor.event_id").Exists(); had != (c[1] != "12") {
			t.Errorf("%v: create event %s", c, create)
		}
		for typ, want := range map[string]string{typeName: `{"name":"N"}`, typeEncryption: `{"algorithm":"m.megolm.v1.aes-sha2"}`, typeJoinRules: `{"join_rule":"public"}`} {
			if got := r.current(next, typ, ""); got != want {
				t.Errorf("%v: %s is %s", c, typ, got)
			}
		}
		levels := r.current(next, typePowerLevels, "")
		if got := gjson.Get(levels, `users.@bob:a\.example`).Int(); got != 50 {
			t.Errorf("%v: bob has %d in %s", c, got, levels)
		}
		if got := gjson.Get(levels, `users.@alice:a\.example`); got.Exists() == (c[1] == "12") {
			t.Errorf("%v: alice has %s", c, got.Raw)
		}
		if got := r.membership(next, carol); got != Ban {
			t.Errorf("%v: carol is %v", c, got)
		}
		to, _, err := r.s.ResolveAlias(r.ctx, "#up:a.example")
		r.ok(err)
		public, err := r.s.Visibility(r.ctx, next)
		r.ok(err)
		if to != next || !public {
			t.Errorf("%v: alias or directory entry stayed behind", c)
		}
		_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: carol, Type: "m.room.message", Content: message("x")})
		r.refused(err, "M_FORBIDDEN")
		r.ok(r.state(next, alice, typePowerLevels, "", string(withUser(t, levels, bob, 60))))
		r.verify(room)
		r.verify(next)
	}
}
