package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"parley/internal/await"
	"parley/internal/httpx"
	"parley/internal/mxid"
)

const (
	backupAlgorithm = "m.megolm_backup.v1.curve25519-aes-sha2"
	room1           = mxid.RoomID("!one:here.example")
	room2           = mxid.RoomID("!two")
)

var authData = json.RawMessage(`{"public_key":"abc"}`)

func session(first, forwarded int, verified bool, data string) json.RawMessage {
	return encode(map[string]any{"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified, "session_data": map[string]string{"ciphertext": data}})
}

func newBackup(t *testing.T) (*fixture, mxid.UserID, string) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	v, err := f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	return f, alice, v
}

func TestBackupVersions(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice"), f.user("bob")
	_, err := f.Backup(ctx, alice, "")
	wantCode(t, err, "M_NOT_FOUND")
	_, err = f.CreateBackup(ctx, alice, "", authData)
	wantCode(t, err, "M_INVALID_PARAM")
	_, err = f.CreateBackup(ctx, alice, backupAlgorithm, json.RawMessage(`[]`))
	wantCode(t, err, "M_BAD_JSON")
	v1, err := f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	v2, err := f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	if v1 == v2 {
		t.Fatal("the same version twice")
	}
	f.reopen()
	for version, want := range map[string]string{"": v2, v1: v1, v2: v2} {
		b, err := f.Backup(ctx, alice, version)
		must(t, err)
		if b.Version != want || b.Algorithm != backupAlgorithm || string(b.AuthData) != string(authData) || b.Count != 0 || b.ETag == "" {
			t.Errorf("%+v, want %s", b, want)
		}
	}
	for _, bad := range []string{"3", "0", "-1", "01", "x", "99999999999999999999"} {
		_, err := f.Backup(ctx, alice, bad)
		wantCode(t, err, "M_NOT_FOUND")
	}
	_, err = f.Backup(ctx, bob, v1)
	wantCode(t, err, "M_NOT_FOUND")

	changed := json.RawMessage(`{"public_key":"def"}`)
	wantCode(t, f.UpdateBackup(ctx, alice, v1, "other", changed), "M_INVALID_PARAM")
	wantCode(t, f.UpdateBackup(ctx, alice, "7", backupAlgorithm, changed), "M_NOT_FOUND")
	must(t, f.UpdateBackup(ctx, alice, v1, backupAlgorithm, changed))
	b, err := f.Backup(ctx, alice, v1)
	must(t, err)
	if string(b.AuthData) != string(changed) {
		t.Errorf("%s", b.AuthData)
	}

	must(t, f.DeleteBackup(ctx, alice, v2))
	must(t, f.DeleteBackup(ctx, alice, v2)) // was deleted before: no error
	wantCode(t, f.DeleteBackup(ctx, alice, "7"), "M_NOT_FOUND")
	wantCode(t, f.DeleteBackup(ctx, alice, ""), "M_NOT_FOUND")
	if b, err = f.Backup(ctx, alice, ""); err != nil || b.Version != v1 {
		t.Fatalf("%+v %v", b, err)
	}
	v3, err := f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	if v3 == v2 {
		t.Fatal("a version came back")
	}
}

func TestPutSessions(t *testing.T) {
	f, alice, v := newBackup(t)
	put := func(version string, data json.RawMessage) (int, string, error) {
		return f.PutSessions(ctx, alice, version, Sessions{room1: {"s": data}})
	}
	etag := "0"
	for i, c := range []struct {
		data     json.RawMessage
		replaces bool
	}{
		{session(5, 1, false, "first"), true},
		{session(5, 1, false, "the same"), false},
		{session(6, 0, false, "later index"), false},
		{session(5, 0, false, "less forwarded"), true},
		{session(4, 9, false, "earlier index"), true},
		{session(9, 9, true, "verified"), true},
		{session(0, 0, false, "not verified"), false},
		{session(9, 8, true, "verified, less forwarded"), true},
		{session(3, 9, true, "verified, earlier"), true},
	} {
		count, tag, err := put(v, c.data)
		must(t, err)
		got, err := f.GetSessions(ctx, alice, v, room1, "s")
		must(t, err)
		if count != 1 || (tag != etag) != c.replaces || (string(got[room1]["s"]) == string(c.data)) != c.replaces {
			t.Errorf("%d: count %d, etag %s after %s, kept %s", i, count, tag, etag, got[room1]["s"])
		}
		etag = tag
	}
	for name, data := range map[string]json.RawMessage{
		"no index":     json.RawMessage(`{"forwarded_count":0,"is_verified":true,"session_data":{}}`),
		"no count":     json.RawMessage(`{"first_message_index":0,"is_verified":true,"session_data":{}}`),
		"no flag":      json.RawMessage(`{"first_message_index":0,"forwarded_count":0,"session_data":{}}`),
		"no data":      json.RawMessage(`{"first_message_index":0,"forwarded_count":0,"is_verified":true}`),
		"data string":  json.RawMessage(`{"first_message_index":0,"forwarded_count":0,"is_verified":true,"session_data":"x"}`),
		"index string": json.RawMessage(`{"first_message_index":"0","forwarded_count":0,"is_verified":true,"session_data":{}}`),
		"no object":    json.RawMessage(`1`),
		"large":        session(0, 0, true, strings.Repeat("x", maxSessionBytes)),
	} {
		if _, _, err := put(v, data); err == nil {
			t.Errorf("%s: taken", name)
		} else {
			wantCode(t, err, "M_BAD_JSON")
		}
	}
	v2, err := f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	_, _, err = put(v, session(0, 0, true, "old version"))
	wantCode(t, err, "M_WRONG_ROOM_KEYS_VERSION")
	var e *httpx.Error
	if errors.As(err, &e); e.Status != 403 || e.Extra["current_version"] != v2 {
		t.Errorf("%+v", e)
	}
	for _, version := range []string{v, v2} {
		must(t, f.DeleteBackup(ctx, alice, version))
	}
	_, _, err = put(v2, session(0, 0, true, ""))
	wantCode(t, err, "M_NOT_FOUND")
}

func TestGetAndDeleteSessions(t *testing.T) {
	f, alice, v := newBackup(t)
	all := Sessions{room1: {}, room2: {}}
	for i := range 2100 {
		all[room1][fmt.Sprint("s", i)] = session(i, 0, false, "data")
	}
	all[room2]["a"], all[room2]["b"] = session(0, 0, false, "a"), session(0, 0, false, "b")
	count, etag, err := f.PutSessions(ctx, alice, v, all)
	must(t, err)
	if count != 2102 {
		t.Fatalf("%d sessions", count)
	}
	if b, err := f.Backup(ctx, alice, v); err != nil || b.Count != count || b.ETag != etag {
		t.Fatalf("%+v %v", b, err)
	}
	f.reopen()
	get := func(room mxid.RoomID, s string) int {
		t.Helper()
		got, err := f.GetSessions(ctx, alice, v, room, s)
		must(t, err)
		n := 0
		for _, sessions := range got {
			n += len(sessions)
		}
		return n
	}
	if a, b, c, d, e := get("", ""), get(room1, ""), get(room2, ""), get(room2, "b"), get("!none", ""); a != 2102 || b != 2100 || c != 2 || d != 1 || e != 0 {
		t.Fatal(a, b, c, d, e)
	}
	_, err = f.GetSessions(ctx, alice, v, room2, "c")
	wantCode(t, err, "M_NOT_FOUND")
	_, err = f.GetSessions(ctx, alice, "9", "", "")
	wantCode(t, err, "M_NOT_FOUND")

	for _, c := range []struct {
		room    mxid.RoomID
		session string
		left    int
	}{{room2, "c", 2102}, {room2, "a", 2101}, {room1, "", 1}, {"", "", 0}} {
		count, tag, err := f.DeleteSessions(ctx, alice, v, c.room, c.session)
		must(t, err)
		if count != c.left || get("", "") != c.left || (tag != etag) != (c.session != "c") {
			t.Fatalf("%d left, want %d; etag %s", count, c.left, tag)
		}
		etag = tag
	}
	_, _, err = f.DeleteSessions(ctx, alice, "9", "", "")
	wantCode(t, err, "M_NOT_FOUND")
}

func TestDeleteBackupSweeps(t *testing.T) {
	f, alice, v := newBackup(t)
	keys := Sessions{room1: {}}
	for i := range 1500 {
		keys[room1][fmt.Sprint(i)] = session(0, 0, false, "")
	}
	_, _, err := f.PutSessions(ctx, alice, v, keys)
	must(t, err)
	must(t, f.DeleteBackup(ctx, alice, v))
	_, err = f.GetSessions(ctx, alice, v, "", "")
	wantCode(t, err, "M_NOT_FOUND")
	await.Until(t, "swept", f.settled)
	rows, err := f.now(ctx).scan(newKeyPrefix("kb"), false, 0)
	must(t, err)
	if len(rows) != 0 {
		t.Fatalf("%d rows left", len(rows))
	}
}

// Many upload at once: every session is counted once, and every change moves
// the ETag.
func TestConcurrentBackup(t *testing.T) {
	f, alice, v := newBackup(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				if _, _, err := f.PutSessions(ctx, alice, v, Sessions{room1: {fmt.Sprint(j): session(100-i, 0, false, "")}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := f.GetSessions(ctx, alice, v, room1, "")
	must(t, err)
	b, err := f.Backup(ctx, alice, v)
	must(t, err)
	if len(got[room1]) != 50 || b.Count != 50 {
		t.Fatalf("%d sessions, counted %d", len(got[room1]), b.Count)
	}
	for s, data := range got[room1] {
		if string(data) != string(session(93, 0, false, "")) {
			t.Errorf("%s: %s", s, data)
		}
	}
}
