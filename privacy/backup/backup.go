// Package backup writes, checks and restores backups of a whole server: online,
// consistent, encrypted with OpenPGP to keys whose private half lies elsewhere.
//
// A backup folder has, for each backup with the name ID (its time and a random
// part):
//
//	ID.json        what there is, in the clear: sizes, SHA-256 sums, whom it is
//	               encrypted to. Written last: without it there is no backup.
//	ID.rows.pgp    all rows of one moment, the data keys, the ledger of what was
//	               erased, some small files
//	ID.files.pgp   the files of the media repository that no earlier backup has
//	ID.index       random names and sizes of the files in ID.files.pgp
//
// and one file "erased": the newest ledger of what was erased, as keyed hashes.
//
// Rows are always written whole, files only once. Files are sealed under data
// keys that are in ID.rows.pgp alone: when the backups from before an erasure
// are gone, what was erased can't be opened any more, though its bytes are still
// in a file pack that other backups need. A pack that is mostly dead is given up:
// the next backup copies what still counts.
//
// Nothing acknowledged before Create was called is missing. A file that is
// deleted while it runs may be missing; then its row says so on restore.
//
// The root key of the vault isn't in a backup: a restored server has a new one.
// One-time and fallback keys are left out on restore, as clients may have used
// them since: they upload new ones.
package backup

import (
	"context"
	"errors"
	"time"

	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
)

// Errors, wrapped with what they are about.
var (
	// ErrDamaged means that a backup isn't what was written.
	ErrDamaged = errors.New("the backup is damaged")
	// ErrNone means that there is no such backup.
	ErrNone = errors.New("no such backup")
)

// Source is what is backed up.
type Source struct {
	Server string
	KV     storage.KV
	Vault  *vault.Vault
	Blobs  *blob.Store
	// Ledger returns what was erased so far, as keyed hashes. nil: nothing.
	Ledger func(ctx context.Context) ([]byte, error)
	// Files are small files to take along, by the name under which they are
	// restored; absent ones are skipped.
	Files map[string]string
	Now   func() time.Time
}

// Progress is called now and then, from the goroutine that works. total is 0
// where it isn't known.
type Progress func(what string, done, total int64)

func (p Progress) say(what string, done, total int64) {
	if p != nil {
		p(what, done, total)
	}
}

// Limits of what is read from a backup.
const (
	maxLedger    = 64 << 20
	maxSmallFile = 64 << 20
	maxManifest  = 1 << 20
	maxVaultItem = 4096
)

// blobFamily has a row for each file that exists.
var blobFamily = storage.K("mb").Prefix()

// left are the families that a restored server begins without: one-time keys,
// their counts, and fallback keys. One that was handed out since the backup
// must not be handed out again: the message would be unreadable.
var left = map[string]bool{"ot": true, "oc": true, "of": true}

// jump is how far the stream position moves on restore, so that no position,
// token or transaction ID of the time that was lost is ever given again.
const jump = 1 << 32
