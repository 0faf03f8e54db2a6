package transport

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
)

func testKeys(p dtls.SRTPProtectionProfile) srtpKeys {
	key, salt, _ := keySizes(p)
	k := srtpKeys{make([]byte, key), make([]byte, salt)}
	for i := range k.key {
		k.key[i] = byte(i * 7)
	}
	for i := range k.salt {
		k.salt[i] = byte(i * 13)
	}
	return k
}

func pionContext(t testing.TB, p dtls.SRTPProtectionProfile) *srtp.Context {
	t.Helper()
	profile := map[dtls.SRTPProtectionProfile]srtp.ProtectionProfile{
		dtls.SRTP_AEAD_AES_128_GCM: srtp.ProtectionProfileAeadAes128Gcm, dtls.SRTP_AEAD_AES_256_GCM: srtp.ProtectionProfileAeadAes256Gcm,
		dtls.SRTP_AES128_CM_HMAC_SHA1_80: srtp.ProtectionProfileAes128CmHmacSha1_80,
	}[p]
	k := testKeys(p)
	c, err := srtp.CreateContext(k.key, k.salt, profile)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ourContext(t testing.TB, p dtls.SRTPProtectionProfile) *srtpContext {
	t.Helper()
	x, err := newSRTP(p, testKeys(p), 8)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestSRTPAgainstPion goes around the sequence numbers several times, with
// loss and reordering, against an independent implementation both ways.
func TestSRTPAgainstPion(t *testing.T) {
	for _, p := range profiles() {
		t.Run(profileName(p), func(t *testing.T) {
			seal, open := ourContext(t, p), pionContext(t, p)
			theirs, get := pionContext(t, p), ourContext(t, p)
			rnd := rand.New(rand.NewPCG(1, 2))
			for at := 0; at < 300_000; at += 1 + rnd.IntN(4000) {
				for _, n := range []int{at + 2, at, at + 1} {
					header, payload := rtpHeader(5, uint16(n)), []byte("some payload")
					want := append(append([]byte(nil), header...), payload...)
					b, err := seal.sealRTP(make([]byte, 0, sendSlot), header, payload)
					if errors.Is(err, ErrReused) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if got, err := open.DecryptRTP(nil, b, nil); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("packet %d is not opened: %v", n, err)
					}
					if b, err = theirs.EncryptRTP(nil, want, nil); err != nil {
						t.Fatal(err)
					}
					copied := append([]byte(nil), b...)
					if got, err := get.openRTP(b); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("packet %d of pion is not opened: %v", n, err)
					}
					if _, err := get.openRTP(copied); err == nil {
						t.Fatalf("packet %d was opened twice", n)
					}
				}
			}
		})
	}
}

func TestSRTCPAgainstPion(t *testing.T) {
	for _, p := range profiles() {
		t.Run(profileName(p), func(t *testing.T) {
			seal, open := ourContext(t, p), pionContext(t, p)
			theirs, get := pionContext(t, p), ourContext(t, p)
			for i := range 100 {
				want := []byte{0x81, 206, 0, 2, 0, 0, 0, byte(i % 3), 0, 0, 0, 2}
				b, err := seal.sealRTCP(make([]byte, 0, sendSlot), want)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := open.DecryptRTCP(nil, b, nil); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("packet %d is not opened: %v", i, err)
				}
				if b, err = theirs.EncryptRTCP(nil, want, nil); err != nil {
					t.Fatal(err)
				}
				copied := append([]byte(nil), b...)
				if got, err := get.openRTCP(b); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("packet %d of pion is not opened: %v", i, err)
				}
				if _, err := get.openRTCP(copied); err == nil {
					t.Fatal("a packet was opened twice")
				}
			}
		})
	}
}

