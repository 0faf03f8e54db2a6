package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"parley/internal/await"
	"parley/internal/mxid"
	"parley/storage"
)

const (
	hereName  = mxid.ServerName("here.example")
	thereName = mxid.ServerName("there.example")
	phone     = mxid.DeviceID("PHONE")
	laptop    = mxid.DeviceID("LAPTOP")
)

func TestUploadDeviceKeys(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	bob := f.user("bob", phone)
	k := deviceKey(alice, phone)
	resign := func(change func(m map[string]any)) json.RawMessage {
		var m map[string]any
		must(t, json.Unmarshal(unsignedDevice(alice, phone, k), &m))
		change(m)
		return sign(encode(m), alice, "ed25519:PHONE", k)
	}
	for name, c := range map[string]struct {
		keys json.RawMessage
		code string
	}{
		"good":             {signedDevice(alice, phone), ""},
		"null":             {json.RawMessage("null"), ""},
		"another user":     {signedDevice(bob, phone), "M_INVALID_PARAM"},
		"another device":   {signedDevice(alice, laptop), "M_INVALID_PARAM"},
		"no algorithms":    {resign(func(m map[string]any) { delete(m, "algorithms") }), "M_BAD_JSON"},
		"bad algorithms":   {resign(func(m map[string]any) { m["algorithms"] = "olm" }), "M_BAD_JSON"},
		"many algorithms":  {resign(func(m map[string]any) { m["algorithms"] = slices.Repeat([]string{"a"}, 33) }), "M_BAD_JSON"},
		"no keys":          {resign(func(m map[string]any) { delete(m, "keys") }), "M_BAD_JSON"},
		"no ed25519":       {resign(func(m map[string]any) { delete(m["keys"].(map[string]any), "ed25519:PHONE") }), "M_BAD_JSON"},
		"foreign key name": {resign(func(m map[string]any) { m["keys"].(map[string]any)["curve25519:X"] = k.pub }), "M_INVALID_PARAM"},
		"short curve key":  {resign(func(m map[string]any) { m["keys"].(map[string]any)["curve25519:PHONE"] = "AAAA" }), "M_BAD_JSON"},
		"no object":        {json.RawMessage(`[]`), "M_BAD_JSON"},
		"duplicate member": {json.RawMessage(`{"user_id":"a","user_id":"b"}`), "M_BAD_JSON"},
		"float":            {json.RawMessage(`{"user_id":1.5}`), "M_BAD_JSON"},
		"too large":        {resign(func(m map[string]any) { m["x"] = strings.Repeat("x", 17<<10) }), "M_BAD_JSON"},
		"other case":       {json.RawMessage(strings.Replace(string(signedDevice(alice, phone)), "user_id", "USER_ID", 1)), "M_BAD_JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: c.keys})
			wantCode(t, err, c.code)
		})
	}
	got := f.sees(bob, alice)
	if len(got) != 1 || got[0] != phone {
		t.Fatalf("%d devices", len(got))
	}
}

// What a client adds beside the signed part doesn't stay.
func TestUploadKeepsOnlyWhatIsSigned(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	raw, err := decorated(signedDevice(alice, phone), signatures{"@eve:x": {"ed25519:E": "x"}}, "a name")
	must(t, err)
	_, err = f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: raw})
	must(t, err)
	got, err := f.QueryFederation(ctx, "x", map[mxid.UserID][]mxid.DeviceID{alice: {phone, laptop}})
	must(t, err)
	if string(got.DeviceKeys[alice][phone]) != string(mustCanonical(t, signedDevice(alice, phone))) {
		t.Fatalf("%s", got.DeviceKeys[alice][phone])
	}
}

func mustCanonical(t *testing.T, raw json.RawMessage) json.RawMessage {
	m, err := object(raw)
	must(t, err)
	sigs, err := signaturesOf(m)
	must(t, err)
	for u := range sigs {
		raw, err = normal(m, u, sigs)
		must(t, err)
	}
	return raw
}

