// Package pgp encrypts to people outside of the server: backups to keys that
// lie offline, exports to a user's key or passphrase. It is a thin layer on
// go-crypto's OpenPGP (RFC 9580) that streams with flat memory.
//
// The form follows what every recipient's key says that it reads: AEAD
// (AES-256-GCM, else OCB) where all can, otherwise the older integrity-protected
// form, which is what GnuPG 2.2 reads and about five times slower.
//
// A reader of Decrypt gives out bytes before the end of the message has been
// checked: only io.EOF says that everything was as it was written. Callers
// write to a temporary place and keep it after io.EOF only.
package pgp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/s2k"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Errors of this package, wrapped with what they are about.
var (
	// ErrNoRecipient means that nobody could open what would be written.
	ErrNoRecipient = errors.New("pgp: nobody to encrypt to")
	// ErrWrongKey means that none of the keys or passphrases opens it.
	ErrWrongKey = errors.New("pgp: none of the given keys opens this")
	// ErrDamaged means that the message was changed or cut.
	ErrDamaged = errors.New("pgp: the encrypted data is damaged or cut off")
	// ErrBadKey means that a key can't be read or used.
	ErrBadKey = errors.New("pgp: unusable key")
)

// Limits of what is read as keys.
const (
	maxKeyBytes = 1 << 20
	maxKeys     = 64
	// MinPassphrase is the least length of a passphrase, in bytes.
	MinPassphrase = 12
)

// Options of encrypting. The zero value is right for a server.
type Options struct {
	Now func() time.Time // nil: the system's clock; keys that have ended are refused
	// Compat writes to passphrases in the form that GnuPG 2.2 reads, instead
	// of AEAD.
	Compat bool
}

func (o Options) config() *packet.Config {
	c := &packet.Config{Time: o.Now, DefaultCipher: packet.CipherAES256, DefaultCompressionAlgo: packet.CompressionNone}
	if !o.Compat {
		c.AEADConfig = &packet.AEADConfig{DefaultMode: packet.AEADModeGCM}
		// 32 MiB: an export must not need more memory than the server spares.
		c.S2KConfig = &s2k.Config{S2KMode: s2k.Argon2S2K, Argon2Config: &s2k.Argon2Config{NumberOfPasses: 4, DegreeOfParallelism: 1, Memory: 32 << 10}}
	}
	return c
}

// Recipients are those who can open what is encrypted. The zero value has
// none. Not safe for concurrent changes.
type Recipients struct {
	keys        []*openpgp.Entity
	passphrases [][]byte
}

// Len is the number of keys and passphrases.
func (r *Recipients) Len() int { return len(r.keys) + len(r.passphrases) }

// Fingerprints names the keys, in hex.
func (r *Recipients) Fingerprints() []string {
	var out []string
	for _, k := range r.keys {
		out = append(out, fingerprint(k))
	}
	return out
}

func fingerprint(e *openpgp.Entity) string { return hex.EncodeToString(e.PrimaryKey.Fingerprint) }

// AEAD reports whether every recipient can read the fast form.
func (r *Recipients) AEAD() bool {
	for _, k := range r.keys {
		if sig, err := k.PrimarySelfSignature(time.Time{}, nil); err != nil || !sig.SEIPDv2 {
			return false
		}
	}
	return true
}

// AddKeys adds the public keys of a key file, armored or not. It refuses
// private keys, which have no place on a server, and keys that can't encrypt
// now: ended, revoked, or made for signing only.
func (r *Recipients) AddKeys(file []byte, o Options) error {
	ring, err := readKeys(file)
	if err != nil {
		return err
	}
	for _, e := range ring {
		if e.PrivateKey != nil {
			return fmt.Errorf("%w: %s is a private key; give its public half here and keep this one away from the server", ErrBadKey, fingerprint(e))
		}
		if _, err := e.EncryptionKeyWithError(o.config().Now(), o.config()); err != nil {
			return fmt.Errorf("%w: nothing can be encrypted to %s: %w", ErrBadKey, fingerprint(e), err)
		}
	}
	if len(r.keys)+len(ring) > maxKeys {
		return fmt.Errorf("%w: more than %d keys", ErrBadKey, maxKeys)
	}
	r.keys = append(r.keys, ring...)
	return nil
}

// AddKeyFile adds the keys of a file.
func (r *Recipients) AddKeyFile(path string, o Options) error {
	b, err := readLimited(path)
	if err == nil {
		err = r.AddKeys(b, o)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// AddPassphrase lets everybody open it who knows the passphrase.
func (r *Recipients) AddPassphrase(p string) error {
	if len(p) < MinPassphrase {
		return fmt.Errorf("%w: a passphrase has at least %d characters", ErrBadKey, MinPassphrase)
	}
	if len(r.passphrases) >= maxKeys {
		return fmt.Errorf("%w: more than %d passphrases", ErrBadKey, maxKeys)
	}
	r.passphrases = append(r.passphrases, []byte(p))
	return nil
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if len(b) > maxKeyBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrBadKey, maxKeyBytes)
	}
	return b, err
}

// readKeys parses a key ring, armored (one block or several) or binary.
func readKeys(file []byte) (openpgp.EntityList, error) {
	if len(file) > maxKeyBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrBadKey, maxKeyBytes)
	}
	var all openpgp.EntityList
	if !bytes.Contains(file, []byte("-----BEGIN PGP")) {
		ring, err := openpgp.ReadKeyRing(bytes.NewReader(file))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
		}
		all = ring
	}
	for _, block := range strings.SplitAfter(string(file), "KEY BLOCK-----") {
		if !strings.Contains(block, "-----END") {
			continue // ends with the header of the next
		}
		b, err := armorBody(block)
		if err != nil {
			return nil, err
		}
		ring, err := openpgp.ReadKeyRing(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
		}
		all = append(all, ring...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: there is no OpenPGP key in it", ErrBadKey)
	}
	return all, nil
}

// armorBody decodes a block whose BEGIN line the splitting has put at the end
// of the piece before.
func armorBody(block string) (io.Reader, error) {
	for _, kind := range []string{"PUBLIC", "PRIVATE"} {
		if strings.Contains(block, "-----END PGP "+kind) {
			b, err := armor.Decode(strings.NewReader("-----BEGIN PGP " + kind + " KEY BLOCK-----" + block))
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
			}
			return b.Body, nil
		}
	}
	return nil, fmt.Errorf("%w: not a key block", ErrBadKey)
}
