package leveldb

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sort"

	lstorage "github.com/syndtr/goleveldb/leveldb/storage"

	"parley/storage"
	"parley/storage/disk"
)

// maxLogBytes bounds a journal or manifest that is read whole. Journals end at
// the size of the write buffer.
const maxLogBytes = 1 << 30

// advice is part of every error that damage causes.
const advice = "data that had been acknowledged is damaged; restore the newest backup, or run `parley db repair` to go back to the last state before the damage"

func corrupt(format string, args ...any) error {
	return fmt.Errorf("leveldb: %s: %w: %s", fmt.Sprintf(format, args...), storage.ErrCorrupt, advice)
}

// cut is what has to go before goleveldb may read the journals: a write that a
// crash interrupted, at the end of one of them.
type cut struct {
	fd   lstorage.FileDesc
	size int64 // what stays
}

// inspection is the look at a database before goleveldb opens it. goleveldb
// steps over damage, and its recovery then removes the evidence.
type inspection struct {
	fs    disk.FS
	dir   string
	claim guardClaim
	live  int64 // journals from this number on are not in tables yet
	cuts  []cut
}

// inspect checks journals and manifest, and cuts off what was being written
// when the power failed. Damage to anything that had been acknowledged is
// storage.ErrCorrupt, and nothing is changed then.
func inspect(f disk.FS, dir string, claim guardClaim) error {
	in := &inspection{fs: f, dir: dir, claim: claim}
	fresh, err := in.fresh()
	if err != nil || fresh {
		return err
	}
	if err := in.manifest(); err != nil {
		return err
	}
	if err := in.journals(); err != nil {
		return err
	}
	for _, c := range in.cuts {
		if err := truncate(f, in.path(c.fd), c.size); err != nil {
			return fmt.Errorf("leveldb: cut interrupted write: %w", err)
		}
	}
	return nil
}

func (in *inspection) path(fd lstorage.FileDesc) string {
	return filepath.Join(in.dir, fileName(fd))
}

func (in *inspection) read(fd lstorage.FileDesc) ([]byte, error) {
	b, err := disk.ReadFile(in.fs, in.path(fd), maxLogBytes)
	if err != nil {
		return nil, fmt.Errorf("leveldb: read %s: %w", fd.Type, err)
	}
	return b, nil
}

// fresh reports that there is no database yet. What a crash during creation
// has left is removed.
func (in *inspection) fresh() (bool, error) {
	s := newStore(in.fs, in.dir)
	if _, err := s.GetMeta(); !errors.Is(err, fs.ErrNotExist) {
		return false, in.unreadable(err)
	}
	fds, err := s.List(lstorage.TypeAll)
	if err != nil {
		return false, fmt.Errorf("leveldb: list files: %w", err)
	}
	if in.claim.seq > 0 {
		return false, corrupt("CURRENT is missing")
	}
	for _, fd := range fds {
		if fd.Type == lstorage.TypeTable {
			return false, corrupt("CURRENT is missing")
		}
		if fd.Type == lstorage.TypeJournal {
			b, err := in.read(fd)
			if err != nil {
				return false, err
			}
			if l := scanLog(b); len(l.good)+len(l.beyond) > 0 {
				return false, corrupt("CURRENT is missing")
			}
		}
	}
	for _, fd := range fds {
		if err := s.Remove(fd); err != nil {
			return false, fmt.Errorf("leveldb: remove remains of an interrupted creation: %w", err)
		}
	}
	return true, nil
}

func (in *inspection) unreadable(err error) error {
	var c *lstorage.ErrCorrupted
	if errors.As(err, &c) {
		return corrupt("%s", c.Err)
	}
	return err
}

// manifest checks the list of tables. Every record of it is synced before the
// next is written, so a readable record after damage means that the damaged
// one had been acknowledged.
func (in *inspection) manifest() error {
	fd, err := newStore(in.fs, in.dir).GetMeta()
	if err != nil {
		return in.unreadable(err)
	}
	b, err := disk.ReadFile(in.fs, in.path(fd), maxLogBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return corrupt("%s is missing", fileName(fd))
	}
	if err != nil {
		return fmt.Errorf("leveldb: read manifest: %w", err)
	}
	if m := in.claim.manifest; m.num == fd.Num && !m.holds(b) {
		return corrupt("%s is not what was written", fileName(fd))
	}
	l := scanLog(b)
	if len(l.good) == 0 || len(l.beyond) > 0 {
		return corrupt("%s is unreadable at byte %d", fileName(fd), l.end)
	}
	for _, r := range l.good {
		if n, ok := journalNumber(r.data); ok {
			in.live = n
		}
	}
	if !l.whole() {
		in.cuts = append(in.cuts, cut{fd, l.end})
	}
	return nil
}

// journals checks that the batches in the journals follow one another.
func (in *inspection) journals() error {
	fds, err := newStore(in.fs, in.dir).List(lstorage.TypeJournal)
	if err != nil {
		return fmt.Errorf("leveldb: list journals: %w", err)
	}
	sort.Slice(fds, func(i, j int) bool { return fds[i].Num < fds[j].Num })
	w := walk{}
	for _, fd := range fds {
		if fd.Num < in.live {
			continue // its batches are in tables already
		}
		b, err := in.read(fd)
		if err != nil {
			return err
		}
		if m := in.claim.journal; m.num == fd.Num && !m.holds(b) {
			return corrupt("%s is not what was written", fileName(fd))
		}
		l := scanLog(b)
		before := w.broken
		if err := w.records(fd, l.good); err != nil {
			return err
		}
		if before {
			w.damage = append(w.damage, cut{fd, 0})
		} else if !l.whole() {
			w.damage = append(w.damage, cut{fd, l.end})
		}
		if err := w.records(fd, l.beyond); err != nil {
			return err
		}
	}
	in.cuts = append(in.cuts, w.damage...)
	return nil
}

// walk follows the chain through the journals.
type walk struct {
	last   chainLink
	seen   bool
	damage []cut // places where something is unreadable, and what follows it
	// broken is set when batches are missing that nobody relied on: they were
	// never synced. What follows them goes too, so that a prefix stays.
	broken bool
}

func (w *walk) records(fd lstorage.FileDesc, rs []logRecord) error {
	for _, r := range rs {
		l, sum, ok := link(r.data, w.last.sum)
		if !ok {
			return corrupt("%s has a batch without a number", fileName(fd))
		}
		if err := w.follow(fd, l); err != nil {
			return err
		}
		if w.broken {
			continue
		}
		if w.seen && l.sum != sum {
			return corrupt("batch %d in %s is not what was written", l.seq, fileName(fd))
		}
		w.last, w.seen = l, true
	}
	return nil
}

// follow checks a batch's number against the one before it.
func (w *walk) follow(fd lstorage.FileDesc, l chainLink) error {
	missing := w.last.seq + 1 // the first batch that isn't there
	if !w.seen {
		missing = l.seq - 1
	}
	switch {
	case w.seen && !w.broken && l.seq == w.last.seq+1:
		return nil
	case !w.seen && len(w.damage) == 0:
		return nil // the tables know what comes before
	case len(w.damage) == 0:
		return corrupt("batches from %d on are missing before %s", missing, fileName(fd))
	case l.durable >= missing:
		return corrupt("batch %d is unreadable in %s", missing, fileName(w.damage[0].fd))
	}
	w.broken = true
	return nil
}
