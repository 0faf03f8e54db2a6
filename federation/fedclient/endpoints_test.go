package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/e2e"
)

const (
	room  = mxid.RoomID("!r/o?o%m:b.example")
	event = mxid.EventID("$e+v/e:n=t")
	alice = mxid.UserID("@al/ice:us.example")
	bob   = mxid.UserID("@bob:b.example")
)

// What each method asks for on the wire and makes of the answer.
func TestEndpoints(t *testing.T) {
	const fed = "/_matrix/federation/v1"
	const esc = "%21r%2Fo%3Fo%25m:b.example"
	tests := []struct {
		name     string
		call     func(ctx context.Context, c *Client, to mxid.ServerName) (any, error)
		method   string
		uri      string
		body     string // "" none
		unsigned bool
		answer   string
		want     any
	}{
		{"make_join", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.MakeJoin(ctx, to, room, alice, []string{"10", "11"})
		}, "GET", fed + "/make_join/" + esc + "/@al%2Fice:us.example?ver=10&ver=11", "", false,
			`{"room_version":"11","event":{"type":"m.room.member"}}`, MakeResult{"11", json.RawMessage(`{"type":"m.room.member"}`)}},
		{"make_leave, no version", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.MakeLeave(ctx, to, room, alice)
		}, "GET", fed + "/make_leave/" + esc + "/@al%2Fice:us.example", "", false, `{"event":{}}`, MakeResult{"1", json.RawMessage(`{}`)}},
		{"make_knock", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.MakeKnock(ctx, to, room, alice, []string{"7"})
		}, "GET", fed + "/make_knock/" + esc + "/@al%2Fice:us.example?ver=7", "", false, `{"room_version":"7","event":{}}`, MakeResult{"7", json.RawMessage(`{}`)}},
		{"send_join", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.SendJoin(ctx, to, json.RawMessage(`{"a":1}`), room, event)
		}, "PUT", "/_matrix/federation/v2/send_join/" + esc + "/$e+v%2Fe:n=t", `{"a":1}`, false,
			`{"origin":"c.example","state":[{"s":1},{"s":2}],"other":[1],"auth_chain":[{"a":1}],"event":{"e":1}}`,
			SendJoinResult{raws(`{"s":1}`, `{"s":2}`), raws(`{"a":1}`), json.RawMessage(`{"e":1}`), "c.example"}},
		{"send_leave", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return nil, c.SendLeave(ctx, to, json.RawMessage(`{"a":1}`), room, event)
		}, "PUT", "/_matrix/federation/v2/send_leave/" + esc + "/$e+v%2Fe:n=t", `{"a":1}`, false, `{}`, nil},
		{"send_knock", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.SendKnock(ctx, to, json.RawMessage(`{"a":1}`), room, event)
		}, "PUT", fed + "/send_knock/" + esc + "/$e+v%2Fe:n=t", `{"a":1}`, false, `{"knock_room_state":[{"x":1}]}`, raws(`{"x":1}`)},
		{"invite", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.Invite(ctx, to, "10", json.RawMessage(`{"a":1}`), raws(`{"s":1}`), room, event)
		}, "PUT", "/_matrix/federation/v2/invite/" + esc + "/$e+v%2Fe:n=t", `{"event":{"a":1},"invite_room_state":[{"s":1}],"room_version":"10"}`, false,
			`{"event":{"a":1,"signatures":{}}}`, json.RawMessage(`{"a":1,"signatures":{}}`)},
		{"event", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) { return c.Event(ctx, to, event) },
			"GET", fed + "/event/$e+v%2Fe:n=t", "", false, `{"origin":"x","pdus":[{"e":1}]}`, json.RawMessage(`{"e":1}`)},
		{"event_auth", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.EventAuth(ctx, to, room, event)
		},
			"GET", fed + "/event_auth/" + esc + "/$e+v%2Fe:n=t", "", false, `{"auth_chain":[{"e":1}]}`, raws(`{"e":1}`)},
		{"state_ids", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			s, a, err := c.StateIDs(ctx, to, room, event)
			return [][]mxid.EventID{s, a}, err
		}, "GET", fed + "/state_ids/" + esc + "?event_id=%24e%2Bv%2Fe%3An%3Dt", "", false, `{"pdu_ids":["$a","$b"],"auth_chain_ids":["$c"]}`,
			[][]mxid.EventID{{"$a", "$b"}, {"$c"}}},
		{"state", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			s, a, err := c.State(ctx, to, room, event)
			return [][]json.RawMessage{s, a}, err
		}, "GET", fed + "/state/" + esc + "?event_id=%24e%2Bv%2Fe%3An%3Dt", "", false, `{"pdus":[{"a":1}],"auth_chain":[{"b":1}]}`,
			[][]json.RawMessage{raws(`{"a":1}`), raws(`{"b":1}`)}},
		{"get_missing_events", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.MissingEvents(ctx, to, room, nil, []mxid.EventID{event}, 2, 7)
		}, "POST", fed + "/get_missing_events/" + esc, `{"earliest_events":[],"latest_events":["$e+v/e:n=t"],"limit":2,"min_depth":7}`, false,
			`{"events":[{"a":1},{"a":2},{"a":3}]}`, raws(`{"a":1}`, `{"a":2}`)},
		{"backfill", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.Backfill(ctx, to, room, []mxid.EventID{"$a", "$b"}, 1)
		}, "GET", fed + "/backfill/" + esc + "?limit=1&v=%24a&v=%24b", "", false, `{"pdus":[{"a":1},{"a":2}]}`, raws(`{"a":1}`)},
		{"timestamp_to_event", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			id, ts, err := c.TimestampToEvent(ctx, to, room, 5, true)
			return []any{id, ts}, err
		}, "GET", fed + "/timestamp_to_event/" + esc + "?dir=f&ts=5", "", false, `{"event_id":"$x","origin_server_ts":6}`, []any{mxid.EventID("$x"), int64(6)}},
		{"keys/query", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.QueryKeys(ctx, to, map[mxid.UserID][]mxid.DeviceID{bob: nil})
		}, "POST", fed + "/user/keys/query", `{"device_keys":{"@bob:b.example":[]}}`, false,
			`{"device_keys":{"@bob:b.example":{"D":{"k":1}},"@eve:b.example":{"D":{}}},"master_keys":{"@eve:b.example":{}},"user_signing_keys":{"@bob:b.example":{}}}`,
			e2e.QueryResult{DeviceKeys: map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{bob: {"D": json.RawMessage(`{"k":1}`)}}, MasterKeys: map[mxid.UserID]json.RawMessage{}}},
		{"keys/claim", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.ClaimKeys(ctx, to, map[mxid.UserID]map[mxid.DeviceID]string{bob: {"D": "signed_curve25519"}})
		}, "POST", fed + "/user/keys/claim", `{"one_time_keys":{"@bob:b.example":{"D":"signed_curve25519"}}}`, false,
			`{"one_time_keys":{"@bob:b.example":{"D":{"a:1":"k"},"E":{}},"@eve:b.example":{}}}`,
			map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage{bob: {"D": {"a:1": json.RawMessage(`"k"`)}}}},
		{"user/devices", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.UserDevices(ctx, to, bob)
		},
			"GET", fed + "/user/devices/@bob:b.example", "", false, `{"user_id":"@bob:b.example","stream_id":5,"devices":[{}]}`,
			e2e.RemoteDevices{UserID: bob, StreamID: 5, Devices: raws(`{}`)}},
		{"profile", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.QueryProfile(ctx, to, bob, "displayname")
		}, "GET", fed + "/query/profile?field=displayname&user_id=%40bob%3Ab.example", "", false, `{"displayname":"Bob"}`,
			map[string]json.RawMessage{"displayname": json.RawMessage(`"Bob"`)}},
		{"directory", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			r, s, err := c.QueryDirectory(ctx, to, "#a b:b.example")
			return []any{r, s}, err
		}, "GET", fed + "/query/directory?room_alias=%23a+b%3Ab.example", "", false, `{"room_id":"!r:b.example","servers":["c.example","not valid","d:1"]}`,
			[]any{mxid.RoomID("!r:b.example"), []mxid.ServerName{"c.example", "d:1"}}},
		{"publicRooms", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.PublicRooms(ctx, to, json.RawMessage(`{"limit":5}`))
		}, "POST", fed + "/publicRooms", `{"limit":5}`, false, `{"chunk":[]}`, json.RawMessage(`{"chunk":[]}`)},
		{"hierarchy", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.Hierarchy(ctx, to, room, true)
		},
			"GET", fed + "/hierarchy/" + esc + "?suggested_only=true", "", false, `{"room":{}}`, json.RawMessage(`{"room":{}}`)},
		{"openid", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.OpenIDUserInfo(ctx, to, "t&k")
		},
			"GET", fed + "/openid/userinfo?access_token=t%26k", "", true, `{"sub":"@bob:b.example:PORT"}`, nil},
		{"version", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			n, v, err := c.Version(ctx, to)
			return []string{n, v}, err
		}, "GET", fed + "/version", "", true, `{"server":{"name":"Sy\nnapse","version":"1"}}`, []string{"Synapse", "1"}},
		{"send", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			return c.SendTransaction(ctx, to, "t/1", json.RawMessage(`{"pdus":[]}`))
		}, "PUT", fed + "/send/t%2F1", `{"pdus":[]}`, false, `{"pdus":{"$a":{}}}`, json.RawMessage(`{"$a":{}}`)},
		{"server keys", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			k, err := c.ServerKeys(ctx, to)
			return string(k.Raw) + string(k.ServerName), err
		}, "GET", "/_matrix/key/v2/server", "", true, `{"server_name":"b"}`, `{"server_name":"b"}b`},
		{"server keys with a malformed key", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			k, err := c.ServerKeys(ctx, to)
			return string(k.Raw), err
		}, "GET", "/_matrix/key/v2/server", "", true, `{"old_verify_keys":{"x":{"key":5}}}`, `{"old_verify_keys":{"x":{"key":5}}}`},
		{"notary", func(ctx context.Context, c *Client, to mxid.ServerName) (any, error) {
			ks, err := c.NotaryKeys(ctx, to, map[mxid.ServerName][]gomatrixserverlib.KeyID{"c": {"ed25519:1"}, "d": nil})
			if err != nil || len(ks) != 1 {
				return nil, fmt.Errorf("%v %w", len(ks), err)
			}
			return string(ks[0].Raw), nil
		}, "POST", "/_matrix/key/v2/query", `{"server_keys":{"c":{"ed25519:1":{}},"d":{}}}`, true, `{"server_keys":[{"server_name":"c"}]}`, `{"server_name":"c"}`},
	}
	w := newWorld(t)
	to := w.server("b.example")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "openid" {
				user := mxid.NewUserID("bob", to)
				tt.answer, tt.want = `{"sub":"`+string(user)+`"}`, user
			}
			w.answers(200, tt.answer)
			got, err := tt.call(t.Context(), w.client, to)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v; want %#v", got, tt.want)
			}
			s := w.last()
			if s.method != tt.method || s.uri != tt.uri || s.body != tt.body {
				t.Errorf("asked %s %s %s\n want %s %s %s", s.method, s.uri, s.body, tt.method, tt.uri, tt.body)
			}
			if tt.unsigned != (s.origin == "") || !tt.unsigned && s.origin != us {
				t.Errorf("signed by %q", string(s.origin))
			}
			w.answers(404, `{"errcode":"M_NOT_FOUND","error":"nothing"}`)
			var re *RemoteError
			if _, err := tt.call(t.Context(), w.client, to); !errors.As(err, &re) || re.Code != "M_NOT_FOUND" || re.Status != 404 {
				t.Errorf("error answer: %v", err)
			}
			for _, bad := range []string{`{`, `[]`, `{"pdus":5,"event":5,"room_version":5,"events":{},"auth_chain":"","state":1,"knock_room_state":0,"pdu_ids":[5],"event_id":5,"device_keys":[],"one_time_keys":[],"user_id":5,"room_id":5,"sub":5,"server":5,"server_keys":5,"devices":1}`} {
				w.answers(200, bad)
				var be *BadAnswerError
				_, err := tt.call(t.Context(), w.client, to)
				takesAny := strings.HasPrefix(bad, `{"`) && (tt.name == "send_leave" || tt.name == "publicRooms" || tt.name == "hierarchy" || tt.name == "send" || tt.name == "profile" || strings.HasPrefix(tt.name, "server keys"))
				if !errors.As(err, &be) && !takesAny && tt.name != "notary" {
					t.Errorf("bad answer %s: %v", bad, err)
				}
			}
		})
	}
}

