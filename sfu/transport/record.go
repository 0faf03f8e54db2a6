package transport

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
)

// The record layer of a finished DTLS 1.2 session (RFC 6347, RFC 5288). The
// handshake is pion's; afterwards its goroutines and buffers are let go and
// the shard seals and opens the few records that follow itself: data channels
// and the closing alert.

const (
	recordHeader   = 13
	recordNonce    = 8 // explicit part, in front of the ciphertext
	recordOverhead = recordHeader + recordNonce + gcmTag

	recordAlert     = 21
	recordHandshake = 22
	recordData      = 23

	alertCloseNotify = 0
	alertFatal       = 2
)

// records is the state of the record layer in epoch 1.
type records struct {
	seal, open     cipher.AEAD
	sealIV, openIV [4]byte
	next           uint64 // sequence number of the next record sent
	seen           seqWindow
	nonce          [12]byte
	aad            [13]byte
}

// sessionState has the fields of pion's serialised session that the record
// layer is made of; gob matches them by name.
type sessionState struct {
	LocalEpoch                uint16
	LocalRandom, RemoteRandom [32]byte
	CipherSuiteID             uint16
	MasterSecret              []byte
	SequenceNumber            uint64
	IsClient                  bool
}

// newRecords takes over the session of a finished handshake.
func newRecords(state *dtls.State) (*records, error) {
	raw, err := state.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("take over the DTLS session: %w", err)
	}
	var s sessionState
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&s); err != nil {
		return nil, fmt.Errorf("take over the DTLS session: %w", err)
	}
	if len(s.MasterSecret) == 0 || s.LocalEpoch != 1 || dtls.CipherSuiteID(s.CipherSuiteID) != dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 {
		return nil, errors.New("take over the DTLS session: unexpected state")
	}
	client, server := s.RemoteRandom, s.LocalRandom
	if s.IsClient {
		client, server = server, client
	}
	keys, err := prf.GenerateEncryptionKeys(s.MasterSecret, client[:], server[:], 0, 16, 4, sha256.New)
	if err != nil {
		return nil, fmt.Errorf("derive the DTLS keys: %w", err)
	}
	r := &records{next: s.SequenceNumber}
	local, remote := keys.ServerWriteKey, keys.ClientWriteKey
	copy(r.sealIV[:], keys.ServerWriteIV)
	copy(r.openIV[:], keys.ClientWriteIV)
	if s.IsClient {
		local, remote = remote, local
		r.sealIV, r.openIV = r.openIV, r.sealIV
	}
	r.seen.use(0) // the peer's Finished
	if r.seal, err = newGCM(local); err != nil {
		return nil, err
	}
	r.open, err = newGCM(remote)
	return r, err
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the DTLS keys: %w", err)
	}
	return cipher.NewGCM(block)
}

// additional is the additional data of a record: number, type, version and
// length of the plaintext.
func (r *records) additional(number uint64, typ byte, size int) []byte {
	binary.BigEndian.PutUint64(r.aad[:], number)
	r.aad[8], r.aad[9], r.aad[10] = typ, 0xfe, 0xfd
	binary.BigEndian.PutUint16(r.aad[11:], uint16(size))
	return r.aad[:]
}

// appendRecord seals data as one record behind dst.
func (r *records) appendRecord(dst []byte, typ byte, data []byte) ([]byte, error) {
	if r.next>>48 != 0 {
		return nil, errKeyEnded
	}
	number := 1<<48 | r.next
	r.next++
	dst = append(dst, typ, 0xfe, 0xfd)
	dst = binary.BigEndian.AppendUint64(dst, number)
	dst = binary.BigEndian.AppendUint16(dst, uint16(recordNonce+len(data)+gcmTag))
	dst = binary.BigEndian.AppendUint64(dst, number)
	copy(r.nonce[:], r.sealIV[:])
	binary.BigEndian.PutUint64(r.nonce[4:], number)
	return r.seal.Seal(dst, r.nonce[:], data, r.additional(number, typ, len(data))), nil
}

// record is one record of a datagram.
type record struct {
	typ    byte
	number uint64 // epoch and sequence number
	body   []byte
}

// cutRecord takes the first record off a datagram.
func cutRecord(b []byte) (rec record, rest []byte, ok bool) {
	if len(b) < recordHeader || b[1] != 0xfe {
		return rec, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[11:]))
	if n > len(b)-recordHeader {
		return rec, nil, false
	}
	rec = record{typ: b[0], number: binary.BigEndian.Uint64(b[3:]), body: b[recordHeader : recordHeader+n]}
	return rec, b[recordHeader+n:], true
}

// decrypt opens a record of epoch 1 in place and returns its content. It
// fails for a record that is replayed or not authentic.
func (r *records) decrypt(rec record) ([]byte, bool) {
	seq := rec.number & (1<<48 - 1)
	if rec.number>>48 != 1 || len(rec.body) < recordNonce+gcmTag || !r.seen.fresh(seq) {
		return nil, false
	}
	copy(r.nonce[:], r.openIV[:])
	copy(r.nonce[4:], rec.body)
	sealed := rec.body[recordNonce:]
	data, err := r.open.Open(sealed[:0], r.nonce[:], sealed, r.additional(rec.number, rec.typ, len(sealed)-gcmTag))
	if err != nil {
		return nil, false
	}
	r.seen.use(seq)
	return data, true
}

// isClientHello reports whether a datagram begins with one.
func isClientHello(b []byte) bool {
	return len(b) > recordHeader && b[0] == recordHandshake && b[1] == 0xfe && b[recordHeader] == 1
}
