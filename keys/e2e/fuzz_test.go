package e2e

import (
	"encoding/json"
	"testing"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// What is taken as device keys is theirs, verifies, and is taken again in the
// form in which it is kept.
func FuzzDeviceKeys(f *testing.F) {
	alice := mxid.UserID("@alice:here.example")
	f.Add([]byte(signedDevice(alice, phone)))
	f.Add([]byte(unsignedDevice(alice, phone, deviceKey(alice, phone))))
	f.Add([]byte(`{"user_id":"@alice:here.example","device_id":"PHONE","algorithms":[],"keys":{},"signatures":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if kept, err := parseForeignKeys(raw, alice, phone); err == nil {
			again, err := parseForeignKeys(kept, alice, phone)
			if err != nil || string(again) != string(kept) {
				t.Fatalf("%s became %s: %v", kept, again, err)
			}
		}
		k, err := parseDeviceKeys(raw, alice, phone)
		if err != nil {
			return
		}
		again, err := parseDeviceKeys(k.raw, alice, phone)
		if err != nil || string(again.raw) != string(k.raw) || !again.ed.Equal(k.ed) {
			t.Fatalf("%s became %s: %v", k.raw, again.raw, err)
		}
		if ed, err := edKey(k.raw, phone); err != nil || !ed.Equal(k.ed) {
			t.Fatal(err)
		}
	})
}

func FuzzCrossSigningKey(f *testing.F) {
	alice := mxid.UserID("@alice:here.example")
	up := newIdentity(alice, "").upload()
	f.Add([]byte(up.Master))
	f.Add([]byte(up.SelfSigning))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, _, err := parseCrossKey(raw, alice, "master")
		if err != nil {
			return
		}
		again, _, err := parseCrossKey(k.raw, alice, "master")
		if err != nil || string(again.raw) != string(k.raw) || again.id != k.id {
			t.Fatalf("%s became %s: %v", k.raw, again.raw, err)
		}
	})
}

func FuzzOneTimeKey(f *testing.F) {
	alice := mxid.UserID("@alice:here.example")
	f.Add("signed_curve25519:A", []byte(oneTimeKey(alice, phone, "")))
	f.Add("curve25519:A", []byte(`"key"`))
	f.Fuzz(func(t *testing.T, id string, raw []byte) {
		keys, err := parseKeys(map[string]json.RawMessage{id: raw})
		if err != nil {
			return
		}
		if jsonx.Check(keys[0].Key, oneTimeLimits) != nil || len(keys[0].ID) > maxKeyID {
			t.Fatalf("%q %s", keys[0].ID, keys[0].Key)
		}
	})
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(session(1, 2, true, "x")))
	f.Add([]byte(`{"first_message_index":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, ok := parseSession(raw); ok && m.better(m) {
			t.Fatal("better than itself")
		}
	})
}

// Whatever a server sends: no panic, no user of ours touched, and a witness
// still gets keys.
func FuzzEDU(f *testing.F) {
	n := newNetwork(f, hereName, thereName)
	here, there := n.servers[hereName], n.servers[thereName]
	alice, bob := here.user("alice", phone), there.user("bob", phone)
	n.join("room", alice, bob)
	here.publish(alice, phone)
	there.publish(bob, phone)
	n.pump()
	here.sees(alice, bob)
	id := newIdentity(bob, "")
	kinds := []string{"m.device_list_update", "m.signing_key_update", "m.direct_to_device"}
	f.Add(0, []byte(encode(deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: 2, PrevID: []int64{1}, Keys: signedDevice(bob, laptop)})))
	f.Add(0, []byte(encode(deviceListEDU{UserID: bob, DeviceID: phone, StreamID: 9, Deleted: true})))
	f.Add(1, []byte(encode(signingKeyEDU{UserID: bob, Master: id.upload().Master, SelfSigning: id.upload().SelfSigning})))
	f.Add(2, []byte(encode(toDeviceEDU{Sender: bob, Type: "m.x", MessageID: "1", Messages: messages{alice: {"*": text("x")}}})))
	f.Fuzz(func(t *testing.T, kind int, content []byte) {
		n.t = t
		_ = here.take(thereName, queuedEDU{typ: kinds[uint(kind)%3], content: content})
		if got := here.sees(alice, alice); len(got) != 1 || got[0] != phone {
			t.Fatalf("%d own devices", len(got))
		}
		got, err := here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
		if err != nil || len(got.Failures) > 0 {
			t.Fatalf("%d failures, %v", len(got.Failures), err)
		}
		if err := here.AckToDevice(ctx, here.uidOf(alice), phone, 1<<60); err != nil {
			t.Fatal(err)
		}
	})
}