// Row M17. Names of devices are not told to other servers.
func TestDeviceNamesOnlyForTheirOwner(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone), f.user("bob", phone)
	f.publish(alice, phone)
	for asker, want := range map[mxid.UserID]bool{alice: true, bob: false} {
		got, err := f.Query(ctx, asker, map[mxid.UserID][]mxid.DeviceID{alice: {phone}})
		must(t, err)
		if strings.Contains(string(got.DeviceKeys[alice][phone]), "name of PHONE") != want {
			t.Errorf("%s", got.DeviceKeys[alice][phone])
		}
	}
	f.cfg.DeviceNamesFederated = true
	got, err := f.QueryFederation(ctx, "x", map[mxid.UserID][]mxid.DeviceID{alice: nil})
	must(t, err)
	if !strings.Contains(string(got.DeviceKeys[alice][phone]), "name of PHONE") {
		t.Error("the name isn't shown")
	}
}

func otks(u mxid.UserID, d mxid.DeviceID, ids ...string) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for _, id := range ids {
		out["signed_curve25519:"+id] = oneTimeKey(u, d, id)
	}
	return out
}

func (f *fixture) claim(u mxid.UserID, d mxid.DeviceID) string {
	f.n.t.Helper()
	got, failures, err := f.Claim(ctx, map[mxid.UserID]map[mxid.DeviceID]string{u: {d: "signed_curve25519"}})
	must(f.n.t, err)
	if len(failures) > 0 {
		f.n.t.Fatalf("%d failures", len(failures))
	}
	for id := range got[u][d] {
		return strings.TrimPrefix(id, "signed_curve25519:")
	}
	return ""
}

func (f *fixture) wantCounts(u mxid.UserID, d mxid.DeviceID, left int, unused ...string) {
	f.n.t.Helper()
	counts, fallback, err := f.Counts(ctx, u, d)
	must(f.n.t, err)
	if counts["signed_curve25519"] != left || !slices.Equal(fallback, unused) || fallback == nil {
		f.n.t.Fatalf("%v %v, want %d %v", counts, fallback, left, unused)
	}
}

func TestOneTimeKeysAreAQueue(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	f.wantCounts(alice, phone, 0)
	for i, ids := range [][]string{{"B", "A"}, {"0"}, {"A2"}} {
		counts, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: otks(alice, phone, ids...)})
		must(t, err)
		if want := []int{2, 3, 4}[i]; counts["signed_curve25519"] != want {
			t.Fatalf("%v, want %d", counts, want)
		}
	}
	f.reopen()
	var got []string
	for range 5 {
		got = append(got, f.claim(alice, phone))
	}
	if want := []string{"A", "B", "0", "A2", ""}; !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	f.wantCounts(alice, phone, 0)
	for _, nothing := range []string{f.claim(alice, laptop), f.claim("@nobody:here.example", phone), f.claim(f.user("bob", phone), phone)} {
		if nothing != "" {
			t.Errorf("claimed %s", nothing)
		}
	}
}

func TestOneTimeKeyTwice(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	up := func(id, seed string) error {
		_, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: map[string]json.RawMessage{"signed_curve25519:" + id: oneTimeKey(alice, phone, seed)}})
		return err
	}
	must(t, up("A", "1"))
	must(t, up("A", "1")) // sent again
	f.wantCounts(alice, phone, 1)
	wantCode(t, up("A", "2"), "M_INVALID_PARAM")
	if got := f.claim(alice, phone); got != "A" {
		t.Fatal(got)
	}
	must(t, up("A", "1")) // the answer to the upload was lost, and the key claimed since
	f.wantCounts(alice, phone, 0)
	if got := f.claim(alice, phone); got != "" {
		t.Fatal("claimed twice")
	}
	must(t, up("A", "3"))
	if got := f.claim(alice, phone); got != "A" {
		t.Fatal(got)
	}
}

