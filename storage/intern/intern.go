// Package intern gives rooms, users, servers and (type, state key) pairs the
// small numbers under which everything else is stored, so that a name stands
// in the store once: sealed, under a keyed hash.
//
// Rows: ir<hash 16>->rid, iR<rid>->sealed room ID and version; iu/iU users;
// is/iS servers; ik/iK (type, state key) pairs; !i<kind>->next number.
//
// Numbers are given out in memory and written by the committer's prelude in
// (or before) the first batch that uses them, so that numbering never waits
// for a disk. Safe for concurrent use.
package intern

import (
	"context"
	"fmt"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

type (
	// RID numbers a room, UID a user (local or not), SID a server, KID a
	// pair of event type and state key. 0 is never used.
	RID uint32
	UID uint32
	SID uint32
	KID uint32
)

// Sealer is what Table needs of *vault.Vault.
type Sealer interface {
	Seal(ref vault.Ref, row, plaintext []byte) ([]byte, error)
	Unseal(row, sealed []byte) ([]byte, error)
	Hash(purpose string, parts ...string) [16]byte
}

// Table maps identifiers to numbers and back, with caches in memory.
type Table struct {
	users, rooms, servers, pairs *kind
}

// New opens the table and registers the prelude.
func New(kv storage.Reader, c *storage.Committer, v Sealer) (*Table, error) {
	t := &Table{}
	for _, k := range []struct {
		to                     **kind
		forward, back, purpose string
	}{
		{&t.users, "iu", "iU", "user"},
		{&t.rooms, "ir", "iR", "room"},
		{&t.servers, "is", "iS", "server"},
		{&t.pairs, "ik", "iK", "state key"},
	} {
		kd, err := openKind(kv, v, k.forward, k.back, k.purpose)
		if err != nil {
			return nil, fmt.Errorf("intern: open %s numbers: %w", k.purpose, err)
		}
		*k.to = kd
		c.Prelude(kd.prelude)
	}
	return t, nil
}

// User returns the user's number, giving a new one if need be.
func (t *Table) User(ctx context.Context, id mxid.UserID) (UID, error) {
	n, err := t.users.number(ctx, name{a: string(id)})
	return UID(n), err
}

// LookupUser doesn't give a new number.
func (t *Table) LookupUser(ctx context.Context, id mxid.UserID) (UID, bool, error) {
	n, ok, err := t.users.lookup(ctx, name{a: string(id)})
	return UID(n), ok, err
}

// UserID is the reverse; an unknown number is storage.ErrCorrupt.
func (t *Table) UserID(ctx context.Context, u UID) (mxid.UserID, error) {
	n, err := t.users.name(ctx, uint32(u))
	return mxid.UserID(n.a), err
}

// Room, LookupRoom and RoomID do the same for rooms; the version is fixed
// when the room is first numbered.
func (t *Table) Room(ctx context.Context, id mxid.RoomID, version string) (RID, error) {
	n, err := t.rooms.number(ctx, name{a: string(id), extra: version})
	return RID(n), err
}

// LookupRoom doesn't give a new number.
func (t *Table) LookupRoom(ctx context.Context, id mxid.RoomID) (RID, bool, error) {
	n, ok, err := t.rooms.lookup(ctx, name{a: string(id)})
	return RID(n), ok, err
}

// RoomID is the reverse; an unknown number is storage.ErrCorrupt.
func (t *Table) RoomID(ctx context.Context, r RID) (id mxid.RoomID, version string, err error) {
	n, err := t.rooms.name(ctx, uint32(r))
	return mxid.RoomID(n.a), n.extra, err
}

// SetRoomVersion replaces, in a transaction, the version of a room of which
// nothing but the name is stored: it came from a server that was wrong.
func (t *Table) SetRoomVersion(tx *storage.Tx, r RID, id mxid.RoomID, version string) error {
	return t.rooms.setExtra(tx, uint32(r), name{a: string(id), extra: version})
}

// Server and ServerName do the same for servers.
func (t *Table) Server(ctx context.Context, s mxid.ServerName) (SID, error) {
	n, err := t.servers.number(ctx, name{a: string(s)})
	return SID(n), err
}

// LookupServer doesn't give a new number.
func (t *Table) LookupServer(ctx context.Context, s mxid.ServerName) (SID, bool, error) {
	n, ok, err := t.servers.lookup(ctx, name{a: string(s)})
	return SID(n), ok, err
}

// ServerName is the reverse; an unknown number is storage.ErrCorrupt.
func (t *Table) ServerName(ctx context.Context, s SID) (mxid.ServerName, error) {
	n, err := t.servers.name(ctx, uint32(s))
	return mxid.ServerName(n.a), err
}

// StateKey and Pair do the same for (event type, state key) pairs.
func (t *Table) StateKey(ctx context.Context, typ, key string) (KID, error) {
	n, err := t.pairs.number(ctx, name{a: typ, b: key})
	return KID(n), err
}

// LookupStateKey doesn't give a new number.
func (t *Table) LookupStateKey(ctx context.Context, typ, key string) (KID, bool, error) {
	n, ok, err := t.pairs.lookup(ctx, name{a: typ, b: key})
	return KID(n), ok, err
}

// Pair is the reverse; an unknown number is storage.ErrCorrupt.
func (t *Table) Pair(ctx context.Context, k KID) (typ, key string, err error) {
	n, err := t.pairs.name(ctx, uint32(k))
	return n.a, n.b, err
}
