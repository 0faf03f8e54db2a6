package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"parley/internal/await"
	"parley/internal/mxid"
)

func TestUploadSigning(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone, mxid.DeviceID(newKey("taken").pub)), f.user("bob")
	id := newIdentity(alice, "")
	good := id.upload()
	other := newIdentity(alice, "other")

	has, err := f.HasMasterKey(ctx, alice)
	must(t, err)
	if has {
		t.Fatal("there is a key already")
	}
	wrongUsage := good
	wrongUsage.SelfSigning = good.UserSigning
	notSigned := good
	notSigned.UserSigning = crossSigningKey(alice, "user_signing", id.users)
	otherSigned := good
	otherSigned.SelfSigning = other.upload().SelfSigning
	sameKey := good
	sameKey.SelfSigning = sign(crossSigningKey(alice, "self_signing", id.master), alice, "ed25519:"+id.master.pub, id.master)
	twoKeys := SigningUpload{Master: encode(map[string]any{"user_id": string(alice), "usage": []string{"master"}, "keys": map[string]string{"ed25519:" + id.master.pub: id.master.pub, "ed25519:" + id.self.pub: id.self.pub}})}
	misnamed := SigningUpload{Master: encode(map[string]any{"user_id": string(alice), "usage": []string{"master"}, "keys": map[string]string{"ed25519:x": id.master.pub}})}
	for name, c := range map[string]struct {
		up   SigningUpload
		code string
	}{
		"no master key":   {SigningUpload{SelfSigning: good.SelfSigning}, "M_MISSING_PARAM"},
		"wrong usage":     {wrongUsage, "M_INVALID_PARAM"},
		"not signed":      {notSigned, "M_INVALID_SIGNATURE"},
		"signed by other": {otherSigned, "M_INVALID_SIGNATURE"},
		"another user":    {newIdentity(bob, "").upload(), "M_INVALID_PARAM"},
		"the same key":    {sameKey, "M_INVALID_PARAM"},
		"two keys":        {twoKeys, "M_INVALID_PARAM"},
		"misnamed":        {misnamed, "M_INVALID_PARAM"},
		"not an object":   {SigningUpload{Master: json.RawMessage(`1`)}, "M_BAD_JSON"},
		"a device's ID":   {SigningUpload{Master: crossSigningKey(alice, "master", newKey("taken"))}, "M_FORBIDDEN"},
		"nothing":         {SigningUpload{}, ""},
		"good":            {good, ""},
		"good again":      {good, ""},
	} {
		if strings.HasPrefix(name, "good") {
			continue
		}
		t.Run(name, func(t *testing.T) { wantCode(t, f.UploadSigning(ctx, alice, c.up), c.code) })
	}
	same, err := f.SameKeys(ctx, alice, good)
	must(t, err)
	if same {
		t.Fatal("the same keys before there are any")
	}
	must(t, f.UploadSigning(ctx, alice, good))
	head := f.commit.Head()
	must(t, f.UploadSigning(ctx, alice, good))
	if changes, err := f.Changes(ctx, alice, head, f.commit.Head()+1); err != nil || len(changes) != 0 {
		t.Fatalf("the same keys again are news: %v", err)
	}
	f.reopen()
	for up, want := range map[*SigningUpload]bool{&good: true, {Master: good.Master}: true, {Master: other.upload().Master}: false} {
		same, err := f.SameKeys(ctx, alice, *up)
		must(t, err)
		if same != want {
			t.Errorf("the same keys: %v", same)
		}
	}
	// Others see all but the user-signing key.
	for asker, want := range map[mxid.UserID]int{alice: 3, bob: 2} {
		got, err := f.Query(ctx, asker, map[mxid.UserID][]mxid.DeviceID{alice: nil})
		must(t, err)
		if n := len(got.MasterKeys) + len(got.SelfSigning) + len(got.UserSigning); n != want || len(got.MasterKeys) != 1 {
			t.Errorf("%d keys, want %d", n, want)
		}
	}
	// A device can't take the ID of a key.
	d := mxid.DeviceID(id.self.pub)
	_, err = f.Upload(ctx, alice, d, UploadRequest{DeviceKeys: signedDevice(alice, d)})
	wantCode(t, err, "M_FORBIDDEN")
}

