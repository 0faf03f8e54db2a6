package keys

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

var start = time.UnixMilli(1_700_000_000_000)

// fakeFetcher answers for the servers of a test.
type fakeFetcher struct {
	mu      sync.Mutex
	raw     map[mxid.ServerName]json.RawMessage
	notary  map[mxid.ServerName]json.RawMessage
	calls   map[mxid.ServerName]int
	blocked chan struct{} // when set, fetches wait for it
	entered chan struct{}
}

func (f *fakeFetcher) ServerKeys(ctx context.Context, from mxid.ServerName) (gomatrixserverlib.ServerKeys, error) {
	f.mu.Lock()
	f.calls[from]++
	raw, ok := f.raw[from]
	f.mu.Unlock()
	if f.blocked != nil {
		f.entered <- struct{}{}
		<-f.blocked
	}
	if !ok {
		return gomatrixserverlib.ServerKeys{}, errors.New("unreachable")
	}
	return gomatrixserverlib.ServerKeys{Raw: raw}, nil
}

func (f *fakeFetcher) NotaryKeys(_ context.Context, _ mxid.ServerName, req map[mxid.ServerName][]gomatrixserverlib.KeyID) (out []gomatrixserverlib.ServerKeys, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range req {
		if raw, ok := f.notary[s]; ok {
			out = append(out, gomatrixserverlib.ServerKeys{Raw: raw})
		}
	}
	return out, nil
}

// countingKV counts what reaches the store.
type countingKV struct {
	storage.KV
	mu            sync.Mutex
	gets, commits int
}

func (k *countingKV) Get(ctx context.Context, key []byte) ([]byte, error) {
	k.mu.Lock()
	k.gets++
	k.mu.Unlock()
	return k.KV.Get(ctx, key)
}

func (k *countingKV) Commit(ctx context.Context, b *storage.Batch) error {
	k.mu.Lock()
	k.commits++
	k.mu.Unlock()
	return k.KV.Commit(ctx, b)
}

type ringWorld struct {
	t    *testing.T
	clk  *clock.Fake
	kv   *countingKV
	c    *storage.Committer
	own  *Signer
	f    *fakeFetcher
	ring *Ring
	logs bytes.Buffer
}

func newRingWorld(t *testing.T) *ringWorld {
	db, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	w := &ringWorld{t: t, clk: clock.NewFake(start), kv: &countingKV{KV: db}}
	if w.c, err = storage.NewCommitter(w.kv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.c.Close(); _ = db.Close() })
	w.own = newSigner(t, "own")
	w.f = &fakeFetcher{raw: map[mxid.ServerName]json.RawMessage{}, notary: map[mxid.ServerName]json.RawMessage{}, calls: map[mxid.ServerName]int{}}
	w.restart()
	return w
}

// restart empties the memory.
func (w *ringWorld) restart() {
	w.ring = NewRing(w.own, w.kv, w.c, w.clk, slog.New(slog.NewTextHandler(&w.logs, nil)))
	w.ring.SetFetcher(w.f)
}

// publish lets a server announce its key now, valid for d.
func (w *ringWorld) publish(s *Signer, d time.Duration, old ...oldKey) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	w.f.raw[s.name] = w.response(s, d, old...)
}

type oldKey struct {
	s       *Signer
	expired time.Time
}

