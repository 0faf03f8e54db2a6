package turn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Reach says what a relay may talk to.
type Reach uint8

const (
	// Calls reaches the SFU and nothing else.
	Calls Reach = 1
	// Peers reaches the public internet, too, for one-to-one calls.
	Peers Reach = 2
)

const (
	// Lifetime is how long credentials are good for a new relay.
	Lifetime = 10 * time.Minute
	// keepFor is how long after they were made credentials are good for the
	// relay that they were used for: clients can't change them on the way.
	keepFor = 24 * time.Hour
)

// Credentials let a client make relays.
type Credentials struct {
	Username, Password string
	Expires            time.Time
}

// subject is a keyed hash of whom credentials are for. The key changes with
// each start.
type subject [16]byte

// owner is whom relays belong to.
type owner struct {
	reach   Reach
	account subject // shares a quota
	holder  subject // one device of the account
}

// claims are what a user name says, once opened.
type claims struct {
	issued time.Time // to the millisecond
	owner
}

// claims as bytes: time of issue 6, owner.
const (
	ownerSize  = 1 + 2*len(subject{})
	claimsSize = 6 + ownerSize
)

func (o owner) append(b []byte) []byte {
	return append(append(append(b, byte(o.reach)), o.account[:]...), o.holder[:]...)
}

func readOwner(b []byte) (owner, bool) {
	if len(b) != ownerSize {
		return owner{}, false
	}
	return owner{Reach(b[0]), subject(b[1:17]), subject(b[17:])}, true
}

// minter makes and opens credentials under keys that live as long as the
// process.
type minter struct {
	aead    cipher.AEAD
	mac     [32]byte // for passwords and subjects
	encoded int      // length of a user name
}

func newMinter() (*minter, error) {
	var key, mac [32]byte
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
	_, _ = rand.Read(mac[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("turn: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("turn: %w", err)
	}
	return &minter{aead: aead, mac: mac, encoded: base64.RawURLEncoding.EncodedLen(claimsSize + aead.Overhead())}, nil
}

func (m *minter) hash(what, s string) []byte {
	h := hmac.New(sha256.New, m.mac[:])
	h.Write([]byte(what))
	h.Write([]byte{0})
	h.Write([]byte(s))
	return h.Sum(nil)
}

func (m *minter) subject(name string) subject { return subject(m.hash("subject", name)[:16]) }

// mint makes credentials.
func (m *minter) mint(account, holder string, reach Reach, now time.Time) Credentials {
	plain := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli())<<16)[:6]
	plain = owner{reach, m.subject(account), m.subject(holder)}.append(plain)
	name := base64.RawURLEncoding.EncodeToString(m.aead.Seal(nil, nil, plain, nil))
	return Credentials{Username: name, Password: m.password(name), Expires: now.Add(Lifetime)}
}

// password of a user name, as in draft-uberti-behave-turn-rest.
func (m *minter) password(username string) string {
	return base64.StdEncoding.EncodeToString(m.hash("password", username))
}

var errCredentials = errors.New("turn: credentials not accepted")

// open reads a user name.
func (m *minter) open(username string) (claims, error) {
	if len(username) != m.encoded {
		return claims{}, errCredentials
	}
	sealed, err := base64.RawURLEncoding.DecodeString(username)
	if err != nil {
		return claims{}, errCredentials
	}
	b, err := m.aead.Open(nil, nil, sealed, nil)
	if err != nil || len(b) != claimsSize {
		return claims{}, errCredentials
	}
	o, _ := readOwner(b[6:])
	ms := int64(binary.BigEndian.Uint64(b[:8]) >> 16)
	return claims{issued: time.UnixMilli(ms), owner: o}, nil
}
