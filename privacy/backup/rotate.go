package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Rotate keeps the newest keep backups that are not older than maxAge (0: of
// any age), but always the newest one, and removes what none of them needs. It
// returns the IDs of backups that can't be restored any more.
func Rotate(dir string, keep int, maxAge time.Duration, now time.Time) (removed []string, err error) {
	if keep < 1 {
		return nil, errors.New("keep at least one backup")
	}
	l, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	needed, kept := map[string]bool{}, 0
	for i := len(all) - 1; i >= 0; i-- {
		m := all[i]
		if m.Rows == nil {
			continue
		}
		if kept > 0 && (kept >= keep || maxAge > 0 && now.Sub(m.Made) > maxAge) {
			removed = append([]string{m.ID}, removed...)
			continue
		}
		kept++
		needed[m.ID] = true
		for _, id := range m.Uses {
			needed[id] = true
		}
	}
	return removed, prune(dir, all, removed, needed)
}

// prune drops the rows of removed backups, and whole backups that nobody needs.
// A manifest changes before the files that it names go, so that a crash in
// between leaves at most files that tidy removes.
func prune(dir string, all []*Manifest, removed []string, needed map[string]bool) error {
	gone := map[string]bool{}
	for _, id := range removed {
		gone[id] = true
	}
	var rest []*Manifest
	for _, m := range all {
		switch {
		case !needed[m.ID]:
			if err := os.Remove(filepath.Join(dir, m.ID+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("rotate: %w", err)
			}
			continue
		case gone[m.ID]:
			m.Rows = nil
			if err := writeManifest(dir, m); err != nil {
				return fmt.Errorf("rotate: %w", err)
			}
		}
		rest = append(rest, m)
	}
	if err := tidy(dir, rest); err != nil {
		return fmt.Errorf("rotate: %w", err)
	}
	return nil
}

// Ledger returns the newest ledger of what was erased that a folder has; nil
// if there is none.
func Ledger(dir string) ([]byte, error) {
	b, err := ReadLedger(filepath.Join(dir, erasedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// ReadLedger reads a file "erased" of a folder of backups.
func ReadLedger(path string) ([]byte, error) { return readSummed(path, maxLedger) }
