package node_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"time"

	"parley/internal/node"
	"parley/storage"
	"parley/storage/disk/simdisk"
	"parley/storage/leveldb"
)

// try sends a request and returns the status and the error code.
func (p *person) try(method, path string, in map[string]any) (int, string) {
	p.t.Helper()
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			p.t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.s.http+path, body)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	res, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	var out struct {
		Code string `json:"errcode"`
	}
	_ = json.NewDecoder(res.Body).Decode(&out)
	return res.StatusCode, out.Code
}

// TestAFailingDisk takes away the disk under a running server: writes get 503
// and aren't acknowledged, reads go on, and writing works again by itself.
func TestAFailingDisk(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(simdisk.Op) error
	}{
		{"fsync fails", func(op simdisk.Op) error {
			if op.Kind == "sync" {
				return syscall.EIO
			}
			return nil
		}},
		{"disk full", func(op simdisk.Op) error {
			if op.Kind == "write" {
				return syscall.ENOSPC
			}
			return nil
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := simdisk.New(1)
			s := startServerWith(t, t.TempDir(), func(o *node.Options) {
				o.OpenStore = func() (storage.KV, error) { return leveldb.Open("store", leveldb.Options{FS: d}) }
			})
			defer func() { _ = s.Close(t.Context()) }()
			p := &person{t: t, s: s, http: http.DefaultClient}
			var reg struct {
				Access string `json:"access_token"`
			}
			p.json("POST", "/_matrix/client/v3/register", map[string]any{"username": "alice", "password": "a password", "auth": map[string]any{"type": "m.login.dummy"}}, &reg)
			p.token = reg.Access
			var room struct {
				ID string `json:"room_id"`
			}
			p.json("POST", "/_matrix/client/v3/createRoom", map[string]any{"name": "before"}, &room)
			base := "/_matrix/client/v3/rooms/" + url.PathEscape(room.ID)
			message := map[string]any{"msgtype": "m.text", "body": "x"}

			d.SetFault(tc.fault)
			if status, code := p.try("PUT", base+"/send/m.room.message/1", message); status != http.StatusServiceUnavailable || code == "" {
				t.Errorf("sending without a disk: %d %s", status, code)
			}
			if status, _ := p.try("GET", base+"/state/m.room.name/", nil); status != http.StatusOK {
				t.Errorf("reading without a disk: %d", status)
			}
			d.SetFault(nil)
			deadline := time.Now().Add(30 * time.Second)
			for {
				status, code := p.try("PUT", base+"/send/m.room.message/2", message)
				if status == http.StatusOK {
					break
				}
				if status != http.StatusServiceUnavailable || time.Now().After(deadline) {
					t.Fatalf("after the disk came back: %d %s", status, code)
				}
			}
		})
	}
}
