package sender

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"parley/storage"
	"parley/storage/intern"
)

const rowVersion = 1

// item is one entry of the outgoing log, without a durable EDU's content.
type item struct {
	seq uint64
	edu bool
	rid intern.RID // of an event
	n   uint32     // of an event
}

func foKey(seq uint64) storage.Key      { return storage.K("fo").U64(seq) }
func fdKey(sid intern.SID) storage.Key  { return storage.K("fd").U32(uint32(sid)) }
func frFrom(sid intern.SID) storage.Key { return storage.K("fr").U32(uint32(sid)) }
func feFrom(sid intern.SID) storage.Key { return storage.K("fe").U32(uint32(sid)) }

func frKey(sid intern.SID, rid intern.RID) storage.Key { return frFrom(sid).U32(uint32(rid)) }
func feKey(sid intern.SID, seq uint64) storage.Key     { return feFrom(sid).U64(seq) }

// encodeLog is the value of a fo row: version, kind, the destinations as
// rising differences, and the event's number or the sealed EDU.
func encodeLog(it item, to []intern.SID, sealed []byte) []byte {
	to = slices.Clone(to)
	slices.Sort(to)
	b := make([]byte, 0, 12+3*len(to)+len(sealed))
	kind := byte(0)
	if it.edu {
		kind = 1
	}
	b = append(b, rowVersion, kind)
	b = binary.AppendUvarint(b, uint64(len(to)))
	last := intern.SID(0)
	for _, s := range to {
		b = binary.AppendUvarint(b, uint64(s-last))
		last = s
	}
	if it.edu {
		return append(b, sealed...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(it.rid))
	return binary.BigEndian.AppendUint32(b, it.n)
}

// decodeLog is the reverse. sealed is nil for an event.
func decodeLog(p storage.Pair) (it item, to []intern.SID, sealed []byte, err error) {
	bad := fmt.Errorf("%w: outgoing log row", storage.ErrCorrupt)
	if len(p.Key) != 10 || len(p.Value) < 3 || p.Value[0] != rowVersion || p.Value[1] > 1 {
		return it, nil, nil, bad
	}
	it.seq, it.edu = storage.ReadU64(p.Key, 2), p.Value[1] == 1
	rest := p.Value[2:]
	count, w := binary.Uvarint(rest)
	if w <= 0 || count > uint64(len(rest)) {
		return it, nil, nil, bad
	}
	rest = rest[w:]
	to = make([]intern.SID, count)
	last := uint64(0)
	for i := range to {
		d, w := binary.Uvarint(rest)
		if w <= 0 {
			return it, nil, nil, bad
		}
		rest, last = rest[w:], last+d
		to[i] = intern.SID(last)
	}
	if it.edu {
		return it, to, rest, nil
	}
	if len(rest) != 8 {
		return it, nil, nil, bad
	}
	it.rid, it.n = intern.RID(storage.ReadU32(rest, 0)), storage.ReadU32(rest, 4)
	return it, to, nil, nil
}

// progress is the value of a fd row.
type progress struct {
	cursor  uint64 // every row of the log up to here has been delivered or folded
	fails   uint32
	retryAt time.Time
}

func (p progress) encode() []byte {
	b := []byte{rowVersion}
	b = binary.BigEndian.AppendUint64(b, p.cursor)
	b = binary.BigEndian.AppendUint32(b, p.fails)
	ms := int64(0)
	if !p.retryAt.IsZero() {
		ms = p.retryAt.UnixMilli()
	}
	return binary.BigEndian.AppendUint64(b, uint64(ms))
}

func decodeProgress(b []byte) (progress, error) {
	if len(b) != 21 || b[0] != rowVersion {
		return progress{}, fmt.Errorf("%w: delivery position row", storage.ErrCorrupt)
	}
	p := progress{cursor: storage.ReadU64(b, 1), fails: storage.ReadU32(b, 9)}
	if ms := int64(storage.ReadU64(b, 13)); ms != 0 {
		p.retryAt = time.UnixMilli(ms)
	}
	return p, nil
}

// maxMissedPerRoom is how many events of a room a server gets that comes back
// after a long time, beside those that are sticky; it fetches what came before
// them itself.
const maxMissedPerRoom = 20

// encodeMissed is the value of a fr row: event numbers, oldest first.
func encodeMissed(ns []uint32) []byte {
	b := []byte{rowVersion}
	for _, n := range ns {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func decodeMissed(b []byte) ([]uint32, error) {
	if len(b) < 1 || b[0] != rowVersion || (len(b)-1)%4 != 0 {
		return nil, fmt.Errorf("%w: missed events row", storage.ErrCorrupt)
	}
	var ns []uint32
	for at := 1; at < len(b); at += 4 {
		ns = append(ns, storage.ReadU32(b, at))
	}
	return ns, nil
}

// edu is an EDU as it stands in a transaction and, sealed, in a row.
type edu struct {
	Type    string          `json:"edu_type"`
	Content json.RawMessage `json:"content"`
}

func (s *Sender) sealEDU(row []byte, e edu) ([]byte, error) {
	plain := append(binary.AppendUvarint(nil, uint64(len(e.Type))), e.Type...)
	return s.cfg.Vault.Seal(eduRef(), row, append(plain, e.Content...))
}

func (s *Sender) unsealEDU(row, sealed []byte) (edu, error) {
	plain, err := s.cfg.Vault.Unseal(row, sealed)
	if err != nil {
		return edu{}, err
	}
	n, w := binary.Uvarint(plain)
	if w <= 0 || n > uint64(len(plain)-w) {
		return edu{}, fmt.Errorf("%w: outgoing EDU", storage.ErrCorrupt)
	}
	end := w + int(n)
	return edu{Type: string(plain[w:end]), Content: plain[end:]}, nil
}
