package room

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// An ej row is an event in two parts that are sealed apart:
//
//	version, length of the skeleton part, skeleton part, content part
//
// The skeleton is the event as redaction leaves it: what all servers of the
// room must agree on. Its key lives as long as the room is known here. The
// content is what redaction takes away, and the client's transaction key. Its
// key is one of the run of runEvents events that came in the same week, and
// inside that it is sealed under the keys of the local people whose words they
// are. So the content of an event, of a week, or of a person can be destroyed
// without a change to any other row: what is left reads as redacted, and its
// signatures and hash still hold.
const (
	rowVersion  = 2
	bodyVersion = 1
	// runEvents is how many events share a key: so many are sealed anew at most
	// when one of them goes.
	runEvents = 128
	// maxOwners is how many people an event can belong to: its sender, and whom
	// a member event is about.
	maxOwners = 2
)

// partWeek is the week of the key of an event's content: state has no time, as
// it must outlast the messages around it.
func (w *work) partWeek(ev *Event) uint32 {
	if ev.IsState() {
		return 0
	}
	return uint32(w.now / sealWindow)
}

// roomsOwn are state events that say how the room works, not what somebody
// said: encryption that vanished with the person who switched it on would be a
// danger to those who stay.
var roomsOwn = map[string]bool{
	typeCreate: true, typePowerLevels: true, typeJoinRules: true, typeHistory: true, typeGuestAccess: true,
	typeEncryption: true, typeServerACL: true, typeTombstone: true, typeAlias: true,
	"m.room.third_party_invite": true, "m.room.retention": true, "m.space.child": true, "m.space.parent": true,
	"m.policy.rule.user": true, "m.policy.rule.room": true, "m.policy.rule.server": true,
}

// owners are the local people whose words an event has.
func (w *work) owners(ev *Event) ([]intern.UID, error) {
	var out []intern.UID
	local := w.svc.cfg.ServerName
	own := ev.IsState() && roomsOwn[ev.Type] || ev.Type == typeRedaction && !gjson.GetBytes(ev.JSON, "content.reason").Exists()
	if ev.Sender.Server() == local && !own {
		out = append(out, ev.meta.sender)
	}
	if ev.Type == typeMember && ev.StateKey != nil {
		if of := mxid.UserID(*ev.StateKey); of != ev.Sender && of.Server() == local {
			uid, err := w.svc.cfg.Intern.User(w.ctx, of)
			if err != nil {
				return nil, fmt.Errorf("room: number a member: %w", err)
			}
			out = append(out, uid)
		}
	}
	return out, nil
}

