package transport

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
)

// SRTP (RFC 3711) with the AEAD transforms of RFC 7714. Sealing and opening
// with GCM is our own, so that the payload goes from the caller's memory
// straight into the send batch and nothing is allocated; the older counter
// mode profile goes through pion/srtp.

const (
	gcmTag    = 16
	srtcpTail = 4 // E flag and index
	// maxSSRCs bounds the state that a peer, or a long call, can pile up in
	// one Conn. State that was used for sending must live as long as the key.
	maxSSRCs = 1 << 14
	// maxPeerSSRCs bounds the SSRCs that a peer sends.
	maxPeerSSRCs = 1024
)

// profiles are the SRTP profiles we accept, best first.
func profiles() []dtls.SRTPProtectionProfile {
	return []dtls.SRTPProtectionProfile{
		dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80,
	}
}

// srtpKeys are the master key and salt of one direction.
type srtpKeys struct{ key, salt []byte }

// splitKeys cuts the exported keying material (RFC 5764, 4.2).
func splitKeys(material []byte, keyLen, saltLen int) (client, server srtpKeys) {
	cut := func(n int) []byte {
		b := material[:n]
		material = material[n:]
		return b
	}
	client.key, server.key = cut(keyLen), cut(keyLen)
	client.salt, server.salt = cut(saltLen), cut(saltLen)
	return client, server
}

// keySizes returns the key and salt length of a profile.
func keySizes(p dtls.SRTPProtectionProfile) (key, salt int, err error) {
	switch p {
	case dtls.SRTP_AEAD_AES_128_GCM:
		return 16, 12, nil
	case dtls.SRTP_AEAD_AES_256_GCM:
		return 32, 12, nil
	case dtls.SRTP_AES128_CM_HMAC_SHA1_80:
		return 16, 14, nil
	}
	return 0, 0, fmt.Errorf("SRTP profile %#04x is not supported", uint16(p))
}

// srtpContext is one direction of a Conn's SRTP.
type srtpContext struct {
	rtp, rtcp         cipher.AEAD // nil with counter mode
	rtpSalt, rtcpSalt [12]byte
	iv                [12]byte
	cm                *srtp.Context
	cmSpare           []byte
	// cryptex: header extensions are encrypted, and taken only so.
	cryptex bool

	windows  map[uint32]*seqWindow
	last     *seqWindow
	lastSSRC uint32
	limit    int

	rtcpWindows map[uint32]*seqWindow // of a receiver
	rtcpIndex   uint32                // of a sender: one counter for all SSRCs
}

var (
	errSRTP     = errors.New("transport: SRTP packet is broken, replayed or not authentic")
	errTooMany  = errors.New("transport: too many SSRCs")
	errKeyEnded = errors.New("transport: the SRTP key is used up")
)

func newSRTP(p dtls.SRTPProtectionProfile, k srtpKeys, limit int) (*srtpContext, error) {
	x := &srtpContext{windows: map[uint32]*seqWindow{}, rtcpWindows: map[uint32]*seqWindow{}, limit: limit}
	if p == dtls.SRTP_AES128_CM_HMAC_SHA1_80 {
		var err error
		x.cm, err = srtp.CreateContext(k.key, k.salt, srtp.ProtectionProfileAes128CmHmacSha1_80)
		return x, err
	}
	var err error
	if x.rtp, err = sessionAEAD(k, 0); err != nil {
		return nil, err
	}
	if x.rtcp, err = sessionAEAD(k, 3); err != nil {
		return nil, err
	}
	if err = deriveKey(k, 2, x.rtpSalt[:]); err != nil {
		return nil, err
	}
	return x, deriveKey(k, 5, x.rtcpSalt[:])
}