func (w *ringWorld) response(s *Signer, d time.Duration, old ...oldKey) json.RawMessage {
	sk := serverKeys{ServerName: s.name, VerifyKeys: map[gomatrixserverlib.KeyID]publicKey{s.keyID: {Key: keyBytes(s.PublicKey())}},
		OldVerifyKeys: map[gomatrixserverlib.KeyID]expiredKey{}, ValidUntil: w.clk.Now().Add(d).UnixMilli()}
	for _, o := range old {
		sk.OldVerifyKeys[o.s.keyID] = expiredKey{Key: keyBytes(o.s.PublicKey()), Expired: o.expired.UnixMilli()}
	}
	b, _ := json.Marshal(sk)
	raw, err := s.SignJSON(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func (w *ringWorld) verify(s *Signer, at time.Time, strict bool) error {
	w.t.Helper()
	msg, err := s.SignJSON(json.RawMessage(`{"hello":"world"}`))
	if err != nil {
		w.t.Fatal(err)
	}
	check := func(at, until spec.Timestamp) bool { return at <= until }
	if !strict {
		check = gomatrixserverlib.NoStrictValidityCheck
	}
	res, err := w.ring.VerifyJSONs(context.Background(), []gomatrixserverlib.VerifyJSONRequest{
		{ServerName: spec.ServerName(s.name), AtTS: spec.AsTimestamp(at), Message: msg, ValidityCheckingFunc: check},
	})
	if err != nil || len(res) != 1 {
		w.t.Fatal(res, err)
	}
	return res[0].Error
}

func (w *ringWorld) want(what string, got, want error) {
	w.t.Helper()
	if !errors.Is(got, want) || want == nil && got != nil {
		w.t.Errorf("%s: %v; want %v", what, got, want)
	}
}

func (w *ringWorld) wantCalls(s *Signer, n int) {
	w.t.Helper()
	if got := w.f.calls[s.name]; got != n {
		w.t.Errorf("%d fetches from %s; want %d", got, string(s.name), n)
	}
}

func TestCacheHitWritesNothing(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, 24*time.Hour)
	w.want("first", w.verify(b, w.clk.Now(), true), nil)
	gets, commits := w.kv.gets, w.kv.commits
	if commits == 0 {
		t.Error("the key wasn't stored")
	}
	for range 20 {
		w.want("hit", w.verify(b, w.clk.Now(), true), nil)
	}
	if w.kv.gets != gets || w.kv.commits != commits {
		t.Errorf("hits caused %d reads and %d writes", w.kv.gets-gets, w.kv.commits-commits)
	}
	w.restart()
	w.want("after restart", w.verify(b, w.clk.Now(), true), nil)
	w.wantCalls(b, 1)
	if w.kv.commits != commits {
		t.Error("reading the stored key wrote something")
	}
}

func TestOwnKey(t *testing.T) {
	w := newRingWorld(t)
	w.want("own", w.verify(w.own, w.clk.Now(), true), nil)
	imposter, _ := NewSigner("own", vault.OpenMemorySeed("imposter"))
	w.want("imposter", w.verify(imposter, w.clk.Now(), true), ErrKeyNotValid)
	imposter.keyID = w.own.keyID
	w.want("imposter with our key ID", w.verify(imposter, w.clk.Now(), true), ErrBadSignature)
	w.wantCalls(w.own, 0)
}

func TestValidity(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, time.Hour)
	w.want("now", w.verify(b, w.clk.Now(), true), nil)
	w.want("past", w.verify(b, w.clk.Now().Add(-1000*time.Hour), true), nil)
	w.want("beyond valid_until_ts", w.verify(b, w.clk.Now().Add(2*time.Hour), true), ErrKeyNotValid)
	w.want("old room versions don't care", w.verify(b, w.clk.Now().Add(2*time.Hour), false), nil)
	w.wantCalls(b, 1) // asked again within a second: left in peace
	w.clk.Advance(2 * time.Hour)
	w.publish(b, time.Hour)
	w.want("refreshed", w.verify(b, w.clk.Now(), true), nil)
	w.wantCalls(b, 2)
}

func TestSevenDays(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, 10000*time.Hour)
	w.want("now", w.verify(b, w.clk.Now(), true), nil)
	w.want("in 8 days", w.verify(b, w.clk.Now().Add(8*24*time.Hour), true), ErrKeyNotValid)
	w.clk.Advance(8 * 24 * time.Hour)
	calls := w.f.calls["b"]
	delete(w.f.raw, "b")
	w.want("8 days later, the server is away", w.verify(b, w.clk.Now(), true), nil)
	w.wantCalls(b, calls+1)
}

