package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
)

func exportAll(t *testing.T, v *Vault) [][]byte {
	t.Helper()
	var recs [][]byte
	if err := v.Export(func(r []byte) error { recs = append(recs, bytes.Clone(r)); return nil }); err != nil {
		t.Fatal(err)
	}
	return recs
}

func feed(recs [][]byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(recs) == 0 {
			return nil, io.EOF
		}
		r := recs[0]
		recs = recs[1:]
		return r, nil
	}
}

// Row CO18. A vault made from an export opens what the first one sealed, not
// what was destroyed, and never uses a number twice.
func TestExportImport(t *testing.T) {
	v, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	type value struct{ row, sealed []byte }
	var kept []value
	seal := func(ref Ref, i int) value {
		row := fmt.Appendf(nil, "row %d", i)
		sealed, err := v.Seal(ref, row, fmt.Appendf(nil, "value %d", i))
		if err != nil {
			t.Fatal(err)
		}
		return value{row, sealed}
	}
	for i := range 300 {
		kept = append(kept, seal(User(uint32(i)), i), seal(Room(uint32(i), 7), i))
	}
	kept = append(kept, seal(System(), 1), seal(Media([16]byte{1}), 2))
	goneUser, goneRoom := seal(User(1000), 1), seal(Room(1000, 1), 2)
	if err := v.Destroy(User(1000), Room(1000, 1)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	recs := exportAll(t, v)
	if err := Import(Options{Dir: dir}, feed(recs)); err != nil {
		t.Fatal(err)
	}
	w, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i, k := range kept {
		if _, err := w.Unseal(k.row, k.sealed); err != nil {
			t.Fatalf("value %d: %v", i, err)
		}
	}
	for _, k := range []value{goneUser, goneRoom} {
		if _, err := w.Unseal(k.row, k.sealed); !errors.Is(err, ErrDestroyed) {
			t.Errorf("a destroyed key opens: %v", err)
		}
	}
	if _, err := w.Seal(User(1000), []byte("x"), nil); !errors.Is(err, ErrDestroyed) {
		t.Errorf("a destroyed user's key is made again: %v", err)
	}
	if w.Hash("x", "y") != v.Hash("x", "y") {
		t.Error("hashes differ")
	}
	if v.nextNum != w.nextNum {
		t.Errorf("the next number is %d, not %d", w.nextNum, v.nextNum)
	}
	if err := Import(Options{Dir: dir}, feed(recs)); err == nil {
		t.Error("a vault in use was overwritten")
	}
}

func TestImportRefuses(t *testing.T) {
	v := OpenMemory()
	recs := exportAll(t, v)
	boom := errors.New("boom")
	for name, next := range map[string]func() ([]byte, error){
		"no end":     feed(recs[:len(recs)-1]),
		"nothing":    feed(nil),
		"cut record": feed([][]byte{recs[0][:10], recs[len(recs)-1]}),
		"odd kind":   feed([][]byte{append([]byte{1, 9}, recs[0][2:]...), recs[len(recs)-1]}),
		"bad source": func() ([]byte, error) { return nil, boom },
	} {
		dir := filepath.Join(t.TempDir(), "v")
		if err := Import(Options{Dir: dir}, next); !errors.Is(err, ErrCorrupt) && !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExportWhileKeysGo runs both at once: nothing that is kept is missing.
func TestExportWhileKeysGo(t *testing.T) {
	v := OpenMemory()
	const n = 2 * maxSegment
	if err := v.join(func(g *group) {
		for i := range uint32(n) {
			g.want[Room(i, 1)] = keySize
		}
	}); err != nil {
		t.Fatal(err)
	}
	seen, total := map[Ref]bool{}, 0
	err := v.Export(func(b []byte) error {
		r, err := parseExported(b)
		if err != nil {
			return err
		}
		seen[r.ref] = true
		if total++; total == 100 {
			var odd []Ref
			for i := uint32(1); i < n; i += 2 {
				odd = append(odd, Room(i, 1))
			}
			return v.Destroy(odd...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint32(0); i < n; i += 2 {
		if !seen[Room(i, 1)] {
			t.Fatalf("key %d is missing", i)
		}
	}
}