func sessionAEAD(k srtpKeys, label byte) (cipher.AEAD, error) {
	key := make([]byte, len(k.key))
	if err := deriveKey(k, label, key); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// deriveKey is the key derivation of RFC 3711, 4.3, with a derivation rate of
// zero.
func deriveKey(k srtpKeys, label byte, out []byte) error {
	block, err := aes.NewCipher(k.key)
	if err != nil {
		return fmt.Errorf("derive an SRTP key: %w", err)
	}
	var in, stream [aes.BlockSize]byte
	copy(in[:], k.salt)
	in[7] ^= label
	for i := 0; len(out) > 0; i++ {
		binary.BigEndian.PutUint16(in[14:], uint16(i))
		block.Encrypt(stream[:], in[:])
		out = out[copy(out, stream[:]):]
	}
	return nil
}

// window finds the state of an SSRC; a new one isn't kept yet.
func (x *srtpContext) window(ssrc uint32) (w *seqWindow, known bool) {
	if x.last != nil && x.lastSSRC == ssrc {
		return x.last, true
	}
	if w, known = x.windows[ssrc]; known {
		x.last, x.lastSSRC = w, ssrc
		return w, true
	}
	return &seqWindow{}, false
}

// rtpNonce is the IV of RFC 7714, 8.1.
func (x *srtpContext) rtpNonce(ssrc uint32, index uint64) []byte {
	iv := &x.iv
	*iv = x.rtpSalt
	binary.BigEndian.PutUint32(iv[2:], binary.BigEndian.Uint32(iv[2:])^ssrc)
	binary.BigEndian.PutUint32(iv[6:], binary.BigEndian.Uint32(iv[6:])^uint32(index>>16))
	binary.BigEndian.PutUint16(iv[10:], binary.BigEndian.Uint16(iv[10:])^uint16(index))
	return iv[:]
}

// rtcpNonce is the IV of RFC 7714, 9.1.
func (x *srtpContext) rtcpNonce(ssrc, index uint32) []byte {
	iv := &x.iv
	*iv = x.rtcpSalt
	binary.BigEndian.PutUint32(iv[2:], binary.BigEndian.Uint32(iv[2:])^ssrc)
	binary.BigEndian.PutUint32(iv[8:], binary.BigEndian.Uint32(iv[8:])^index)
	return iv[:]
}

// sealRTP writes the sealed packet into dst, whose capacity is enough. A number
// that was used before is only sealed again for the very same packet.
func (x *srtpContext) sealRTP(dst, header, payload []byte) ([]byte, error) {
	n := rtpHeaderLen(header)
	if n == 0 || n != len(header) {
		return nil, errSRTP
	}
	ssrc := rtpSSRC(header)
	w, known := x.window(ssrc)
	if !known {
		if len(x.windows) >= x.limit {
			return nil, errTooMany
		}
		x.windows[ssrc] = w
	}
	index, ok := w.index(rtpSeq(header))
	if !ok {
		return nil, ErrReused
	}
	if index>>48 != 0 {
		return nil, errKeyEnded
	}
	fresh := w.fresh(index)
	if fresh {
		w.use(index)
	}
	dst, err := x.encryptRTP(append(dst[:0], header...), payload, ssrc, index)
	switch {
	case err != nil:
		return nil, err
	case fresh:
		w.note(index, dst)
	case !w.repeats(index, dst):
		// Another packet under the same nonce: it must not be seen.
		clear(dst)
		return nil, ErrReused
	}
	return dst, nil
}

// encryptRTP seals payload behind the header that stands in dst.
func (x *srtpContext) encryptRTP(dst, payload []byte, ssrc uint32, index uint64) ([]byte, error) {
	if x.cm != nil {
		x.cmSpare = append(append(x.cmSpare[:0], dst...), payload...)
		return x.cm.EncryptRTP(dst, x.cmSpare, nil)
	}
	if x.cryptex && dst[0]&0x10 != 0 {
		return x.sealCryptex(dst, payload, ssrc, index)
	}
	return x.rtp.Seal(dst, x.rtpNonce(ssrc, index), payload, dst), nil
}

// openRTP decrypts b in place.
func (x *srtpContext) openRTP(b []byte) ([]byte, error) {
	n := rtpHeaderLen(b)
	if n == 0 || len(b) < n+10 {
		return nil, errSRTP
	}
	ssrc := rtpSSRC(b)
	w, known := x.window(ssrc)
	index, ok := w.index(rtpSeq(b))
	if !ok || !w.fresh(index) || !known && len(x.windows) >= x.limit {
		return nil, errSRTP
	}
	var err error
	if x.cm != nil {
		b, err = x.cm.DecryptRTP(b, b, nil)
	} else {
		if x.cryptex && b[0]&0x10 != 0 {
			if n = cryptexHeader; !isCryptex(b) {
				return nil, errSRTP
			}
		}
		var plain []byte
		plain, err = x.rtp.Open(b[n:n], x.rtpNonce(ssrc, index), b[n:], b[:n])
		b = b[:n+len(plain)]
	}
	if err != nil {
		return nil, errSRTP
	}
	if x.cryptex && b[0]&0x10 != 0 {
		plainProfile(b)
	}
	w.use(index)
	if !known {
		x.windows[ssrc] = w
	}
	return b, nil
}

// sealRTCP writes the sealed compound packet into dst, whose capacity is
// enough.
func (x *srtpContext) sealRTCP(dst, packet []byte) ([]byte, error) {
	if x.cm != nil {
		return x.cm.EncryptRTCP(dst, packet, nil)
	}
	if x.rtcpIndex >= 1<<31-1 {
		return nil, errKeyEnded
	}
	x.rtcpIndex++
	var aad [12]byte
	copy(aad[:], packet[:8])
	binary.BigEndian.PutUint32(aad[8:], 1<<31|x.rtcpIndex)
	dst = append(dst[:0], packet[:8]...)
	x.cmSpare = append(x.cmSpare[:0], aad[:]...)
	dst = x.rtcp.Seal(dst, x.rtcpNonce(binary.BigEndian.Uint32(packet[4:]), x.rtcpIndex), packet[8:], x.cmSpare)
	return append(dst, aad[8:]...), nil
}

// openRTCP decrypts b in place.
func (x *srtpContext) openRTCP(b []byte) ([]byte, error) {
	if len(b) < 8+srtcpTail+10 {
		return nil, errSRTP
	}
	index := binary.BigEndian.Uint32(b[len(b)-srtcpTail:])
	if x.cm != nil {
		index = binary.BigEndian.Uint32(b[len(b)-srtcpTail-10:])
	}
	ssrc := binary.BigEndian.Uint32(b[4:])
	w, known := x.rtcpWindows[ssrc]
	if !known {
		if len(x.rtcpWindows) >= x.limit {
			return nil, errSRTP
		}
		w = &seqWindow{}
	}
	number := uint64(index &^ (1 << 31))
	if !w.fresh(number) {
		return nil, errSRTP
	}
	plain, err := x.decryptRTCP(b, ssrc, index)
	if err != nil {
		return nil, errSRTP
	}
	w.use(number)
	x.rtcpWindows[ssrc] = w
	return plain, nil
}

func (x *srtpContext) decryptRTCP(b []byte, ssrc, index uint32) ([]byte, error) {
	if x.cm != nil {
		return x.cm.DecryptRTCP(b, b, nil)
	}
	if len(b) < 8+gcmTag+srtcpTail || index>>31 == 0 {
		return nil, errSRTP // packets that are not encrypted are not accepted
	}
	x.cmSpare = append(append(x.cmSpare[:0], b[:8]...), b[len(b)-srtcpTail:]...)
	plain, err := x.rtcp.Open(b[8:8], x.rtcpNonce(ssrc, index&^(1<<31)), b[8:len(b)-srtcpTail], x.cmSpare)
	return b[:8+len(plain)], err
}