// signer uploads one signed object and gives the failure's code.
func (f *fixture) signs(u, target mxid.UserID, id string, obj json.RawMessage) string {
	f.n.t.Helper()
	failures, err := f.UploadSignatures(ctx, u, map[mxid.UserID]map[string]json.RawMessage{target: {id: obj}})
	must(f.n.t, err)
	var e struct {
		Code string `json:"errcode"`
	}
	if raw := failures[target][id]; raw != nil {
		must(f.n.t, json.Unmarshal(raw, &e))
	}
	return e.Code
}

func TestUploadSignatures(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob, carol := f.user("alice", phone, laptop), f.user("bob", phone), f.user("carol")
	ids := map[mxid.UserID]identity{}
	for _, u := range []mxid.UserID{alice, bob} {
		f.publish(u, phone)
		ids[u] = newIdentity(u, "")
		must(t, f.UploadSigning(ctx, u, ids[u].upload()))
	}
	a, b := ids[alice], ids[bob]
	self, usk := "ed25519:"+a.self.pub, "ed25519:"+a.users.pub
	device := signedDevice(alice, phone)
	ownMaster := crossSigningKey(alice, "master", a.master)
	theirs := crossSigningKey(bob, "master", b.master)
	changedDevice := json.RawMessage(strings.Replace(string(device), "m.olm", "m.xlm", 1))
	for name, c := range map[string]struct {
		target mxid.UserID
		id     string
		obj    json.RawMessage
		code   string
	}{
		"own device":                {alice, "PHONE", sign(device, alice, self, a.self), ""},
		"own device, wrong key":     {alice, "PHONE", sign(device, alice, self, a.users), "M_INVALID_SIGNATURE"},
		"own device, by itself":     {alice, "PHONE", device, "M_INVALID_SIGNATURE"},
		"own device, by the master": {alice, "PHONE", sign(device, alice, "ed25519:"+a.master.pub, a.master), "M_INVALID_SIGNATURE"},
		"own device, changed":       {alice, "PHONE", sign(changedDevice, alice, self, a.self), "M_INVALID_SIGNATURE"},
		"own device without keys":   {alice, "LAPTOP", sign(signedDevice(alice, laptop), alice, self, a.self), "M_NOT_FOUND"},
		"own master, by device":     {alice, a.master.pub, sign(ownMaster, alice, "ed25519:PHONE", deviceKey(alice, phone)), ""},
		"own master, wrong key":     {alice, a.master.pub, sign(ownMaster, alice, "ed25519:PHONE", newKey("x")), "M_INVALID_SIGNATURE"},
		"own master, other device":  {alice, a.master.pub, sign(ownMaster, alice, "ed25519:LAPTOP", deviceKey(alice, laptop)), "M_INVALID_SIGNATURE"},
		"own self-signing key":      {alice, a.self.pub, sign(a.upload().SelfSigning, alice, "ed25519:PHONE", deviceKey(alice, phone)), "M_NOT_FOUND"},
		"their master":              {bob, b.master.pub, sign(theirs, alice, usk, a.users), ""},
		"their master, self key":    {bob, b.master.pub, sign(theirs, alice, self, a.self), "M_INVALID_SIGNATURE"},
		"their master, wrong":       {bob, b.master.pub, sign(theirs, alice, usk, a.self), "M_INVALID_SIGNATURE"},
		"their device":              {bob, "PHONE", sign(signedDevice(bob, phone), alice, usk, a.users), "M_NOT_FOUND"},
		"somebody without keys":     {carol, b.master.pub, sign(theirs, alice, usk, a.users), "M_NOT_FOUND"},
		"in another name":           {bob, b.master.pub, sign(theirs, bob, usk, a.users), "M_INVALID_SIGNATURE"},
		"not an object":             {alice, "PHONE", json.RawMessage(`"x"`), "M_BAD_JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := f.signs(alice, c.target, c.id, c.obj); got != c.code {
				t.Fatalf("failure %q, want %q", got, c.code)
			}
		})
	}

	// What is visible to whom.
	f.reopen()
	query := func(asker, u mxid.UserID) (masterSigners, deviceSigners []string) {
		got, err := f.Query(ctx, asker, map[mxid.UserID][]mxid.DeviceID{u: nil})
		must(t, err)
		return signers(got.MasterKeys[u]), signers(got.DeviceKeys[u][phone])
	}
	same := func(got []string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("signatures %q, want %q", got, want)
		}
	}
	for _, asker := range []mxid.UserID{alice, bob, carol} {
		m, d := query(asker, alice)
		same(m, "@alice:here.example ed25519:PHONE")
		same(d, "@alice:here.example ed25519:PHONE", "@alice:here.example "+self)
	}
	m, _ := query(alice, bob)
	same(m, "@alice:here.example "+usk)
	for _, asker := range []mxid.UserID{bob, carol} {
		m, _ = query(asker, bob)
		same(m)
	}
	fed, err := f.QueryFederation(ctx, thereName, map[mxid.UserID][]mxid.DeviceID{bob: nil, alice: nil})
	must(t, err)
	same(signers(fed.MasterKeys[bob]))
	if len(fed.UserSigning) != 0 {
		t.Error("a user-signing key went out")
	}

	// Other keys end what the replaced ones signed.
	next := newIdentity(alice, "next")
	must(t, f.UploadSigning(ctx, alice, next.upload()))
	m, d := query(alice, alice)
	same(m)
	same(d, "@alice:here.example ed25519:PHONE")
	nextBob := newIdentity(bob, "next")
	must(t, f.UploadSigning(ctx, bob, nextBob.upload()))
	m, _ = query(alice, bob)
	same(m)
	await.Until(t, "swept", f.settled)
	rows, err := f.now(ctx).scan(newKeyPrefix("cg"), false, 0)
	must(t, err)
	if len(rows) != 0 {
		t.Errorf("%d signatures left", len(rows))
	}
}

