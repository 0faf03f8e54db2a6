package vault

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// FS is the little of a file system that a vault needs. Names are full paths.
// Absent files give errors that are fs.ErrNotExist.
type FS interface {
	MkdirAll(dir string) error
	ReadFile(name string) ([]byte, error)
	Mode(name string) (fs.FileMode, error)
	List(dir string) ([]string, error)
	// Create makes or empties a file that only its owner may read.
	Create(name string) (File, error)
	// OpenFile opens an existing file for writing.
	OpenFile(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes creations, renames and removals in dir durable.
	SyncDir(dir string) error
}

// File is a file open for writing.
type File interface {
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

type osFS struct{}

func (osFS) MkdirAll(dir string) error            { return os.MkdirAll(dir, 0o700) }
func (osFS) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }
func (osFS) Rename(from, to string) error         { return os.Rename(from, to) }
func (osFS) Remove(name string) error             { return os.Remove(name) }

func (osFS) Mode(name string) (fs.FileMode, error) {
	st, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return st.Mode(), nil
}

func (osFS) List(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(es))
	for i, e := range es {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Create(name string) (File, error) {
	return openFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (osFS) OpenFile(name string) (File, error) { return openFile(name, os.O_RDWR) }

// openFile returns a nil interface, not a nil *os.File in one, on errors.
func openFile(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (v *Vault) path(name string) string { return filepath.Join(v.dir, name) }

// writeNew writes a whole file and syncs it, but not its directory entry.
func (v *Vault) writeNew(path string, data []byte) error {
	f, err := v.fs.Create(path)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replace puts data in place of a file in one step, durably, and overwrites
// the blocks of the old file as far as the file system lets us.
func (v *Vault) replace(path string, data []byte) error {
	if err := v.writeNew(path+".tmp", data); err != nil {
		return err
	}
	old, err := v.fs.OpenFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	size := 0
	if old != nil {
		defer old.Close()
		b, err := v.fs.ReadFile(path)
		if err != nil {
			return err
		}
		size = len(b)
	}
	if err := v.fs.Rename(path+".tmp", path); err != nil {
		return err
	}
	if err := v.fs.SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if old != nil {
		wipe(old, size)
	}
	return nil
}

// wipe overwrites the first n bytes of a file that is no longer needed. What
// it protects is unreadable without it; it only leaves less to attack, so a
// failure is not an error.
func wipe(f File, n int) {
	if _, err := f.WriteAt(make([]byte, n), 0); err == nil {
		_ = f.Sync()
	}
}
