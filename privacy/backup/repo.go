package backup

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"parley/storage/blob"
	"parley/storage/disk"
)

// Part is one file of a backup.
type Part struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Manifest says what a backup has. It is in the clear and tells nothing of
// people.
type Manifest struct {
	Format     int       `json:"format"`
	ID         string    `json:"id"`
	Server     string    `json:"server"`
	Made       time.Time `json:"made"`
	Recipients []string  `json:"recipients"`     // fingerprints
	Rows       *Part     `json:"rows,omitempty"` // nil: only its files are still needed
	Files      *Part     `json:"files,omitempty"`
	Index      *Part     `json:"index,omitempty"`
	// Uses are earlier backups whose packs of files this one needs.
	Uses []string `json:"uses,omitempty"`
	// Counts of what is in it: rows, and files with those of earlier packs.
	RowCount  int64 `json:"row_count"`
	FileCount int64 `json:"file_count"`
	NewFiles  int64 `json:"new_files"`
}

// Bytes is the size of the files that this backup has added to the folder.
func (m *Manifest) Bytes() int64 {
	n := int64(0)
	for _, p := range m.parts() {
		n += p.Bytes
	}
	return n
}

func (m *Manifest) parts() []Part {
	var out []Part
	for _, p := range []*Part{m.Rows, m.Files, m.Index} {
		if p != nil {
			out = append(out, *p)
		}
	}
	return out
}

const (
	format     = 1
	erasedFile = "erased"
	lockFile   = "LOCK"
	tmpSuffix  = ".tmp"
)

var idPattern = regexp.MustCompile(`^\d{8}T\d{6}Z-[0-9a-f]{8}$`)

func newID(now time.Time) (string, error) {
	var r [4]byte
	if _, err := rand.Read(r[:]); err != nil {
		return "", err
	}
	return now.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(r[:]), nil
}

// List returns what a folder has, the oldest first: backups, and those of which
// only the files are still needed (no Rows). A manifest that can't be read is
// an error: something is missing.
func List(dir string) ([]*Manifest, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []*Manifest
	for _, n := range names {
		id, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok || !idPattern.MatchString(id) {
			continue
		}
		m, err := readManifest(dir, id)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *Manifest) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// sumLine ends the small files that are in the clear.
const sumLine = "sha256 "

func withSum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(bytes.Clone(b), sumLine+hex.EncodeToString(sum[:])+"\n"...)
}

func checkSum(b []byte) ([]byte, error) {
	at := len(b) - len(sumLine) - 2*sha256.Size - 1
	if at < 0 || !bytes.Equal(withSum(b[:at]), b) {
		return nil, ErrDamaged
	}
	return b[:at], nil
}

func readSummed(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, err
	}
	if b, err = checkSum(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func readManifest(dir, id string) (*Manifest, error) {
	path := filepath.Join(dir, id+".json")
	b, err := readSummed(path, maxManifest)
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil || m.ID != id {
		return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	if m.Format != format {
		return nil, fmt.Errorf("%s: it has format %d; this program knows format %d", path, m.Format, format)
	}
	for _, p := range m.parts() {
		if filepath.Base(p.Name) != p.Name {
			return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
		}
	}
	return &m, nil
}

// find returns a backup by ID, or the newest for "", and the packs it needs.
func find(dir, id string) (*Manifest, []*Manifest, error) {
	all, err := List(dir)
	if err != nil {
		return nil, nil, err
	}
	var found *Manifest
	byID := map[string]*Manifest{}
	for _, m := range all {
		byID[m.ID] = m
		if m.Rows != nil && (id == "" || m.ID == id) {
			found = m
		}
	}
	switch {
	case found == nil && id == "":
		return nil, nil, fmt.Errorf("%s has no backup: %w", dir, ErrNone)
	case found == nil:
		return nil, nil, fmt.Errorf("%s has no backup %s: %w", dir, id, ErrNone)
	}
	var packs []*Manifest
	for _, id := range append(slices.Clone(found.Uses), found.ID) {
		m := byID[id]
		switch {
		case m == nil || m.Files == nil && id != found.ID:
			return nil, nil, fmt.Errorf("it needs the files of backup %s, which isn't there: %w", id, ErrDamaged)
		case m.Files != nil:
			packs = append(packs, m)
		}
	}
	return found, packs, nil
}

// writeSummed writes a small file in one step.
func writeSummed(path string, b []byte) error {
	return disk.WriteFile(disk.OS{}, path, withSum(b))
}

// partWriter writes one file of a backup and sums it.
type partWriter struct {
	f    *os.File
	dir  string
	name string
	sum  hash.Hash
	n    int64
}

func createPart(dir, name string) (*partWriter, error) {
	f, err := os.OpenFile(filepath.Join(dir, name+tmpSuffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &partWriter{f: f, dir: dir, name: name, sum: sha256.New()}, nil
}

func (p *partWriter) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.n += int64(n)
	p.sum.Write(b[:n])
	return n, err
}

// finish syncs the file and gives it its name, which the caller syncs.
func (p *partWriter) finish() (Part, error) {
	err := p.f.Sync()
	if err = errors.Join(err, p.f.Close()); err == nil {
		err = os.Rename(p.f.Name(), filepath.Join(p.dir, p.name))
	}
	return Part{Name: p.name, Bytes: p.n, SHA256: hex.EncodeToString(p.sum.Sum(nil))}, err
}

// drop removes what is there of the file.
func (p *partWriter) drop() {
	_ = p.f.Close()
	_ = os.Remove(p.f.Name())
}

// indexed is a file in a pack.
type indexed struct {
	id   blob.ID
	size int64
}

const indexRecord = 24

func encodeIndex(files []indexed) []byte {
	slices.SortFunc(files, func(a, b indexed) int { return bytes.Compare(a.id[:], b.id[:]) })
	out := make([]byte, 0, len(files)*indexRecord)
	for _, f := range files {
		out = append(out, f.id[:]...)
		out = binary.BigEndian.AppendUint64(out, uint64(f.size))
	}
	return out
}

// index is a sorted list of files, as it stands in its file.
type index []byte

func readIndex(dir string, p Part) (index, error) {
	b, err := os.ReadFile(filepath.Join(dir, p.Name))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	if len(b)%indexRecord != 0 || hex.EncodeToString(sum[:]) != p.SHA256 {
		return nil, fmt.Errorf("%s: %w", p.Name, ErrDamaged)
	}
	return b, nil
}

func (x index) len() int { return len(x) / indexRecord }

func (x index) at(i int) indexed {
	r := x[i*indexRecord:]
	return indexed{blob.ID(r[:16]), int64(binary.BigEndian.Uint64(r[16:indexRecord]))}
}

// lock keeps other backups out of a folder.
func lock(dir string) (io.Closer, error) {
	l, err := disk.OS{}.Lock(filepath.Join(dir, lockFile))
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("another backup is being made in %s", dir)
	}
	return l, err
}

// tidy removes what interrupted runs left: half files, and packs that no
// manifest names. The caller has the lock.
func tidy(dir string, all []*Manifest) error {
	named := map[string]bool{erasedFile: true, lockFile: true}
	for _, m := range all {
		named[m.ID+".json"] = true
		for _, p := range m.parts() {
			named[p.Name] = true
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		id, _, _ := strings.Cut(n.Name(), ".")
		if named[n.Name()] || !idPattern.MatchString(id) {
			continue // not ours, or in use
		}
		if err := os.Remove(filepath.Join(dir, n.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return disk.OS{}.SyncDir(dir)
}
