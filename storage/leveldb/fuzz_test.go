package leveldb

import (
	"bytes"
	"testing"

	"github.com/syndtr/goleveldb/leveldb/journal"

	"parley/storage"
	"parley/storage/disk/simdisk"
)

// sampleLog writes records of some sizes as goleveldb does.
func sampleLog(sizes ...int) []byte {
	var out bytes.Buffer
	w := journal.NewWriter(&out)
	for i, n := range sizes {
		rec, _ := w.Next()
		_, _ = rec.Write(bytes.Repeat([]byte{byte(i)}, n))
		_ = w.Flush()
	}
	return out.Bytes()
}

func TestScanLogReadsWhatGoleveldbWrites(t *testing.T) {
	sizes := []int{0, 1, 100, blockSize - 7, blockSize - 8, blockSize - 20, 5, 3 * blockSize, 7, 200_000, 0, 1}
	l := scanLog(sampleLog(sizes...))
	if len(l.good) != len(sizes) || !l.whole() || len(l.beyond) > 0 {
		t.Fatalf("%d of %d records, end %d of %d", len(l.good), len(sizes), l.end, l.size)
	}
	for i, r := range l.good {
		if !bytes.Equal(r.data, bytes.Repeat([]byte{byte(i)}, sizes[i])) {
			t.Errorf("record %d has %d bytes", i, len(r.data))
		}
	}
}

// FuzzScanLog damages a log: the records before the damage must be read as
// they are, and nothing may be made up.
func FuzzScanLog(f *testing.F) {
	f.Add(100, 40_000, 10, 30, []byte{1, 2, 3})
	f.Add(0, 0, 0, 0, []byte{})
	f.Add(blockSize, 2*blockSize, 3, blockSize+2, []byte{0})
	f.Fuzz(func(t *testing.T, a, b, c, at int, damage []byte) {
		clampSize := func(n int) int { return max(0, n%100_000) }
		sizes := []int{clampSize(a), clampSize(b), clampSize(c)}
		content := sampleLog(sizes...)
		if at < 0 || at > len(content) {
			return
		}
		spoiled := append(append(append([]byte(nil), content[:at]...), damage...), content[min(len(content), at+len(damage)):]...)
		l := scanLog(spoiled)
		for i, r := range append(l.good, l.beyond...) {
			if i < len(l.good) && int(r.end) <= at && (i >= len(sizes) || len(r.data) != sizes[i]) {
				t.Errorf("record %d before the damage has %d bytes", i, len(r.data))
			}
		}
		if l.end > l.size {
			t.Errorf("end %d of %d", l.end, l.size)
		}
	})
}

func FuzzDecoders(f *testing.F) {
	f.Add([]byte{1})
	f.Add(append(make([]byte, batchHeader), 1, 1, 'a', 1, 'b', 0, 1, 'c'))
	f.Add(guardClaim{turn: 1, seq: 2, journal: mark{3, 4, 5}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		link(b, 0)
		journalNumber(b)
		if c, ok := decodeGuard(b); ok && !bytes.Equal(c.encode(), b[:guardBytes]) {
			t.Error("guard claim changes when encoded again")
		}
		if len(b) >= 10 {
			if l, ok := decodeLink(b[:10], b[10:]); ok && (!bytes.Equal(chainKey(l.seq), b[:10]) || !bytes.Equal(l.value(), b[10:])) {
				t.Error("chain row changes when encoded again")
			}
		}
		if fd, ok := parseName(string(b)); ok && fileName(fd) != string(b) {
			t.Errorf("name %q", b)
		}
	})
}

// FuzzOpen opens a store whose journal has anything in it. It must open or
// refuse, not crash, and keep what was there before.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add(sampleLog(20, 40), true)
	f.Fuzz(func(t *testing.T, tail []byte, guarded bool) {
		d := simdisk.New(1)
		opts := Options{FS: d, WriteBytes: 64 << 10, CacheBytes: 1 << 20}
		e, err := Open("/db", opts)
		must(t, err)
		must(t, e.Commit(ctx, &storage.Batch{Puts: []storage.Pair{{Key: []byte("aa")}}, Sync: true}))
		after := d.Clone(1)
		e.Close()
		if !guarded {
			must(t, after.Remove("/db/"+guardName))
		}
		names, err := after.List("/db")
		must(t, err)
		for _, n := range names {
			fd, ok := parseName(n)
			if !ok || fd.Type.String() != "journal" {
				continue
			}
			w, err := after.OpenFile("/db/"+n, 0)
			must(t, err)
			size, err := w.Size()
			must(t, err)
			_, err = w.WriteAt(tail, size)
			must(t, err)
		}
		opts.FS = after
		e, err = Open("/db", opts)
		if err != nil {
			return
		}
		defer e.Close()
		if !has(t, e, "aa") {
			t.Error("a row is gone")
		}
	})
}
