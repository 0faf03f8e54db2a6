package testnet

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"parley/privacy/timers"
	"parley/room"
)

// shown are the texts of messages that an answer has, and how many redacted
// messages are in it.
func shown(v any, texts map[string]bool) (redacted int) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			redacted += shown(x, texts)
		}
	case obj:
		content, _ := v["content"].(obj)
		if body, ok := content["body"].(string); ok && v["type"] == "m.room.message" {
			texts[body] = true
		}
		if unsigned, ok := v["unsigned"].(obj); ok && v["type"] == "m.room.message" && len(content) == 0 && unsigned["redacted_because"] != nil {
			redacted++
		}
		for _, x := range v {
			redacted += shown(x, texts)
		}
	}
	return redacted
}

// TestMessagesEndEverywhere: messages whose time is over are seen as redacted
// on all ways to read them; the room goes on, takes new servers, and nothing
// that another server still has comes back.
//
// Row CO12. Row M10.
func TestMessagesEndEverywhere(t *testing.T) {
	n := New(t, "a", "b", "c")
	alice, bob, carol := n.As("@alice:a"), n.As("@bob:b"), n.As("@carol:c")
	alice.Create("r", func(p *room.CreateParams) { p.Preset, p.Name = "public_chat", "the name stays" })
	bob.Join("r", "a")
	alice.Say("alice long ago")
	bob.Sees("alice long ago").Say("bob long ago")
	alice.Sees("bob long ago").Set("m.room.topic", "", `{"topic":"a topic of long ago"}`)
	n.Settle()
	n.Server("b").Timers().Book().Set(timers.Policies{Default: timers.Forever}) // its operator keeps everything

	n.Clock.Advance(91 * 24 * time.Hour)
	alice.Say("alice of today")
	bob.Sees("alice of today")
	rid := n.Room("r")
	old := []string{"alice long ago", "bob long ago"}
	n.Until("the old messages are redacted on a", func() bool { return alice.redacted(old...) })
	if !bob.reads(old...) {
		t.Error("b has lost messages though it keeps everything")
	}
	token, _ := alice.login()
	a := n.Server("a")
	for name, path := range map[string]string{
		"/messages": "/_matrix/client/v3/rooms/" + url.PathEscape(string(rid)) + "/messages?dir=b&limit=100",
		"/sync":     "/_matrix/client/v3/sync?filter=" + url.QueryEscape(`{"room":{"timeline":{"limit":100}}}`),
		"/context":  "/_matrix/client/v3/rooms/" + url.PathEscape(string(rid)) + "/context/" + url.PathEscape(string(n.said["bob long ago"])) + "?limit=50",
	} {
		code, out := a.ask(http.MethodGet, path, token, nil)
		texts := map[string]bool{}
		if gone := shown(out, texts); code != 200 || gone < 2 || texts[old[0]] || texts[old[1]] || !texts["alice of today"] {
			t.Errorf("%s: %d, %d redacted, texts %v", name, code, gone, texts)
		}
	}
	if code, out := a.ask(http.MethodGet, "/_matrix/client/v3/rooms/"+url.PathEscape(string(rid))+"/state/m.room.topic/", token, nil); code != 200 || out["topic"] != "a topic of long ago" {
		t.Errorf("the topic: %d %v", code, out)
	}

	// A new server gets history from those that have it, and keeps what its own
	// policy lets it keep.
	carol.Join("r", "a", "b")
	carol.Say("carol is new")
	alice.Sees("carol is new")
	bob.Sees("carol is new")
	ctoken, _ := carol.login()
	texts := map[string]bool{}
	n.Until("c has fetched the history", func() bool {
		texts = map[string]bool{}
		_, out := n.Server("c").ask(http.MethodGet, "/_matrix/client/v3/rooms/"+url.PathEscape(string(rid))+"/messages?dir=b&limit=100", ctoken, nil)
		return shown(out, texts) >= 2
	})
	if texts[old[0]] || texts[old[1]] || !texts["alice of today"] || !carol.redacted(old...) {
		t.Errorf("c shows %v", texts)
	}

	// A policy of the room shortens what every server keeps.
	alice.Set("m.room.retention", "", `{"max_lifetime":86400000}`)
	n.Settle()
	n.Clock.Advance(24*time.Hour + time.Minute)
	n.Until("the room's policy holds on b too, though it keeps everything", func() bool {
		return bob.redacted(append(old, "alice of today")...) && bob.redacted("carol is new")
	})
	alice.In("r").Say("alice goes on")
	bob.In("r").Sees("alice goes on")
	carol.In("r").Sees("alice goes on")
	n.Restart("a")
	if !n.As("@alice:a").In("r").redacted(old...) {
		t.Error("back after a restart")
	}
	for _, s := range []string{"a", "b", "c"} {
		n.Until("nothing is overdue on "+s, func() bool {
			count, err := n.Server(s).Timers().Overdue(context.Background())
			return err == nil && count == 0
		})
	}
}

func (a *Actor) body(text string) (string, bool) {
	ev, err := a.srv.Rooms().EventFor(context.Background(), a.net.rooms[a.in], a.id, a.net.said[text])
	if err != nil {
		return "", false
	}
	return string(ev.Content()), true
}

func (a *Actor) redacted(texts ...string) bool {
	for _, text := range texts {
		if got, ok := a.body(text); !ok || got != "{}" {
			return false
		}
	}
	return true
}

func (a *Actor) reads(texts ...string) bool {
	for _, text := range texts {
		if got, ok := a.body(text); !ok || !strings.Contains(got, text) {
			return false
		}
	}
	return true
}
