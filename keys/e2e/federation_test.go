package e2e

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"parley/internal/await"
	"parley/internal/mxid"
)

// pair is Alice on one server and Bob on another, in one room.
func pair(t *testing.T) (n *network, here, there *fixture, alice, bob mxid.UserID) {
	n = newNetwork(t, hereName, thereName)
	here, there = n.servers[hereName], n.servers[thereName]
	alice, bob = here.user("alice", phone, laptop), there.user("bob", phone, laptop)
	n.join("room", alice, bob)
	return n, here, there, alice, bob
}

func (f *fixture) wantSees(asker, u mxid.UserID, want ...mxid.DeviceID) {
	f.n.t.Helper()
	slices.Sort(want)
	if got := f.sees(asker, u); !slices.Equal(got, want) {
		f.n.t.Fatalf("sees %d devices, want %d", len(got), len(want))
	}
}

func (n *network) requests() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

func TestRemoteListFollowsUpdates(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone) // fetched
	asked := n.requests()
	here.wantSees(alice, bob, phone) // cached

	since := here.commit.Head()
	there.publish(bob, laptop)
	n.pump()
	if got, err := here.Changes(ctx, alice, since, here.commit.Head()); err != nil || !slices.Equal(got, []mxid.UserID{bob}) {
		t.Fatalf("%d changes, %v", len(got), err)
	}
	here.wantSees(alice, bob, phone, laptop)
	there.remove(bob, phone)
	await.Until(t, "the removal is queued", there.settled)
	n.pump()
	here.wantSees(alice, bob, laptop)

	id := newIdentity(bob, "")
	must(t, there.UploadSigning(ctx, bob, id.upload()))
	there.signs(bob, bob, "LAPTOP", sign(signedDevice(bob, laptop), bob, "ed25519:"+id.self.pub, id.self))
	n.pump()
	got, err := here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
	must(t, err)
	if len(got.MasterKeys) != 1 || len(got.SelfSigning) != 1 || len(signers(got.DeviceKeys[bob][laptop])) != 2 {
		t.Fatalf("%d %d %q", len(got.MasterKeys), len(got.SelfSigning), signers(got.DeviceKeys[bob][laptop]))
	}
	next := newIdentity(bob, "next")
	must(t, there.UploadSigning(ctx, bob, next.upload()))
	n.pump()
	got, err = here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
	must(t, err)
	if key, _, err := parseCrossKey(got.MasterKeys[bob], bob, "master"); err != nil || key.id != next.master.pub {
		t.Fatal("the old master key", err)
	}
	if n.requests() != asked {
		t.Fatalf("%d requests: the updates weren't enough", n.requests()-asked)
	}
	here.reopen()
	here.wantSees(alice, bob, laptop)
	if n.requests() != asked {
		t.Fatal("the cache didn't survive")
	}
}

// A server that was down gets every update when it is back.
func TestRemoteWasDown(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone)
	n.setDown(hereName, true)
	there.publish(bob, laptop)
	id := newIdentity(bob, "")
	must(t, there.UploadSigning(ctx, bob, id.upload()))
	there.signs(bob, bob, "LAPTOP", sign(signedDevice(bob, laptop), bob, "ed25519:"+id.self.pub, id.self))
	n.pump()
	n.setDown(hereName, false)
	n.pump()
	here.wantSees(alice, bob, phone, laptop)
	got, err := here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
	must(t, err)
	if len(got.MasterKeys) != 1 || len(signers(got.DeviceKeys[bob][laptop])) != 2 {
		t.Fatalf("%d %q", len(got.MasterKeys), signers(got.DeviceKeys[bob][laptop]))
	}
}

// dropOne loses the oldest EDU for a server.
func (f *fixture) dropOne(to mxid.ServerName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.outbox, func(e queuedEDU) bool { return e.to == to })
	f.outbox = slices.Delete(f.outbox, i, i+1)
}

func TestGapMakesTheListStale(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone)
	there.publish(bob, laptop)
	there.dropOne(hereName)
	there.publish(bob, "THIRD")
	n.setDown(thereName, true) // it can't be asked
	since := here.commit.Head()
	for _, e := range there.queued() {
		must(t, here.take(thereName, e))
	}
	if got, err := here.Changes(ctx, alice, since, here.commit.Head()); err != nil || len(got) != 1 {
		t.Fatalf("%d changes, %v", len(got), err)
	}
	got, err := here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
	must(t, err)
	if got.Failures[thereName] == nil || len(got.DeviceKeys) != 0 {
		t.Fatalf("a stale list was given out: %d users", len(got.DeviceKeys))
	}
	await.Until(t, "a first try has failed", func() bool { return !here.resync.busy(thereName) })
	here.reopen() // the wish to fetch survives
	n.setDown(thereName, false)
	await.Until(t, "a first try has failed or worked", func() bool { return !here.resync.busy(thereName) })
	here.clock.Advance(resyncRetry)
	await.Until(t, "fetched again", here.settled)
	asked := n.requests()
	here.wantSees(alice, bob, phone, laptop, "THIRD")
	if n.requests() != asked {
		t.Fatal("asked again")
	}
}

