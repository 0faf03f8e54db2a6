package transport

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
)

// TestCryptex: extensions aren't readable on the wire, come out as they went
// in, and another implementation of RFC 9335 agrees.
func TestCryptex(t *testing.T) {
	for name, header := range map[string][]byte{
		"one byte":  {0x90, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0xbe, 0xde, 0, 2, 0x10, 0x55, 0x21, 0x12, 0x34, 0, 0, 0},
		"two bytes": {0x90, 96, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 0x10, 0x00, 0, 2, 1, 1, 0x55, 2, 2, 0x12, 0x34, 0},
		"none":      {0x80, 96, 0, 3, 0, 0, 0, 1, 0, 0, 0, 7},
	} {
		t.Run(name, func(t *testing.T) {
			k := srtpKeys{make([]byte, 16), make([]byte, 12)}
			_, _ = rand.Read(k.key)
			_, _ = rand.Read(k.salt)
			send, _ := newSRTP(dtls.SRTP_AEAD_AES_128_GCM, k, maxSSRCs)
			get, _ := newSRTP(dtls.SRTP_AEAD_AES_128_GCM, k, maxSSRCs)
			if !send.hideExtensions() || !get.hideExtensions() {
				t.Fatal("not with this profile")
			}
			payload := []byte("some payload of a packet")
			want := append(bytes.Clone(header), payload...)
			sealed, err := send.sealRTP(make([]byte, 0, 1500), header, payload)
			if err != nil {
				t.Fatal(err)
			}
			if len(header) > 16 && (bytes.Contains(sealed, header[16:]) || bytes.Equal(sealed[12:14], header[12:14])) {
				t.Error("the extension is in clear")
			}
			other, err := srtp.CreateContext(k.key, k.salt, srtp.ProtectionProfileAeadAes128Gcm, srtp.Cryptex(srtp.CryptexModeRequired))
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := other.DecryptRTP(nil, sealed, nil); err != nil || !bytes.Equal(plain, want) {
				t.Errorf("another implementation reads %x (%v), want %x", plain, err, want)
			}
			if back, err := get.openRTP(bytes.Clone(sealed)); err != nil || !bytes.Equal(back, want) {
				t.Errorf("%x (%v), want %x", back, err, want)
			}
			sender, _ := srtp.CreateContext(k.key, k.salt, srtp.ProtectionProfileAeadAes128Gcm, srtp.Cryptex(srtp.CryptexModeRequired))
			theirs, err := sender.EncryptRTP(nil, want, nil)
			if err != nil || !bytes.Equal(theirs, sealed) {
				t.Errorf("another implementation writes %x (%v), we %x", theirs, err, sealed)
			}
		})
	}
}

// TestCryptexRefuses: packets with extensions in clear, or with contributing
// sources, aren't taken where Cryptex is on.
func TestCryptexRefuses(t *testing.T) {
	k := srtpKeys{make([]byte, 16), make([]byte, 12)}
	plain, _ := newSRTP(dtls.SRTP_AEAD_AES_128_GCM, k, maxSSRCs)
	get, _ := newSRTP(dtls.SRTP_AEAD_AES_128_GCM, k, maxSSRCs)
	get.hideExtensions()
	header := []byte{0x90, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0xbe, 0xde, 0, 1, 0x10, 0x55, 0, 0}
	sealed, err := plain.sealRTP(make([]byte, 0, 1500), header, []byte("payload of it"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := get.openRTP(bytes.Clone(sealed)); err == nil {
		t.Error("an extension in clear was taken")
	}
	sources := append([]byte{0x91, 96, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 1, 2, 3, 4}, header[12:]...)
	if _, err := get.sealRTP(make([]byte, 0, 1500), sources, []byte("payload of it")); err == nil {
		t.Error("contributing sources were sent")
	}
	old, _ := newSRTP(dtls.SRTP_AES128_CM_HMAC_SHA1_80, srtpKeys{make([]byte, 16), make([]byte, 14)}, maxSSRCs)
	if old.hideExtensions() {
		t.Error("counter mode has no Cryptex here")
	}
}
