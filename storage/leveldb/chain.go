package leveldb

import (
	"context"
	"fmt"
	"hash/crc32"

	"github.com/syndtr/goleveldb/leveldb"

	"parley/storage"
)

// chainFamily is where the engine numbers its batches without gaps. LevelDB
// itself steps silently over damage in the middle of a journal; a missing
// number tells.
const chainFamily = "!c"

// chainLink is the row that each batch ends with.
type chainLink struct {
	seq     uint64
	durable uint64 // this and earlier batches were known to be on disk before
	floor   uint64 // the rows of this and later batches still exist
	sum     uint32 // of the batch, continued from the previous one
}

func chainKey(seq uint64) storage.Key { return storage.K(chainFamily).U64(seq) }

func (l chainLink) value() []byte {
	return storage.Key{1}.U64(l.durable).U64(l.floor).U32(l.sum)
}

func decodeLink(key, value []byte) (chainLink, bool) {
	if len(key) != 10 || string(key[:2]) != chainFamily || len(value) != 21 || value[0] != 1 {
		return chainLink{}, false
	}
	return chainLink{seq: storage.ReadU64(key, 2), durable: storage.ReadU64(value, 1),
		floor: storage.ReadU64(value, 9), sum: storage.ReadU32(value, 17)}, true
}

// trimPerBatch bounds how many old rows a batch removes. More than one is
// enough to keep up.
const trimPerBatch = 8

// chain is the state of the numbering. Guarded by the engine's commit lock.
type chain struct {
	last    chainLink // of the last batch, zero before the first
	durable uint64    // the last batch that has been synced
	// Rows are kept as long as their batch may be needed to prove that no
	// table was lost with the manifest: those of the journal in use and of
	// the one before.
	journal   int64  // the one in use
	start     uint64 // its first batch
	prevStart uint64 // the first batch of the one before
}

// open reads the rows and checks that none is missing.
func (c *chain) open(ctx context.Context, r storage.Reader) error {
	*c = chain{start: 1, prevStart: 1, last: chainLink{floor: 1}}
	all := storage.K(chainFamily).Prefix()
	for row, err := range r.Scan(ctx, all, true, 1) {
		if err != nil {
			return err
		}
		l, ok := decodeLink(row.Key, row.Value)
		if !ok {
			return fmt.Errorf("last batch number: %w", storage.ErrCorrupt)
		}
		c.last, c.durable = l, l.seq
		c.prevStart, c.start = l.floor, l.seq+1
	}
	want := c.last.floor
	for row, err := range r.Scan(ctx, all, false, 0) {
		if err != nil {
			return err
		}
		l, ok := decodeLink(row.Key, row.Value)
		if !ok || l.seq > want {
			return fmt.Errorf("batch %d of %d is missing: %w", want, c.last.seq, storage.ErrCorrupt)
		}
		if l.seq == want {
			want++
		}
	}
	if want != c.last.seq+1 {
		return fmt.Errorf("batch %d of %d is missing: %w", want, c.last.seq, storage.ErrCorrupt)
	}
	return nil
}

// extend ends a batch with the next row and returns it; advance accepts it.
func (c *chain) extend(b *leveldb.Batch) chainLink {
	l := chainLink{seq: c.last.seq + 1, durable: c.durable, floor: c.last.floor}
	for range trimPerBatch {
		if l.floor >= c.prevStart {
			break
		}
		b.Delete(chainKey(l.floor))
		l.floor++
	}
	l.sum = crc32.Update(c.last.sum, castagnoli, b.Dump())
	b.Put(chainKey(l.seq), l.value())
	return l
}

// advance is called when the batch has been written, to the journal of this
// number or to the one before.
func (c *chain) advance(l chainLink, synced bool, journal int64) {
	c.last = l
	if synced {
		c.durable = l.seq
	}
	if journal != c.journal {
		if c.journal != 0 {
			c.prevStart, c.start = c.start, l.seq
		}
		c.journal = journal
	}
}
