package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// One-time keys of a device, under ot<uid><device><generation>:
//
//	0<algorithm><number>   the keys of an algorithm that are left, a queue
//	1<key ID>              every key of the queue by its ID, and the ones that
//	                       were claimed lately, so that an upload that is sent
//	                       again doesn't bring a claimed key back
//	2<slot>                the ring of claimed keys
//
// Row oc<uid><device> has the ends of the queues. A device that is removed and
// made again starts another generation, whatever is left of the one before.
const (
	otkQueue byte = 0
	otkByID  byte = 1
	otkRing  byte = 2
)

// Limits of one-time and fallback keys. Clients keep 50 to 100 on the server.
const (
	maxOneTimeKeys   = 1000 // per device, unclaimed
	maxKeyAlgorithms = 4
	maxClaimedKept   = 1024
	maxKeyID         = 128
)

var oneTimeLimits = jsonx.Limits{MaxBytes: 8 << 10, MaxDepth: 6, MaxKeys: 64, Integers: true}

// defaultAlgorithm is always counted, as clients wait for its count to know
// that they must upload.
const defaultAlgorithm = "signed_curve25519"

// countRow is row oc<uid><device>.
type countRow struct {
	Generation uint64              `json:"g"`
	Queues     map[string]queueRow `json:"q,omitempty"` // by algorithm
	Claimed    uint32              `json:"c,omitempty"` // next slot of the ring
}

// queueRow is the ends of a queue: keys First <= number < Next are left.
type queueRow struct {
	First uint64 `json:"f"`
	Next  uint64 `json:"n"`
}

func (c countRow) counts() map[string]int {
	out := map[string]int{defaultAlgorithm: 0}
	for algorithm, q := range c.Queues {
		out[algorithm] = int(q.Next - q.First)
	}
	return out
}

func (c countRow) total() (n int) {
	for _, left := range c.counts() {
		n += left
	}
	return n
}

// keyRow is a one-time or fallback key.
type keyRow struct {
	ID  string          `json:"id"` // with its algorithm
	Key json.RawMessage `json:"key"`
}

// owned names a device in this file.
type owned struct {
	user   mxid.UserID
	uid    intern.UID
	device mxid.DeviceID
	hash   []byte
}

func (s *Service) owned(u mxid.UserID, uid intern.UID, d mxid.DeviceID) owned {
	return owned{u, uid, d, s.deviceHash(u, d)}
}

func (o owned) key(family string) storage.Key {
	return storage.K(family).U32(uint32(o.uid)).Bytes(o.hash)
}

func (o owned) ref() vault.Ref { return vault.User(uint32(o.uid)) }

func (o owned) otk(generation uint64, part byte) storage.Key {
	return o.key("ot").U64(generation).U8(part)
}

func (s *Service) algorithmHash(algorithm string) []byte { return s.hash16("algorithm", algorithm)[:4] }

func (s *Service) queueKey(o owned, c countRow, algorithm string, n uint64) storage.Key {
	return o.otk(c.Generation, otkQueue).Bytes(s.algorithmHash(algorithm)).U64(n)
}

// byIDRow is a row of part otkByID: state, then a hash of the key's value.
const (
	stateLeft    byte = 0
	stateClaimed byte = 1
)

// parseKeys checks uploaded one-time or fallback keys, and brings them into
// canonical form.
// spec: client-server API, "One-time and fallback keys"
func parseKeys(in map[string]json.RawMessage) ([]keyRow, error) {
	out := make([]keyRow, 0, len(in))
	for _, id := range sortedKeys(in) {
		if _, ok := algorithmOf(id); !ok {
			return nil, httpx.InvalidParam("Key IDs are an algorithm, a colon and a name")
		}
		raw := in[id]
		if err := jsonx.Check(raw, oneTimeLimits); err != nil {
			return nil, httpx.InvalidParam("A key is too large or not JSON")
		}
		key, err := jsonx.Canonical(raw)
		if err != nil {
			return nil, httpx.InvalidParam("A key is not JSON")
		}
		if err := checkKey(id, key); err != nil {
			return nil, err
		}
		out = append(out, keyRow{id, bytes.Clone(key)})
	}
	return out, nil
}

