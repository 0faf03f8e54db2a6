package eventform

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// Signer signs for this server. *keys.Signer is one.
type Signer interface {
	Name() mxid.ServerName
	KeyID() gomatrixserverlib.KeyID
	// Signature signs a JSON object and returns unpadded base64.
	Signature(obj json.RawMessage) (string, error)
	// BuildEvent is for room versions 1 and 2, whose events have other forms.
	BuildEvent(b *gomatrixserverlib.EventBuilder, ver gomatrixserverlib.RoomVersion, ts int64) (gomatrixserverlib.PDU, error)
}

// Build hashes and signs an event of this server, sent at ts (milliseconds).
// The prev and auth events are given as []string. Errors are *jsonx.Error for
// content that the room version doesn't allow, and
// gomatrixserverlib.EventValidationError for an event that is too large.
// spec: server-server API, "Adding hashes and signatures to outgoing events"
func Build(p *gomatrixserverlib.ProtoEvent, ts int64, s Signer) (gomatrixserverlib.PDU, error) {
	return BuildSticky(p, ts, NotSticky, s)
}

// BuildSticky is Build for an event that is to be sticky for so many
// milliseconds, or NotSticky. Events of room versions 1 and 2 can't be:
// ErrForm.
func BuildSticky(p *gomatrixserverlib.ProtoEvent, ts, sticky int64, s Signer) (gomatrixserverlib.PDU, error) {
	version := p.Version.Version()
	v, ok := rulesOf(string(version))
	if !ok {
		return nil, malformed("unknown room version")
	}
	if !v.hashedIDs {
		if sticky != NotSticky {
			return nil, malformed("sticky event")
		}
		return s.BuildEvent(p.Version.NewEventBuilderFromProtoEvent(p), version, ts)
	}
	parts, err := assemble(v, p, ts, sticky)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(parts.join(nil, nil))
	hashes := fmt.Appendf(nil, `"hashes":{"sha256":"%s"},`, base64.RawStdEncoding.EncodeToString(hash[:]))
	redacted, err := redact(v, parts.join(hashes, nil))
	if err != nil {
		return nil, err
	}
	sig, err := s.Signature(redacted)
	if err != nil {
		return nil, fmt.Errorf("eventform: sign: %w", err)
	}
	id := sha256.Sum256(redacted)
	js := parts.join(hashes, fmt.Appendf(nil, `"signatures":{%s:{%s:"%s"}},`, jsonString(string(s.Name())), jsonString(string(s.KeyID())), sig))
	if len(js) > maxBytes {
		return nil, gomatrixserverlib.EventValidationError{Code: gomatrixserverlib.EventValidationTooLarge, Message: "too large"}
	}
	return v.impl.NewEventFromTrustedJSONWithEventID("$"+v.idEncoding.EncodeToString(id[:]), js, false)
}

// eventParts are an event in canonical JSON, cut where the hashes and the
// signatures belong.
type eventParts struct{ head, middle, tail []byte }

func (p eventParts) join(hashes, signatures []byte) []byte {
	return slices.Concat(p.head, hashes, p.middle, signatures, p.tail)
}

func jsonString(s string) []byte { return jsonx.AppendString(nil, s) }

// assemble writes the members in their canonical order.
func assemble(v *rules, p *gomatrixserverlib.ProtoEvent, ts, sticky int64) (parts eventParts, err error) {
	lim := jsonx.Event
	lim.Integers, lim.FoldTop = v.integers, false
	if err := jsonx.Check(p.Content, lim); err != nil {
		return parts, err
	}
	content, err := jsonx.Canonical(p.Content)
	if err != nil {
		return parts, err
	}
	b := idList(append(make([]byte, 0, len(content)+256), `{"auth_events":`...), p.AuthEvents)
	b = append(append(b, `,"content":`...), content...)
	b = strconv.AppendInt(append(b, `,"depth":`...), p.Depth, 10)
	parts.head = append(b, ',')

	b = nil
	if sticky != NotSticky {
		b = fmt.Appendf(b, `"%s":{"duration_ms":%d},`, StickyMember, sticky)
	}
	b = strconv.AppendInt(append(b, `"origin_server_ts":`...), ts, 10)
	b = idList(append(b, `,"prev_events":`...), p.PrevEvents)
	if p.Redacts != "" {
		b = jsonx.AppendString(append(b, `,"redacts":`...), p.Redacts)
	}
	if p.RoomID != "" {
		b = jsonx.AppendString(append(b, `,"room_id":`...), p.RoomID)
	}
	b = jsonx.AppendString(append(b, `,"sender":`...), p.SenderID)
	parts.middle = append(b, ',')

	b = nil
	if p.StateKey != nil {
		b = append(jsonx.AppendString(append(b, `"state_key":`...), *p.StateKey), ',')
	}
	b = jsonx.AppendString(append(b, `"type":`...), p.Type)
	parts.tail = append(b, '}')
	return parts, nil
}

// idList appends a list of event IDs, [] for anything but []string.
func idList(b []byte, list any) []byte {
	ids, _ := list.([]string)
	b = append(b, '[')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = jsonx.AppendString(b, id)
	}
	return append(b, ']')
}