// The memory of claimed keys is bounded.
func TestClaimedKeysAreForgotten(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	for i := range 3 {
		var ids []string
		for j := range 500 {
			ids = append(ids, fmt.Sprintf("%d-%d", i, j))
		}
		_, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: otks(alice, phone, ids...)})
		must(t, err)
		for range ids {
			if f.claim(alice, phone) == "" {
				t.Fatal("no key")
			}
		}
	}
	rows, err := f.now(ctx).scan(storage.K("ot").Prefix(), false, 0)
	must(t, err)
	if len(rows) != 2*maxClaimedKept {
		t.Fatalf("%d rows", len(rows))
	}
}

func TestOneTimeKeyLimits(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	for name, keys := range map[string]map[string]json.RawMessage{
		"no colon":      {"signed_curve25519": oneTimeKey(alice, phone, "")},
		"no name":       {"signed_curve25519:": oneTimeKey(alice, phone, "")},
		"long ID":       {"signed_curve25519:" + strings.Repeat("x", 128): oneTimeKey(alice, phone, "")},
		"string":        {"signed_curve25519:A": json.RawMessage(`"key"`)},
		"no signature":  {"signed_curve25519:A": json.RawMessage(`{"key":"x"}`)},
		"number":        {"curve25519:A": json.RawMessage(`1`)},
		"null":          {"curve25519:A": json.RawMessage(`null`)},
		"not JSON":      {"curve25519:A": json.RawMessage(`{`)},
		"large":         {"curve25519:A": json.RawMessage(`"` + strings.Repeat("x", 9000) + `"`)},
		"many kinds":    {"a:1": json.RawMessage(`"x"`), "b:1": json.RawMessage(`"x"`), "c:1": json.RawMessage(`"x"`), "d:1": json.RawMessage(`"x"`), "e:1": json.RawMessage(`"x"`)},
		"too many":      manyKeys(maxOneTimeKeys + 1),
		"deeply nested": {"curve25519:A": json.RawMessage(strings.Repeat(`{"a":`, 10) + "1" + strings.Repeat("}", 10))},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: keys})
			wantCode(t, err, "M_INVALID_PARAM")
		})
	}
	f.wantCounts(alice, phone, 0)
	_, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: manyKeys(maxOneTimeKeys)})
	must(t, err)
	_, err = f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: map[string]json.RawMessage{"curve25519:more": json.RawMessage(`"x"`)}})
	wantCode(t, err, "M_INVALID_PARAM")
}

func manyKeys(n int) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for i := range n {
		out[fmt.Sprintf("curve25519:%04d", i)] = json.RawMessage(`"x"`)
	}
	return out
}