func algorithmOf(keyID string) (string, bool) {
	algorithm, name, ok := strings.Cut(keyID, ":")
	return algorithm, ok && algorithm != "" && name != "" && len(keyID) <= maxKeyID
}

func checkKey(id string, key []byte) error {
	if !strings.HasPrefix(id, "signed_") {
		if key[0] != '"' && key[0] != '{' {
			return httpx.InvalidParam("A key is a string or an object")
		}
		return nil
	}
	var m struct {
		Key        *string    `json:"key"`
		Signatures signatures `json:"signatures"`
	}
	if err := json.Unmarshal(key, &m); err != nil || m.Key == nil || len(m.Signatures) == 0 {
		return httpx.InvalidParam("A signed key is an object with key and signatures")
	}
	return nil
}

// addOneTime appends keys to their queues.
func (s *Service) addOneTime(tx *storage.Tx, o owned, c *countRow, keys []keyRow) error {
	for _, k := range keys {
		if err := s.addOne(tx, o, c, k); err != nil {
			return err
		}
	}
	if c.total() > maxOneTimeKeys {
		return httpx.InvalidParam("A device has at most %d one-time keys", maxOneTimeKeys)
	}
	return nil
}

func (s *Service) addOne(tx *storage.Tx, o owned, c *countRow, k keyRow) error {
	value := s.hash16("one-time key", string(k.Key))
	byID := o.otk(c.Generation, otkByID).Bytes(s.hash16("key ID", k.ID))
	old, err := tx.Get(byID)
	switch {
	case isNotFound(err):
	case err != nil:
		return err
	case len(old) == 17 && bytes.Equal(old[1:], value):
		return nil // the upload is sent again, or the key has been claimed already
	case len(old) == 17 && old[0] == stateLeft:
		return httpx.InvalidParam("A one-time key with this ID exists and differs")
	}
	algorithm, _ := algorithmOf(k.ID)
	q, known := c.Queues[algorithm]
	if !known && len(c.Queues) >= maxKeyAlgorithms {
		return httpx.InvalidParam("A device has one-time keys of at most %d algorithms", maxKeyAlgorithms)
	}
	if err := s.put(tx, o.ref(), s.queueKey(o, *c, algorithm, q.Next), k); err != nil {
		return err
	}
	tx.Put(byID, append([]byte{stateLeft}, value...))
	q.Next++
	if c.Queues == nil {
		c.Queues = map[string]queueRow{}
	}
	c.Queues[algorithm] = q
	return nil
}

// takeOne takes the oldest key of an algorithm; found is false when none is
// left.
func (s *Service) takeOne(tx *storage.Tx, o owned, c *countRow, algorithm string) (k keyRow, found bool, err error) {
	q := c.Queues[algorithm]
	for q.First < q.Next && !found {
		key := s.queueKey(o, *c, algorithm, q.First)
		q.First++
		err := s.open(tx.Get, key, &k)
		if err != nil && !isNotFound(err) {
			return k, false, err
		}
		found = err == nil
		tx.Delete(key)
	}
	if c.Queues[algorithm] != q {
		c.Queues[algorithm] = q
	}
	if !found {
		return k, false, nil
	}
	return k, true, s.rememberClaimed(tx, o, c, k)
}

// rememberClaimed keeps the ID of a claimed key until maxClaimedKept others
// have been claimed.
func (s *Service) rememberClaimed(tx *storage.Tx, o owned, c *countRow, k keyRow) error {
	id := s.hash16("key ID", k.ID)
	slot := o.otk(c.Generation, otkRing).U32(c.Claimed % maxClaimedKept)
	old, err := tx.Get(slot)
	if err != nil && !isNotFound(err) {
		return err
	}
	if len(old) == 16 {
		if err := s.forgetClaimed(tx, o, c, old); err != nil {
			return err
		}
	}
	tx.Put(slot, id)
	tx.Put(o.otk(c.Generation, otkByID).Bytes(id), append([]byte{stateClaimed}, s.hash16("one-time key", string(k.Key))...))
	c.Claimed++
	return nil
}

