package signal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/media"
)

// maxTokenLife bounds how long any token works, and so how long revocations
// are remembered.
const maxTokenLife = time.Hour

// maxToken bounds the length of a token, in bytes.
const maxToken = 32 << 10

// errToken is told for every bad token, whatever is bad about it.
var errToken = errors.New("invalid token")

// TokenKey is the length of the key of tokens, in bytes.
const TokenKey = 32

// Tokens mints and checks the tokens that open calls: JWTs (HS256) under a key
// that nobody else knows. Safe for concurrent use.
type Tokens struct {
	key   []byte
	clock clock.Clock

	mu      sync.Mutex
	serial  uint64
	revoked map[who]revocation
}

type who struct{ room, identity string }

type revocation struct {
	serial uint64
	at     time.Time
}

// NewTokens uses a key of TokenKey bytes, or makes one if key is nil. With the
// key of before a restart, tokens of before are good, even revoked ones:
// whoever is told of those who join must look at them.
func NewTokens(key []byte, c clock.Clock) *Tokens {
	if key == nil {
		key = make([]byte, TokenKey)
		_, _ = rand.Read(key) // never fails
	}
	// Serials go on rising after a restart: fewer than one a microsecond are
	// used.
	return &Tokens{key: key, clock: c, serial: uint64(max(c.Now().UnixMicro(), 0)), revoked: map[who]revocation{}}
}

// claims is the payload, in the names of the protocol. Absent permissions are
// granted to whoever reads them elsewhere, so that ours are always present.
type claims struct {
	Issuer     string            `json:"iss"`
	Subject    string            `json:"sub"`
	NotBefore  int64             `json:"nbf"`
	Expires    int64             `json:"exp"`
	Serial     uint64            `json:"ser"`
	Name       string            `json:"name,omitempty"`
	Metadata   string            `json:"metadata,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Note       string            `json:"note,omitempty"`
	Video      video             `json:"video"`
}

type video struct {
	RoomJoin          bool     `json:"roomJoin"`
	Room              string   `json:"room"`
	CanPublish        bool     `json:"canPublish"`
	CanSubscribe      bool     `json:"canSubscribe"`
	CanPublishData    bool     `json:"canPublishData"`
	CanUpdateMetadata bool     `json:"canUpdateOwnMetadata"`
	Sources           []string `json:"canPublishSources,omitempty"`
	Via               string   `json:"via,omitempty"`
	First             string   `json:"first,omitempty"`
}

// sourceNames are the sources as tokens name them.
var sourceNames = map[media.Source]string{media.SourceCamera: "camera", media.SourceMicrophone: "microphone",
	media.SourceScreenShare: "screen_share", media.SourceScreenShareAudio: "screen_share_audio"}

// MarshalJSON writes the payload so that its base64url form has neither - nor _:
// Element Call decodes it as plain base64. Both stem from the sextets 62 and 63
// only, which ASCII without > ? ~ and DEL can't make.
func (c claims) MarshalJSON() ([]byte, error) {
	type plain claims
	raw, err := json.Marshal(plain(c))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		raw = raw[n:]
		switch {
		case r >= 0x10000:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		case r >= 0x7f || r == '>' || r == '?' || r == '~':
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	return out.Bytes(), nil
}

// The rest of jwt.Claims.
func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return date(c.Expires), nil }
func (c claims) GetNotBefore() (*jwt.NumericDate, error)      { return date(c.NotBefore), nil }
func (c claims) GetIssuedAt() (*jwt.NumericDate, error)       { return nil, nil }
func (c claims) GetIssuer() (string, error)                   { return c.Issuer, nil }
func (c claims) GetSubject() (string, error)                  { return c.Subject, nil }
func (c claims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }

func date(unix int64) *jwt.NumericDate { return jwt.NewNumericDate(time.Unix(unix, 0)) }

const issuer = "parley"

// Mint signs a token for g, which works until g.Expires but at most an hour.
func (t *Tokens) Mint(g sfu.Grant) (string, error) {
	if g.Room == "" || g.Identity == "" {
		return "", errors.New("signal: a token needs a room and an identity")
	}
	now := t.clock.Now()
	if limit := now.Add(maxTokenLife); g.Expires.After(limit) {
		g.Expires = limit
	}
	c := claims{Issuer: issuer, Subject: g.Identity, NotBefore: now.Unix(), Expires: g.Expires.Unix(), Serial: t.next(),
		Name: g.Name, Metadata: g.Metadata, Attributes: g.Attributes, Note: g.Note,
		Video: video{RoomJoin: true, Room: g.Room, CanPublish: g.CanPublish, CanSubscribe: g.CanSubscribe,
			CanPublishData: g.CanPublishData, CanUpdateMetadata: g.CanUpdateMetadata, Via: g.Via, First: g.First}}
	for _, s := range g.Sources {
		c.Video.Sources = append(c.Video.Sources, sourceNames[s])
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(t.key)
}

func (t *Tokens) next() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serial++
	return t.serial
}

// Parse checks a token and reads its grant.
func (t *Tokens) Parse(token string) (sfu.Grant, error) {
	if len(token) > maxToken {
		return sfu.Grant{}, errToken
	}
	var c claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return t.key, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithIssuer(issuer), jwt.WithExpirationRequired(), jwt.WithTimeFunc(t.clock.Now))
	if err != nil || !c.Video.RoomJoin {
		return sfu.Grant{}, errToken
	}
	g := sfu.Grant{Room: c.Video.Room, Identity: c.Subject, Name: c.Name, CanPublish: c.Video.CanPublish, CanSubscribe: c.Video.CanSubscribe,
		CanPublishData: c.Video.CanPublishData, CanUpdateMetadata: c.Video.CanUpdateMetadata, Via: c.Video.Via, First: c.Video.First,
		Metadata: c.Metadata, Attributes: c.Attributes, Note: c.Note, Expires: time.Unix(c.Expires, 0), Serial: c.Serial}
	for _, name := range c.Video.Sources {
		for s, n := range sourceNames {
			if n == name {
				g.Sources = append(g.Sources, s)
			}
		}
	}
	if t.Revoked(g) {
		return sfu.Grant{}, errToken
	}
	return g, nil
}

// Revoke makes all tokens minted until now for an identity worthless.
func (t *Tokens) Revoke(room, identity string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	for w, r := range t.revoked {
		if now.Sub(r.at) > maxTokenLife {
			delete(t.revoked, w)
		}
	}
	t.revoked[who{room, identity}] = revocation{serial: t.serial, at: now}
}

// Revoked reports whether the token that g was read from was revoked.
func (t *Tokens) Revoked(g sfu.Grant) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.revoked[who{g.Room, g.Identity}]
	return ok && g.Serial <= r.serial
}