// TestSRTPForgeries changes each byte of packets: nothing is opened, no state
// is made for made-up SSRCs, and the true packet still works afterwards.
func TestSRTPForgeries(t *testing.T) {
	for _, p := range profiles() {
		t.Run(profileName(p), func(t *testing.T) {
			seal, get := ourContext(t, p), ourContext(t, p)
			b, err := seal.sealRTP(make([]byte, 0, sendSlot), rtpHeader(5, 9), []byte("payload"))
			if err != nil {
				t.Fatal(err)
			}
			for i := range b {
				forged := append([]byte(nil), b...)
				forged[i] ^= 0x01
				if _, err := get.openRTP(forged); err == nil {
					t.Fatalf("a change of byte %d went unnoticed", i)
				}
			}
			for n := range b {
				if _, err := get.openRTP(append([]byte(nil), b[:n]...)); err == nil {
					t.Fatalf("%d bytes were opened", n)
				}
			}
			if len(get.windows) != 0 {
				t.Errorf("%d SSRCs are known", len(get.windows))
			}
			if _, err := get.openRTP(b); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSSRCsAreBounded(t *testing.T) {
	p := dtls.SRTP_AEAD_AES_128_GCM
	theirs, seal, get := pionContext(t, p), ourContext(t, p), ourContext(t, p)
	for ssrc := range uint32(20) {
		header := rtpHeader(ssrc, 1)
		_, sealErr := seal.sealRTP(make([]byte, 0, sendSlot), header, nil)
		b, err := theirs.EncryptRTP(nil, header, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, openErr := get.openRTP(b)
		if fits := ssrc < 8; (sealErr == nil) != fits || (openErr == nil) != fits {
			t.Errorf("SSRC number %d: sealing %v, opening %v", ssrc, sealErr, openErr)
		}
	}
}

func TestSeqWindow(t *testing.T) {
	var w seqWindow
	model := map[uint64]bool{}
	rnd := rand.New(rand.NewPCG(3, 4))
	top := uint64(0)
	for i := range 200_000 {
		index := top + uint64(rnd.IntN(30))
		switch rnd.IntN(40) {
		case 0:
			index = top + uint64(rnd.IntN(3000))
		case 1, 2, 3, 4:
			index = max(top, 1500) - uint64(rnd.IntN(1500))
		}
		want := i == 0 || index > top || top-index < windowSize && !model[index]
		if got := w.fresh(index); got != want {
			t.Fatalf("index %d with top %d: fresh is %v", index, top, got)
		}
		if want {
			w.use(index)
			model[index] = true
			top = max(top, index)
			if at, ok := w.index(uint16(index)); !ok || at != index {
				t.Fatalf("index %d is taken for %d", index, at)
			}
		}
	}
}

// TestRepeats holds that a packet can be repeated as it was, and never with
// another content under the same nonce.
func TestRepeats(t *testing.T) {
	for _, p := range profiles() {
		t.Run(profileName(p), func(t *testing.T) {
			x := ourContext(t, p)
			seal := func(seq uint16, payload string) (string, error) {
				b, err := x.sealRTP(make([]byte, 0, sendSlot), rtpHeader(5, seq), []byte(payload))
				return string(b), err
			}
			if _, err := seal(1, "first"); err != nil {
				t.Fatal(err)
			}
			if _, err := seal(1, "first"); err != ErrReused {
				t.Fatalf("the first repetition: %v", err)
			}
			sent := map[uint16]string{}
			for seq := uint16(2); seq < 500; seq++ {
				b, err := seal(seq, "payload")
				if err != nil {
					t.Fatal(err)
				}
				sent[seq] = b
			}
			for seq := uint16(300); seq < 500; seq++ {
				if _, err := seal(seq, "PAYLOAD"); err != ErrReused {
					t.Fatalf("another packet %d: %v", seq, err)
				}
				b, err := seal(seq, "payload")
				if recent := seq >= 500-repeatable; recent && (err != nil || b != sent[seq]) || !recent && err != ErrReused {
					t.Fatalf("packet %d again: %v", seq, err)
				}
			}
		})
	}
}
