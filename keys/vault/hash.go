package vault

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"
)

// maxSecret is what one record of the key log can hold.
const maxSecret = 64

// Secret returns the named secret of n bytes (1 to 64), made at random at
// first use and kept in the vault (server signing key, peppers). Asking for
// another length than at first is an error. The caller owns the slice.
func (v *Vault) Secret(name string, n int) ([]byte, error) {
	if n < 1 || n > maxSecret {
		return nil, fmt.Errorf("vault: secret of %d bytes", n)
	}
	ref := secretRef(name)
	if err := v.ensure(ref, n); err != nil {
		return nil, fmt.Errorf("vault: secret: %w", err)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := v.ring.secrets[ref].value
	if len(s) != n {
		return nil, fmt.Errorf("vault: secret has %d bytes, not %d", len(s), n)
	}
	return append([]byte(nil), s...), nil
}

func secretRef(name string) Ref {
	h := sha256.Sum256([]byte("parley secret\x00" + name))
	return Ref{kind: kindSecret, id: [16]byte(h[:16])}
}

// loadMACs prepares the two keyed hashes.
func (v *Vault) loadMACs() error {
	if err := v.loadMAC(&v.hasher, "row key hash"); err != nil {
		return err
	}
	return v.loadMAC(&v.tokens, "token hash")
}

func (v *Vault) loadMAC(p *macPool, name string) error {
	key, err := v.Secret(name, sha256.Size)
	if err != nil {
		return err
	}
	p.New = func() any { return &mac{Hash: hmac.New(sha256.New, key)} }
	return nil
}

// macPool keeps HMAC states whose key has been absorbed.
type macPool struct{ sync.Pool }

type mac struct {
	hash.Hash
	in  []byte
	sum [sha256.Size]byte
}

// sum hashes the length-prefixed parts, so that no two lists give one input.
func (p *macPool) sum(first string, parts ...string) [sha256.Size]byte {
	m := p.Get().(*mac)
	defer p.Put(m)
	m.Reset()
	m.in = appendPart(m.in[:0], first)
	for _, s := range parts {
		m.in = appendPart(m.in, s)
	}
	_, _ = m.Write(m.in)
	clear(m.in)
	m.Sum(m.sum[:0])
	return m.sum
}

func appendPart(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// Hash is the keyed hash under which an identifier may stand in a row key:
// HMAC-SHA256 over the purpose and the length-prefixed parts, cut to 16 bytes.
func (v *Vault) Hash(purpose string, parts ...string) [16]byte {
	h := v.hasher.sum(purpose, parts...)
	return [16]byte(h[:16])
}

// TokenHash is the keyed hash under which a bearer secret is stored; kind
// separates access, refresh, openid, registration … tokens.
func (v *Vault) TokenHash(kind, token string) [32]byte {
	return v.tokens.sum(kind, token)
}
