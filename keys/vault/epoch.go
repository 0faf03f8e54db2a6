package vault

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// The epoch file is "PLYEPOC1", the highest generation u64, nonce 12 and,
// sealed under a key derived from the root key with the header as additional
// data: next key number u64, and for each segment of the key log its
// generation u64, epoch key 32 and the number of its durable records u64.
const (
	epochMagic   = "PLYEPOC1"
	epochFile    = "epoch"
	newSuffix    = ".new" // of the root key file, while the root is being changed
	epochHeader  = 16
	epochSegment = 8 + keySize + 8
)

// epoch says which segments of the key log count, and opens them.
type epoch struct {
	lastGen  uint64
	next     uint64 // key number
	segments []segmentKey
}

type segmentKey struct {
	gen   uint64
	key   [keySize]byte
	count uint64
}

func wrapKey(root []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, root, nil, "parley vault epoch", keySize)
}

func (e *epoch) encode(root []byte, random io.Reader) ([]byte, error) {
	key, err := wrapKey(root)
	if err != nil {
		return nil, err
	}
	plain := binary.BigEndian.AppendUint64(nil, e.next)
	for _, s := range e.segments {
		plain = binary.BigEndian.AppendUint64(plain, s.gen)
		plain = append(plain, s.key[:]...)
		plain = binary.BigEndian.AppendUint64(plain, s.count)
	}
	out := make([]byte, epochHeader+nonceSize, epochHeader+nonceSize+len(plain)+tagSize)
	copy(out, epochMagic)
	binary.BigEndian.PutUint64(out[8:], e.lastGen)
	if _, err := io.ReadFull(random, out[epochHeader:]); err != nil {
		return nil, err
	}
	return newAEAD(key).Seal(out, out[epochHeader:], plain, out[:epochHeader]), nil
}

func decodeEpoch(b, root []byte) (e epoch, err error) {
	body := len(b) - epochHeader - nonceSize - tagSize - 8
	if body < epochSegment || body%epochSegment != 0 || string(b[:8]) != epochMagic {
		return e, fmt.Errorf("vault: epoch file: %w", ErrCorrupt)
	}
	key, err := wrapKey(root)
	if err != nil {
		return e, err
	}
	at := epochHeader + nonceSize
	p, err := newAEAD(key).Open(nil, b[epochHeader:at], b[at:], b[:epochHeader])
	if err != nil {
		return e, fmt.Errorf("vault: the root key doesn't open the epoch file: %w", ErrCorrupt)
	}
	e.lastGen = binary.BigEndian.Uint64(b[8:])
	e.next = binary.BigEndian.Uint64(p)
	for p = p[8:]; len(p) > 0; p = p[epochSegment:] {
		s := segmentKey{gen: binary.BigEndian.Uint64(p), count: binary.BigEndian.Uint64(p[8+keySize:])}
		copy(s.key[:], p[8:])
		e.segments = append(e.segments, s)
	}
	return e, nil
}

// load opens what the directory has, or makes a new vault in an empty one.
func (v *Vault) load(given []byte) error {
	v.ring, v.segments = newRing(), map[uint64]*keyLog{}
	b, err := v.fs.ReadFile(v.path(epochFile))
	if errors.Is(err, fs.ErrNotExist) {
		return v.create(given)
	}
	if err != nil {
		return fmt.Errorf("vault: read epoch: %w", err)
	}
	ep, err := v.unlock(b, given)
	if err != nil {
		return err
	}
	v.lastGen, v.nextNum = ep.lastGen, ep.next
	if err := v.readSegments(ep); err != nil {
		return errors.Join(err, v.closeSegments())
	}
	v.removeOldRoots()
	v.removeOld()
	return nil
}

// unlock finds the root key and opens the epoch file with it. A change of
// root that was cut short is finished or undone, whichever the epoch says.
func (v *Vault) unlock(b, given []byte) (epoch, error) {
	if given != nil {
		if err := v.setRoot(given); err != nil {
			return epoch{}, err
		}
		return decodeEpoch(b, v.root[:])
	}
	v.ownsRoot = true
	ep, err := v.tryRoot(v.rootFile, b)
	if err == nil {
		return ep, nil
	}
	if _, e2 := v.fs.Mode(v.rootFile + newSuffix); e2 != nil {
		return epoch{}, err
	}
	if ep, err = v.tryRoot(v.rootFile+newSuffix, b); err != nil {
		return epoch{}, err
	}
	return ep, v.promoteRoot()
}

