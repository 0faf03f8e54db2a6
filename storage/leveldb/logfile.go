package leveldb

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// The format of LevelDB's journals and manifests: blocks of 32 KiB with
// chunks, each a checksum, a length, a type and payload. A record is one full
// chunk, or a first, any number of middle, and a last one.
const (
	blockSize   = 32 << 10
	chunkHeader = 7
	chunkFull   = 1
	chunkFirst  = 2
	chunkMiddle = 3
	chunkLast   = 4
)

// logRecord is a whole record and where it ends in the file.
type logRecord struct {
	data []byte
	end  int64
}

// logScan is what is in a journal or manifest.
type logScan struct {
	good []logRecord // from the start to the first damage
	// end is where the good records end. The file is whole if that is also
	// the end of the file.
	end  int64
	size int64
	// beyond are records that are readable after the damage.
	beyond []logRecord
}

func (l logScan) whole() bool { return l.end == l.size }

// scanLog reads a journal or manifest. Unlike LevelDB's reader it doesn't step
// over damage silently.
func scanLog(b []byte) logScan {
	l := logScan{size: int64(len(b))}
	l.good, l.end = records(b, 0)
	for at := int(l.end) + 1; at < len(b); at++ {
		if !startsRecord(b, at) {
			continue
		}
		more, end := records(b, at)
		if len(more) > 0 {
			l.beyond = append(l.beyond, more...)
			at = int(end) - 1
		}
	}
	return l
}

// startsRecord looks at the type first, which is cheap and mostly decides.
func startsRecord(b []byte, at int) bool {
	if at+chunkHeader > len(b) || at%blockSize > blockSize-chunkHeader {
		return false
	}
	t := b[at+6]
	if t != chunkFull && t != chunkFirst {
		return false
	}
	_, _, ok := chunk(b, at)
	return ok
}

// chunk reads the chunk at an offset, which must leave room for a header in
// its block.
func chunk(b []byte, at int) (typ byte, payload []byte, ok bool) {
	if at+chunkHeader > len(b) {
		return 0, nil, false
	}
	n := int(binary.LittleEndian.Uint16(b[at+4:]))
	end := at + chunkHeader + n
	if end > len(b) || end > at-at%blockSize+blockSize {
		return 0, nil, false
	}
	if binary.LittleEndian.Uint32(b[at:]) != util.NewCRC(b[at+6:end]).Value() {
		return 0, nil, false
	}
	return b[at+6], b[at+chunkHeader : end], true
}

// records reads whole records from an offset on, until damage or the end, and
// returns where the last one ends.
func records(b []byte, at int) (out []logRecord, end int64) {
	end = int64(at)
	var data []byte
	started := false
	for {
		if left := blockSize - at%blockSize; left < chunkHeader {
			at += left // the padding of a block
			if !started && at <= len(b) {
				end = int64(at)
			}
		}
		typ, payload, ok := chunk(b, at)
		if !ok || started != (typ == chunkMiddle || typ == chunkLast) || typ < chunkFull || typ > chunkLast {
			return out, end
		}
		at += chunkHeader + len(payload)
		if typ == chunkFull || typ == chunkFirst {
			data = payload[:len(payload):len(payload)] // appending copies
		} else {
			data = append(data, payload...)
		}
		started = typ == chunkFirst || typ == chunkMiddle
		if !started {
			end = int64(at)
			out = append(out, logRecord{data: data, end: end})
		}
	}
}

// batchHeader is the sequence number and the number of operations.
const batchHeader = 12

// link reads the chain row that every batch of this engine ends with, and the
// sum of what stands before it.
func link(record []byte, prev uint32) (l chainLink, sum uint32, ok bool) {
	if len(record) < batchHeader {
		return chainLink{}, 0, false
	}
	ops := record[batchHeader:]
	last, key, value := 0, []byte(nil), []byte(nil)
	for at := 0; at < len(ops); {
		last = at
		var put bool
		if put, key, value, at, ok = operation(ops, at); !ok {
			return chainLink{}, 0, false
		}
		if !put {
			value = nil
		}
	}
	if l, ok = decodeLink(key, value); !ok {
		return chainLink{}, 0, false
	}
	return l, crc32.Update(prev, castagnoli, ops[:last]), true
}

// operation decodes a put (type 1) or a delete (type 0).
func operation(b []byte, at int) (put bool, key, value []byte, next int, ok bool) {
	put = b[at] == 1
	if b[at] > 1 {
		return false, nil, nil, 0, false
	}
	if key, next, ok = lengthPrefixed(b, at+1); ok && put {
		value, next, ok = lengthPrefixed(b, next)
	}
	return put, key, value, next, ok
}

func lengthPrefixed(b []byte, at int) (part []byte, next int, ok bool) {
	n, w := binary.Uvarint(b[at:])
	if w <= 0 || n > uint64(len(b)-at-w) {
		return nil, 0, false
	}
	at += w
	return b[at : at+int(n)], at + int(n), true
}

// The fields of a manifest record, which is a sequence of tags and numbers or
// length-prefixed strings.
var manifestFields = map[uint64]string{
	1: "s",     // comparer
	2: "n",     // journal number
	3: "n",     // next file number
	4: "n",     // sequence number
	5: "ns",    // compaction pointer: level, key
	6: "nn",    // deleted table: level, number
	7: "nnnss", // added table: level, number, size, first and last key
	9: "n",     // previous journal number, of old versions
}

// journalNumber reads from which journal on batches aren't in tables, if the
// record of a manifest says so.
func journalNumber(record []byte) (num int64, ok bool) {
	for at := 0; at < len(record); {
		tag, w := binary.Uvarint(record[at:])
		fields, known := manifestFields[tag]
		if w <= 0 || !known {
			return 0, false
		}
		at += w
		for _, f := range fields {
			v, w := binary.Uvarint(record[at:])
			if w <= 0 || (f == 's' && v > uint64(len(record)-at-w)) {
				return 0, false
			}
			at += w
			if f == 's' {
				at += int(v)
			}
			if tag == 2 {
				num, ok = int64(v), true
			}
		}
	}
	return num, ok
}
