package privscan

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/journal"
	"github.com/syndtr/goleveldb/leveldb/opt"
	lstorage "github.com/syndtr/goleveldb/leveldb/storage"
	"github.com/syndtr/goleveldb/leveldb/table"

	"parley/keys/vault"
	"parley/privacy/datamap"
	"parley/storage"
)

var compiled = func() map[string]*regexp.Regexp {
	out := map[string]*regexp.Regexp{}
	for name, p := range logPatterns {
		out[name] = regexp.MustCompile(p)
	}
	return out
}()

// Rows is what a look at rows has found.
type Rows struct {
	Hits   []Hit
	Rows   int
	Opened map[string]int // sealed values opened, by family
	Dead   map[string]int // sealed values whose key is gone, by family
	Found  map[string]int // canaries found where they may be
}

func newRows() *Rows {
	return &Rows{Opened: map[string]int{}, Dead: map[string]int{}, Found: map[string]int{}}
}

// Rows looks at every row of a store: as it is, where no canary may be, and
// opened with all keys, where the data map says what may be.
func (s *Set) Rows(ctx context.Context, r storage.Reader, v *vault.Vault) (*Rows, error) {
	out := newRows()
	for p, err := range r.Scan(ctx, storage.Range{}, false, 0) {
		if err != nil {
			return nil, err
		}
		s.row(out, "row", p.Key, p.Value, v)
	}
	return out, nil
}

func (s *Set) row(out *Rows, what string, key, value []byte, v *vault.Vault) {
	out.Rows++
	family := string(key[:min(2, len(key))])
	whole := append(append([]byte{}, key...), value...)
	out.Hits = append(out.Hits, s.Bytes(what+" "+family, whole)...)
	e, declared := datamap.Family(family)
	if !declared {
		out.Hits = append(out.Hits, Hit{what + " " + family, "a family that isn't declared", "key"})
	}
	plain, dead := Open(v, key, value)
	if dead {
		out.Dead[family]++
	}
	if plain != nil {
		out.Opened[family]++
		bad := s.Opened(what+" "+family+", opened", plain, e.Holds)
		out.Hits = append(out.Hits, bad...)
		for _, h := range s.Bytes("", plain) {
			if !slices.ContainsFunc(bad, func(b Hit) bool { return b.Canary == h.Canary }) {
				out.Found[h.Canary]++
			}
		}
	}
}

// maxPrefix is how many bytes in the clear a value may have before its sealed
// part.
const maxPrefix = 64

// Open finds and opens what is sealed in a value, also what is sealed inside of
// it once more. dead: something seems to be sealed under a key that was
// destroyed.
func Open(v *vault.Vault, key, value []byte) (plain []byte, dead bool) {
	for _, part := range parts(key, value) {
		p, d := openPart(v, key, part, 0)
		plain, dead = append(plain, p...), dead || d
	}
	return plain, dead
}

// parts splits a value that has several sealed parts: an event's skeleton and
// content (room/body.go).
func parts(key, value []byte) [][]byte {
	if len(key) < 2 || string(key[:2]) != "ej" || len(value) < 2 {
		return [][]byte{value}
	}
	n, used := binary.Uvarint(value[1:])
	if used <= 0 || n > uint64(len(value)-1-used) {
		return [][]byte{value}
	}
	body := value[1+used:]
	return [][]byte{body[:n], body[n:]}
}

// maxDepth is how often something may be sealed inside of something sealed.
const maxDepth = 4

func openPart(v *vault.Vault, key, value []byte, depth int) (plain []byte, dead bool) {
	for at := 0; at < len(value) && at <= maxPrefix && depth < maxDepth; at++ {
		for _, row := range rowsOf(key) {
			p, err := v.Unseal(row, value[at:])
			if err == nil {
				inner, d := openPart(v, key, p, depth+1)
				return append(p, inner...), d
			}
			dead = dead || at == 0 && errors.Is(err, vault.ErrDestroyed)
		}
	}
	return nil, dead
}

// rowsOf are the names under which a value may have been sealed for its row:
// the row itself, and for parts of an event also the row with a letter.
func rowsOf(key []byte) [][]byte {
	if len(key) < 2 || string(key[:2]) != "ej" {
		return [][]byte{key}
	}
	with := func(letter byte) []byte { return append(bytes.Clone(key), letter) }
	return [][]byte{key, with('c'), with('a')}
}

// Old looks at every row that the files of a closed embedded store still have,
// also deleted and overwritten ones, opened with every key that is left.
func (s *Set) Old(dir string, v *vault.Vault) (*Rows, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := newRows()
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		switch {
		case strings.HasSuffix(n.Name(), ".ldb"):
			err = s.table(out, path, v)
		case strings.HasSuffix(n.Name(), ".log"):
			err = s.journal(out, path, v)
		}
		if err != nil {
			return out, fmt.Errorf("%s: %w", n.Name(), err)
		}
	}
	return out, nil
}

// internalSuffix is what LevelDB adds to the key of a row in a table.
const internalSuffix = 8

func (s *Set) table(out *Rows, path string, v *vault.Vault) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	r, err := table.NewReader(f, st.Size(), lstorage.FileDesc{Type: lstorage.TypeTable}, nil, nil, &opt.Options{})
	if err != nil {
		return err
	}
	defer r.Release()
	it := r.NewIterator(nil, nil)
	defer it.Release()
	for it.Next() {
		if k := it.Key(); len(k) > internalSuffix {
			s.row(out, "old row", k[:len(k)-internalSuffix], it.Value(), v)
		}
	}
	return it.Error()
}

// batchHeader is what a journal has before each batch.
const batchHeader = 12

func (s *Set) journal(out *Rows, path string, v *vault.Vault) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := journal.NewReader(f, nil, false, true); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(rec)
		if err != nil || len(b) < batchHeader {
			return nil // the torn end
		}
		var batch leveldb.Batch
		if err := batch.Load(b[batchHeader:]); err != nil {
			return err
		}
		if err := batch.Replay(replay{s, out, v}); err != nil {
			return err
		}
	}
}

// replay looks at the rows of a batch.
type replay struct {
	s   *Set
	out *Rows
	v   *vault.Vault
}

// Put implements leveldb.BatchReplay.
func (r replay) Put(key, value []byte) { r.s.row(r.out, "old row", key, value, r.v) }

// Delete implements leveldb.BatchReplay.
func (r replay) Delete(key []byte) { r.s.row(r.out, "old row", key, nil, r.v) }
