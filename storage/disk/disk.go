// Package disk is the file system that the storage engines stand on, as a
// small interface, so that tests can cut the power, fill the disk and make
// fsync fail. OS is the real one; package simdisk the one for tests.
//
// Durability follows POSIX to the letter: written data survives a power cut
// after File.Sync, and a created, renamed or removed name after SyncDir.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another process, or another part of this one, has
// locked the file.
var ErrLocked = errors.New("disk: locked by another process")

// File is an open file. ReadAt and WriteAt may be called concurrently.
type File interface {
	io.Reader
	io.Writer
	io.Seeker
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync returns when everything written is durable. After an error nothing
	// is known about what was written since the last successful call.
	Sync() error
	// Truncate changes the size.
	Truncate(size int64) error
	// Size is the current size in bytes.
	Size() (int64, error)
}

// FS is a file system. Safe for concurrent use. Absent files give an error
// that is fs.ErrNotExist.
type FS interface {
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenFile opens with flags of package os. New files are private (0600).
	OpenFile(name string, flag int) (File, error)
	Remove(name string) error
	Rename(from, to string) error
	// List returns the sorted names in a directory.
	List(dir string) ([]string, error)
	// MkdirAll makes a private directory (0700) and its parents.
	MkdirAll(dir string) error
	// SyncDir returns when the names in dir are durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock for as long as the process lives or until
	// it is closed; ErrLocked if somebody has it.
	Lock(name string) (io.Closer, error)
}

// OS is the file system of the machine.
type OS struct{}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Open opens a file for reading.
func (OS) Open(name string) (File, error) { return OS{}.OpenFile(name, os.O_RDONLY) }

// OpenFile opens with flags of package os.
func (OS) OpenFile(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Remove deletes a name.
func (OS) Remove(name string) error { return os.Remove(name) }

// Rename replaces to atomically.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// List returns the sorted names in a directory.
func (OS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(0)
	sort.Strings(names)
	return names, err
}

// MkdirAll makes a directory and its parents, and makes them durable.
func (OS) MkdirAll(dir string) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("%s is not a directory: %w", dir, fs.ErrExist)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := (OS{}).MkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return OS{}.SyncDir(parent)
}

// SyncDir returns when the names in dir are durable.
func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Lock takes an advisory lock (flock) that ends with the process.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", name, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(f FS, name string, limit int64) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, nil
}

// WriteFile replaces a file atomically and durably: a temporary file is
// written, synced and renamed, then the directory synced.
func WriteFile(f FS, name string, content []byte) error {
	tmp := name + ".tmp"
	file, err := f.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.Rename(tmp, name)
	}
	if err != nil {
		return err
	}
	return f.SyncDir(filepath.Dir(name))
}
