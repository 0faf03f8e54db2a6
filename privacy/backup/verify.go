package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"parley/keys/pgp"
	"parley/storage/blob"
)

// Verify checks a backup ("" the newest) with everything it needs. Without
// keys it compares every byte with its sum; with keys it also opens and reads
// all of it, as a restore does. Damage is ErrDamaged.
func Verify(ctx context.Context, dir, id string, with *pgp.Identities, say Progress) (*Manifest, error) {
	m, packs, err := find(dir, id)
	if err != nil {
		return nil, err
	}
	if err := checkErased(dir); err != nil {
		return m, err
	}
	parts := []Part{*m.Rows}
	for _, p := range packs {
		parts = append(parts, *p.Files)
	}
	if with != nil {
		if err := readAll(ctx, dir, m, packs, with, sink{}, say); err != nil {
			return m, err
		}
		parts = nil // readAll has compared their sums
	}
	for _, p := range packs {
		if p.Index == nil {
			return m, fmt.Errorf("%s.json names no index: %w", p.ID, ErrDamaged)
		}
		parts = append(parts, *p.Index)
	}
	return m, checkSums(ctx, dir, parts, say)
}

// checkErased compares the ledger with its sum, if there is one.
func checkErased(dir string) error {
	_, err := readSummed(filepath.Join(dir, erasedFile), maxLedger)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func checkSums(ctx context.Context, dir string, parts []Part, say Progress) error {
	total, done := int64(0), int64(0)
	for _, p := range parts {
		total += p.Bytes
	}
	for _, p := range parts {
		in, err := openPart(ctx, dir, p, func(n int64) { say.say("bytes", done+n, total) })
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in)
		if err = errors.Join(err, in.check(), in.Close()); err != nil {
			return err
		}
		done += p.Bytes
	}
	return nil
}

// partReader reads a file of a backup and sums it on the way.
type partReader struct {
	ctx  context.Context
	f    *os.File
	part Part
	sum  hash.Hash
	n    int64
	at   func(n int64)
}

func openPart(ctx context.Context, dir string, p Part, at func(int64)) (*partReader, error) {
	f, err := os.Open(filepath.Join(dir, p.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: %w", p.Name, ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	return &partReader{ctx: ctx, f: f, part: p, sum: sha256.New(), at: at}, nil
}

func (p *partReader) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.f.Read(b)
	p.sum.Write(b[:n])
	p.n += int64(n)
	if p.at != nil {
		p.at(p.n)
	}
	return n, err
}

// check reads what is left and compares size and sum.
func (p *partReader) check() error {
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	if p.n != p.part.Bytes || hex.EncodeToString(p.sum.Sum(nil)) != p.part.SHA256 {
		return fmt.Errorf("%s isn't what was written: %w", p.part.Name, ErrDamaged)
	}
	return nil
}

func (p *partReader) Close() error { return p.f.Close() }

// sink takes what a backup has; nil members drop it.
type sink struct {
	rowsPack
	blob func(id blob.ID, size int64, r io.Reader) error
}

// readAll opens and reads a backup with all the packs it needs: every record,
// every file, the counts, the sums. It reports damage at the end at the latest,
// so what the sink got is good only after it has returned nil.
func readAll(ctx context.Context, dir string, m *Manifest, packs []*Manifest, with *pgp.Identities, to sink, say Progress) error {
	total, done := m.Rows.Bytes, int64(0)
	for _, p := range packs {
		total += p.Files.Bytes
	}
	need := map[blob.ID]bool{} // false: not seen yet
	gone := map[blob.ID]bool{}
	err := readPart(ctx, dir, *m.Rows, with, func(n int64) { say.say("bytes", done+n, total) }, func(r io.Reader) error {
		c, err := to.collecting(need, gone).read(r)
		if err == nil && c.Rows != m.RowCount {
			err = fmt.Errorf("%d rows instead of %d: %w", c.Rows, m.RowCount, ErrDamaged)
		}
		return err
	})
	if err != nil {
		return err
	}
	done += m.Rows.Bytes
	for _, p := range packs {
		err := readPart(ctx, dir, *p.Files, with, func(n int64) { say.say("bytes", done+n, total) }, func(r io.Reader) error {
			_, err := readFiles(r, func(id blob.ID, size int64, r io.Reader) error {
				if had, ok := need[id]; !ok || had || gone[id] {
					return nil
				}
				need[id] = true
				if to.blob == nil {
					return nil
				}
				return to.blob(id, size, r)
			})
			return err
		})
		if err != nil {
			return err
		}
		done += p.Files.Bytes
	}
	missing := 0
	for id, had := range need {
		if !had && !gone[id] {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d files that rows name are in no pack: %w", missing, ErrDamaged)
	}
	return nil
}

// collecting notes the files that rows name, and those that were deleted while
// the backup was made.
func (s sink) collecting(need, gone map[blob.ID]bool) rowsPack {
	h := s.rowsPack
	row := h.row
	h.row = func(key, value []byte) error {
		if n := len(blobFamily.Lo); len(key) == n+len(blob.ID{}) && string(key[:n]) == string(blobFamily.Lo) {
			need[blob.ID(key[n:])] = false
		}
		if row == nil {
			return nil
		}
		return row(key, value)
	}
	h.gone = func(id blob.ID) error { gone[id] = true; return nil }
	if h.key == nil {
		h.key = func([]byte) error { return nil }
	}
	if h.ledger == nil {
		h.ledger = func([]byte) error { return nil }
	}
	if h.file == nil {
		h.file = func(string, []byte) error { return nil }
	}
	return h
}

// readPart decrypts one file of a backup, lets f read it to its end, and
// compares the sum.
func readPart(ctx context.Context, dir string, p Part, with *pgp.Identities, at func(int64), f func(io.Reader) error) error {
	in, err := openPart(ctx, dir, p, at)
	if err != nil {
		return err
	}
	defer in.Close()
	plain, err := pgp.Decrypt(in, with)
	if err == nil {
		err = f(plain)
	}
	if err != nil {
		if errors.Is(err, pgp.ErrDamaged) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return in.check()
}
