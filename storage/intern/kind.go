package intern

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"parley/keys/vault"
	"parley/storage"
)

// maxPrelude bounds the names that one call of the prelude writes: three rows
// of at most 1 KiB each, well within what a prelude may write.
const maxPrelude = 500

// name is one or two strings that are numbered, and something that is kept
// with the number but doesn't belong to the identity (a room's version).
type name struct{ a, b, extra string }

// id is the part that identifies.
func (n name) id() name { return name{a: n.a, b: n.b} }

// kind numbers the names of one kind.
type kind struct {
	kv                     storage.Reader
	vault                  Sealer
	forward, back, purpose string

	mu      sync.RWMutex
	numbers cache[name, uint32] // by id()
	names   cache[uint32, name]

	// Numbering: held while a name is looked up in the store and numbered, so
	// that no name gets two numbers.
	giving  sync.Mutex
	next    uint32
	pending []pending // numbered, not yet durable, in order of number
	byID    map[name]uint32
	byNum   map[uint32]name
}

type pending struct {
	number  uint32
	id      name
	forward storage.Pair
	back    storage.Pair
}

func openKind(kv storage.Reader, v Sealer, forward, back, purpose string) (*kind, error) {
	k := &kind{kv: kv, vault: v, forward: forward, back: back, purpose: purpose, next: 1,
		byID: map[name]uint32{}, byNum: map[uint32]name{}}
	row, err := kv.Get(context.Background(), k.nextKey())
	switch {
	case errors.Is(err, storage.ErrNotFound):
	case err != nil:
		return nil, err
	case len(row) != 5 || row[0] != 1:
		return nil, fmt.Errorf("next number: %w", storage.ErrCorrupt)
	default:
		k.next = storage.ReadU32(row, 1)
	}
	return k, nil
}

func (k *kind) nextKey() storage.Key { return storage.K("!i").Str(k.forward) }

func (k *kind) forwardKey(n name) storage.Key {
	h := k.vault.Hash("intern "+k.purpose, n.a, n.b)
	return storage.K(k.forward).Bytes(h[:])
}

func (k *kind) backKey(num uint32) storage.Key { return storage.K(k.back).U32(num) }

// lookup finds a name's number.
func (k *kind) lookup(ctx context.Context, n name) (uint32, bool, error) {
	if num, ok := k.cached(n); ok {
		return num, true, nil
	}
	k.giving.Lock()
	num, ok := k.byID[n.id()]
	k.giving.Unlock()
	if ok {
		return num, true, nil
	}
	return k.stored(ctx, n)
}

func (k *kind) cached(n name) (uint32, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.numbers.get(n.id())
}

func (k *kind) remember(num uint32, n name) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.numbers.put(n.id(), num)
	k.names.put(num, n)
}

// stored reads a number from the store.
func (k *kind) stored(ctx context.Context, n name) (uint32, bool, error) {
	row, err := k.kv.Get(ctx, k.forwardKey(n))
	if errors.Is(err, storage.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("intern: look up %s: %w", k.purpose, err)
	}
	if len(row) != 5 || row[0] != 1 {
		return 0, false, fmt.Errorf("intern: number of %s: %w", k.purpose, storage.ErrCorrupt)
	}
	num := storage.ReadU32(row, 1)
	k.mu.Lock()
	k.numbers.put(n.id(), num)
	k.mu.Unlock()
	return num, true, nil
}

// number finds or gives a number.
func (k *kind) number(ctx context.Context, n name) (uint32, error) {
	if num, ok := k.cached(n); ok {
		return num, nil
	}
	k.giving.Lock()
	defer k.giving.Unlock()
	if num, ok := k.byID[n.id()]; ok {
		return num, nil
	}
	if num, ok, err := k.stored(ctx, n); ok || err != nil {
		return num, err
	}
	return k.give(n)
}

