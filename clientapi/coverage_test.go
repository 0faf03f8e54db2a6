package clientapi

import (
	"bufio"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// endpoint is a line of testdata/endpoints.txt.
type endpoint struct {
	method, path, auth string
	body               bool   // whether it has one
	absent             string // why the server doesn't have it
}

func endpoints(t *testing.T) (all []endpoint) {
	t.Helper()
	f, err := os.Open("testdata/endpoints.txt")
	must(t, err)
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		w := strings.SplitN(line, " ", 5)
		e := endpoint{method: w[0], path: w[1], auth: w[2], body: w[3] == "object"}
		if len(w) == 5 {
			e.absent = w[4]
		}
		all = append(all, e)
	}
	if len(all) < 140 {
		t.Fatalf("only %d endpoints", len(all))
	}
	return all
}

// world is a server with one of everything that a path can name.
type world struct {
	*server
	alice *client
	room  string
	event string
}

func newWorld(t *testing.T) *world {
	w := &world{server: newServer(t, func(c *Config) { c.Settings.PublicProfiles = true })}
	w.alice = w.register("alice")
	must(t, w.users.SetAdmin(ctx, "@alice:example.org", true))
	w.room = w.alice.createRoom(obj{"preset": "public_chat", "room_alias_name": "hall"})
	w.event = w.alice.say(w.room, "hi")
	return w
}

var pathParamRE = regexp.MustCompile(`\{(\w+)\}`)

// concrete fills the parameters of a path.
func (w *world) concrete(path string) string {
	values := map[string]string{
		"userId": w.alice.ID, "roomId": w.room, "eventId": w.event, "roomIdOrAlias": w.room, "roomAlias": "#hall:example.org",
		"deviceId": w.alice.Device, "type": "org.x", "tag": "u.x", "filterId": "x", "keyName": "displayname", "kind": "content",
		"ruleId": "x", "version": "1", "sessionId": "s", "receiptType": "m.read", "eventType": "m.room.message", "stateKey": "k",
		"txnId": "t", "relType": "m.thread", "protocol": "irc", "appserviceId": "x", "networkId": "x", "idpId": "x",
	}
	return pathParamRE.ReplaceAllStringFunc(path, func(m string) string {
		v, ok := values[m[1:len(m)-1]]
		if !ok {
			w.t.Fatalf("no value for %s", m)
		}
		return p("%s", v)
	})
}

func TestEveryEndpointIsAnswered(t *testing.T) {
	w := newWorld(t)
	have := map[string]map[string]bool{} // path -> methods
	for _, e := range endpoints(t) {
		if e.absent == "" {
			if have[e.path] == nil {
				have[e.path] = map[string]bool{}
			}
			have[e.path][e.method] = true
		}
	}
	for _, e := range endpoints(t) {
		path := w.concrete(e.path)
		if e.absent != "" {
			if a := w.send(e.method, path, w.alice.Token, obj{}); have[e.path] == nil && a.Status != http.StatusNotFound {
				t.Errorf("%s %s is marked as absent (%s) but answers %d", e.method, e.path, e.absent, a.Status)
			}
			continue
		}
		// Without a token, so that nothing changes.
		a := w.send(e.method, path, "", nil)
		if a.Body["errcode"] == "M_UNRECOGNIZED" {
			t.Errorf("%s %s: not there", e.method, e.path)
		}
		if missing := a.Body["errcode"] == "M_MISSING_TOKEN"; missing != (e.auth == "token") {
			t.Errorf("%s %s without a token: %d %s", e.method, e.path, a.Status, a.Raw)
		}
		for _, m := range []string{"GET", "PUT", "POST", "DELETE", "PATCH"} {
			if have[e.path][m] {
				continue
			}
			if a := w.send(m, path, w.alice.Token, nil); a.Status != http.StatusMethodNotAllowed || a.Body["errcode"] != "M_UNRECOGNIZED" {
				t.Errorf("%s %s: %d %s, want 405 M_UNRECOGNIZED", m, e.path, a.Status, a.Raw)
			}
		}
		if a := w.send("OPTIONS", path, "", nil); a.Status/100 != 2 || a.Header.Get("Access-Control-Allow-Methods") == "" {
			t.Errorf("OPTIONS %s: %d", e.path, a.Status)
		}
		for _, more := range []string{"/more", "/more/still"} {
			x := w.send(e.method, path+more, w.alice.Token, nil)
			if _, _, known := cutLonger(e.path, have); !known && x.Status != 404 && x.Status != 405 {
				t.Errorf("%s %s%s: %d", e.method, e.path, more, x.Status)
			}
		}
	}
}

