// Package vault holds the data keys under which everything that people wrote,
// or that says who they are, is sealed on disk. Destroying a data key erases
// what it sealed, wherever copies of the ciphertext remain.
//
// Layout of the directory: root.key (0600, the key-encrypting key, unless it
// is kept elsewhere or given from outside), epoch (the epoch keys wrapped by
// the root key, small, replaced on every destruction) and keys.<generation>
// (segments of an append-only log of data keys, each wrapped by an epoch key
// of its own; the segment of a key that is destroyed is rewritten under a new
// one, so that no old copy can be opened any more).
//
// A sealed value is: version byte, key number (uvarint), 12-byte random
// nonce, AES-256-GCM ciphertext. The additional data is the full row key, so
// that a value can't be moved to another row. Key numbers are never used
// twice, so a value of a destroyed key can't be taken for one of its
// successor.
//
// Invariants: a data key is durable before anything sealed under it is
// returned; Destroy returns when no file of the directory opens to the
// destroyed keys. The package has no goroutines of its own: the first caller
// that needs a write does it for all that wait, with one fsync.
package vault

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Errors of sealing and opening.
var (
	// ErrDestroyed means that the data key no longer exists: the value has
	// been erased. Callers treat it as "gone".
	ErrDestroyed = errors.New("vault: data key destroyed")
	// ErrCorrupt means that the value is not what was sealed for this row,
	// or that a file of the vault is damaged.
	ErrCorrupt = errors.New("vault: sealed value doesn't open")
	// ErrClosed means that the vault has been closed.
	ErrClosed = errors.New("vault: closed")
)

// Ref names a data key. Comparable; usable as a map key.
type Ref struct {
	kind byte
	id   [16]byte
}

// Kinds of references, as they stand in the key log.
const (
	kindSystem byte = 1
	kindUser   byte = 2
	kindRoom   byte = 3
	kindMedia  byte = 4
	kindSecret byte = 5
	kindAuthor byte = 6
	kindPart   byte = 7
)

// System is the key of names of things. It is never destroyed.
func System() Ref { return Ref{kind: kindSystem} }

// User is the key of what belongs to one local user. Once destroyed it stays
// so: sealing under it gives ErrDestroyed for ever.
func User(uid uint32) Ref {
	r := Ref{kind: kindUser}
	binary.BigEndian.PutUint32(r.id[:], uid)
	return r
}

// Author is the key of what one local user wrote into rooms. Like that of
// User, it stays destroyed. Events keep what all servers must agree on under
// the room's keys, so that a room lives on without what its people said.
func Author(uid uint32) Ref {
	r := Ref{kind: kindAuthor}
	binary.BigEndian.PutUint32(r.id[:], uid)
	return r
}

// Room is a key of a room: that of window 0 seals what has to stay for as long
// as the room is known, the others what waits in one week. Sealing after its
// destruction makes a fresh key.
func Room(rid, window uint32) Ref {
	r := Ref{kind: kindRoom}
	binary.BigEndian.PutUint32(r.id[:], rid)
	binary.BigEndian.PutUint32(r.id[4:], window)
	return r
}

// RoomPart is the key of the content of a run of events that a room received
// in one week (0: of state events, which have no time). turn tells the keys
// apart that a run has had: when one event goes, the others move to the next.
// Sealing after its destruction makes a fresh key.
func RoomPart(rid, week, run, turn uint32) Ref {
	r := Ref{kind: kindPart}
	for i, v := range []uint32{rid, week, run, turn} {
		binary.BigEndian.PutUint32(r.id[4*i:], v)
	}
	return r
}

// Turn is the key of the same run of events at another turn.
func (r Ref) Turn(turn uint32) Ref {
	binary.BigEndian.PutUint32(r.id[12:], turn)
	return r
}

// Week of a key made with RoomPart; 0 for other keys.
func (r Ref) Week() uint32 {
	if r.kind != kindPart {
		return 0
	}
	return binary.BigEndian.Uint32(r.id[4:])
}

// WholeRoom is the room of a key made with Room and window 0, without which
// nothing of the room can be read.
func (r Ref) WholeRoom() (rid uint32, ok bool) {
	return binary.BigEndian.Uint32(r.id[:]), r.kind == kindRoom && binary.BigEndian.Uint32(r.id[4:]) == 0
}

// lasts reports whether the destruction of a key must be remembered, so that
// it isn't made again.
func (r Ref) lasts() bool { return r.kind == kindUser || r.kind == kindAuthor }

// ofRoom reports whether a key belongs to a room.
func (r Ref) ofRoom(rid uint32) bool {
	return (r.kind == kindRoom || r.kind == kindPart) && binary.BigEndian.Uint32(r.id[:]) == rid
}

// Media is the key of one file and its thumbnails. Sealing after its
// destruction makes a fresh key.
func Media(id [16]byte) Ref { return Ref{kind: kindMedia, id: id} }

// Vault seals and opens. Safe for concurrent use.
type Vault struct {
	fs   FS
	dir  string
	rand io.Reader

	hasher, tokens macPool

	mu   sync.RWMutex // guards ring
	ring ring

	gmu  sync.Mutex // guards next
	next *group     // changes that wait for the writer

	wmu      sync.Mutex // held by who writes; guards the rest
	root     [keySize]byte
	rootFile string
	ownsRoot bool               // the root key file is ours to replace
	segments map[uint64]*keyLog // by generation
	active   *keyLog            // the segment that grows
	lastGen  uint64             // highest generation ever tried
	nextNum  uint64
	segment  int  // records that a segment takes
	broken   bool // what the disk has is uncertain: replace the epoch next
	closed   bool
	erased   int64 // length of the ledger of erasures, -1: not known
}

// Options of Open.
type Options struct {
	Dir      string
	Root     []byte    // 32 bytes; nil: read or create RootFile
	RootFile string    // "": Dir/root.key
	Rand     io.Reader // nil: crypto/rand
	FS       FS        // nil: the file system of the machine
}

// Open opens or creates the vault of a directory. It refuses a directory
// whose root key other users of the machine may read, one whose files don't
// belong together, and damage anywhere but in the unsynced end of the log.
func Open(o Options) (*Vault, error) {
	v, err := open(o)
	if err != nil {
		return nil, err
	}
	if err := v.load(o.Root); err != nil {
		return nil, err
	}
	if err := v.loadMACs(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// open prepares a vault and its directory, but reads nothing.
func open(o Options) (*Vault, error) {
	v := &Vault{fs: o.FS, dir: o.Dir, rand: rand.Reader, rootFile: o.RootFile, segment: maxSegment, erased: -1}
	if v.rootFile == "" {
		v.rootFile = v.path("root.key")
	}
	if v.fs == nil {
		v.fs = osFS{}
	}
	if o.Rand != nil {
		v.rand = &lockedReader{r: o.Rand}
	}
	if err := v.fs.MkdirAll(v.dir); err != nil {
		return nil, fmt.Errorf("vault: make directory: %w", err)
	}
	return v, nil
}

// Close waits for a running write and releases the files. Opening values
// goes on to work, creating keys gives ErrClosed.
func (v *Vault) Close() error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	return v.closeSegments()
}

// lockedReader makes a given random source safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return io.ReadFull(l.r, p)
}
