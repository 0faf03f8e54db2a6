package leveldb

import (
	"errors"
	"hash/crc32"
	"io"
	"os"

	"parley/storage"
	"parley/storage/disk"
)

// guardName is a small file that says how far the journal and the manifest
// have been acknowledged and what they had in them then. It is written after
// every commit but synced rarely: what it says is true, but a power cut may
// set it back. Its use is to tell damage at the end of a file from a write
// that a crash interrupted, which look the same otherwise.
const guardName = "GUARD"

// The file has two slots, written in turn, so that a torn write spoils at most
// the older claim.
const (
	guardSlot  = 512
	guardMagic = 0x70617267_75617264
	guardBytes = 80
)

type guardClaim struct {
	turn     uint64
	seq      uint64 // the last batch that was synced and acknowledged
	journal  mark
	manifest mark
}

func (c guardClaim) encode() []byte {
	b := storage.Key{}.U64(guardMagic).U64(c.turn).U64(c.seq)
	for _, m := range []mark{c.journal, c.manifest} {
		b = b.U64(uint64(m.num)).U64(uint64(m.size)).U32(m.sum)
	}
	b = append(b, make([]byte, guardBytes-4-len(b))...)
	return b.U32(crc32.Checksum(b, castagnoli))
}

func decodeGuard(b []byte) (c guardClaim, ok bool) {
	if len(b) < guardBytes || storage.ReadU64(b, 0) != guardMagic ||
		storage.ReadU32(b, guardBytes-4) != crc32.Checksum(b[:guardBytes-4], castagnoli) {
		return guardClaim{}, false
	}
	c.turn, c.seq = storage.ReadU64(b, 8), storage.ReadU64(b, 16)
	for i, m := range []*mark{&c.journal, &c.manifest} {
		at := 24 + 20*i
		*m = mark{int64(storage.ReadU64(b, at)), int64(storage.ReadU64(b, at+8)), storage.ReadU32(b, at+16)}
	}
	return c, c.journal.size >= 0 && c.manifest.size >= 0
}

// guard is the open file. Guarded by the engine's commit lock.
type guard struct {
	f    disk.File
	last guardClaim
}

// openGuard reads the younger valid claim, the zero claim if there is none.
func openGuard(f disk.FS, name string) (*guard, error) {
	file, err := f.OpenFile(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	g := &guard{f: file}
	for slot := range 2 {
		b := make([]byte, guardBytes)
		if _, err := file.ReadAt(b, int64(slot*guardSlot)); err != nil && !errors.Is(err, io.EOF) {
			file.Close()
			return nil, err
		}
		if c, ok := decodeGuard(b); ok && c.turn >= g.last.turn {
			g.last = c
		}
	}
	return g, nil
}

// claim notes what has been acknowledged. Failures don't matter: an older
// claim is true as well.
func (g *guard) claim(seq uint64, journal, manifest mark) {
	g.last = guardClaim{turn: g.last.turn + 1, seq: seq, journal: journal, manifest: manifest}
	_, _ = g.f.WriteAt(g.last.encode(), int64(g.last.turn%2)*guardSlot)
}

// close makes the last claim durable.
func (g *guard) close() error {
	err := g.f.Sync()
	if cerr := g.f.Close(); err == nil {
		err = cerr
	}
	return err
}

// holds reports whether a file's content is what the claim says.
func (m mark) holds(content []byte) bool {
	return m.size <= int64(len(content)) && crc32.Checksum(content[:m.size], castagnoli) == m.sum
}
