package vault

import (
	"errors"
	"io"
	"testing"
)

// Row OM20. A copy of the vault that is older than an erasure doesn't bring it
// back: the ledger of the newer vault destroys the key in the copy as well, and
// goes on from copy to copy.
func TestErasuresOutliveCopies(t *testing.T) {
	v := OpenMemorySeed("erased")
	gone := []Ref{User(1), Author(1), Room(3, 0), RoomPart(3, 7, 1, 2), Media([16]byte{1})}
	kept := []Ref{User(2), Author(2), Room(4, 0), System()}
	sealed := map[Ref][]byte{}
	for _, r := range append(gone, kept...) {
		b, err := v.Seal(r, []byte("row"), []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		sealed[r] = b
	}
	var copied [][]byte
	if err := v.Export(func(rec []byte) error { copied = append(copied, append([]byte(nil), rec...)); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := v.Destroy(gone[:2]...); err != nil {
		t.Fatal(err)
	}
	if err := v.Destroy(gone[2:]...); err != nil {
		t.Fatal(err)
	}
	ledger, err := v.Erased()
	if err != nil || len(ledger) != len(gone)*fingerprint {
		t.Fatalf("%d bytes, %v", len(ledger), err)
	}
	for generation := range 2 {
		o := Options{Dir: "/copy", FS: NewMemFS()}
		left := copied
		if err := Import(o, func() ([]byte, error) {
			if len(left) == 0 {
				return nil, io.EOF
			}
			r := left[0]
			left = left[1:]
			return r, nil
		}); err != nil {
			t.Fatal(err)
		}
		c, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		refs, err := c.EraseAgain(append(ledger, 1, 2, 3)) // with a torn end
		if err != nil || len(refs) != len(gone) {
			t.Fatalf("generation %d: %d keys, %v", generation, len(refs), err)
		}
		for _, r := range gone {
			if _, err := c.Unseal([]byte("row"), sealed[r]); !errors.Is(err, ErrDestroyed) {
				t.Errorf("%v opens: %v", r, err)
			}
		}
		for _, r := range kept {
			if _, err := c.Unseal([]byte("row"), sealed[r]); err != nil {
				t.Errorf("%v: %v", r, err)
			}
		}
		if _, err := c.Seal(Author(1), []byte("row"), nil); !errors.Is(err, ErrDestroyed) {
			t.Errorf("a person's key is made again: %v", err)
		}
		if ledger, err = c.Erased(); err != nil || len(ledger) != len(gone)*fingerprint {
			t.Fatalf("the copy's ledger has %d bytes, %v", len(ledger), err)
		}
		if refs, err = c.EraseAgain(ledger); err != nil || len(refs) != 0 {
			t.Fatalf("again: %d keys, %v", len(refs), err)
		}
	}
}