func TestInviteV1(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	w.handles(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/_matrix/federation/v2") {
			httpx.WriteError(rw, httpx.Err(404, "M_UNRECOGNIZED", "?"))
			return
		}
		fmt.Fprint(rw, `[200, {"event":{"signed":true}}]`)
	})
	got, err := w.client.Invite(t.Context(), to, "2", json.RawMessage(`{"a":1}`), raws(`{"s":1}`), room, event)
	if err != nil || string(got) != `{"signed":true}` {
		t.Fatalf("%s %v", got, err)
	}
	if s := w.last(); s.body != `{"a":1,"unsigned":{"invite_room_state":[{"s":1}]}}` || !strings.HasPrefix(s.uri, "/_matrix/federation/v1/invite/") {
		t.Errorf("%s %s", s.uri, s.body)
	}
	var re *RemoteError
	if _, err := w.client.Invite(t.Context(), to, "10", json.RawMessage(`{}`), nil, room, event); !errors.As(err, &re) {
		t.Errorf("version 10 fell back: %v", err)
	}
	w.answers(403, `{"errcode":"M_FORBIDDEN"}`)
	before := w.count("/")
	if _, err := w.client.Invite(t.Context(), to, "1", json.RawMessage(`{}`), nil, room, event); !errors.As(err, &re) || w.count("/") != before+1 {
		t.Errorf("a refusal was asked twice: %v", err)
	}
}

