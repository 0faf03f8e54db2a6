package leveldb

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	lstorage "github.com/syndtr/goleveldb/leveldb/storage"

	"parley/storage/disk"
)

// store is the files of one opening of the database, as goleveldb sees them.
//
// It differs from goleveldb's own in three ways. Every change of a name is
// made durable, because a journal that has been synced is worth nothing if its
// name is lost. After the first failed write, sync or rename nothing is
// changed any more: what a failed fsync has left behind is unknown, so going
// on would build on sand; the engine repairs the journal and opens anew. And
// it knows how much of each journal has been acknowledged, so that the engine
// can cut off what hasn't.
type store struct {
	fs  disk.FS
	dir string

	mu       sync.Mutex
	failed   error // the first failure; nothing is changed after it
	journals map[int64]*writer
	manifest *writer
}

var _ lstorage.Storage = (*store)(nil)

func newStore(f disk.FS, dir string) *store {
	return &store{fs: f, dir: dir, journals: map[int64]*writer{}}
}

// fail freezes the files. It returns the error that did.
func (s *store) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	return s.failed
}

// failure is nil while the files may be changed.
func (s *store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// change runs an operation that alters the disk, unless the files are frozen.
func (s *store) change(op string, f func() error) error {
	if err := s.failure(); err != nil {
		return err
	}
	err := f()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.fail(fmt.Errorf("%s: %w", op, err))
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// fileName is the standard name of a file, so that LevelDB tools can read the
// database.
func fileName(fd lstorage.FileDesc) string {
	return fd.String()
}

// parseName is the reverse of fileName.
func parseName(name string) (fd lstorage.FileDesc, ok bool) {
	var tail string
	if n, _ := fmt.Sscanf(name, "MANIFEST-%d%s", &fd.Num, &tail); n == 1 {
		fd.Type = lstorage.TypeManifest
	} else if n, _ := fmt.Sscanf(name, "%d.%s", &fd.Num, &tail); n == 2 {
		switch tail {
		case "log":
			fd.Type = lstorage.TypeJournal
		case "ldb":
			fd.Type = lstorage.TypeTable
		case "tmp":
			fd.Type = lstorage.TypeTemp
		}
	}
	// Only what fileName writes: no signs, no odd padding.
	return fd, fd.Type != 0 && fileName(fd) == name
}

type noLock struct{}

func (noLock) Unlock() {}

// Lock does nothing: the engine holds the lock of the directory.
func (s *store) Lock() (lstorage.Locker, error) { return noLock{}, nil }

// Log drops goleveldb's messages, some of which quote keys.
func (s *store) Log(string) {}

// Close does nothing: files are closed one by one.
func (s *store) Close() error { return nil }

const currentName = "CURRENT"

// SetMeta points CURRENT at a manifest, atomically and durably.
func (s *store) SetMeta(fd lstorage.FileDesc) error {
	return s.change("set manifest", func() error {
		return disk.WriteFile(s.fs, s.path(currentName), []byte(fileName(fd)+"\n"))
	})
}

// GetMeta returns what CURRENT points at.
func (s *store) GetMeta() (lstorage.FileDesc, error) {
	b, err := disk.ReadFile(s.fs, s.path(currentName), 64)
	if errors.Is(err, fs.ErrNotExist) {
		return lstorage.FileDesc{}, os.ErrNotExist // goleveldb compares with ==
	}
	if err != nil {
		return lstorage.FileDesc{}, err
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		if fd, ok := parseName(string(b[:n-1])); ok && fd.Type == lstorage.TypeManifest {
			return fd, nil
		}
	}
	return lstorage.FileDesc{}, &lstorage.ErrCorrupted{Err: errors.New("CURRENT doesn't name a manifest")}
}

// List returns the database files of some types.
func (s *store) List(ft lstorage.FileType) ([]lstorage.FileDesc, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, err
	}
	var out []lstorage.FileDesc
	for _, n := range names {
		if fd, ok := parseName(n); ok && fd.Type&ft != 0 {
			out = append(out, fd)
		}
	}
	return out, nil
}

// Open opens a file for reading.
func (s *store) Open(fd lstorage.FileDesc) (lstorage.Reader, error) {
	return s.fs.Open(s.path(fileName(fd)))
}

// Create makes a file whose name is durable before anything is written to it.
func (s *store) Create(fd lstorage.FileDesc) (lstorage.Writer, error) {
	w := &writer{s: s, fd: fd}
	err := s.change("create "+fd.Type.String(), func() (err error) {
		name := s.path(fileName(fd))
		w.f, err = s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
		if errors.Is(err, fs.ErrExist) {
			// Left behind by a crash. Emptying it isn't enough: until the
			// next sync a power cut could mix its bytes with the new ones.
			if err = s.fs.Remove(name); err == nil {
				w.f, err = s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
			}
		}
		if err != nil {
			return err
		}
		if err = s.fs.SyncDir(s.dir); err != nil {
			w.f.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch fd.Type {
	case lstorage.TypeJournal:
		s.journals[fd.Num] = w
	case lstorage.TypeManifest:
		s.manifest = w
	}
	return w, nil
}

// Remove deletes a file durably.
func (s *store) Remove(fd lstorage.FileDesc) error {
	err := s.change("remove "+fd.Type.String(), func() error {
		if err := s.fs.Remove(s.path(fileName(fd))); err != nil {
			return err
		}
		return s.fs.SyncDir(s.dir)
	})
	if err == nil && fd.Type == lstorage.TypeJournal {
		s.mu.Lock()
		delete(s.journals, fd.Num)
		s.mu.Unlock()
	}
	return err
}

// Rename is used by goleveldb's recovery of tables only, which this engine
// doesn't call.
func (s *store) Rename(from, to lstorage.FileDesc) error {
	return s.change("rename", func() error {
		if err := s.fs.Rename(s.path(fileName(from)), s.path(fileName(to))); err != nil {
			return err
		}
		return s.fs.SyncDir(s.dir)
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mark says how much of a file counts, and what is in there.
type mark struct {
	num  int64
	size int64
	sum  uint32
}

// writer is an open file of goleveldb. Its methods are called by one goroutine
// at a time.
type writer struct {
	s  *store
	fd lstorage.FileDesc
	f  disk.File

	mu    sync.Mutex // guards the rest against readers of the marks
	size  int64
	sum   uint32
	dirty bool
	acked mark // of a journal: up to the last acknowledged batch; of a manifest: synced
}

func (w *writer) Write(p []byte) (n int, err error) {
	err = w.s.change("write "+w.fd.Type.String(), func() error {
		n, err = w.f.Write(p)
		return err
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size += int64(n)
	w.sum = crc32.Update(w.sum, castagnoli, p[:n])
	w.dirty = true
	return n, err
}

func (w *writer) Sync() error {
	if err := w.s.change("sync "+w.fd.Type.String(), w.f.Sync); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty = false
	if w.fd.Type == lstorage.TypeManifest {
		w.acked = mark{w.fd.Num, w.size, w.sum}
	}
	return nil
}

// Close syncs a journal first: the batches of the next one may rely on it.
func (w *writer) Close() error {
	var err error
	if w.fd.Type == lstorage.TypeJournal && w.isDirty() {
		err = w.Sync()
	}
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (w *writer) isDirty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dirty
}

// ack notes that everything in the journals has been acknowledged, and returns
// the marks of the youngest journal and of the manifest.
func (s *store) ack() (journal, manifest mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for num, w := range s.journals {
		w.mu.Lock()
		w.acked = mark{num, w.size, w.sum}
		if num >= journal.num {
			journal = w.acked
		}
		w.mu.Unlock()
	}
	if w := s.manifest; w != nil {
		w.mu.Lock()
		manifest = w.acked
		w.mu.Unlock()
	}
	return journal, manifest
}

// journalBytes is what a recovery has to write into tables.
func (s *store) journalBytes() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.journals {
		w.mu.Lock()
		n += w.size
		w.mu.Unlock()
	}
	return n
}

// cutUnacked removes what was written to journals without being acknowledged.
// The files must be frozen.
func (s *store) cutUnacked() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for num, w := range s.journals {
		w.mu.Lock()
		keep := w.acked.size
		w.mu.Unlock()
		name := s.path(fileName(lstorage.FileDesc{Type: lstorage.TypeJournal, Num: num}))
		if err := truncate(s.fs, name, keep); err != nil {
			return fmt.Errorf("cut journal: %w", err)
		}
	}
	return nil
}

// truncate shortens a file durably, if it is longer.
func truncate(f disk.FS, name string, size int64) error {
	file, err := f.OpenFile(name, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	now, err := file.Size()
	if err != nil {
		return err
	}
	if now > size {
		if err := file.Truncate(size); err != nil {
			return err
		}
	}
	// Sync even if nothing was cut: an earlier sync of it may have failed.
	return file.Sync()
}
