// Package simdisk is a disk in memory for tests. It forgets, at a power cut,
// everything that POSIX allows a disk to forget: data that wasn't synced
// (whole, in part, or replaced by garbage) and names whose directory wasn't
// synced. It can be full, and any operation can be made to fail.
package simdisk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sort"
	"sync"
	"syscall"

	"parley/storage/disk"
)

// ErrPowerCut is what every operation of a disk without power returns.
var ErrPowerCut = errors.New("simdisk: no power")

// Op is an operation that a fault function may fail.
type Op struct {
	Kind string // open, create, write, sync, truncate, remove, rename, syncdir, read
	Name string
	Size int // bytes of a write
}

// Disk is a simulated disk. Safe for concurrent use.
type Disk struct {
	mu       sync.Mutex
	rng      *rand.Rand
	dirs     map[string]*directory
	locks    map[string]bool
	fault    func(Op) error
	capacity int64
	used     int64
	ops      int
	cutAt    int // power fails at this operation; 0: never
	dead     bool
}

var _ disk.FS = (*Disk)(nil)

type directory struct {
	names   map[string]*inode // what programs see
	durable map[string]*inode // what a power cut leaves at least
}

// inode is a file. durable is what has been synced. dirty lists what was
// written since, doomed what a failed sync has given up on.
type inode struct {
	data, durable []byte
	dirty, doomed []extent
	links         int
}

type extent struct{ from, to int }

// New returns an empty disk whose behaviour at power cuts follows the seed.
func New(seed uint64) *Disk {
	return &Disk{rng: rand.New(rand.NewPCG(seed, 1)), dirs: map[string]*directory{}, locks: map[string]bool{}}
}

// SetFault installs a function that is asked before each operation; nil
// removes it.
func (d *Disk) SetFault(f func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// SetCapacity bounds the bytes in files; 0 is no bound.
func (d *Disk) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// Used is the number of bytes in files.
func (d *Disk) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// CutAfter makes the power fail at the n-th changing operation from now.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = d.ops + n
}

// Dead reports whether the power has failed.
func (d *Disk) Dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// begin starts an operation: power, then injected faults. The caller holds mu.
func (d *Disk) begin(op Op) error {
	if d.dead {
		return ErrPowerCut
	}
	if op.Kind != "read" && op.Kind != "open" {
		d.ops++
		if d.cutAt > 0 && d.ops >= d.cutAt {
			d.dead = true
			return ErrPowerCut
		}
	}
	if d.fault != nil {
		return d.fault(op)
	}
	return nil
}

func (d *Disk) dir(name string) *directory { return d.dirs[filepath.Clean(name)] }

func (d *Disk) lookup(name string) (*directory, string, *inode) {
	dir, base := d.dir(filepath.Dir(name)), filepath.Base(name)
	if dir == nil {
		return nil, base, nil
	}
	return dir, base, dir.names[base]
}

func notExist(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
}

// MkdirAll makes directories, durable at once.
func (d *Disk) MkdirAll(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return ErrPowerCut
	}
	for p := filepath.Clean(name); ; p = filepath.Dir(p) {
		if d.dirs[p] == nil {
			d.dirs[p] = &directory{names: map[string]*inode{}, durable: map[string]*inode{}}
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

// List returns the sorted names in a directory.
func (d *Disk) List(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(Op{Kind: "read", Name: name}); err != nil {
		return nil, err
	}
	dir := d.dir(name)
	if dir == nil {
		return nil, notExist("list", name)
	}
	var out []string
	for n := range dir.names {
		out = append(out, n)
	}
	for p := range d.dirs {
		if filepath.Dir(p) == filepath.Clean(name) && p != filepath.Clean(name) {
			out = append(out, filepath.Base(p))
		}
	}
	sort.Strings(out)
	return out, nil
}

// Remove deletes a name.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(Op{Kind: "remove", Name: name}); err != nil {
		return err
	}
	dir, base, in := d.lookup(name)
	if in == nil {
		return notExist("remove", name)
	}
	delete(dir.names, base)
	d.unlink(in)
	return nil
}

func (d *Disk) unlink(in *inode) {
	if in.links--; in.links == 0 {
		d.used -= int64(len(in.data))
	}
}

// Rename replaces to.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(Op{Kind: "rename", Name: to}); err != nil {
		return err
	}
	fd, fb, in := d.lookup(from)
	td, tb, old := d.lookup(to)
	if in == nil || td == nil {
		return notExist("rename", from)
	}
	if old != nil {
		d.unlink(old)
	}
	delete(fd.names, fb)
	td.names[tb] = in
	return nil
}

// SyncDir makes the names of a directory durable.
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(Op{Kind: "syncdir", Name: name}); err != nil {
		return err
	}
	dir := d.dir(name)
	if dir == nil {
		return notExist("sync", name)
	}
	dir.durable = map[string]*inode{}
	for n, in := range dir.names {
		dir.durable[n] = in
	}
	return nil
}

type lock struct {
	d    *Disk
	name string
}

func (l *lock) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	delete(l.d.locks, l.name)
	return nil
}

// Lock takes a lock until it is closed or the power fails.
func (d *Disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return nil, ErrPowerCut
	}
	if d.locks[name] {
		return nil, fmt.Errorf("%s: %w", name, disk.ErrLocked)
	}
	d.locks[name] = true
	return &lock{d, name}, nil
}

// Flip changes one bit of a file, on the disk itself.
func (d *Disk) Flip(name string, bit int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _, in := d.lookup(name)
	if in == nil {
		return notExist("flip", name)
	}
	for _, b := range [][]byte{in.data, in.durable} {
		if bit/8 < len(b) {
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
	return nil
}

// Clone copies the disk as programs see it now, everything durable: what a
// killed process leaves behind.
func (d *Disk) Clone(seed uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(seed)
	for p, dir := range d.dirs {
		nd := &directory{names: map[string]*inode{}, durable: map[string]*inode{}}
		for n, in := range dir.names {
			ni := &inode{data: append([]byte(nil), in.data...), durable: append([]byte(nil), in.data...), links: 1}
			nd.names[n], nd.durable[n] = ni, ni
			c.used += int64(len(ni.data))
		}
		c.dirs[p] = nd
	}
	return c
}

// noSpace is what a full disk answers.
func noSpace(name string) error {
	return &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
}
