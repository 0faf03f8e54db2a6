package rtc

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// Who takes part is in memory only, so this server has forgotten it after a
// restart. Clients come back with the tokens they have; for that, a token
// carries, sealed, whose place it is for. The right to it is looked at anew.

// NoteKey is the length of Config.NoteKey in bytes.
const NoteKey = 32

// note is what a token says of its bearer, for this server's eyes only.
type note struct {
	Room   mxid.RoomID   `json:"r"`
	Slot   string        `json:"s"`
	User   mxid.UserID   `json:"u"`
	Device mxid.DeviceID `json:"d"`
	Member string        `json:"m,omitempty"`
}

func newSealer(key []byte) (cipher.AEAD, error) {
	if key == nil {
		return nil, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("rtc: %w", err)
	}
	return cipher.NewGCM(block)
}

// seal writes a note; empty without a key.
func (s *Service) seal(e entry, k key) string {
	if s.sealer == nil {
		return ""
	}
	raw, err := json.Marshal(note{e.room, e.slot, e.user, e.device, e.member})
	if err != nil {
		return "" // strings don't fail
	}
	nonce := make([]byte, s.sealer.NonceSize())
	_, _ = rand.Read(nonce) // doesn't fail
	return base64.RawStdEncoding.EncodeToString(s.sealer.Seal(nonce, nonce, raw, []byte(k.alias+" "+k.identity)))
}

// open reads a note that was sealed for this participant.
func (s *Service) open(sealed string, k key) (entry, bool) {
	raw, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil || s.sealer == nil || len(raw) < s.sealer.NonceSize() {
		return entry{}, false
	}
	n := s.sealer.NonceSize()
	var x note
	if raw, err = s.sealer.Open(nil, raw[:n], raw[n:], []byte(k.alias+" "+k.identity)); err != nil || json.Unmarshal(raw, &x) != nil {
		return entry{}, false
	}
	e := entry{room: x.Room, slot: x.Slot, user: x.User, device: x.Device, member: x.Member}
	return e, e.place().key == k
}

// returned makes the place of somebody anew whom this server has forgotten;
// nil for a token that doesn't say whose it is.
func (s *Service) returned(k key, sealed string) (*place, entry) {
	e, ok := s.open(sealed, k)
	if !ok {
		return nil, entry{}
	}
	if _, err := s.places.reserve(e.place(), s.cfg.Clock.Now()); err != nil {
		return nil, entry{}
	}
	s.sweepLater()
	return s.places.connect(k), e
}

// welcome looks whether somebody who came back after a restart still has the
// account and the device, and takes their leave over again.
func (s *Service) welcome(ctx context.Context, p *place, e entry) {
	if err := s.known(ctx, e); err != nil {
		if he := (*httpx.Error)(nil); errors.As(err, &he) && he.Status < 500 {
			s.revoke([]*place{p})
		}
		return
	}
	if !s.local(e.user) {
		return
	}
	all, err := s.cfg.Delays.List(ctx, e.user)
	if err != nil {
		s.cfg.Log.Warn("delayed events of somebody who came back to a call", "error", err)
	}
	for _, ev := range all {
		if ev.Room == e.room && !ev.Finalised && e.leftBy(ev.Type, ev.StateKey, ev.Content) {
			_ = s.delegate(ctx, p, ev.ID) // it may be too short to be worth it
		}
	}
}

// leftBy reports whether an event is the one by which a membership ends: the
// state of the device, or the sticky event of the member.
func (e entry) leftBy(typ string, stateKey *string, content json.RawMessage) bool {
	switch typ {
	case "org.matrix.msc3401.call.member":
		id := string(e.user) + "_" + string(e.device)
		return stateKey != nil && (*stateKey == id || *stateKey == "_"+id || *stateKey == id+"_m.call" || *stateKey == "_"+id+"_m.call")
	case "org.matrix.msc4143.rtc.member":
		var c struct {
			Key    string `json:"sticky_key"`
			Key354 string `json:"msc4354_sticky_key"`
		}
		return json.Unmarshal(content, &c) == nil && e.member != "" && (c.Key == e.member || c.Key354 == e.member)
	}
	return false
}