// A master key alone drops the keys that the old one signed.
func TestReplaceMasterAlone(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	must(t, f.UploadSigning(ctx, alice, newIdentity(alice, "").upload()))
	must(t, f.UploadSigning(ctx, alice, SigningUpload{Master: newIdentity(alice, "2").upload().Master}))
	got, err := f.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{alice: nil})
	must(t, err)
	if len(got.MasterKeys) != 1 || len(got.SelfSigning) != 0 || len(got.UserSigning) != 0 {
		t.Fatalf("%d %d %d", len(got.MasterKeys), len(got.SelfSigning), len(got.UserSigning))
	}
}

func TestSigningNews(t *testing.T) {
	n := newNetwork(t, hereName)
	f := n.servers[hereName]
	alice, bob, carol := f.user("alice", phone), f.user("bob", phone), f.user("carol", phone)
	n.join("room", alice, bob)
	n.join("other", carol)
	for _, u := range []mxid.UserID{alice, bob} {
		f.publish(u, phone)
		must(t, f.UploadSigning(ctx, u, newIdentity(u, "").upload()))
	}
	since := f.commit.Head()
	news := func(u mxid.UserID) string {
		t.Helper()
		got, err := f.Changes(ctx, u, since, f.commit.Head())
		must(t, err)
		var names []string
		for _, who := range got {
			names = append(names, who.Localpart())
		}
		slices.Sort(names)
		return fmt.Sprint(names)
	}
	want := func(as, bs, cs string) {
		t.Helper()
		if a, b, c := news(alice), news(bob), news(carol); a != as || b != bs || c != cs {
			t.Errorf("news %s %s %s, want %s %s %s", a, b, c, as, bs, cs)
		}
		since = f.commit.Head()
	}
	id, theirs := newIdentity(alice, ""), newIdentity(bob, "")
	signedBob := sign(crossSigningKey(bob, "master", theirs.master), alice, "ed25519:"+id.users.pub, id.users)
	if code := f.signs(alice, bob, theirs.master.pub, signedBob); code != "" {
		t.Fatal(code)
	}
	want("[bob]", "[]", "[]") // only Alice sees what her user-signing key signed
	if code := f.signs(alice, bob, theirs.master.pub, signedBob); code != "" {
		t.Fatal(code)
	}
	want("[]", "[]", "[]") // no news
	f.signs(alice, alice, "PHONE", sign(signedDevice(alice, phone), alice, "ed25519:"+id.self.pub, id.self))
	want("[alice]", "[alice]", "[]")
	f.publish(bob, phone)
	want("[]", "[]", "[]")
	f.publish(bob, laptop)
	f.publish(carol, phone)
	want("[bob]", "[bob]", "[carol]")
	f.remove(bob, laptop)
	await.Until(t, "told", f.settled)
	want("[bob]", "[bob]", "[]")
	n.leave("room", bob)
	f.publish(bob, "THIRD")
	want("[]", "[bob]", "[]")
}