// busy says whether a fetch from a server runs.
func (r *resyncer) busy(server mxid.ServerName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.servers[server] != nil && r.servers[server].running
}

func TestRetriesAreSpacedOut(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone)
	n.setDown(thereName, true)
	must(t, here.markStale(ctx, bob, here.uidOf(bob)))
	await.Until(t, "tried", func() bool { return !here.resync.busy(thereName) })
	asked := n.requests()
	for i := range 5 {
		must(t, here.markStale(ctx, bob, here.uidOf(bob))) // more EDUs come
		if n.requests() != asked {
			t.Fatalf("asked at once, try %d", i)
		}
	}
	wait := func() time.Duration {
		here.resync.mu.Lock()
		defer here.resync.mu.Unlock()
		return here.resync.servers[thereName].wait
	}
	for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour} {
		if got := wait(); got != want {
			t.Fatalf("waits %v, want %v", got, want)
		}
		before := n.requests()
		here.clock.Advance(want)
		await.Until(t, "tried again", func() bool { return n.requests() == before+1 && !here.resync.busy(thereName) })
	}
	before := n.requests()
	must(t, here.markStale(ctx, bob, here.uidOf(bob))) // too soon
	here.clock.Advance(resyncRetry)
	n.setDown(thereName, false)
	must(t, here.markStale(ctx, bob, here.uidOf(bob))) // a sign of life
	await.Until(t, "fetched", here.settled)
	if got := n.requests() - before; got != 1 {
		t.Fatalf("%d requests", got)
	}
}

func TestUpdatesThatDoNotFollow(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone)
	row, err := list(here.reader(ctx), here.uidOf(bob))
	must(t, err)
	stale := func(edu deviceListEDU) bool {
		t.Helper()
		n.setDown(thereName, true)
		must(t, here.ReceiveDeviceList(ctx, thereName, encode(edu)))
		now, err := list(here.reader(ctx), here.uidOf(bob))
		must(t, err)
		// A fetch that still meets the server down would be shared.
		await.Until(t, "the first try has ended", func() bool { return !here.resync.busy(thereName) })
		n.setDown(thereName, false)
		must(t, here.fetch(ctx, bob, here.uidOf(bob)))
		return now.Stale
	}
	s := row.Stream
	for name, c := range map[string]struct {
		edu   deviceListEDU
		stale bool
	}{
		"sent again":      {deviceListEDU{UserID: bob, DeviceID: phone, StreamID: s, Keys: signedDevice(bob, phone)}, false},
		"counting anew":   {deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: s, Keys: signedDevice(bob, laptop)}, true},
		"gap":             {deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: s + 2, PrevID: []int64{s + 1}, Keys: signedDevice(bob, laptop)}, true},
		"first of a list": {deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: s + 2, Keys: signedDevice(bob, laptop)}, true},
		"wrong keys":      {deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: s + 1, PrevID: []int64{s}, Keys: signedDevice(bob, phone)}, true},
		"broken keys":     {deviceListEDU{UserID: bob, DeviceID: laptop, StreamID: s + 1, PrevID: []int64{s}, Keys: json.RawMessage(`[1]`)}, true},
	} {
		if got := stale(c.edu); got != c.stale {
			t.Errorf("%s: stale %v", name, got)
		}
	}
}