// seal encodes an event's ej row. An event of somebody who has been erased is
// stored as redaction leaves it; ev becomes that.
func (w *work) seal(ev *Event) ([]byte, error) {
	skeleton, err := eventform.Redact(w.h.version, ev.JSON)
	if err != nil {
		return nil, fmt.Errorf("room: redact: %w", err)
	}
	rid, n := w.h.rid, ev.Num
	row, part := keyJSON(rid, n), vault.RoomPart(uint32(rid), w.partWeek(ev), uint32(n)/runEvents, 0)
	head, tail, middle := difference(skeleton, ev.JSON)
	owners, err := w.owners(ev)
	if err != nil {
		return nil, err
	}
	refs := []vault.Ref{vault.Room(uint32(rid), 0), part}
	for _, u := range owners {
		refs = append(refs, vault.Author(uint32(u)))
	}
	if err := w.svc.cfg.Vault.Prepare(refs...); err != nil {
		return nil, fmt.Errorf("room: seal event: %w", err)
	}
	var content []byte
	if len(middle) > 0 || ev.txn != "" {
		content, err = w.svc.sealContent(row, part, owners, encodeContent(ev.txn, middle))
		if errors.Is(err, vault.ErrDestroyed) {
			content, err = nil, nil
			if len(middle) > 0 {
				ev.bare(skeleton)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("room: seal event: %w", err)
		}
	}
	sealed, err := w.svc.cfg.Vault.Seal(vault.Room(uint32(rid), 0), row, encodeSkeleton(skeleton, head, tail, len(middle) == 0))
	if err != nil {
		return nil, fmt.Errorf("room: seal event: %w", err)
	}
	return joinRow(sealed, content), nil
}

// bare makes an event what redaction leaves of it.
func (e *Event) bare(skeleton []byte) {
	e.JSON, e.txn = skeleton, ""
	e.Flags |= FlagRedacted
	e.meta.flags |= FlagRedacted
	e.pdu = &lazyPDU{version: e.pdu.version}
}

// difference finds what full has in the place of the middle of skeleton: head
// bytes before it and tail bytes after it are the same.
func difference(skeleton, full []byte) (head, tail int, middle []byte) {
	short := min(len(skeleton), len(full))
	for head < short && skeleton[head] == full[head] {
		head++
	}
	for tail < short-head && skeleton[len(skeleton)-1-tail] == full[len(full)-1-tail] {
		tail++
	}
	if head == len(skeleton) && len(skeleton) == len(full) {
		return head, 0, nil
	}
	return head, tail, full[head : len(full)-tail]
}

func contentRow(row storage.Key) storage.Key { return append(row[:len(row):len(row)], 'c') }
func authorRow(row storage.Key) storage.Key  { return append(row[:len(row):len(row)], 'a') }

// sealContent seals the content part: number of owners, then the content under
// the keys of the owners and of the run.
func (s *Service) sealContent(row storage.Key, part vault.Ref, owners []intern.UID, content []byte) ([]byte, error) {
	for _, u := range owners {
		var err error
		if content, err = s.cfg.Vault.Seal(vault.Author(uint32(u)), authorRow(row), content); err != nil {
			return nil, err
		}
	}
	return s.cfg.Vault.Seal(part, contentRow(row), append([]byte{bodyVersion, byte(len(owners))}, content...))
}

// openContent is the reverse; vault.ErrDestroyed when one of the keys is gone.
func (s *Service) openContent(row storage.Key, sealed []byte) ([]byte, error) {
	b, err := s.cfg.Vault.Unseal(contentRow(row), sealed)
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || b[0] != bodyVersion || b[1] > maxOwners {
		return nil, corrupt("ej")
	}
	content := b[2:]
	for range b[1] {
		if content, err = s.cfg.Vault.Unseal(authorRow(row), content); err != nil {
			return nil, err
		}
	}
	return content, nil
}

// joinRow and splitRow put the two parts together and take them apart.
func joinRow(skeleton, content []byte) []byte {
	b := make([]byte, 0, len(skeleton)+len(content)+5)
	b = binary.AppendUvarint(append(b, rowVersion), uint64(len(skeleton)))
	return append(append(b, skeleton...), content...)
}

func splitRow(b []byte) (skeleton, content []byte, err error) {
	d := newDecoder(b, rowVersion)
	n := d.uv()
	if n > uint64(len(d.b)) {
		return nil, nil, corrupt("ej")
	}
	skeleton = d.raw(int(n))
	return skeleton, d.b, d.err("ej")
}

// encodeContent is the content part before sealing: the client's transaction
// key, so that a device recognises its own event after a restart, and what the
// skeleton lacks.
func encodeContent(txn string, middle []byte) []byte {
	b := binary.AppendUvarint([]byte{bodyVersion}, uint64(len(txn)))
	return append(append(b, txn...), middle...)
}

// encodeSkeleton is the skeleton part before sealing. whole: nothing but the
// transaction key is in the content part.
func encodeSkeleton(skeleton []byte, head, tail int, whole bool) []byte {
	b := append(make([]byte, 0, len(skeleton)+8), bodyVersion, b2u(whole))
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(head)), uint64(tail))
	return append(b, skeleton...)
}

// body is an opened ej row.
type body struct {
	txn  string
	json []byte
	bare bool // the content has been destroyed
}

// openBody opens an ej row; storage.ErrNotFound when the room's key is gone.
func (s *Service) openBody(row storage.Key, value []byte) (b body, err error) {
	sealed, content, err := splitRow(value)
	if err != nil {
		return b, err
	}
	plain, err := s.cfg.Vault.Unseal(row, sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return b, fmt.Errorf("room: an event has been erased: %w", storage.ErrNotFound)
	}
	if err != nil {
		return b, fmt.Errorf("room: open event: %w", err)
	}
	var opened []byte
	if len(content) > 0 {
		opened, err = s.openContent(row, content)
		if err != nil && !errors.Is(err, vault.ErrDestroyed) {
			return b, fmt.Errorf("room: open event: %w", err)
		}
	}
	return decodeBody(plain, opened)
}

// decodeBody puts an event together again.
func decodeBody(skeleton, content []byte) (b body, err error) {
	d := newDecoder(skeleton, bodyVersion)
	whole := d.raw(1)[0] == 1
	head, tail := d.uv(), d.uv()
	js := d.b
	if d.fail || head > uint64(len(js)) || tail > uint64(len(js))-head {
		return b, corrupt("ej")
	}
	b.json, b.bare = js, !whole
	if content == nil {
		return b, nil
	}
	c := newDecoder(content, bodyVersion)
	n := c.uv()
	if n > uint64(len(c.b)) {
		return b, corrupt("ej")
	}
	b.txn, b.bare = string(c.raw(int(n))), false
	if !whole {
		full := make([]byte, 0, int(head+tail)+len(c.b))
		full = append(append(full, js[:head]...), c.b...)
		b.json = append(full, js[len(js)-int(tail):]...)
	}
	return b, c.err("ej")
}

// OpenRow opens what the keys that exist open of an ej row, for those who look
// for what must not be there: the skeleton and the content, as they are stored.
func OpenRow(v *vault.Vault, key, value []byte) [][]byte {
	var out [][]byte
	skeleton, content, err := splitRow(value)
	if err != nil {
		return nil
	}
	if plain, err := v.Unseal(key, skeleton); err == nil {
		out = append(out, plain)
	}
	s := &Service{cfg: Config{Vault: v}}
	if plain, err := s.openContent(key, content); err == nil {
		out = append(out, plain)
	}
	return out
}
