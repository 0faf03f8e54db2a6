package vault

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

var streamSizes = []int{0, 1, 100, FramePlain - 1, FramePlain, FramePlain + 1, 3 * FramePlain, 3*FramePlain + 17, atOnce * FramePlain, atOnce*FramePlain + 1, 2*atOnce*FramePlain - 1, 2 * atOnce * FramePlain}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func sealStream(t testing.TB, v *Vault, ref Ref, plain []byte, chunk int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := v.SealStream(ref, &out)
	if err != nil {
		t.Fatal(err)
	}
	if chunk < 0 { // read by the stream itself, in pieces as a network gives them
		r := io.MultiReader(iotest.HalfReader(bytes.NewReader(plain[:len(plain)/2])), iotest.DataErrReader(bytes.NewReader(plain[len(plain)/2:])))
		if n, err := io.Copy(w, r); n != int64(len(plain)) || err != nil {
			t.Fatal(n, err)
		}
		plain = nil
	}
	for len(plain) > 0 {
		n := min(chunk, len(plain))
		if _, err := w.Write(plain[:n]); err != nil {
			t.Fatal(err)
		}
		plain = plain[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after Close")
	}
	return out.Bytes()
}

func openAll(v *Vault, ref Ref, b []byte) ([]byte, error) {
	r, err := v.OpenStream(ref, bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestStream(t *testing.T) {
	v := OpenMemory()
	ref := Media([16]byte{1})
	for _, size := range streamSizes {
		plain := randomBytes(size)
		for _, chunk := range []int{-1, 1000, FramePlain, 1 << 20} {
			b := sealStream(t, v, ref, plain, chunk)
			if int64(len(b)) != SealedSize(int64(size)) {
				t.Errorf("size %d: sealed %d, SealedSize %d", size, len(b), SealedSize(int64(size)))
			}
			r, err := v.OpenStream(ref, bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
			if err := iotest.TestReader(r, plain); err != nil {
				t.Errorf("size %d: %v", size, err)
			}
		}
	}
}

func TestStreamRandomAccess(t *testing.T) {
	v := OpenMemory()
	plain := randomBytes(5*FramePlain + 99)
	b := sealStream(t, v, Media([16]byte{1}), plain, 4096)
	r, err := v.OpenStream(Media([16]byte{1}), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		at := rnd.IntN(len(plain))
		p := make([]byte, rnd.IntN(3*FramePlain))
		n, err := r.ReadAt(p, int64(at))
		if !bytes.Equal(p[:n], plain[at:at+n]) || (n < len(p)) != (err == io.EOF) {
			t.Fatalf("ReadAt(%d, %d) = %d, %v", at, len(p), n, err)
		}
	}
}

func TestStreamDamage(t *testing.T) {
	v := OpenMemory()
	ref := Media([16]byte{1})
	mustSeal(t, v, Media([16]byte{2}), "r", "x")
	plain := randomBytes(3*FramePlain + 5)
	good := sealStream(t, v, ref, plain, 1<<20)
	frame := func(i int) (int, int) {
		return streamHeader + i*frameSealed, min(streamHeader+(i+1)*frameSealed, len(good))
	}
	swap := func(b []byte) []byte {
		a0, a1 := frame(0)
		b0, b1 := frame(1)
		copy(b[a0:a1], good[b0:b1])
		copy(b[b0:b1], good[a0:a1])
		return b
	}
	tests := map[string][]byte{
		"empty":            {},
		"header only":      good[:streamHeader],
		"cut in header":    good[:10],
		"cut in a frame":   good[:len(good)-7],
		"cut at a frame":   good[:streamHeader+3*frameSealed],
		"first frame only": good[:streamHeader+frameSealed],
		"frames swapped":   swap(bytes.Clone(good)),
		"frame repeated":   append(bytes.Clone(good[:streamHeader+frameSealed]), good[streamHeader:]...),
		"more after end":   append(bytes.Clone(good), make([]byte, 40)...),
	}
	for _, at := range []int{0, 1, 8, 9, 24, 25, 70000, len(good) - 1} {
		b := bytes.Clone(good)
		b[at] ^= 1
		tests["flipped at "+string(rune('0'+at%10))] = b
	}
	for name, b := range tests {
		if got, err := openAll(v, ref, b); err == nil {
			t.Errorf("%s: read %d bytes", name, len(got))
		}
	}
	_, err := openAll(v, Media([16]byte{2}), good)
	wantErr(t, err, ErrCorrupt)
	if err := v.Destroy(ref); err != nil {
		t.Fatal(err)
	}
	_, err = openAll(v, ref, good)
	wantErr(t, err, ErrDestroyed)
}

func FuzzOpenStream(f *testing.F) {
	v := OpenMemory()
	f.Add(sealStream(f, v, System(), randomBytes(70000), 1<<20))
	f.Add(sealStream(f, v, System(), nil, 1))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = openAll(v, System(), b) })
}

func FuzzUnseal(f *testing.F) {
	v := OpenMemory()
	f.Add([]byte("row"), mustSeal(f, v, System(), "row", "x"))
	f.Fuzz(func(t *testing.T, row, b []byte) { _, _ = v.Unseal(row, b) })
}

// FuzzKeyLog gives the reader damaged files: it must refuse or open, and what
// it opens must work.
func FuzzKeyLog(f *testing.F) {
	m := NewMemFS()
	v := mustOpen(f, Options{Dir: "/v", FS: m})
	mustSeal(f, v, User(1), "r", "x")
	files := map[string][]byte{}
	names, _ := m.List("/v")
	for _, n := range names {
		files[n], _ = m.ReadFile("/v/" + n)
	}
	f.Add(uint16(20), byte(1), uint16(3))
	f.Fuzz(func(t *testing.T, at uint16, x byte, cut uint16) {
		for name := range files {
			m := NewMemFS()
			for n, b := range files {
				b = bytes.Clone(b)
				if n == name {
					b[int(at)%len(b)] ^= x
					b = b[:len(b)-int(cut)%len(b)]
				}
				h, _ := m.Create("/v/" + n)
				_, _ = h.WriteAt(b, 0)
			}
			if v, err := Open(Options{Dir: "/v", FS: m}); err == nil {
				mustSeal(t, v, User(2), "r", "y")
			}
		}
	})
}