func TestExpiredKeys(t *testing.T) {
	w := newRingWorld(t)
	old, b := newSigner(t, "b"), newSigner(t, "b2")
	b.name = "b"
	w.publish(b, time.Hour, oldKey{old, w.clk.Now().Add(-time.Hour)})
	w.want("before it expired", w.verify(old, w.clk.Now().Add(-2*time.Hour), true), nil)
	w.want("after it expired", w.verify(old, w.clk.Now(), true), ErrKeyNotValid)
	w.want("after it expired, old room", w.verify(old, w.clk.Now(), false), ErrKeyNotValid)
	w.want("new key", w.verify(b, w.clk.Now(), true), nil)
}

// A server that changes its key without listing the old one: what the old key
// signed before stays good, what it signs later doesn't.
func TestVanishedKey(t *testing.T) {
	w := newRingWorld(t)
	old, b := newSigner(t, "b"), newSigner(t, "b2")
	b.name = "b"
	w.publish(old, 100*time.Hour)
	w.want("old", w.verify(old, w.clk.Now(), true), nil)
	w.clk.Advance(time.Hour)
	w.publish(b, 100*time.Hour)
	w.want("new", w.verify(b, w.clk.Now(), true), nil)
	w.want("old, before", w.verify(old, w.clk.Now().Add(-30*time.Minute), true), nil)
	w.want("old, after", w.verify(old, w.clk.Now().Add(time.Minute), true), ErrKeyNotValid)
}

func TestBackoff(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	for range 10 {
		w.want("unreachable", w.verify(b, w.clk.Now(), true), ErrNoKey)
	}
	w.wantCalls(b, 1)
	for range 40 {
		w.clk.Advance(30 * time.Second)
		w.want("unreachable", w.verify(b, w.clk.Now(), true), ErrNoKey)
	}
	if n := w.f.calls["b"]; n < 5 || n > 12 {
		t.Errorf("%d fetches in 20 minutes", n)
	}
	w.publish(b, time.Hour)
	w.clk.Advance(backoffMax)
	w.want("back again", w.verify(b, w.clk.Now(), true), nil)
}

// Messages with keys that don't exist don't make us ask again and again.
func TestUnknownKeyIDs(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, time.Hour)
	fake, _ := NewSigner("b", vault.OpenMemorySeed("x"))
	for range 100 {
		w.want("unknown key", w.verify(fake, w.clk.Now(), true), ErrNoKey)
		w.clk.Advance(time.Second)
	}
	if n := w.f.calls["b"]; n > 10 {
		t.Errorf("%d fetches in 100 s", n)
	}
	w.want("the real key works all the while", w.verify(b, w.clk.Now(), true), nil)
	fake.keyID = b.keyID
	w.want("wrong signature", w.verify(fake, w.clk.Now(), true), ErrBadSignature)
}

func TestSingleFlight(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, time.Hour)
	w.f.blocked, w.f.entered = make(chan struct{}), make(chan struct{}, 100)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { w.want("together", w.verify(b, w.clk.Now(), true), nil) })
	}
	<-w.f.entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if rec := w.ring.fetch(ctx, "b"); rec != nil {
		t.Error("a cancelled caller waited")
	}
	close(w.f.blocked)
	wg.Wait()
	w.wantCalls(b, 1)
}

func TestManyServersInOneCall(t *testing.T) {
	w := newRingWorld(t)
	var reqs []gomatrixserverlib.VerifyJSONRequest
	for i := range 100 {
		s := newSigner(t, mxid.ServerName("s"+string(rune('a'+i%26))+string(rune('a'+i/26))))
		if i%2 == 0 {
			w.publish(s, time.Hour)
		}
		msg, _ := s.SignJSON(json.RawMessage(`{}`))
		for range 2 {
			reqs = append(reqs, gomatrixserverlib.VerifyJSONRequest{ServerName: spec.ServerName(s.name), AtTS: spec.AsTimestamp(w.clk.Now()), Message: msg})
		}
	}
	reqs = append(reqs, gomatrixserverlib.VerifyJSONRequest{ServerName: "x", Message: []byte(`{`)})
	res, err := w.ring.VerifyJSONs(context.Background(), reqs)
	if err != nil || len(res) != len(reqs) {
		t.Fatal(err)
	}
	for i := range 200 {
		if good := i/2%2 == 0; good != (res[i].Error == nil) {
			t.Errorf("%d: %v", i, res[i].Error)
		}
	}
	if !errors.Is(res[200].Error, ErrNoSignature) {
		t.Error(res[200].Error)
	}
	for s, n := range w.f.calls {
		if n != 1 {
			t.Errorf("%s asked %d times", string(s), n)
		}
	}
}

