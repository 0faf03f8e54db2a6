package vault

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The key log is a header and records of one size, so that a record's number
// follows from its place:
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

// keyLog is the open log of one generation. Vault.wmu guards it.
type keyLog struct {
	gen   uint64
	file  File
	aead  cipher.AEAD
	count uint64 // durable records
}

func logName(gen uint64) string { return "keys." + strconv.FormatUint(gen, 10) }

func (l *keyLog) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	return l.file.Close()
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

// createLog writes a new generation with its first records and syncs it.
func (v *Vault) createLog(gen uint64, key []byte, recs []record) (*keyLog, error) {
	l := &keyLog{gen: gen, aead: newAEAD(key)}
	f, err := v.fs.Create(v.path(logName(gen)))
	if err != nil {
		return nil, err
	}
	l.file = f
	head := binary.BigEndian.AppendUint64([]byte(logMagic), gen)
	if _, err := f.WriteAt(head, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := l.append(recs, v.rand); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := v.fs.SyncDir(v.dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// readLog reads the log that the epoch names into the ring, and cuts off a
// torn end.
func (v *Vault) readLog(ep epoch) error {
	name := logName(ep.gen)
	b, err := v.fs.ReadFile(v.path(name))
	if err != nil {
		return fmt.Errorf("vault: read %s: %w", name, err)
	}
	if len(b) < logHeader || string(b[:8]) != logMagic || binary.BigEndian.Uint64(b[8:]) != ep.gen {
		return fmt.Errorf("vault: header of %s: %w", name, ErrCorrupt)
	}
	l := &keyLog{gen: ep.gen, aead: newAEAD(ep.key[:])}
	if err := v.readRecords(l, b[logHeader:]); err != nil {
		return fmt.Errorf("vault: %s: %w", name, err)
	}
	if l.count < ep.base {
		return fmt.Errorf("vault: %s has %d of %d records: %w", name, l.count, ep.base, ErrCorrupt)
	}
	if l.file, err = v.fs.OpenFile(v.path(name)); err != nil {
		return fmt.Errorf("vault: open %s: %w", name, err)
	}
	v.log = l
	return v.cutTail(l, len(b))
}

func (v *Vault) cutTail(l *keyLog, size int) error {
	end := logHeader + int64(l.count)*recordSize
	if int64(size) == end {
		return nil
	}
	err := l.file.Truncate(end)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("vault: cut the log's torn end: %w", err), l.close())
	}
	return nil
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
		v.ring.add(rec)
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
