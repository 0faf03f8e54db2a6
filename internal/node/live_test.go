package node_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// canaries are what is planted. The first group may be kept, but only sealed;
// the second may not be kept at all.
type canaries struct{ sealed, never map[string]string }

// live goes through an account's life and returns what must not be found.
func live(t *testing.T, s *server) canaries {
	const from = "127.77.1.9"
	agent := "CanaryBrowser/7.7.7"
	p := &person{t: t, s: s, agent: agent, http: &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}}}
	defer p.http.CloseIdleConnections()
	sealed := map[string]string{"localpart": "canaryperson", "display name": "Canary Display Name", "device name": "Canary Device Name",
		"message": "canary message text", "room name": "Canary Room Name", "topic": "Canary Room Topic", "alias": "canaryalias",
		"file name": "canaryfilename.txt", "file content": "canary file content, canary file content", "account data": "canary account data",
		"to-device": "canary to-device text", "status": "canary profile field", "tag": "u.canarytag", "push keyword": "canarykeyword", "filter": "canary.filter.type"}
	never := map[string]string{"password": "canary-password-7", "address": from, "user agent": agent, "registration token": "canaryregtoken"}

	if _, err := s.Users().NewRegistrationToken(t.Context(), never["registration token"], 1, s.Clock().Now().Add(1e12)); err != nil {
		t.Fatal(err)
	}
	var reg struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		User    string `json:"user_id"`
		Device  string `json:"device_id"`
	}
	p.json("POST", "/_matrix/client/v3/register", map[string]any{"username": sealed["localpart"], "password": never["password"],
		"initial_device_display_name": sealed["device name"], "refresh_token": true, "auth": map[string]any{"type": "m.login.dummy"}}, &reg)
	p.token = reg.Access
	never["access token"], never["refresh token"] = reg.Access, reg.Refresh
	me, dev := url.PathEscape(reg.User), reg.Device
	p.json("PUT", "/_matrix/client/v3/profile/"+me+"/displayname", map[string]any{"displayname": sealed["display name"]}, nil)
	p.json("PUT", "/_matrix/client/v3/profile/"+me+"/org.canary", map[string]any{"org.canary": sealed["status"]}, nil)
	var room struct {
		ID string `json:"room_id"`
	}
	p.json("POST", "/_matrix/client/v3/createRoom", map[string]any{"name": sealed["room name"], "topic": sealed["topic"], "room_alias_name": sealed["alias"]}, &room)
	id := url.PathEscape(room.ID)
	var sent struct {
		ID string `json:"event_id"`
	}
	p.json("PUT", "/_matrix/client/v3/rooms/"+id+"/send/m.room.message/1", map[string]any{"msgtype": "m.text", "body": sealed["message"]}, &sent)
	p.json("POST", "/_matrix/client/v3/rooms/"+id+"/receipt/m.read/"+url.PathEscape(sent.ID), map[string]any{}, nil)
	p.json("PUT", "/_matrix/client/v3/user/"+me+"/rooms/"+id+"/tags/"+sealed["tag"], map[string]any{}, nil)
	p.json("PUT", "/_matrix/client/v3/user/"+me+"/account_data/org.canary", map[string]any{"x": sealed["account data"]}, nil)
	p.json("PUT", "/_matrix/client/v3/pushrules/global/content/"+sealed["push keyword"], map[string]any{"pattern": sealed["push keyword"], "actions": []string{"notify"}}, nil)
	p.json("POST", "/_matrix/client/v3/user/"+me+"/filter", map[string]any{"room": map[string]any{"timeline": map[string]any{"types": []string{sealed["filter"]}}}}, nil)
	p.json("PUT", "/_matrix/client/v3/sendToDevice/org.canary/1", map[string]any{"messages": map[string]any{reg.User: map[string]any{dev: map[string]any{"x": sealed["to-device"]}}}}, nil)
	p.do("POST", "/_matrix/media/v3/upload?filename="+sealed["file name"], "text/plain", strings.NewReader(sealed["file content"]), nil)
	var open struct {
		Token string `json:"access_token"`
	}
	p.json("POST", "/_matrix/client/v3/user/"+me+"/openid/request_token", map[string]any{}, &open)
	never["openid token"] = open.Token
	p.do("GET", "/_matrix/client/v3/sync?timeout=0", "", nil, nil)
	return canaries{sealed, never}
}

func scanFiles(t *testing.T, dir string, all map[string]string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		files++
		find(t, "file "+filepath.Base(path), append(raw, path...), all)
		return err
	})
	if err != nil || files < 5 {
		t.Errorf("%d files: %v", files, err)
	}
}

// find looks for the canaries as they are and in the usual encodings.
func find(t *testing.T, where string, in []byte, all map[string]string) {
	t.Helper()
	for what, c := range all {
		for _, enc := range []string{c, hex.EncodeToString([]byte(c)), base64.RawStdEncoding.EncodeToString([]byte(c)), base64.RawURLEncoding.EncodeToString([]byte(c))} {
			if bytes.Contains(bytes.ToLower(in), bytes.ToLower([]byte(enc))) {
				t.Errorf("%s has the %s", where, what)
				break
			}
		}
	}
}