// give numbers a name that has none. The caller holds giving.
func (k *kind) give(n name) (uint32, error) {
	if k.next == 0 {
		return 0, fmt.Errorf("intern: no %s numbers left", k.purpose)
	}
	num := k.next
	back := k.backKey(num)
	sealed, err := k.vault.Seal(vault.System(), back, encodeName(n))
	if err != nil {
		return 0, fmt.Errorf("intern: seal %s: %w", k.purpose, err)
	}
	k.next++
	k.pending = append(k.pending, pending{number: num, id: n.id(),
		forward: storage.Pair{Key: k.forwardKey(n), Value: storage.Key{1}.U32(num)},
		back:    storage.Pair{Key: back, Value: sealed}})
	k.byID[n.id()] = num
	k.byNum[num] = n
	k.remember(num, n)
	return num, nil
}

// setExtra replaces what is kept with a number.
func (k *kind) setExtra(tx *storage.Tx, num uint32, n name) error {
	key := k.backKey(num)
	sealed, err := k.vault.Seal(vault.System(), key, encodeName(n))
	if err != nil {
		return fmt.Errorf("intern: seal %s: %w", k.purpose, err)
	}
	k.giving.Lock()
	defer k.giving.Unlock()
	for i := range k.pending { // the prelude writes these after tx
		if k.pending[i].number == num {
			k.pending[i].back.Value = sealed
			k.byNum[num] = n
		}
	}
	tx.Put(key, sealed)
	tx.OnCommit(func() { k.remember(num, n) })
	return nil
}

// name finds the name of a number.
func (k *kind) name(ctx context.Context, num uint32) (name, error) {
	k.mu.RLock()
	n, ok := k.names.get(num)
	k.mu.RUnlock()
	if ok {
		return n, nil
	}
	k.giving.Lock()
	n, ok = k.byNum[num]
	k.giving.Unlock()
	if ok {
		return n, nil
	}
	key := k.backKey(num)
	row, err := k.kv.Get(ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return name{}, fmt.Errorf("intern: unknown %s number: %w", k.purpose, storage.ErrCorrupt)
	}
	if err != nil {
		return name{}, fmt.Errorf("intern: read %s: %w", k.purpose, err)
	}
	plain, err := k.vault.Unseal(key, row)
	if err != nil {
		return name{}, fmt.Errorf("intern: open %s: %w: %w", k.purpose, storage.ErrCorrupt, err)
	}
	if n, ok = decodeName(plain); !ok {
		return name{}, fmt.Errorf("intern: decode %s: %w", k.purpose, storage.ErrCorrupt)
	}
	k.remember(num, n)
	return n, nil
}

// prelude writes numbers that are not durable yet, oldest first.
func (k *kind) prelude(tx *storage.Tx) (more bool) {
	k.giving.Lock()
	defer k.giving.Unlock()
	if len(k.pending) == 0 {
		return false
	}
	batch := k.pending[:min(len(k.pending), maxPrelude)]
	for _, p := range batch {
		tx.Put(p.forward.Key, p.forward.Value)
		tx.Put(p.back.Key, p.back.Value)
	}
	tx.Put(k.nextKey(), storage.Key{1}.U32(batch[len(batch)-1].number+1))
	tx.OnCommit(func() { k.durable(len(batch)) })
	return len(k.pending) > len(batch)
}

// durable forgets the first n pending names: they are in the store now.
func (k *kind) durable(n int) {
	k.giving.Lock()
	defer k.giving.Unlock()
	for _, p := range k.pending[:n] {
		delete(k.byID, p.id)
		delete(k.byNum, p.number)
	}
	k.pending = k.pending[n:]
	if len(k.pending) == 0 {
		k.pending = nil
	}
}

// encodeName is a version byte and three length-prefixed strings.
func encodeName(n name) []byte {
	b := []byte{1}
	for _, s := range []string{n.a, n.b, n.extra} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

func decodeName(b []byte) (n name, ok bool) {
	if len(b) == 0 || b[0] != 1 {
		return name{}, false
	}
	b = b[1:]
	for _, s := range []*string{&n.a, &n.b, &n.extra} {
		l, w := binary.Uvarint(b)
		if w <= 0 || l > uint64(len(b)-w) {
			return name{}, false
		}
		*s = string(b[w : w+int(l)])
		b = b[w+int(l):]
	}
	return n, len(b) == 0
}