func TestRemoteErrors(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	tests := []struct {
		status     int
		header     string
		body       string
		code       string
		retry      time.Duration
		httpStatus int
		httpCode   string
	}{
		{403, "", `{"errcode":"M_FORBIDDEN","error":"no"}`, "M_FORBIDDEN", 0, 403, "M_FORBIDDEN"},
		{429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}`, "M_LIMIT_EXCEEDED", 1500 * time.Millisecond, 429, "M_LIMIT_EXCEEDED"},
		{429, "7", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}`, "M_LIMIT_EXCEEDED", 7 * time.Second, 429, "M_LIMIT_EXCEEDED"},
		{429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1e300}`, "M_LIMIT_EXCEEDED", maxRetryAfter, 429, "M_LIMIT_EXCEEDED"},
		{429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":-5}`, "M_LIMIT_EXCEEDED", 0, 429, "M_LIMIT_EXCEEDED"},
		{401, "", `{"errcode":"M_UNKNOWN_TOKEN","error":"bye"}`, "M_UNKNOWN_TOKEN", 0, 502, "M_UNKNOWN"},
		{403, "", `{"errcode":"M_USER_LOCKED","error":"bye"}`, "M_USER_LOCKED", 0, 502, "M_UNKNOWN"},
		{502, "", `<html>bad gateway</html>`, "M_UNKNOWN", 0, 502, "M_UNKNOWN"},
		{404, "", ``, "M_UNKNOWN", 0, 404, "M_UNKNOWN"},
		{404, "", `{"errcode":"no code: @alice:b"}`, "M_UNKNOWN", 0, 404, "M_UNKNOWN"},
		{404, "", `{"errcode":5,"error":[]}`, "M_UNKNOWN", 0, 404, "M_UNKNOWN"},
		{307, "", ``, "M_UNKNOWN", 0, 502, "M_UNKNOWN"},
		{500, "", strings.Repeat("x", 1<<20), "M_UNKNOWN", 0, 500, "M_UNKNOWN"},
	}
	for _, tt := range tests {
		w.handles(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Retry-After", tt.header)
			rw.Header().Set("Location", "https://elsewhere.example/")
			rw.WriteHeader(tt.status)
			fmt.Fprint(rw, tt.body)
		})
		err := fmt.Errorf("wrapped: %w", w.ping(to))
		var re *RemoteError
		var he *httpx.Error
		if !errors.As(err, &re) || re.Status != tt.status || re.Code != tt.code || re.RetryAfter != tt.retry || re.Server != to {
			t.Errorf("%d %.60s: %+v", tt.status, tt.body, re)
		}
		if !errors.As(err, &he) || he.Status != tt.httpStatus || he.Code != tt.httpCode {
			t.Errorf("%d %.60s: %+v", tt.status, tt.body, he)
		}
		if ms, ok := he.Extra["retry_after_ms"].(int64); ok != (tt.retry > 0) || ok && ms != tt.retry.Milliseconds() {
			t.Errorf("%d: retry_after_ms %v", tt.status, he.Extra)
		}
		if strings.Contains(err.Error(), "bye") || strings.Contains(err.Error(), "@alice") {
			t.Errorf("the log line has text from outside: %v", err)
		}
	}
	w.answers(400, `{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"old","room_version":"12"}`)
	_, err := w.client.MakeJoin(t.Context(), to, room, alice, []string{"1"})
	var he *httpx.Error
	if !errors.As(err, &he) || he.Extra["room_version"] != "12" {
		t.Errorf("%+v", he)
	}
}

