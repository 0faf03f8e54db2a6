package storage

import (
	"bytes"
	"testing"
)

func TestPrefixOfAllOnes(t *testing.T) {
	for _, c := range []struct{ key, lo, hi string }{
		{"ab", "ab", "ac"}, {"a\xff", "a\xff", "b"}, {"\xff\xff", "\xff\xff", ""}, {"", "", ""},
	} {
		r := Key(c.key).Prefix()
		if string(r.Lo) != c.lo || string(r.Hi) != c.hi {
			t.Errorf("%q: %q to %q", c.key, r.Lo, r.Hi)
		}
	}
}

// FuzzPrefix checks that a prefix range has exactly the keys with the prefix.
func FuzzPrefix(f *testing.F) {
	f.Add([]byte("ab"), []byte("abc"))
	f.Add([]byte{0xff}, []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, prefix, key []byte) {
		if inRange(string(key), Key(prefix).Prefix()) != bytes.HasPrefix(key, prefix) {
			t.Errorf("%q in the range of %q", key, prefix)
		}
	})
}

// FuzzKeyOrder checks that keys order like the numbers they are made of.
func FuzzKeyOrder(f *testing.F) {
	f.Add(uint32(1), uint64(2), uint32(1), uint64(3))
	f.Fuzz(func(t *testing.T, a uint32, b uint64, c uint32, d uint64) {
		x, y := K("kk").U32(a).U64(b), K("kk").U32(c).U64(d)
		if less := a < c || (a == c && b < d); less != (bytes.Compare(x, y) < 0) {
			t.Errorf("%d %d and %d %d", a, b, c, d)
		}
		if ReadU32(x, 2) != a || ReadU64(x, 6) != b {
			t.Errorf("%d %d read back", a, b)
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	f.Add(encodeHead(1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		head, groups, err := decodeHead(b)
		if err == nil && !bytes.Equal(encodeHead(head, groups), b) {
			t.Errorf("%x", b)
		}
	})
}