func TestBadResponses(t *testing.T) {
	w := newRingWorld(t)
	b, c := newSigner(t, "b"), newSigner(t, "c")
	good := w.response(b, time.Hour)
	var m map[string]any
	_ = json.Unmarshal(good, &m)
	change := func(f func(map[string]any)) json.RawMessage {
		var m map[string]any
		_ = json.Unmarshal(good, &m)
		f(m)
		out, _ := json.Marshal(m)
		return out
	}
	for name, raw := range map[string]json.RawMessage{
		"of another server": w.response(c, time.Hour),
		"not signed":        change(func(m map[string]any) { delete(m, "signatures") }),
		"changed":           change(func(m map[string]any) { m["valid_until_ts"] = 1e15 }),
		"no keys":           change(func(m map[string]any) { m["verify_keys"] = map[string]any{} }),
		"another key": change(func(m map[string]any) {
			m["verify_keys"] = map[string]any{string(b.keyID): map[string]any{"key": "AAAA"}}
		}),
		"not JSON":  json.RawMessage(`{`),
		"too large": json.RawMessage(`{"x":"` + string(bytes.Repeat([]byte("x"), 70000)) + `"}`),
	} {
		w.f.raw["b"] = raw
		w.clk.Advance(backoffMax)
		w.want(name, w.verify(b, w.clk.Now(), true), ErrNoKey)
	}
}

func TestNotaryFallback(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.f.notary["b"] = w.response(b, time.Hour)
	w.want("no notary is asked by default", w.verify(b, w.clk.Now(), true), ErrNoKey)
	w.ring.SetNotaries([]mxid.ServerName{"b", "own", "notary"})
	w.clk.Advance(backoffMax)
	w.want("notary", w.verify(b, w.clk.Now(), true), nil)
	c := newSigner(t, "c")
	w.f.notary["c"] = w.response(b, time.Hour)
	w.want("a lying notary", w.verify(c, w.clk.Now(), true), ErrNoKey)
}

func TestQuery(t *testing.T) {
	w := newRingWorld(t)
	old, b := newSigner(t, "b"), newSigner(t, "b2")
	b.name = "b"
	ctx := context.Background()
	type ids = map[gomatrixserverlib.KeyID]int64
	ask := func(server mxid.ServerName, i ids) []json.RawMessage {
		t.Helper()
		out, err := w.ring.Query(ctx, map[mxid.ServerName]map[gomatrixserverlib.KeyID]int64{server: i})
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range out {
			if err := VerifyJSON("own", w.own.keyID, w.own.PublicKey(), raw); err != nil {
				t.Errorf("not signed by us: %v", err)
			}
		}
		return out
	}
	if got := ask("b", nil); len(got) != 0 {
		t.Errorf("an unknown server: %s", got)
	}
	if got := ask("not valid!", nil); len(got) != 0 {
		t.Error("an invalid name")
	}
	if got := ask("own", nil); len(got) != 1 {
		t.Error("our own keys are missing")
	}
	w.clk.Advance(backoffMax)
	w.publish(old, 10*time.Hour)
	if got := ask("b", nil); len(got) != 1 || VerifyJSON("b", old.keyID, old.PublicKey(), got[0]) != nil {
		t.Errorf("got %s", got)
	}
	calls := w.f.calls["b"]
	w.clk.Advance(time.Hour)
	ask("b", ids{old.keyID: 0})
	w.wantCalls(old, calls)
	w.publish(old, 30*time.Hour)
	ask("b", ids{old.keyID: w.clk.Now().Add(15 * time.Hour).UnixMilli()})
	w.wantCalls(old, calls+1)
	w.clk.Advance(16 * time.Hour) // more than half of its life has passed
	w.publish(b, 10*time.Hour)
	if got := ask("b", nil); len(got) != 2 {
		t.Errorf("the response with the old key is gone: %s", got)
	}
	delete(w.f.raw, "b")
	w.clk.Advance(1000 * time.Hour)
	if got := ask("b", nil); len(got) != 2 {
		t.Error("a server that is away isn't answered for")
	}
	many := map[mxid.ServerName]map[gomatrixserverlib.KeyID]int64{}
	for i := range 100 {
		many[mxid.ServerName(string(rune('a'+i%26))+string(rune('a'+i/26)))] = nil
	}
	before := len(w.f.calls)
	if _, err := w.ring.Query(ctx, many); err != nil {
		t.Fatal(err)
	}
	if n := len(w.f.calls) - before; n > maxQueryFetches {
		t.Errorf("one query made us ask %d servers", n)
	}
}

