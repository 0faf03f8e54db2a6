package clientapi

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
)

// signingKey is an ed25519 key of a client.
type signingKey struct {
	private ed25519.PrivateKey
	public  string
}

func newKey(t *testing.T, seed byte) signingKey {
	t.Helper()
	var s [32]byte
	s[0] = seed
	k := ed25519.NewKeyFromSeed(s[:])
	return signingKey{k, base64.RawStdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))}
}

// sign signs an object as a user with the key of this ID.
func (k signingKey) sign(t *testing.T, user, id string, o obj) obj {
	t.Helper()
	raw, err := json.Marshal(o)
	must(t, err)
	raw, err = gomatrixserverlib.SignJSON(user, gomatrixserverlib.KeyID("ed25519:"+id), k.private, raw)
	must(t, err)
	var out obj
	must(t, json.Unmarshal(raw, &out))
	return out
}

func (c *client) deviceKeys(k signingKey) obj {
	return k.sign(c.t, c.ID, c.Device, obj{"user_id": c.ID, "device_id": c.Device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": obj{"ed25519:" + c.Device: k.public, "curve25519:" + c.Device: k.public}})
}

func (c *client) oneTimeKeys(k signingKey, names ...string) obj {
	out := obj{}
	for _, n := range names {
		out["signed_curve25519:"+n] = k.sign(c.t, c.ID, c.Device, obj{"key": k.public})
	}
	return out
}

func TestKeys(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	k := newKey(t, 1)
	up := v3 + "/keys/upload"
	a := alice.post(up, obj{"device_keys": alice.deviceKeys(k), "one_time_keys": alice.oneTimeKeys(k, "A", "B")}).ok()
	if a.at("one_time_key_counts", "signed_curve25519") != 2.0 {
		t.Errorf("counts %s", a.Raw)
	}
	alice.post(up, obj{}).ok()
	alice.post(up, obj{"device_keys": nil}).ok()
	bob.post(up, obj{"device_keys": alice.deviceKeys(k)}).fails(400, "M_INVALID_PARAM")
	alice.post(up, obj{"one_time_keys": []int{}}).fails(400, "M_BAD_JSON")
	q := bob.post(v3+"/keys/query", obj{"device_keys": obj{alice.ID: []string{}}}).ok()
	if q.str("device_keys", alice.ID, alice.Device, "keys", "ed25519:"+alice.Device) != k.public {
		t.Errorf("query %s", q.Raw)
	}
	bob.post(v3+"/keys/query", obj{"device_keys": obj{alice.ID: obj{}}}).fails(400, "M_BAD_JSON")
	bob.post(v3+"/keys/query", obj{"device_keys": obj{"alice": []string{}}}).fails(400, "M_INVALID_PARAM")
	bob.post(v3+"/keys/query", obj{}).fails(400, "M_MISSING_PARAM")
	claim := func() *answer {
		return bob.post(v3+"/keys/claim", obj{"one_time_keys": obj{alice.ID: obj{alice.Device: "signed_curve25519"}}}).ok()
	}
	seen := map[string]bool{}
	for range 2 {
		keys, _ := claim().at("one_time_keys", alice.ID, alice.Device).(map[string]any)
		for id := range keys {
			seen[id] = true
		}
	}
	if len(seen) != 2 {
		t.Errorf("claimed %v", seen)
	}
	if last := claim(); last.at("one_time_keys", alice.ID, alice.Device) != nil || last.at("failures") == nil {
		t.Errorf("a third key: %s", last.Raw)
	}
	bob.post(v3+"/keys/claim", obj{}).fails(400, "M_MISSING_PARAM")
	bob.post(v3+"/keys/claim", obj{"one_time_keys": obj{alice.ID: []string{"x"}}}).fails(400, "M_BAD_JSON")
	bob.get(v3+"/keys/changes").fails(400, "M_MISSING_PARAM")
	bob.get(v3+"/keys/changes?from=x&to=y").fails(400, "M_INVALID_PARAM")
}

func (c *client) crossSigning(t *testing.T, seed byte) obj {
	master, self, user := newKey(t, seed), newKey(t, seed+1), newKey(t, seed+2)
	key := func(usage string, k signingKey) obj {
		return obj{"user_id": c.ID, "usage": []string{usage}, "keys": obj{"ed25519:" + k.public: k.public}}
	}
	return obj{
		"master_key":       key("master", master),
		"self_signing_key": master.sign(t, c.ID, master.public, key("self_signing", self)),
		"user_signing_key": master.sign(t, c.ID, master.public, key("user_signing", user)),
	}
}

func TestCrossSigning(t *testing.T) {
	s := newServer(t)
	alice := s.register("alice")
	path := v3 + "/keys/device_signing/upload"
	one, two := alice.crossSigning(t, 10), alice.crossSigning(t, 20)
	alice.post(path, one).ok() // the first keys need no password
	alice.post(path, one).ok() // nor do the same ones
	if a := alice.post(path, two); a.Status != 401 || a.str("session") == "" {
		t.Fatalf("other keys without a password: %d", a.Status)
	}
	alice.post(path, alice.withPassword(two)).ok()
	q := alice.post(v3+"/keys/query", obj{"device_keys": obj{alice.ID: []string{}}}).ok()
	if got := q.at("master_keys", alice.ID, "keys"); fmt.Sprint(got) != fmt.Sprint(map[string]any(two["master_key"].(obj)["keys"].(obj))) {
		t.Errorf("master key %v", got)
	}
	broken := alice.crossSigning(t, 30)
	broken["self_signing_key"] = alice.crossSigning(t, 40)["self_signing_key"]
	alice.post(path, alice.withPassword(broken)).fails(400, "M_INVALID_SIGNATURE")
	// A device can't be called like a cross-signing key.
	var id string
	for k := range two["master_key"].(obj)["keys"].(obj) {
		id = k[len("ed25519:"):]
	}
	s.send("POST", v3+"/login", "", obj{"type": "m.login.password", "password": testPassword, "user": "alice", "device_id": id}).fails(403, "M_FORBIDDEN")

	sigs := alice.post(v3+"/keys/signatures/upload", obj{alice.ID: obj{"NODEVICE": obj{"user_id": alice.ID, "device_id": "NODEVICE", "signatures": obj{}}}}).ok()
	if sigs.at("failures", alice.ID, "NODEVICE") == nil {
		t.Errorf("failures %s", sigs.Raw)
	}
	alice.post(v3+"/keys/signatures/upload", obj{"alice": obj{}}).fails(400, "M_INVALID_PARAM")
	alice.post(v3+"/keys/signatures/upload", obj{alice.ID: 5}).fails(400, "M_BAD_JSON")
}

func TestSendToDevice(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	path := v3 + "/sendToDevice/org.x/t1"
	body := obj{"messages": obj{bob.ID: obj{bob.Device: obj{"hello": 1}}}}
	alice.put(path, body).ok()
	alice.put(path, body).ok() // again: delivered once
	acc, err := s.users.Account(ctx, "@bob:example.org")
	must(t, err)
	evs, _, err := s.keys.ToDevice(ctx, acc.UID, mxid.DeviceID(bob.Device), 0, 1<<62, 100)
	must(t, err)
	if len(evs) != 1 {
		t.Errorf("%d messages, want 1", len(evs))
	}
	alice.put(path, obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(path, obj{"messages": obj{bob.ID: obj{bob.Device: "x"}}}).fails(400, "M_BAD_JSON")
	alice.put(path, obj{"messages": obj{"bob": obj{}}}).fails(400, "M_INVALID_PARAM")
	alice.put(v3+"/sendToDevice/"+repeat("t", 256)+"/t1", body).fails(400, "M_INVALID_PARAM")
}

func TestKeyBackup(t *testing.T) {
	s := newServer(t)
	alice, bob := s.register("alice"), s.register("bob")
	base := v3 + "/room_keys"
	alice.get(base+"/version").fails(404, "M_NOT_FOUND")
	make := obj{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": obj{"public_key": "abc"}}
	version := alice.post(base+"/version", make).ok().str("version")
	a := alice.get(base + "/version").ok()
	if a.str("version") != version || a.at("count") != 0.0 || a.str("auth_data", "public_key") != "abc" || a.str("etag") == "" {
		t.Errorf("version %s", a.Raw)
	}
	alice.post(base+"/version", obj{"algorithm": "x"}).fails(400, "M_MISSING_PARAM")
	alice.post(base+"/version", obj{"algorithm": "x", "auth_data": 5}).fails(400, "M_BAD_JSON")
	make["auth_data"] = obj{"public_key": "def"}
	alice.put(base+"/version/"+version, make).ok()
	alice.put(base+"/version/"+version, obj{"algorithm": "other", "auth_data": obj{}}).fails(400, "M_INVALID_PARAM")
	make["version"] = "other"
	alice.put(base+"/version/"+version, make).fails(400, "M_INVALID_PARAM")
	alice.get(base+"/version/none").fails(404, "M_NOT_FOUND")
	bob.get(base+"/version/"+version).fails(404, "M_NOT_FOUND")

	q := "?version=" + version
	key := func(first int) obj {
		return obj{"first_message_index": first, "forwarded_count": 0, "is_verified": true, "session_data": obj{"ciphertext": "x"}}
	}
	const room, other = "/keys/%21a:x.org", "/keys/%21b%2Fc:x.org"
	if a := alice.put(base+room+"/s1"+q, key(5)).ok(); a.at("count") != 1.0 || a.str("etag") == "" {
		t.Errorf("count %s", a.Raw)
	}
	alice.put(base+room+q, obj{"sessions": obj{"s1": key(3), "s2": key(0)}}).ok()
	if a := alice.put(base+"/keys"+q, obj{"rooms": obj{"!b/c:x.org": obj{"sessions": obj{"s3": key(1)}}}}).ok(); a.at("count") != 3.0 {
		t.Errorf("count %s", a.Raw)
	}
	if a := alice.get(base + room + "/s1" + q).ok(); a.at("first_message_index") != 3.0 {
		t.Errorf("the better key was not kept: %s", a.Raw)
	}
	if a := alice.get(base + room + q).ok(); len(a.at("sessions").(map[string]any)) != 2 {
		t.Errorf("room %s", a.Raw)
	}
	if a := alice.get(base + "/keys" + q).ok(); a.at("rooms", "!b/c:x.org", "sessions", "s3") == nil {
		t.Errorf("all %s", a.Raw)
	}
	if a := alice.get(base + "/keys/%21empty:x.org" + q).ok(); len(a.at("sessions").(map[string]any)) != 0 {
		t.Errorf("no keys %s", a.Raw)
	}
	alice.get(base+room+"/none"+q).fails(404, "M_NOT_FOUND")
	alice.get(base+"/keys?version=99").fails(404, "M_NOT_FOUND")
	alice.get(base+"/keys").fails(400, "M_MISSING_PARAM")
	alice.put(base+room+"/s1"+q, obj{}).fails(400, "M_MISSING_PARAM")
	alice.put(base+room+"/s1"+q, obj{"first_message_index": "x"}).fails(400, "M_BAD_JSON")
	alice.put(base+"/keys/nonsense/s1"+q, key(1)).fails(400, "M_INVALID_PARAM")
	alice.put(base+"/keys"+q, obj{}).fails(400, "M_MISSING_PARAM")
	if a := alice.del(base + other + "/s3" + q).ok(); a.at("count") != 2.0 {
		t.Errorf("after deleting one: %s", a.Raw)
	}
	alice.del(base + room + q).ok()
	if a := alice.del(base + "/keys" + q).ok(); a.at("count") != 0.0 {
		t.Errorf("after deleting all: %s", a.Raw)
	}
	delete(make, "version")
	fresh := alice.post(base+"/version", make).ok().str("version")
	if a := alice.put(base+room+"/s1"+q, key(1)).fails(403, "M_WRONG_ROOM_KEYS_VERSION"); a.str("current_version") != fresh {
		t.Errorf("wrong version %s", a.Raw)
	}
	alice.del(base + "/version/" + fresh).ok()
	alice.del(base + "/version/" + fresh).ok() // again
	alice.del(base+"/version/99").fails(404, "M_NOT_FOUND")
}