// Error texts end up in logs: no room, user, event or token may be in them.
func TestErrorsNameNobody(t *testing.T) {
	w := newWorld(t)
	gone := mxid.ServerName("127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	_, err1 := w.client.QueryProfile(ctx, gone, bob, "")
	_, err2 := w.client.MakeJoin(ctx, gone, room, alice, nil)
	_, err3 := w.client.OpenIDUserInfo(ctx, gone, "secret-token")
	cancel()
	_, err4 := w.client.Event(ctx, w.server("b.example"), "$secret-event")
	for _, err := range []error{err1, err2, err3, err4} {
		if err == nil {
			t.Fatal("no error")
		}
		for _, word := range []string{"bob", "alice", "ice:us", "r%2Fo", "secret", "_matrix"} {
			if strings.Contains(err.Error(), word) {
				t.Errorf("%v", err)
			}
		}
	}
	if !errors.Is(err4, context.Canceled) {
		t.Errorf("%v", err4)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	endless := func(prefix, unit string) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, prefix)
			chunk := []byte(strings.Repeat(unit, 10000))
			for r.Context().Err() == nil {
				if _, err := rw.Write(chunk); err != nil {
					return
				}
			}
		}
	}
	for name, f := range map[string]http.HandlerFunc{
		"endless string": endless(`{"server":{"name":"`, "x"),
		"endless spaces": endless(``, "   \n"),
		"endless list":   endless(`{"pdus":[`, `{"a":1},`),
		"a length that lies": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "10000000000")
			fmt.Fprint(rw, `{}`)
		},
	} {
		w.handles(f)
		var be *BadAnswerError
		var ue *UnreachableError
		if _, _, err := w.client.Version(t.Context(), to); !errors.As(err, &be) && !errors.As(err, &ue) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := w.client.Event(t.Context(), to, event); !errors.As(err, &be) && !errors.As(err, &ue) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.handles(endless(`{"server":{"name":"`, "x"))
	if _, _, err := w.client.Version(t.Context(), to); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}

