package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"parley/storage"
	"parley/storage/disk"
)

// Options of Open.
type Options struct {
	FS   disk.FS   // nil: the machine's
	Rand io.Reader // nil: crypto/rand
}

// dir is a folder of files. A file is written under tmp/, synced, renamed to
// aa/bbbb… (its ID in hex) and its folder synced.
type dir struct {
	fs   disk.FS
	path string

	mu   sync.Mutex
	made map[string]bool // subfolders that exist
}

const tmpDir = "tmp"

// Open opens or creates a store in a directory and removes what a crash has
// left half written.
func Open(path string, o Options) (*Store, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	d := &dir{fs: o.FS, path: path, made: map[string]bool{}}
	if err := d.fs.MkdirAll(filepath.Join(path, tmpDir)); err != nil {
		return nil, fmt.Errorf("blob: make directory: %w", err)
	}
	if err := d.tidy(context.Background(), func(ID) bool { return false }); err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	return newStore(d, o.Rand), nil
}

func (d *dir) folder(id ID) string { return filepath.Join(d.path, id.String()[:2]) }
func (d *dir) file(id ID) string   { return filepath.Join(d.folder(id), id.String()[2:]) }
func (d *dir) tmp(id ID) string    { return filepath.Join(d.path, tmpDir, id.String()) }

func (d *dir) create(id ID) (sink, error) {
	f, err := d.fs.OpenFile(d.tmp(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, unavailable(err)
	}
	return &dirSink{d: d, id: id, f: f}, nil
}

type dirSink struct {
	d  *dir
	id ID
	f  disk.File // nil once closed
}

func (w *dirSink) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	return n, unavailable(err)
}

func (w *dirSink) commit() error {
	err := w.f.Sync()
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	w.f = nil
	if err == nil {
		err = w.d.makeFolder(w.id)
	}
	if err == nil {
		err = w.d.fs.Rename(w.d.tmp(w.id), w.d.file(w.id))
	}
	if err == nil {
		err = w.d.fs.SyncDir(w.d.folder(w.id))
	}
	return unavailable(err)
}

func (w *dirSink) abort() {
	if w.f != nil {
		_ = w.f.Close()
	}
	_ = w.d.fs.Remove(w.d.tmp(w.id))
	_ = w.d.fs.Remove(w.d.file(w.id))
}

// makeFolder makes the subfolder of a file once.
func (d *dir) makeFolder(id ID) error {
	name := d.folder(id)
	d.mu.Lock()
	made := d.made[name]
	d.mu.Unlock()
	if made {
		return nil
	}
	if err := d.fs.MkdirAll(name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.made[name] = true
	return nil
}

func (d *dir) open(id ID) (*File, error) {
	f, err := d.fs.Open(d.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, storage.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	n, err := f.Size()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("size: %w", err)
	}
	return &File{f, f, n}, nil
}

func (d *dir) remove(ids []ID) error {
	for _, id := range ids {
		if err := d.fs.Remove(d.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// list: one process writes to a folder, so nothing in it is young.
func (d *dir) list(ctx context.Context, f func(ID, bool) error) error {
	folders, err := d.fs.List(d.path)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if len(folder) != 2 {
			continue
		}
		names, err := d.fs.List(filepath.Join(d.path, folder))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			id, ok := parseID(folder + name)
			if !ok {
				continue // not ours
			}
			if err := f(id, false); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *dir) tidy(_ context.Context, busy func(ID) bool) error {
	names, err := d.fs.List(filepath.Join(d.path, tmpDir))
	if err != nil {
		return fmt.Errorf("list temporary files: %w", err)
	}
	for _, n := range names {
		if id, ok := parseID(n); ok && busy(id) {
			continue
		}
		if err := d.fs.Remove(filepath.Join(d.path, tmpDir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove temporary file: %w", err)
		}
	}
	return nil
}
