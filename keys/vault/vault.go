// Package vault holds the data keys under which everything that people wrote,
// or that says who they are, is sealed on disk. Destroying a data key erases
// what it sealed, wherever copies of the ciphertext remain.
//
// Layout of the directory: root.key (0600, the key-encrypting key, or given
// from outside), epoch (the epoch key wrapped by the root key, small,
// replaced on every destruction) and keys.<generation> (an append-only log of
// data keys wrapped by the epoch key; rewritten whole when keys are
// destroyed, so that no old copy can be opened any more).
//
// A sealed value is: version byte, key reference, 12-byte random nonce,
// AES-256-GCM ciphertext. The additional data is the full row key, so that a
// value can't be moved to another row.
package vault

import (
	"errors"
	"io"
)

// Errors of Open.
var (
	// ErrDestroyed means that the data key no longer exists: the value has
	// been erased. Callers treat it as "gone".
	ErrDestroyed = errors.New("vault: data key destroyed")
	// ErrCorrupt means that the value is not what was sealed for this row.
	ErrCorrupt = errors.New("vault: sealed value doesn't open")
)

// Ref names a data key. Comparable; usable as a map key.
type Ref struct {
	kind byte
	id   [16]byte
}

// The kinds of data keys.
func System() Ref                 { panic("unimplemented") } // names of things; never destroyed
func User(uid uint32) Ref         { panic("unimplemented") } // what belongs to one local user
func Room(rid, window uint32) Ref { panic("unimplemented") } // events received in one week
func Media(id [16]byte) Ref       { panic("unimplemented") } // one file and its thumbnails

// Vault seals and opens. Safe for concurrent use.
type Vault struct{}

// Options of Open.
type Options struct {
	Dir  string
	Root []byte    // 32 bytes; nil: read or create Dir/root.key
	Rand io.Reader // nil: crypto/rand
}

// Open opens or creates the vault of a directory.
func Open(o Options) (*Vault, error) { panic("unimplemented") }

// Close releases the files.
func (v *Vault) Close() error { panic("unimplemented") }

// Seal encrypts plaintext for the row with this key. A data key that doesn't
// exist yet is created and synced first; one that was destroyed gives
// ErrDestroyed.
func (v *Vault) Seal(ref Ref, row, plaintext []byte) ([]byte, error) { panic("unimplemented") }

// Unseal decrypts a value of the row with this key.
func (v *Vault) Unseal(row, sealed []byte) ([]byte, error) { panic("unimplemented") }

// Destroy makes everything sealed under these keys unreadable for ever. It
// returns when that is durable.
func (v *Vault) Destroy(refs ...Ref) error { panic("unimplemented") }

// Hash is the keyed hash under which an identifier may stand in a row key:
// HMAC-SHA256 over the purpose and the length-prefixed parts, cut to 16 bytes.
func (v *Vault) Hash(purpose string, parts ...string) [16]byte { panic("unimplemented") }

// TokenHash is the keyed hash under which a bearer secret is stored; kind
// separates access, refresh, openid, registration … tokens.
func (v *Vault) TokenHash(kind, token string) [32]byte { panic("unimplemented") }

// Secret returns the named secret of n bytes, made at random at first use and
// kept in the vault (server signing key, peppers).
func (v *Vault) Secret(name string, n int) ([]byte, error) { panic("unimplemented") }

// RotateRoot wraps the vault under a new root key. Nothing else is rewritten.
func (v *Vault) RotateRoot(newRoot []byte) error { panic("unimplemented") }

// SealStream returns a writer that encrypts in 64 KiB frames to dst; Close
// writes the last frame. Truncation and reordering are detected on reading.
func (v *Vault) SealStream(ref Ref, dst io.Writer) (io.WriteCloser, error) { panic("unimplemented") }

// OpenStream returns the plaintext of a sealed stream of size bytes, with
// random access in whole frames.
func (v *Vault) OpenStream(ref Ref, src io.ReaderAt, size int64) (*io.SectionReader, error) {
	panic("unimplemented")
}
