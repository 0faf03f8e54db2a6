package vault

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
)

// MemFS is a file system in memory that knows what a power cut may take:
// Crash drops, sector by sector and name by name, what was not synced.
// For tests. Safe for concurrent use.
type MemFS struct {
	mu      sync.Mutex
	live    map[string]*memFile // what programs see
	durable map[string]*memFile // what the directory on disk says
	// Fail, when set, is asked before every write, sync, create and rename;
	// an error makes the operation fail without effect.
	Fail func(op, name string) error
}

type memFile struct {
	data, synced []byte
}

// NewMemFS returns an empty file system.
func NewMemFS() *MemFS {
	return &MemFS{live: map[string]*memFile{}, durable: map[string]*memFile{}}
}

func (m *MemFS) do(op, name string, f func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Fail != nil {
		if err := m.Fail(op, name); err != nil {
			return err
		}
	}
	return f()
}

func (m *MemFS) file(name string) (*memFile, error) {
	if f, ok := m.live[name]; ok {
		return f, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// MkdirAll does nothing: every directory exists.
func (m *MemFS) MkdirAll(string) error { return nil }

// ReadFile returns a copy of the file's bytes.
func (m *MemFS) ReadFile(name string) (b []byte, err error) {
	err = m.do("read", name, func() error {
		f, err := m.file(name)
		if err == nil {
			b = append([]byte{}, f.data...)
		}
		return err
	})
	return b, err
}

// Mode is 0600 for every file.
func (m *MemFS) Mode(name string) (fs.FileMode, error) {
	return 0o600, m.do("stat", name, func() error { _, err := m.file(name); return err })
}

// List returns the names in dir.
func (m *MemFS) List(dir string) (names []string, err error) {
	err = m.do("list", dir, func() error {
		for n := range m.live {
			if filepath.Dir(n) == filepath.Clean(dir) {
				names = append(names, filepath.Base(n))
			}
		}
		return nil
	})
	return names, err
}

// Create makes or empties a file.
func (m *MemFS) Create(name string) (File, error) {
	err := m.do("create", name, func() error {
		if f, ok := m.live[name]; ok {
			f.data = nil
		} else {
			m.live[name] = &memFile{}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m.OpenFile(name)
}

// OpenFile opens an existing file.
func (m *MemFS) OpenFile(name string) (File, error) {
	var h *memHandle
	err := m.do("open", name, func() error {
		f, err := m.file(name)
		h = &memHandle{m: m, f: f, name: name}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Rename replaces the target.
func (m *MemFS) Rename(from, to string) error {
	return m.do("rename", to, func() error {
		f, err := m.file(from)
		if err != nil {
			return err
		}
		m.live[to] = f
		delete(m.live, from)
		return nil
	})
}

// Remove removes the name.
func (m *MemFS) Remove(name string) error {
	return m.do("remove", name, func() error {
		_, err := m.file(name)
		delete(m.live, name)
		return err
	})
}

// SyncDir makes the names of all files durable.
func (m *MemFS) SyncDir(dir string) error {
	return m.do("syncdir", dir, func() error {
		m.durable = map[string]*memFile{}
		for n, f := range m.live {
			m.durable[n] = f
		}
		return nil
	})
}

// Crash cuts the power: every name is as it is or as it was last synced, and
// so is every 512-byte sector of every file; a file's unsynced growth may be
// cut anywhere. Handles opened before must no longer be used.
func (m *MemFS) Crash(r *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := map[string]*memFile{}
	for n, f := range m.durable {
		after[n] = f
	}
	for n := range union(m.live, m.durable) {
		if r.IntN(2) == 0 {
			continue
		}
		if f, ok := m.live[n]; ok {
			after[n] = f
		} else {
			delete(after, n)
		}
	}
	m.live, m.durable = map[string]*memFile{}, map[string]*memFile{}
	for n, f := range after {
		b := f.torn(r)
		m.live[n] = &memFile{data: b, synced: append([]byte{}, b...)}
		m.durable[n] = m.live[n]
	}
}

func union(a, b map[string]*memFile) map[string]bool {
	u := map[string]bool{}
	for n := range a {
		u[n] = true
	}
	for n := range b {
		u[n] = true
	}
	return u
}

// torn mixes synced and unsynced sectors.
func (f *memFile) torn(r *rand.Rand) []byte {
	const sector = 512
	size := len(f.synced)
	if d := len(f.data) - size; d > 0 {
		size += r.IntN(d + 1)
	} else if d < 0 && r.IntN(2) == 0 {
		size = len(f.data)
	}
	out := make([]byte, size)
	copy(out, f.synced)
	for at := 0; at < size; at += sector {
		if r.IntN(2) == 0 && at < len(f.data) {
			copy(out[at:min(at+sector, size)], f.data[at:])
		}
	}
	return out
}

type memHandle struct {
	m    *MemFS
	f    *memFile
	name string
}

func (h *memHandle) WriteAt(p []byte, off int64) (int, error) {
	err := h.m.do("write", h.name, func() error {
		if off < 0 {
			return errors.New("negative offset")
		}
		if need := int(off) + len(p); need > len(h.f.data) {
			h.f.data = append(h.f.data, make([]byte, need-len(h.f.data))...)
		}
		copy(h.f.data[off:], p)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (h *memHandle) Truncate(size int64) error {
	return h.m.do("truncate", h.name, func() error {
		h.f.data = h.f.data[:min(int(size), len(h.f.data))]
		return nil
	})
}

func (h *memHandle) Sync() error {
	return h.m.do("sync", h.name, func() error {
		h.f.synced = append([]byte{}, h.f.data...)
		return nil
	})
}

func (h *memHandle) Close() error { return nil }

// OpenMemory returns a vault that lives in memory, the same in every run. Two
// servers of one test take different seeds with OpenMemorySeed, otherwise
// they have the same signing key. For tests only: its random source is not.
func OpenMemory() *Vault { return OpenMemorySeed("") }

// OpenMemorySeed is OpenMemory with other keys for another seed.
func OpenMemorySeed(seed string) *Vault {
	v, err := Open(Options{Dir: "/vault", FS: NewMemFS(), Rand: SeededRand(seed)})
	if err != nil {
		panic("vault: in memory: " + err.Error()) // nothing in it can fail
	}
	return v
}

// SeededRand is a repeatable source of random bytes. For tests.
func SeededRand(seed string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256([]byte("parley test vault " + seed)))
}