// cutLonger says whether some endpoint's path begins with this one.
func cutLonger(path string, have map[string]map[string]bool) (string, string, bool) {
	for other := range have {
		if strings.HasPrefix(other, strings.TrimSuffix(path, "/")+"/") {
			return path, other, true
		}
	}
	return "", "", false
}

func TestUnknownPaths(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{
		"/_matrix/unknown", "/_matrix/client/unknown", "/_matrix/client/v3/unknown", "/_matrix/client/v3", "/", "/_matrix/client/v3/rooms//unknown",
		"/_matrix/client/v3/rooms/" + p("%s", w.room) + "/unknown", "/_matrix/client/v9/sync", "/_matrix/client/v3/login/",
	} {
		for _, method := range []string{"GET", "POST", "PUT"} {
			if a := w.send(method, path, w.alice.Token, nil); a.Status != 404 || a.Body["errcode"] != "M_UNRECOGNIZED" {
				t.Errorf("%s %s: %d %s", method, path, a.Status, a.Raw)
			}
		}
	}
}

// badBodies are refused by every endpoint that has a body, with this code.
var badBodies = []struct {
	name, body string
	status     int
	codes      []string
}{
	{"not JSON", `{"a": `, 400, []string{"M_NOT_JSON"}},
	{"not UTF-8", "{\"a\": \"\xff\"}", 400, []string{"M_NOT_JSON"}},
	{"a word", `hello`, 400, []string{"M_NOT_JSON"}},
	{"two values", `{} {}`, 400, []string{"M_NOT_JSON"}},
	{"duplicate keys", `{"a": 1, "a": 2}`, 400, []string{"M_BAD_JSON"}},
	{"a list", `[]`, 400, []string{"M_BAD_JSON"}},
	{"a string", `"x"`, 400, []string{"M_BAD_JSON"}},
	{"a number", `5`, 400, []string{"M_BAD_JSON"}},
	{"nesting", strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000), 400, []string{"M_BAD_JSON"}},
	{"a lone surrogate", `{"a": "\ud800"}`, 400, []string{"M_BAD_JSON"}},
}

