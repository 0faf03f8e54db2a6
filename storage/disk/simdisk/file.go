package simdisk

import (
	"io"
	"io/fs"
	"os"

	"parley/storage/disk"
)

type file struct {
	d      *Disk
	name   string
	in     *inode
	at     int64
	closed bool
}

// Open opens a file for reading.
func (d *Disk) Open(name string) (disk.File, error) { return d.OpenFile(name, os.O_RDONLY) }

// OpenFile opens with O_CREATE, O_EXCL, O_TRUNC and O_APPEND as in package os.
func (d *Disk) OpenFile(name string, flag int) (disk.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kind := "open"
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		kind = "create"
	}
	if err := d.begin(Op{Kind: kind, Name: name}); err != nil {
		return nil, err
	}
	dir, base, in := d.lookup(name)
	switch {
	case in == nil && (dir == nil || flag&os.O_CREATE == 0):
		return nil, notExist("open", name)
	case in == nil:
		in = &inode{links: 1}
		dir.names[base] = in
	case flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case flag&os.O_TRUNC != 0:
		d.resize(in, 0)
	}
	f := &file{d: d, name: name, in: in}
	if flag&os.O_APPEND != 0 {
		f.at = int64(len(in.data))
	}
	return f, nil
}

// resize truncates or grows a file. The caller holds mu.
func (d *Disk) resize(in *inode, size int) {
	old := len(in.data)
	if size < old {
		in.data = in.data[:size:size]
	} else {
		in.data = append(in.data, make([]byte, size-old)...)
	}
	in.dirty = append(in.dirty, extent{min(old, size), max(old, size)})
	if in.links > 0 {
		d.used += int64(size - old)
	}
}

func (f *file) Read(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n, err := f.readAt(p, f.at)
	f.at += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.readAt(p, off)
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	if err := f.d.begin(Op{Kind: "read", Name: f.name}); err != nil {
		return 0, err
	}
	if off >= int64(len(f.in.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.in.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n, err := f.writeAt(p, f.at)
	f.at += int64(n)
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.writeAt(p, off)
}

func (f *file) writeAt(p []byte, off int64) (int, error) {
	if f.closed {
		return 0, fs.ErrClosed
	}
	if err := f.d.begin(Op{Kind: "write", Name: f.name, Size: len(p)}); err != nil {
		return 0, err
	}
	full := false
	if grow := int(off) + len(p) - len(f.in.data); grow > 0 && f.d.capacity > 0 {
		if free := int(f.d.capacity - f.d.used); grow > free {
			// A full disk takes what still fits.
			p, full = p[:max(0, len(p)-(grow-max(free, 0)))], true
		}
	}
	if end := int(off) + len(p); end > len(f.in.data) {
		f.d.resize(f.in, end)
	}
	n := copy(f.in.data[off:], p)
	f.in.dirty = append(f.in.dirty, extent{int(off), int(off) + n})
	if full {
		return n, noSpace(f.name)
	}
	return n, nil
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += int64(len(f.in.data))
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	f.at = offset
	return offset, nil
}

func (f *file) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	if err := f.d.begin(Op{Kind: "truncate", Name: f.name}); err != nil {
		return err
	}
	f.d.resize(f.in, int(size))
	return nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.dead {
		return 0, ErrPowerCut
	}
	return int64(len(f.in.data)), nil
}

// Sync makes the file durable. When it is made to fail, what was to be synced
// will never be durable, as with an operating system that drops its dirty
// pages after an error.
func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	if err := f.d.begin(Op{Kind: "sync", Name: f.name}); err != nil {
		f.in.doomed = append(f.in.doomed, f.in.dirty...)
		f.in.dirty = nil
		return err
	}
	in := f.in
	if len(in.durable) > len(in.data) {
		in.durable = in.durable[:len(in.data)]
	}
	for _, e := range in.dirty {
		e.to = min(e.to, len(in.data))
		if e.from >= e.to {
			continue
		}
		if grow := e.to - len(in.durable); grow > 0 {
			in.durable = append(in.durable, make([]byte, grow)...)
		}
		copy(in.durable[e.from:e.to], in.data[e.from:e.to])
	}
	in.dirty = nil
	return nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}