func TestEDUsOfOthersAreRefused(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.publish(alice, phone)
	for name, c := range map[string]struct {
		typ, content, code string
	}{
		"update, other server":  {"m.device_list_update", `{"user_id":"@bob:there.example","device_id":"X","stream_id":1}`, "M_FORBIDDEN"},
		"update, our user":      {"m.device_list_update", `{"user_id":"@alice:here.example","device_id":"X","stream_id":1}`, "M_FORBIDDEN"},
		"update, no user":       {"m.device_list_update", `{"device_id":"X","stream_id":1}`, "M_INVALID_PARAM"},
		"update, no device":     {"m.device_list_update", `{"user_id":"@bob:evil.example","stream_id":1}`, "M_INVALID_PARAM"},
		"update, wrong type":    {"m.device_list_update", `{"user_id":1}`, "M_BAD_JSON"},
		"update, not an object": {"m.device_list_update", `[]`, "M_BAD_JSON"},
		"signing, other server": {"m.signing_key_update", `{"user_id":"@bob:there.example"}`, "M_FORBIDDEN"},
		"message, other server": {"m.direct_to_device", `{"sender":"@bob:there.example","type":"m.x","message_id":"1","messages":{}}`, "M_FORBIDDEN"},
		"message, no ID":        {"m.direct_to_device", `{"sender":"@eve:evil.example","type":"m.x","messages":{}}`, "M_INVALID_PARAM"},
		"message, no type":      {"m.direct_to_device", `{"sender":"@eve:evil.example","message_id":"1","messages":{}}`, "M_INVALID_PARAM"},
		"message, no object":    {"m.direct_to_device", `{"sender":"@eve:evil.example","type":"x","message_id":"1","messages":{"@alice:here.example":{"PHONE":1}}}`, "M_BAD_JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, here.take("evil.example", queuedEDU{typ: c.typ, content: json.RawMessage(c.content)}), c.code)
		})
	}
	here.wantSees(alice, bob, phone)
}

// Of somebody whom nobody here shares a room with, nothing is kept.
func TestStrangers(t *testing.T) {
	n := newNetwork(t, hereName, thereName)
	here, there := n.servers[hereName], n.servers[thereName]
	alice, bob := here.user("alice", phone), there.user("bob", phone)
	there.publish(bob, phone)
	must(t, there.UploadSigning(ctx, bob, newIdentity(bob, "").upload()))
	for range 2 {
		asked := n.requests()
		here.wantSees(alice, bob, phone)
		if n.requests() != asked+1 {
			t.Fatal("not asked")
		}
	}
	must(t, here.ReceiveDeviceList(ctx, thereName, encode(deviceListEDU{UserID: bob, DeviceID: phone, StreamID: 7})))
	for _, family := range []string{"dk", "cs", "gk", "dl", "dr"} {
		rows, err := here.now(ctx).scan(newKeyPrefix(family), false, 0)
		must(t, err)
		if len(rows) != 0 {
			t.Errorf("%d rows of family %s", len(rows), family)
		}
	}
	// Alice's signature on a stranger's key is hers to see again.
	id := newIdentity(alice, "")
	must(t, here.UploadSigning(ctx, alice, id.upload()))
	theirs := newIdentity(bob, "")
	if code := here.signs(alice, bob, theirs.master.pub, sign(crossSigningKey(bob, "master", theirs.master), alice, "ed25519:"+id.users.pub, id.users)); code != "" {
		t.Fatal(code)
	}
	got, err := here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil})
	must(t, err)
	if s := signers(got.MasterKeys[bob]); len(s) != 1 {
		t.Fatalf("%q", s)
	}
	n.setDown(thereName, true)
	got, err = here.Query(ctx, alice, map[mxid.UserID][]mxid.DeviceID{bob: nil, alice: nil, "@x:nowhere": nil, "@bad": nil})
	must(t, err)
	if len(got.Failures) != 2 || got.Failures[thereName] == nil || len(got.DeviceKeys) != 1 {
		t.Fatalf("%d failures, %d users", len(got.Failures), len(got.DeviceKeys))
	}
	claimed, failures, err := here.Claim(ctx, map[mxid.UserID]map[mxid.DeviceID]string{bob: {phone: "signed_curve25519"}})
	must(t, err)
	if len(claimed) != 0 || failures[thereName] == nil {
		t.Fatal("claimed from a server that is down")
	}
}

// While no room was shared, nobody told of changes.
func TestListIsDistrustedAfterALeave(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	here.wantSees(alice, bob, phone)
	n.leave("room", bob)
	there.publish(bob, laptop)
	n.pump()
	n.join("room", bob)
	n.pump()
	await.Until(t, "fetched", here.settled)
	here.wantSees(alice, bob, phone, laptop)
	there.publish(bob, "THIRD")
	n.pump()
	here.wantSees(alice, bob, phone, laptop, "THIRD")
}