func TestBadBodiesChangeNothing(t *testing.T) {
	w := newWorld(t)
	before := w.dump()
	for _, e := range endpoints(t) {
		if !e.body || e.absent != "" || neverReads(e.path) {
			continue
		}
		path := w.concrete(e.path)
		if strings.Contains(path, "/room_keys/keys") {
			path += "?version=1"
		}
		for _, b := range badBodies {
			a := w.raw(e.method, path, w.alice.Token, strings.NewReader(b.body))
			code, _ := a.Body["errcode"].(string)
			if a.Status != b.status || !contains(b.codes, code) {
				t.Errorf("%s %s, %s: %d %s", e.method, e.path, b.name, a.Status, a.Raw)
			}
		}
		huge := w.raw(e.method, path, w.alice.Token, strings.NewReader(`{"a": "`+strings.Repeat("x", bodyBackup)+`"}`))
		if huge.Status != 413 || huge.Body["errcode"] != "M_TOO_LARGE" {
			t.Errorf("%s %s, huge: %d %.100s", e.method, e.path, huge.Status, huge.Raw)
		}
	}
	if w.dump() != before {
		t.Error("a refused body has changed something")
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// neverReads are endpoints that answer without a look at the body.
func neverReads(path string) bool {
	return strings.Contains(path, "appservice")
}

// TestWronglyTypedBodies gives known members of bodies other types.
func TestWronglyTypedBodies(t *testing.T) {
	w := newWorld(t)
	before := w.dump()
	for _, x := range []struct{ method, path, body string }{
		{"POST", v3 + "/login", `{"type": 5}`},
		{"POST", v3 + "/login", `{"type": "m.login.password", "identifier": "alice"}`},
		{"POST", v3 + "/login", `{"type": "m.login.password", "password": ["x"]}`},
		{"POST", v3 + "/register", `{"inhibit_login": "yes"}`},
		{"POST", v3 + "/refresh", `{"refresh_token": {}}`},
		{"POST", v3 + "/account/password", `{"new_password": 5}`},
		{"POST", v3 + "/account/deactivate", `{"erase": "yes"}`},
		{"POST", v3 + "/delete_devices", `{"devices": {}}`},
		{"PUT", v3 + "/devices/x", `{"display_name": {}}`},
		{"POST", v3 + "/createRoom", `{"name": 5}`},
		{"POST", v3 + "/createRoom", `{"is_direct": "yes"}`},
		{"POST", v3 + "/createRoom", `{"creation_content": []}`},
		{"POST", v3 + "/createRoom", `{"initial_state": {}}`},
		{"POST", v3 + "/createRoom", `{"invite_3pid": "x"}`},
		{"POST", rp(w.room, "/invite"), `{"user_id": 5}`},
		{"POST", rp(w.room, "/leave"), `{"reason": {}}`},
		{"POST", rp(w.room, "/upgrade"), `{"new_version": 12}`},
		{"POST", rp(w.room, "/upgrade"), `{"new_version": "12", "additional_creators": "x"}`},
		{"POST", rp(w.room, "/read_markers"), `{"m.read": 5}`},
		{"PUT", rp(w.room, "/typing/%s", w.alice.ID), `{"typing": true, "timeout": "long"}`},
		{"POST", v3 + "/publicRooms", `{"limit": "5"}`},
		{"POST", v3 + "/publicRooms", `{"filter": []}`},
		{"POST", v3 + "/user_directory/search", `{"search_term": 5}`},
		{"POST", v3 + "/search", `{"search_categories": []}`},
		{"POST", v3 + "/keys/upload", `{"one_time_keys": "x"}`},
		{"POST", v3 + "/keys/query", `{"device_keys": []}`},
		{"POST", v3 + "/keys/claim", `{"one_time_keys": 5}`},
		{"POST", v3 + "/pushers/set", `{"kind": 5, "app_id": "a", "pushkey": "b"}`},
		{"POST", v3 + "/room_keys/version", `{"algorithm": 5, "auth_data": {}}`},
		{"PUT", v3 + "/sendToDevice/x/t", `{"messages": []}`},
		{"PUT", p(v3+"/directory/room/%s", "#x:example.org"), `{"room_id": 5}`},
	} {
		a := w.raw(x.method, x.path, w.alice.Token, strings.NewReader(x.body))
		if a.Status != 400 || a.Body["errcode"] != "M_BAD_JSON" {
			t.Errorf("%s %s %s: %d %s", x.method, x.path, x.body, a.Status, a.Raw)
		}
	}
	if w.dump() != before {
		t.Error("a refused body has changed something")
	}
}

// Every route of the table is in the list or known to be beyond it.
func TestTableMatchesList(t *testing.T) {
	listed := map[string]bool{}
	for _, e := range endpoints(t) {
		listed[e.method+" "+pathParamRE.ReplaceAllString(e.path, ":")] = true
	}
	extra := map[string]bool{
		"GET /_synapse/admin/v1/register": true, "POST /_synapse/admin/v1/register": true,
		"GET " + v3 + "/pushrules": true, "GET " + v3 + "/pushrules/global": true,
		"GET " + v3 + "/pushrules/global/:": true, "GET " + v3 + "/pushrules/global/:/": true,
		"GET " + v3 + "/rooms/:/state/": true, "GET " + v3 + "/rooms/:/state/:": true, "GET " + v3 + "/rooms/:/state/:/": true,
		"PUT " + v3 + "/rooms/:/state/:": true, "PUT " + v3 + "/rooms/:/state/:/": true,
	}
	seen := map[string]bool{}
	colon := regexp.MustCompile(`:\w+`)
	for _, rt := range routes() {
		key := rt.method + " " + colon.ReplaceAllString(rt.path, ":")
		if seen[key] {
			t.Errorf("%s is in the table twice", key)
		}
		seen[key] = true
		proposed := strings.Contains(rt.path, "/delayed_event") || strings.Contains(rt.path, "/retention") // MSC4140, MSC1763
		if !listed[key] && !extra[key] && !proposed {
			t.Errorf("%s is in no list", key)
		}
		if rt.handle == nil && rt.serve == nil {
			t.Errorf("%s has no handler", key)
		}
		if rt.limit == limNone && rt.auth == authNone && rt.method != http.MethodGet {
			t.Errorf("%s has no rate limit", key)
		}
	}
}
