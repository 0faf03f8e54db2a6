package pgp

import (
	"bytes"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Pair is a new key: both halves armored, for files.
type Pair struct {
	Private, Public []byte
	Fingerprint     string
}

// Generate makes a key that announces AEAD: Ed25519 and X25519 in version 6 of
// the format, or, with o.Compat, version 4 in the older form, which GnuPG 2.2
// takes. passphrase locks the private half; "" leaves it open. name is shown
// by programs that list keys, and isn't checked by anybody.
func Generate(name, passphrase string, o Options) (Pair, error) {
	c := o.config()
	c.Algorithm, c.V6Keys = packet.PubKeyAlgoEd25519, true
	if o.Compat {
		c.Algorithm, c.V6Keys = packet.PubKeyAlgoEdDSA, false
	}
	e, err := openpgp.NewEntity(name, "", "", c)
	if err != nil {
		return Pair{}, fmt.Errorf("pgp: generate: %w", err)
	}
	public, err := armored("PGP PUBLIC KEY BLOCK", e.Serialize)
	if err != nil {
		return Pair{}, fmt.Errorf("pgp: generate: %w", err)
	}
	if passphrase != "" {
		if err := e.EncryptPrivateKeys([]byte(passphrase), c); err != nil {
			return Pair{}, fmt.Errorf("pgp: lock the key: %w", err)
		}
	}
	private, err := armored("PGP PRIVATE KEY BLOCK", func(w io.Writer) error { return e.SerializePrivateWithoutSigning(w, c) })
	if err != nil {
		return Pair{}, fmt.Errorf("pgp: generate: %w", err)
	}
	return Pair{Private: private, Public: public, Fingerprint: fingerprint(e)}, nil
}

func armored(kind string, write func(io.Writer) error) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.EncodeWithChecksumOption(&b, kind, nil, false)
	if err != nil {
		return nil, err
	}
	if err := write(w); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return append(b.Bytes(), '\n'), nil
}
