package pgp

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Encrypt returns a writer for the plaintext; what it writes to dst ends with
// Close, which doesn't close dst. Without a recipient it is ErrNoRecipient.
func Encrypt(dst io.Writer, to *Recipients, o Options) (io.WriteCloser, error) {
	if to == nil || to.Len() == 0 {
		return nil, ErrNoRecipient
	}
	// The format is written in small pieces.
	out := bufio.NewWriterSize(dst, 256<<10)
	w, err := encryptTo(out, to, o.config())
	if err != nil {
		return nil, fmt.Errorf("pgp: encrypt: %w", err)
	}
	return &writer{WriteCloser: w, out: out}, nil
}

func encryptTo(out io.Writer, to *Recipients, c *packet.Config) (io.WriteCloser, error) {
	if len(to.keys) > 0 {
		return openpgp.EncryptWithParams(out, to.keys, nil, &openpgp.EncryptParams{Config: c, Passwords: to.passphrases})
	}
	first, rest := to.passphrases[0], to.passphrases[1:]
	return openpgp.SymmetricallyEncryptWithParams(first, out, &openpgp.EncryptParams{Config: c, Passwords: rest})
}

type writer struct {
	io.WriteCloser
	out *bufio.Writer
}

func (w *writer) Close() error {
	if err := w.WriteCloser.Close(); err != nil {
		return err
	}
	return w.out.Flush()
}

// Identities are private keys and passphrases to open with. The zero value
// has none.
type Identities struct {
	keys        openpgp.EntityList
	passphrases []string
}

// AddKeys adds the private keys of a key file. passphrase unlocks them if they
// are locked.
func (i *Identities) AddKeys(file []byte, passphrase string) error {
	ring, err := readKeys(file)
	if err != nil {
		return err
	}
	for _, e := range ring {
		if e.PrivateKey == nil {
			return fmt.Errorf("%w: %s is a public key; opening needs the private one", ErrBadKey, fingerprint(e))
		}
		if err := unlock(e, passphrase); err != nil {
			return err
		}
	}
	i.keys = append(i.keys, ring...)
	return nil
}

func unlock(e *openpgp.Entity, passphrase string) error {
	locked := e.PrivateKey.Encrypted
	for _, s := range e.Subkeys {
		locked = locked || s.PrivateKey != nil && s.PrivateKey.Encrypted
	}
	if !locked {
		return nil
	}
	if passphrase == "" {
		return fmt.Errorf("%w: %s is locked with a passphrase", ErrBadKey, fingerprint(e))
	}
	if err := e.DecryptPrivateKeys([]byte(passphrase)); err != nil {
		return fmt.Errorf("%w: the passphrase doesn't unlock %s", ErrBadKey, fingerprint(e))
	}
	return nil
}

// AddKeyFile adds the private keys of a file.
func (i *Identities) AddKeyFile(path, passphrase string) error {
	b, err := readLimited(path)
	if err == nil {
		err = i.AddKeys(b, passphrase)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// AddPassphrase tries a passphrase.
func (i *Identities) AddPassphrase(p string) { i.passphrases = append(i.passphrases, p) }

// Decrypt opens a message. The reader's io.EOF says that all of it was as it
// was written; any change or cut gives ErrDamaged, here or on reading.
// A message that isn't encrypted is refused.
func Decrypt(src io.Reader, with *Identities) (io.Reader, error) {
	in := &source{r: bufio.NewReaderSize(src, 256<<10)}
	next := 0
	prompt := func([]openpgp.Key, bool) ([]byte, error) {
		if next == len(with.passphrases) {
			return nil, ErrWrongKey
		}
		next++
		return []byte(with.passphrases[next-1]), nil
	}
	md, err := openpgp.ReadMessage(in, with.keys, prompt, nil)
	switch {
	case in.err != nil:
		return nil, in.err
	case errors.Is(err, ErrWrongKey), errors.Is(err, pgperrors.ErrKeyIncorrect):
		return nil, ErrWrongKey
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case !md.IsEncrypted:
		return nil, fmt.Errorf("%w: it isn't encrypted", ErrDamaged)
	}
	return &reader{src: in, body: md.UnverifiedBody}, nil
}

// source remembers an error of the disk, so that it isn't called damage.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

type reader struct {
	src  *source
	body io.Reader
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case r.src.err != nil:
		r.err = r.src.err
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		r.err = io.EOF
	default:
		r.err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, r.err
}