// forgetClaimed drops a claimed key's ID, unless the device has used the ID
// for another key since.
func (s *Service) forgetClaimed(tx *storage.Tx, o owned, c *countRow, id []byte) error {
	byID := o.otk(c.Generation, otkByID).Bytes(id)
	value, err := tx.Get(byID)
	if err != nil && !isNotFound(err) {
		return err
	}
	if len(value) == 17 && value[0] == stateClaimed {
		tx.Delete(byID)
	}
	return nil
}

// fallbackRow is row of<uid><device><algorithm>.
type fallbackRow struct {
	keyRow
	Used bool `json:"used,omitempty"`
}

func (s *Service) fallbackKey(o owned, algorithm string) storage.Key {
	return o.key("of").Bytes(s.algorithmHash(algorithm))
}

// setFallback replaces the fallback keys of the algorithms of keys. The same
// key again stays used.
func (s *Service) setFallback(tx *storage.Tx, o owned, keys []keyRow) error {
	seen := map[string]bool{}
	for _, k := range keys {
		algorithm, _ := algorithmOf(k.ID)
		if seen[algorithm] {
			return httpx.InvalidParam("There is one fallback key per algorithm")
		}
		seen[algorithm] = true
		key := s.fallbackKey(o, algorithm)
		var old fallbackRow
		err := s.open(tx.Get, key, &old)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err == nil && old.ID == k.ID && bytes.Equal(old.Key, k.Key) {
			continue
		}
		if err := s.put(tx, o.ref(), key, fallbackRow{keyRow: k}); err != nil {
			return err
		}
	}
	rows, err := tx.Scan(o.key("of").Prefix(), false, maxKeyAlgorithms+1)
	if err == nil && len(rows) > maxKeyAlgorithms {
		return httpx.InvalidParam("A device has fallback keys of at most %d algorithms", maxKeyAlgorithms)
	}
	return err
}

// useFallback gives the fallback key of an algorithm and marks it as used.
func (s *Service) useFallback(tx *storage.Tx, o owned, algorithm string) (k keyRow, found bool, err error) {
	var row fallbackRow
	key := s.fallbackKey(o, algorithm)
	err = s.open(tx.Get, key, &row)
	if isNotFound(err) {
		return k, false, nil
	}
	if err != nil {
		return k, false, fmt.Errorf("read fallback key: %w", err)
	}
	if !row.Used {
		row.Used = true
		if err := s.put(tx, o.ref(), key, row); err != nil {
			return k, false, err
		}
	}
	return row.keyRow, true, nil
}

// unusedFallback lists the algorithms whose fallback keys are unused.
func (s *Service) unusedFallback(v view, o owned) ([]string, error) {
	rows, err := v.scan(o.key("of").Prefix(), false, maxKeyAlgorithms)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, pair := range rows {
		var row fallbackRow
		err := s.unseal(pair.Key, pair.Value, &row)
		if err != nil && !isNotFound(err) {
			return nil, err
		}
		if algorithm, ok := algorithmOf(row.ID); ok && !row.Used {
			out = append(out, algorithm)
		}
	}
	return out, nil
}

func (s *Service) counts(get get, o owned) (c countRow, found bool, err error) {
	found, err = plainRow(get, o.key("oc"), &c)
	return c, found, err
}

// newGeneration starts the counts of a device. Positions are never given
// twice, which makes them good numbers of generations.
func newGeneration(tx *storage.Tx) countRow { return countRow{Generation: tx.NextPos()} }

// otherGenerations is what earlier generations of a device left.
func (o owned) otherGenerations(current uint64) []storage.Range {
	all := o.key("ot").Prefix()
	keep := o.key("ot").U64(current).Prefix()
	return []storage.Range{{Lo: all.Lo, Hi: keep.Lo}, {Lo: keep.Hi, Hi: all.Hi}}
}
