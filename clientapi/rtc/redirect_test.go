package rtc

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"parley/internal/mxid"
	"parley/room"
)

// cascaded is a cascade with links to some servers, and a far server that
// answers for its users.
type cascaded struct {
	*world
	links map[mxid.ServerName]bool
	hints []mxid.ServerName
	url   string
	said  any
}

func (c *cascaded) Ready(_ context.Context, s mxid.ServerName) bool { return c.links[s] }

func (c *cascaded) Hint(_ string, s mxid.ServerName) { c.hints = append(c.hints, s) }

func (c *cascaded) CascadeToken(_ context.Context, _ mxid.ServerName, body any) (string, string, error) {
	c.said = body
	if c.url == "" {
		return "", "", errors.New("unreachable")
	}
	return c.url, "from home", nil
}

func newCascaded(t *testing.T) *cascaded {
	w := newWorld(t)
	c := &cascaded{world: w, links: map[mxid.ServerName]bool{far: true}, url: "wss://far.example/livekit/sfu"}
	w.svc.cfg.Cascade, w.svc.cfg.Remote = c, c
	w.svc.RegisterCascade(w.web, w)
	return c
}

// TestHomeward: another server's user gets a token of their own server, if that
// works.
func TestHomeward(t *testing.T) {
	c := newCascaded(t)
	want := func(what, url string) {
		t.Helper()
		if r := c.post("/livekit/jwt/get_token", ask(bob, "bobs", "TABLET", "m2")); r.status != 200 || r.body["url"] != url {
			t.Errorf("%s: %d %v", what, r.status, r.body)
		}
	}
	const ours = "wss://matrix.example.org/livekit/sfu"
	want("with a link", "wss://far.example/livekit/sfu")
	said, _ := json.Marshal(c.said)
	if string(said) != `{"member":{"claimed_device_id":"TABLET","claimed_user_id":"@bob:far.example","id":"m2"},"openid":"bobs","room_id":"!room:example.org","slot_id":"m.call#ROOM"}` {
		t.Errorf("%s", said)
	}
	if len(c.hints) != 1 || len(c.grants) != 0 {
		t.Errorf("hints %v, grants %v", c.hints, c.grants)
	}
	if r := c.post("/livekit/jwt/get_token", ask(alice, "alices", "PHONE", "m1")); r.body["url"] != ours || c.grants[0].Via != "" || !c.grants[0].CanPublish {
		t.Errorf("an own user: %v %+v", r.body, c.grants)
	}
	if r := c.post("/livekit/jwt/sfu/get", legacy(bob, "bobs", "TABLET")); r.body["url"] != ours {
		t.Errorf("a client of before MSC4195: %v", r.body)
	}
	for _, url := range []string{"", "javascript:alert(1)"} {
		c.url = url
		want("a useless answer", ours)
	}
	c.url = "wss://far.example/livekit/sfu"
	c.links[far] = false
	want("without a link", ours)
	c.links[far] = true
	c.denied[far] = true
	c.post("/livekit/jwt/get_token", ask(bob, "bobs", "TABLET", "m2")).is(t, 401, "M_UNAUTHORIZED")
}

// TestRedirected: our users get tokens for what comes over the link, by their
// own word only.
func TestRedirected(t *testing.T) {
	c := newCascaded(t)
	body := with(ask(alice, "", "PHONE", "m1"), obj{"openid_token": nil, "openid": "alices"})
	from := func(origin string, b obj) response { return c.do("POST", redirectPath, origin, b) }
	if r := from("far.example", body); r.status != 200 || r.body["url"] != "wss://matrix.example.org/livekit/sfu" {
		t.Fatalf("%d %v", r.status, r.body)
	}
	if g := c.grants[0]; g.Via != "far.example" || g.CanPublish || g.CanPublishData || !g.CanSubscribe || g.Identity != identity(alice, "PHONE", "m1") {
		t.Errorf("%+v", g)
	}
	from("far.example", with(body, obj{"openid": "bobs"})).is(t, 401, "M_UNAUTHORIZED")
	from("far.example", with(body, obj{"openid": nil})).is(t, 401, "M_UNAUTHORIZED")
	from("elsewhere.example", body).is(t, 401, "M_UNAUTHORIZED")
	from("far.example", with(body, obj{"member": obj{"id": "m1", "claimed_user_id": "@x:example.org", "claimed_device_id": "PHONE"}})).is(t, 401, "M_UNAUTHORIZED")
	through := with(ask(alice, "", "PHONE", "m1"), obj{"server_name": "far.example"})
	if r := c.do("POST", stable4195+"/get_token", "alices", through); r.body["url"] != "wss://matrix.example.org/livekit/sfu" || c.grants[1].Via != "far.example" || len(c.asked) != 0 {
		t.Errorf("through the own server: %v %+v", r.body, c.asked)
	}
	c.links[far] = false
	from("far.example", body).is(t, 401, "M_UNAUTHORIZED")
	if r := c.do("POST", stable4195+"/get_token", "alices", through); r.body["url"] != "wss://far.example/livekit/sfu" {
		t.Errorf("without a link: %v", r.body)
	}
	c.links[far] = true
	c.members[aRoom][alice] = room.Leave
	from("far.example", body).is(t, 401, "M_UNAUTHORIZED")
}
