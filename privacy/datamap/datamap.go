// Package datamap says what parley keeps: every family of rows and every kind
// of file, what it is for, whether it tells of people, under which key it is
// sealed, how long it stays and who can read it. `parley privacy map` prints
// it, docs/privacy.md is generated from it, a server doesn't start on a store
// with a family that isn't in it, and the tests that search for what people
// wrote ask it where that may be.
//
// Whoever adds a family of rows or a file adds an entry to entries.go.
// It keeps nothing, runs no goroutines and knows no layout of rows.
package datamap

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"sort"
	"strings"

	"parley/storage"
)

// Key says which data key of keys/vault opens a value.
type Key string

// Keys of entries.
const (
	KeyUser   Key = "the user's key"
	KeyRoom   Key = "the room's key of the week"
	KeyEvent  Key = "the room's key; content: a key of some events of a week, inside that its authors' keys"
	KeyFile   Key = "a key of its own"
	KeySystem Key = "the system key"
	KeyHash   Key = "keyed hashes only"
	KeyNone   Key = "nothing: numbers only"
	KeyPublic Key = "nothing: public"
	KeyRoot   Key = "the root key"
	KeyMixed  Key = "the user's key; what other servers' users have: the system key"
)

// Kind is a kind of personal data that may be found in a place.
type Kind string

// Kinds of data. IDs are Matrix identifiers: of users, rooms, events, devices.
const (
	IDs      Kind = "identifiers"
	Events   Kind = "what was said and done in rooms"
	Profile  Kind = "profile"
	Device   Kind = "device names"
	Settings Kind = "settings and account data"
	Crypto   Kind = "public keys and encrypted key backups"
	Direct   Kind = "messages between devices"
	Push     Kind = "addresses of push gateways"
	Reports  Kind = "reports to the operator"
	Password Kind = "password hash"
	Files    Kind = "files, their names and types"
	Aliases  Kind = "names of rooms"
	Delays   Kind = "IDs of events to be sent later"
)

// Entry is one place where something is kept.
type Entry struct {
	What     string   `json:"what"`
	Families []string `json:"families,omitempty"` // of rows, two letters each
	Files    []string `json:"files,omitempty"`    // patterns below data_dir, as path.Match has them
	Personal bool     `json:"personal"`           // tells of people, be it by numbers
	Sealed   Key      `json:"sealed"`
	Lifetime string   `json:"lifetime"`
	Readers  string   `json:"readers"`
	Holds    []Kind   `json:"holds,omitempty"` // once opened with all keys
}

// ErrUndeclared is a family or file that no entry names.
type ErrUndeclared struct{ Names []string }

func (e *ErrUndeclared) Error() string {
	return "the store has what the data map doesn't name: " + strings.Join(e.Names, ", ") +
		"; it was written by another version of parley, or by another program"
}

// Family finds the entry of a family.
func Family(name string) (Entry, bool) {
	for _, e := range Entries() {
		for _, f := range e.Families {
			if f == name {
				return e, true
			}
		}
	}
	return Entry{}, false
}

// File finds the entry of a file, by its path below data_dir.
func File(name string) (Entry, bool) {
	for _, e := range Entries() {
		for _, pattern := range e.Files {
			if ok, err := path.Match(pattern, name); ok && err == nil {
				return e, true
			}
		}
	}
	return Entry{}, false
}

// Families lists the families that a store has. It jumps from one to the next,
// so that its cost is that of a hundred look-ups, however large the store is.
func Families(ctx context.Context, r storage.Reader) ([]string, error) {
	var out []string
	for lo := []byte{}; ; {
		var found []byte
		for p, err := range r.Scan(ctx, storage.Range{Lo: lo}, false, 1) {
			if err != nil {
				return nil, fmt.Errorf("datamap: %w", err)
			}
			found = p.Key[:min(2, len(p.Key))]
		}
		if found == nil {
			return out, nil
		}
		out = append(out, string(found))
		if lo = after(found); lo == nil {
			return out, nil
		}
	}
}

// after is the first key behind all that begin with prefix; nil: there is none.
func after(prefix []byte) []byte {
	next := bytes.Clone(prefix)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] != 0 {
			return next[:i+1]
		}
	}
	return nil
}

// Check returns *ErrUndeclared if the store has a family that no entry names.
func Check(ctx context.Context, r storage.Reader) error {
	have, err := Families(ctx, r)
	if err != nil {
		return err
	}
	var unknown []string
	for _, f := range have {
		if _, ok := Family(f); !ok {
			unknown = append(unknown, fmt.Sprintf("rows %q", f))
		}
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return &ErrUndeclared{unknown}
	}
	return nil
}
