package vault

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Version bytes of what the vault writes.
const (
	sealedV1 = 1
	streamV1 = 1
)

const (
	nonceSize = 12
	tagSize   = 16
)

// Seal encrypts plaintext for the row with this key. A data key that doesn't
// exist yet is created and synced first; one of a user that was destroyed
// gives ErrDestroyed. A key may seal 2^32 values (NIST SP 800-38D, random
// nonces), far more than one user or one room and week can have.
func (v *Vault) Seal(ref Ref, row, plaintext []byte) ([]byte, error) {
	num, aead, err := v.sealer(ref)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	out := make([]byte, 1, 1+binary.MaxVarintLen64+nonceSize+len(plaintext)+tagSize)
	out[0] = sealedV1
	out = binary.AppendUvarint(out, num)
	at := len(out)
	out = out[:at+nonceSize]
	if _, err := io.ReadFull(v.rand, out[at:]); err != nil {
		return nil, fmt.Errorf("seal: random nonce: %w", err)
	}
	return aead.Seal(out, out[at:], plaintext, row), nil
}

// Unseal decrypts a value of the row with the key it names: ErrDestroyed when
// that key is gone, ErrCorrupt when the bytes or the row are others.
func (v *Vault) Unseal(row, sealed []byte) ([]byte, error) {
	if len(sealed) < 1 || sealed[0] != sealedV1 {
		return nil, fmt.Errorf("unseal: version: %w", ErrCorrupt)
	}
	num, n := binary.Uvarint(sealed[1:])
	if n <= 0 || len(sealed) < 1+n+nonceSize+tagSize {
		return nil, fmt.Errorf("unseal: length: %w", ErrCorrupt)
	}
	aead, err := v.cipherOf(num)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	nonce, ct := sealed[1+n:1+n+nonceSize], sealed[1+n+nonceSize:]
	out, err := aead.Open(make([]byte, 0, len(ct)-tagSize), nonce, ct, row)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", ErrCorrupt)
	}
	return out, nil
}