// A server that comes to share a room later is told, and follows from then on.
func TestIntroduce(t *testing.T) {
	n := newNetwork(t, hereName, thereName)
	here, there := n.servers[hereName], n.servers[thereName]
	alice, bob := here.user("alice", phone), there.user("bob", phone)
	there.publish(bob, phone)
	n.join("room", alice, bob)
	edus := there.queued()
	if len(edus) != 1 || edus[0].to != hereName || edus[0].typ != "m.device_list_update" {
		t.Fatalf("%d EDUs", len(edus))
	}
	n.pump()
	here.wantSees(alice, bob, phone)
	must(t, there.StartedSharing(ctx, bob))
	if len(there.queued()) != 0 {
		t.Fatal("told twice")
	}
	asked := n.requests()
	there.publish(bob, laptop)
	n.pump()
	here.wantSees(alice, bob, phone, laptop)
	if n.requests() != asked {
		t.Fatal("the first update made a gap")
	}
}

func TestListWentStaleWhileFetching(t *testing.T) {
	n, here, there, alice, bob := pair(t)
	there.publish(bob, phone)
	n.pump()
	before, err := list(here.reader(ctx), here.uidOf(bob))
	must(t, err)
	got, err := there.DevicesFederation(ctx, hereName, bob)
	must(t, err)
	snap, err := foreignList(bob, got)
	must(t, err)
	there.publish(bob, laptop)
	n.pump() // comes before the answer to the question
	must(t, here.store(ctx, bob, here.uidOf(bob), snap, before.Marks))
	await.Until(t, "fetched again", here.settled)
	here.wantSees(alice, bob, phone, laptop)
}

func TestClaimFromAnotherServer(t *testing.T) {
	_, here, there, _, bob := pair(t)
	_, err := there.Upload(ctx, bob, phone, UploadRequest{OneTimeKeys: otks(bob, phone, "A", "B")})
	must(t, err)
	if a, b, c := here.claim(bob, phone), here.claim(bob, phone), here.claim(bob, phone); a != "A" || b != "B" || c != "" {
		t.Fatal(a, b, c)
	}
}

// What a hostile server answers is bounded and is about nobody else.
func TestForeignAnswersAreChecked(t *testing.T) {
	bob := mxid.UserID("@bob:there.example")
	id, eve := newIdentity(bob, ""), newIdentity("@eve:there.example", "")
	other := newIdentity(bob, "other").upload()
	good := id.upload()
	for name, c := range map[string]struct {
		master, self json.RawMessage
		want         int
	}{
		"good":             {good.Master, good.SelfSigning, 2},
		"none":             {nil, nil, 0},
		"of someone else":  {eve.upload().Master, nil, 0},
		"wrongly signed":   {good.Master, other.SelfSigning, 1},
		"without a master": {nil, good.SelfSigning, 0},
		"exchanged":        {good.SelfSigning, good.Master, 0},
	} {
		if got := foreignCross(bob, c.master, c.self); len(got) != c.want {
			t.Errorf("%s: %d keys", name, len(got))
		}
	}
	device := func(id mxid.DeviceID, keys json.RawMessage) json.RawMessage {
		return encode(remoteDevice{ID: id, Keys: keys})
	}
	r := RemoteDevices{UserID: bob, StreamID: 3, Devices: []json.RawMessage{
		device(phone, signedDevice(bob, phone)), device(phone, signedDevice(bob, phone)), device(laptop, signedDevice(bob, phone)),
		device("X", signedDevice("@eve:there.example", "X")), device("Y", nil), device("Z", json.RawMessage(`[]`)), json.RawMessage(`1`)}}
	snap, err := foreignList(bob, r)
	must(t, err)
	if len(snap.devices) != 1 || snap.devices[0].ID != phone || snap.stream != 3 {
		t.Fatalf("%d devices", len(snap.devices))
	}
	if _, err := foreignList("@eve:there.example", r); err == nil {
		t.Error("a list of another user was taken")
	}
	r.Devices = make([]json.RawMessage, maxForeignDevices+1)
	if _, err := foreignList(bob, r); err == nil {
		t.Error("an endless list was taken")
	}
	got := claimedKeys{}
	got.takeForeign(map[mxid.UserID]map[mxid.DeviceID]string{bob: {phone: "signed_curve25519"}},
		map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage{
			bob: {phone: {"curve25519:A": json.RawMessage(`"x"`), "signed_curve25519:A": json.RawMessage(`{}`), "signed_curve25519:B": json.RawMessage(`{}`)},
				laptop: {"signed_curve25519:A": json.RawMessage(`{}`)}},
			"@eve:there.example": {phone: {"signed_curve25519:A": json.RawMessage(`{}`)}}})
	if len(got) != 1 || len(got[bob]) != 1 || len(got[bob][phone]) != 1 || got[bob][phone]["curve25519:A"] != nil {
		t.Errorf("%d users", len(got))
	}
}