// A server that answers a byte now and then is cut off by the time limit.
func TestSlowAnswer(t *testing.T) {
	w := newWorld(t)
	w.handles(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, `{`)
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	var out map[string]any
	err := w.client.ask(t.Context(), w.server("b.example"), get(federationV1+"/version", nil, smallAnswer, 100*time.Millisecond), &out)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestBigAnswersTakeTurns(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	for range parallelBig {
		w.client.big <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := w.client.State(ctx, to, room, event); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	<-w.client.big
	for _, body := range []string{`{"pdus":[{}]}`, `{`, `{"pdus":5}`} {
		w.answers(200, body)
		for range parallelBig {
			_, _, _ = w.client.State(t.Context(), to, room, event)
		}
	}
	w.answers(403, `{}`)
	_, _, _ = w.client.State(t.Context(), to, room, event)
	_, _, _ = w.client.StateIDs(t.Context(), "127.0.0.1:1", room, event)
	if n := len(w.client.big); n != parallelBig-1 {
		t.Errorf("%d turns are lost", n-parallelBig+1)
	}
}

func TestEventsThatBreakTheRulesAreLeftOut(t *testing.T) {
	w := newWorld(t)
	good := `{"type":"m.room.message"}`
	w.answers(200, `{"state":[`+good+`,{"a":1,"a":2},{"a":"\ud800"},[],5,"x",null,{"sender":"@a:b","Sender":"@c:b"},`+
		strings.Repeat(`{"a":`, 600)+`1`+strings.Repeat(`}`, 600)+`,{"a":"`+strings.Repeat("x", 200_000)+`"},{"a":"`+"\xff"+`"},`+good+`],"auth_chain":null}`)
	res, err := w.client.SendJoin(t.Context(), w.server("b.example"), json.RawMessage(`{}`), room, event)
	if err != nil || len(res.State) != 2 || res.AuthChain != nil || res.Origin != w.server("b.example") {
		t.Errorf("%d events, %v, %v", len(res.State), res.Origin, err)
	}
	for _, bad := range []string{
		`{"state":[],"state":[]}`, `{"state":[{}]`, `{"state":[{}]} x`, `{"state":{}}`, `{"state":[{},]}`, `[]`, ``, `{"event":{"a":1,"a":2}}`,
		`{"event":{"sender":1,"Sender":2}}`, `{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
	} {
		w.answers(200, bad)
		var be *BadAnswerError
		if _, err := w.client.SendJoin(t.Context(), w.server("b.example"), json.RawMessage(`{}`), room, event); !errors.As(err, &be) {
			t.Errorf("%.40s: %v", bad, err)
		}
	}
}

// A connection that the server closed while idle costs no error, except where
// repeating could do harm.
func TestIdleConnectionsAreReplaced(t *testing.T) {
	w := newWorld(t)
	to := w.server("b.example")
	first := true
	w.handles(func(rw http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(rw, `{"pdus":{}}`)
	})
	if _, err := w.client.SendTransaction(t.Context(), to, "1", json.RawMessage(`{}`)); err == nil {
		t.Log("the transport repeated the request by itself")
	}
	if _, err := w.client.SendTransaction(t.Context(), to, "1", json.RawMessage(`{}`)); err != nil {
		t.Error(err)
	}
	q, err := w.client.newRequest(t.Context(), to, newTarget("b", "b", "b:1"), call{method: "POST", path: "/x", body: json.RawMessage(`{}`), once: true, query: url.Values{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := q.Header["Idempotency-Key"]; ok {
		t.Error("a claim of keys may be repeated")
	}
}

func TestNewRefusesHalfAConfiguration(t *testing.T) {
	w := newWorld(t)
	good := w.client.cfg
	for _, change := range []func(*Config){
		func(c *Config) { c.Guard = nil }, func(c *Config) { c.Signer = nil }, func(c *Config) { c.Clock = nil }, func(c *Config) { c.ServerName = "no name" },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Error("accepted")
		}
	}
}

func FuzzDecodeEvents(f *testing.F) {
	f.Add(`{"state":[{"a":1},{"b":[1]}],"event":{"x":1},"other":null}`)
	f.Add(`{"state":[{"a":1,"a":2}],"state":null}`)
	f.Fuzz(func(t *testing.T, in string) {
		var state []json.RawMessage
		var ev json.RawMessage
		err := decodeEvents(strings.NewReader(in), wanted{events: map[string]*[]json.RawMessage{"state": &state}, values: map[string]*json.RawMessage{"event": &ev}})
		if err == nil && !json.Valid([]byte(in)) {
			t.Errorf("accepted %q", in)
		}
	})
}