func (v *Vault) tryRoot(path string, b []byte) (epoch, error) {
	root, err := v.readRoot(path)
	if err != nil {
		return epoch{}, err
	}
	if err := v.setRoot(root); err != nil {
		return epoch{}, err
	}
	return decodeEpoch(b, root)
}

func (v *Vault) setRoot(root []byte) error {
	if len(root) != keySize {
		return fmt.Errorf("vault: the root key has %d bytes, not %d", len(root), keySize)
	}
	copy(v.root[:], root)
	return nil
}

// readRoot reads a root key file: 32 bytes in base64, one line.
func (v *Vault) readRoot(path string) ([]byte, error) {
	mode, err := v.fs.Mode(path)
	if err != nil {
		return nil, fmt.Errorf("vault: root key: %w", err)
	}
	if mode.Perm()&0o007 != 0 {
		return nil, fmt.Errorf("vault: every user of this machine may read %s; run: chmod 600 %s", path, path)
	}
	b, err := v.fs.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("vault: root key: %w", err)
	}
	root, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(root) != keySize {
		return nil, fmt.Errorf("vault: %s isn't a root key: %w", path, ErrCorrupt)
	}
	return root, nil
}

func rootLine(root []byte) []byte {
	return []byte(base64.StdEncoding.EncodeToString(root) + "\n")
}

// create makes a new vault. It refuses a directory with a key log in use: its
// epoch file is missing, and going on would lose all data without a word.
func (v *Vault) create(given []byte) error {
	if err := v.refuseOrphans(); err != nil {
		return err
	}
	if err := v.firstRoot(given); err != nil {
		return err
	}
	v.nextNum = 1
	return v.rewrite(nil, nil, nil)
}

func (v *Vault) refuseOrphans() error {
	gens, err := v.generations()
	if err != nil {
		return fmt.Errorf("vault: list directory: %w", err)
	}
	for _, g := range gens {
		b, err := v.fs.ReadFile(v.path(logName(g)))
		if err != nil {
			return fmt.Errorf("vault: read %s: %w", logName(g), err)
		}
		if g > 1 || len(b) > logHeader {
			return fmt.Errorf("vault: there are data keys but no epoch file: %w", ErrCorrupt)
		}
	}
	return nil
}

func (v *Vault) firstRoot(given []byte) error {
	if given != nil {
		return v.setRoot(given)
	}
	v.ownsRoot = true
	root, err := v.readRoot(v.rootFile)
	if errors.Is(err, fs.ErrNotExist) {
		root = make([]byte, keySize)
		if _, err = io.ReadFull(v.rand, root); err == nil {
			err = v.replace(v.rootFile, rootLine(root))
		}
	}
	if err != nil {
		return fmt.Errorf("vault: make root key: %w", err)
	}
	return v.setRoot(root)
}

// generations lists the key logs in the directory.
func (v *Vault) generations() ([]uint64, error) {
	names, err := v.fs.List(v.dir)
	if err != nil {
		return nil, err
	}
	var gens []uint64
	for _, n := range names {
		s, ok := strings.CutPrefix(n, "keys.")
		if g, err := strconv.ParseUint(s, 10, 64); ok && err == nil {
			gens = append(gens, g)
		}
	}
	return gens, nil
}

// removeOld wipes and removes what an interrupted change left behind. It is
// tidying: what can't be removed now can be the next time.
func (v *Vault) removeOld() {
	gens, err := v.generations()
	if err != nil {
		return
	}
	for _, g := range gens {
		if v.segments[g] == nil {
			v.removeWiped(v.path(logName(g)))
		}
	}
	v.removeWiped(v.path(epochFile + ".tmp"))
	_ = v.fs.SyncDir(v.dir)
}

// removeOldRoots does the same for root keys that open nothing.
func (v *Vault) removeOldRoots() {
	if !v.ownsRoot {
		return
	}
	v.removeWiped(v.rootFile + newSuffix)
	v.removeWiped(v.rootFile + newSuffix + ".tmp")
	v.removeWiped(v.rootFile + ".tmp")
}

func (v *Vault) removeWiped(path string) {
	b, err := v.fs.ReadFile(path)
	if err != nil {
		return
	}
	if f, err := v.fs.OpenFile(path); err == nil {
		wipe(f, len(b))
		_ = f.Close()
	}
	_ = v.fs.Remove(path)
}
