package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk"
)

// Target is where a backup is restored to: empty places, which count as
// restored only after Restore has returned nil.
type Target struct {
	KV    storage.KV    // empty
	Blobs *blob.Store   // without the files of the backup
	Vault vault.Options // of a directory without a vault
	Dir   string        // for small files
}

// Restored is what a restore has found.
type Restored struct {
	Manifest *Manifest
	Ledger   []byte // of what was erased, as the backup had it
	Dropped  int64  // rows left out: one-time and fallback keys
}

// restoreBatch bounds a batch of rows.
const (
	restoreRows  = 4000
	restoreBytes = 4 << 20
)

// Restore reads a backup ("" the newest) into a target. An error leaves the
// target half filled: throw it away.
func Restore(ctx context.Context, dir, id string, with *pgp.Identities, to Target, say Progress) (*Restored, error) {
	m, packs, err := find(dir, id)
	if err != nil {
		return nil, err
	}
	for _, err := range to.KV.Scan(ctx, storage.Range{Lo: []byte("!d")}, false, 1) {
		if err == nil {
			err = errors.New("the place to restore to isn't empty")
		}
		return nil, err
	}
	r := &restoration{ctx: ctx, to: to, out: &Restored{Manifest: m}}
	keys := r.importKeys()
	err = readAll(ctx, dir, m, packs, with, sink{rowsPack: rowsPack{row: r.row, key: keys.add, ledger: r.ledger, file: r.file}, blob: r.blob}, say)
	if err = errors.Join(err, keys.end(err)); err != nil {
		return nil, err
	}
	return r.out, r.flush(true)
}

// restoration is one Restore.
type restoration struct {
	ctx   context.Context
	to    Target
	out   *Restored
	batch storage.Batch
	size  int
}

func (r *restoration) row(key, value []byte) error {
	if len(key) < 2 {
		return fmt.Errorf("a row without a family: %w", ErrDamaged)
	}
	if left[string(key[:2])] {
		r.out.Dropped++
		return nil
	}
	value = bytes.Clone(value)
	if storage.IsHead(key) {
		moved, err := storage.AdvanceHead(value, jump)
		if err != nil {
			return err
		}
		value = moved
	}
	r.batch.Puts = append(r.batch.Puts, storage.Pair{Key: bytes.Clone(key), Value: value})
	r.size += len(key) + len(value)
	if len(r.batch.Puts) < restoreRows && r.size < restoreBytes {
		return nil
	}
	return r.flush(false)
}

func (r *restoration) flush(sync bool) error {
	r.batch.Sync = sync
	err := r.to.KV.Commit(r.ctx, &r.batch)
	r.batch, r.size = storage.Batch{}, 0
	return err
}

func (r *restoration) ledger(b []byte) error {
	r.out.Ledger = bytes.Clone(b)
	return nil
}

// file takes a small file; its name can't lead out of the folder.
func (r *restoration) file(name string, content []byte) error {
	if filepath.Base(name) != name || name == "." || name == ".." {
		return fmt.Errorf("a file called %q: %w", name, ErrDamaged)
	}
	return disk.WriteFile(disk.OS{}, filepath.Join(r.to.Dir, name), content)
}

func (r *restoration) blob(id blob.ID, size int64, src io.Reader) error {
	w, err := r.to.Blobs.CreateAs(id)
	if errors.Is(err, blob.ErrExists) {
		return nil // files never change
	}
	if err != nil {
		return err
	}
	n, err := io.Copy(w, src)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		w.Abort()
		return err
	}
	if _, err := w.Commit(); err != nil {
		return err
	}
	r.to.Blobs.Settled(id)
	return nil
}

// keyImport feeds vault.Import, which pulls, with the records that are pushed.
type keyImport struct {
	records chan []byte
	stop    chan struct{} // closed when the import has ended
	err     error
}

func (r *restoration) importKeys() *keyImport {
	k := &keyImport{records: make(chan []byte), stop: make(chan struct{})}
	go func() {
		defer close(k.stop)
		k.err = vault.Import(r.to.Vault, func() ([]byte, error) {
			b, ok := <-k.records
			switch {
			case !ok:
				return nil, io.EOF
			case b == nil:
				return nil, errAborted
			}
			return b, nil
		})
	}()
	return k
}

var errAborted = errors.New("aborted")

func (k *keyImport) add(record []byte) error {
	select {
	case k.records <- bytes.Clone(record):
		return nil
	case <-k.stop:
		return k.err
	}
}

// end finishes the import, or drops it if the restore has failed.
func (k *keyImport) end(failed error) error {
	if failed != nil {
		select {
		case k.records <- nil:
		case <-k.stop:
		}
	}
	close(k.records)
	<-k.stop
	if failed != nil {
		return nil
	}
	return k.err
}