// Many claim at once: nobody gets a key that another one got.
func TestClaimsNeverShareAKey(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	const claims = 10_000
	var mu sync.Mutex
	got := map[string]int{}
	empty := 0
	var wg sync.WaitGroup
	for i := range 12 {
		keys := map[string]json.RawMessage{}
		for j := range 700 {
			keys[fmt.Sprintf("signed_curve25519:%d-%d", i, j)] = json.RawMessage(`{"key":"x","signatures":{"@a:b":{"ed25519:c":"d"}}}`)
		}
		wg.Go(func() {
			for ids := sortedKeys(keys); len(ids) > 0; {
				some := map[string]json.RawMessage{}
				for _, id := range ids[:50] {
					some[id] = keys[id]
				}
				if _, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: some}); err == nil {
					ids = ids[50:]
				} // else the queue is full: claims go on
			}
		})
	}
	for range 100 {
		wg.Go(func() {
			for range claims / 100 {
				id := f.claim(alice, phone)
				mu.Lock()
				if got[id]++; id == "" {
					empty++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	delete(got, "")
	for id, n := range got {
		if n > 1 {
			t.Fatalf("%s was given out %d times", id, n)
		}
	}
	counts, _, err := f.Counts(ctx, alice, phone)
	must(t, err)
	if len(got)+empty != claims || len(got)+counts["signed_curve25519"] != 12*700 {
		t.Fatalf("%d keys, %d without, %v left", len(got), empty, counts)
	}
}

func TestFallbackKeys(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	up := func(ids ...string) error {
		_, err := f.Upload(ctx, alice, phone, UploadRequest{FallbackKeys: otks(alice, phone, ids...)})
		return err
	}
	must(t, up("F1"))
	f.wantCounts(alice, phone, 0, "signed_curve25519")
	_, err := f.Upload(ctx, alice, phone, UploadRequest{OneTimeKeys: otks(alice, phone, "A")})
	must(t, err)
	if got := f.claim(alice, phone); got != "A" {
		t.Fatal(got)
	}
	f.wantCounts(alice, phone, 0, "signed_curve25519")
	for range 2 {
		if got := f.claim(alice, phone); got != "F1" {
			t.Fatal(got)
		}
		f.wantCounts(alice, phone, 0)
	}
	must(t, up("F1")) // the same again stays used
	f.wantCounts(alice, phone, 0)
	f.reopen()
	must(t, up("F2"))
	f.wantCounts(alice, phone, 0, "signed_curve25519")
	if got := f.claim(alice, phone); got != "F2" {
		t.Fatal(got)
	}
	wantCode(t, up("F3", "F4"), "M_INVALID_PARAM")
}

// A device that gets another identity starts afresh: what it signed before is
// worth nothing.
func TestNewIdentityDropsOneTimeKeys(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice := f.user("alice", phone)
	_, err := f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: signedDevice(alice, phone),
		OneTimeKeys: otks(alice, phone, "A"), FallbackKeys: otks(alice, phone, "F")})
	must(t, err)
	other := newKey("other")
	_, err = f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: sign(unsignedDevice(alice, phone, other), alice, "ed25519:PHONE", other)})
	must(t, err)
	f.wantCounts(alice, phone, 0)
	if got := f.claim(alice, phone); got != "" {
		t.Fatal(got)
	}
	await.Until(t, "swept", f.settled)
	rows, err := f.now(ctx).scan(storage.K("ot").Prefix(), false, 0)
	must(t, err)
	if len(rows) != 0 {
		t.Fatalf("%d rows left", len(rows))
	}
}

func TestRemoveDevicesSweeps(t *testing.T) {
	f := newNetwork(t, hereName).servers[hereName]
	alice, bob := f.user("alice", phone, laptop), f.user("bob", phone)
	for _, d := range []mxid.DeviceID{phone, laptop} {
		_, err := f.Upload(ctx, alice, d, UploadRequest{DeviceKeys: signedDevice(alice, d), OneTimeKeys: manyKeys(600), FallbackKeys: otks(alice, d, "F")})
		must(t, err)
	}
	for i := range 3 {
		must(t, f.SendToDevice(ctx, bob, fmt.Sprint(i), "m.test", map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{alice: {"*": json.RawMessage(`{}`)}}))
	}
	f.remove(alice, phone)
	if got := f.sees(bob, alice); !slices.Equal(got, []mxid.DeviceID{laptop}) {
		t.Fatalf("%d devices", len(got))
	}
	await.Until(t, "swept", f.settled)
	left := map[string]int{}
	for _, family := range []string{"dk", "ot", "oc", "of", "td"} {
		rows, err := f.now(ctx).scan(storage.K(family).Prefix(), false, 0)
		must(t, err)
		left[family] = len(rows)
	}
	if want := map[string]int{"dk": 1, "ot": 1200, "oc": 1, "of": 1, "td": 4}; !maps.Equal(left, want) {
		t.Fatalf("%v, want %v", left, want)
	}
}

func TestCacheKeepsNothingStale(t *testing.T) {
	c := newCache[int, string](2)
	_, _, gen := c.get(1)
	c.drop(1) // it changes while it is read
	c.put(1, "old", gen)
	if _, found, _ := c.get(1); found {
		t.Fatal("a value from before the change was kept")
	}
	for k := range 5 {
		_, _, gen = c.get(k)
		c.put(k, "new", gen)
	}
	if len(c.m) != 2 {
		t.Fatalf("%d values", len(c.m))
	}
	if v, found, _ := c.get(4); !found || v != "new" {
		t.Fatal("the newest isn't there")
	}
}
