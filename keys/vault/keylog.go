package vault

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// A segment of the key log is a header and records of one size, so that a
// record's number follows from its place:
//
//	header  "PLYKEYS1", generation u64
//	record  nonce 12, AES-256-GCM(plaintext 100) 116
//
// The additional data of a record is the generation and its number, so none
// can be moved. The plaintext is: type, kind, id 16, key number u64, durable
// u64, length of payload, payload, zeros. durable is how many records were
// synced when this one was written: a record below that mark which doesn't
// open is damage, one above it the torn end of a write that nobody was told
// of.
const (
	logMagic    = "PLYKEYS1"
	logHeader   = 16
	recordSize  = 128
	recordPlain = recordSize - nonceSize - tagSize
	payloadAt   = 1 + 17 + 8 + 8 + 1
)

// Types of records.
const (
	recKey  byte = 1
	recDead byte = 2 // the user's key was destroyed and must not come back
)

type record struct {
	typ     byte
	ref     Ref
	num     uint64
	payload []byte
}

// maxSegment is how many records a segment takes: destroying a key rewrites
// half a MiB, not the whole log.
const maxSegment = 4096

// keyLog is one segment, a generation of the key log. Vault.wmu guards it.
type keyLog struct {
	gen   uint64
	key   [keySize]byte
	file  File // open while the segment is the active one
	aead  cipher.AEAD
	count uint64 // durable records
}

func logName(gen uint64) string { return "keys." + strconv.FormatUint(gen, 10) }

func (l *keyLog) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.Close()
}

func (r *record) plain(durable uint64) []byte {
	p := make([]byte, recordPlain)
	p[0], p[1] = r.typ, r.ref.kind
	copy(p[2:], r.ref.id[:])
	binary.BigEndian.PutUint64(p[18:], r.num)
	binary.BigEndian.PutUint64(p[26:], durable)
	p[34] = byte(len(r.payload))
	copy(p[payloadAt:], r.payload)
	return p
}

func parseRecord(p []byte) (r record, durable uint64, err error) {
	n := int(p[34])
	if n > maxSecret {
		return r, 0, ErrCorrupt
	}
	r = record{typ: p[0], ref: Ref{kind: p[1], id: [16]byte(p[2:18])}, num: binary.BigEndian.Uint64(p[18:])}
	r.payload = append([]byte(nil), p[payloadAt:payloadAt+n]...)
	return r, binary.BigEndian.Uint64(p[26:]), nil
}

func recordAAD(gen, n uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, gen), n)
}

// encode seals records that begin at the log's end.
func (l *keyLog) encode(recs []record, random io.Reader) ([]byte, error) {
	out := make([]byte, 0, len(recs)*recordSize)
	for i := range recs {
		at := len(out)
		out = out[:at+nonceSize]
		if _, err := io.ReadFull(random, out[at:]); err != nil {
			return nil, err
		}
		out = l.aead.Seal(out, out[at:], recs[i].plain(l.count), recordAAD(l.gen, l.count+uint64(i)))
	}
	return out, nil
}

// append writes records and syncs them with one fsync.
func (l *keyLog) append(recs []record, random io.Reader) error {
	b, err := l.encode(recs, random)
	if err != nil {
		return err
	}
	if _, err := l.file.WriteAt(b, logHeader+int64(l.count)*recordSize); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.count += uint64(len(recs))
	return nil
}

// createLog writes a new segment with its first records and syncs it, but not
// its directory entry.
func (v *Vault) createLog(recs []record) (*keyLog, error) {
	v.lastGen++
	l := &keyLog{gen: v.lastGen}
	if _, err := io.ReadFull(v.rand, l.key[:]); err != nil {
		return nil, err
	}
	l.aead = newAEAD(l.key[:])
	f, err := v.fs.Create(v.path(logName(l.gen)))
	if err != nil {
		return nil, err
	}
	l.file = f
	head := binary.BigEndian.AppendUint64([]byte(logMagic), l.gen)
	if _, err = f.WriteAt(head, 0); err == nil {
		err = l.append(recs, v.rand)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// readSegments reads the segments that the epoch names into the ring. The one
// with the fewest records goes on to grow.
func (v *Vault) readSegments(ep epoch) error {
	for _, s := range ep.segments {
		l, err := v.readSegment(s)
		if err != nil {
			return err
		}
		v.segments[l.gen] = l
		if v.active == nil || l.count < v.active.count {
			v.active = l
		}
	}
	v.ring.sort()
	f, err := v.fs.OpenFile(v.path(logName(v.active.gen)))
	if err != nil {
		return fmt.Errorf("vault: open %s: %w", logName(v.active.gen), err)
	}
	v.active.file = f
	return nil
}

// readSegment reads one segment and cuts off a torn end.
func (v *Vault) readSegment(s segmentKey) (*keyLog, error) {
	name := logName(s.gen)
	b, err := v.fs.ReadFile(v.path(name))
	if err != nil {
		return nil, fmt.Errorf("vault: read %s: %w", name, err)
	}
	if len(b) < logHeader || string(b[:8]) != logMagic || binary.BigEndian.Uint64(b[8:]) != s.gen {
		return nil, fmt.Errorf("vault: header of %s: %w", name, ErrCorrupt)
	}
	l := &keyLog{gen: s.gen, key: s.key, aead: newAEAD(s.key[:])}
	if err := v.readRecords(l, b[logHeader:]); err != nil {
		return nil, fmt.Errorf("vault: %s: %w", name, err)
	}
	if l.count < s.count {
		return nil, fmt.Errorf("vault: %s has %d of %d records: %w", name, l.count, s.count, ErrCorrupt)
	}
	return l, v.cutTail(l, len(b))
}

func (v *Vault) cutTail(l *keyLog, size int) error {
	end := logHeader + int64(l.count)*recordSize
	if int64(size) == end {
		return nil
	}
	f, err := v.fs.OpenFile(v.path(logName(l.gen)))
	if err != nil {
		return fmt.Errorf("vault: open %s: %w", logName(l.gen), err)
	}
	if err = f.Truncate(end); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("vault: cut the torn end of %s: %w", logName(l.gen), err)
	}
	return nil
}

func (v *Vault) closeSegments() error {
	var errs []error
	for _, l := range v.segments {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

func (v *Vault) readRecords(l *keyLog, b []byte) error {
	total := uint64(len(b) / recordSize)
	for n := range total {
		rec, durable, err := l.decode(b, n)
		if err != nil {
			return l.checkTail(b, n, total)
		}
		if durable > n {
			return ErrCorrupt
		}
		l.count = n + 1
		v.nextNum = max(v.nextNum, rec.num+1)
		v.ring.add(rec, l.gen)
	}
	return nil
}

// checkTail tells a torn end, which is dropped, from damage to records that
// were durable: some later record says so.
func (l *keyLog) checkTail(b []byte, bad, total uint64) error {
	for n := bad + 1; n < total; n++ {
		if _, durable, err := l.decode(b, n); err == nil && durable > bad {
			return fmt.Errorf("record %d: %w", bad, ErrCorrupt)
		}
	}
	return nil
}

func (l *keyLog) decode(b []byte, n uint64) (record, uint64, error) {
	raw := b[n*recordSize : (n+1)*recordSize]
	p, err := l.aead.Open(nil, raw[:nonceSize], raw[nonceSize:], recordAAD(l.gen, n))
	if err != nil {
		return record{}, 0, err
	}
	return parseRecord(p)
}