func TestCacheIsBounded(t *testing.T) {
	w := newRingWorld(t)
	b := newSigner(t, "b")
	w.publish(b, time.Hour)
	w.want("first", w.verify(b, w.clk.Now(), true), nil)
	for i := range maxCached + 100 {
		w.ring.mu.Lock()
		w.ring.entryLocked(mxid.ServerName(rune(i+1000)), nil)
		w.ring.mu.Unlock()
	}
	if len(w.ring.cache) > maxCached {
		t.Errorf("%d servers cached", len(w.ring.cache))
	}
	w.want("still known", w.verify(b, w.clk.Now(), true), nil)
	w.wantCalls(b, 1)
}

func TestRecordsAreBounded(t *testing.T) {
	w := newRingWorld(t)
	var rec *record
	for i := range 200 {
		s, _ := NewSigner("b", vault.OpenMemorySeed(string(rune(i+'a'))))
		raw := w.response(s, time.Hour)
		sk, err := parseResponse("b", raw)
		if err != nil {
			t.Fatal(err)
		}
		rec = merge(rec, sk, raw, int64(i))
		if _, ok := rec.Keys[s.keyID]; !ok {
			t.Fatal("the newest key was dropped")
		}
	}
	if len(rec.Keys) > maxKeys+1 || len(rec.Responses) > maxResponses {
		t.Errorf("%d keys, %d responses", len(rec.Keys), len(rec.Responses))
	}
}

func FuzzParseResponse(f *testing.F) {
	w := &ringWorld{clk: clock.NewFake(start)}
	s, _ := NewSigner("b", vault.OpenMemorySeed("b"))
	f.Add([]byte(w.response(s, time.Hour)))
	f.Add([]byte(`{"server_name":"b","verify_keys":{"ed25519:1":{"key":5}},"signatures":{"b":{"ed25519:1":"x"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		sk, err := parseResponse("b", raw)
		if err != nil {
			return
		}
		rec := merge(nil, sk, raw, 1)
		merge(rec, sk, raw, 2)
		for _, k := range rec.Keys {
			if len(k.Key) != 32 {
				t.Error("a key of the wrong size was kept")
			}
		}
	})
}

func FuzzVerifyJSON(f *testing.F) {
	s, _ := NewSigner("b", vault.OpenMemorySeed("b"))
	good, _ := s.SignJSON(json.RawMessage(`{"a":1}`))
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ours := VerifyJSON("b", s.keyID, s.PublicKey(), raw)
		if signed, err := s.SignJSON(raw); err == nil && VerifyJSON("b", s.keyID, s.PublicKey(), signed) != nil {
			t.Errorf("what we sign doesn't verify: %q", signed)
		}
		if ours == nil && gomatrixserverlib.VerifyJSON("b", s.keyID, s.PublicKey(), raw) != nil && !bytes.Contains(raw, []byte(`\`)) {
			t.Errorf("the library refuses %q", raw)
		}
	})
}
