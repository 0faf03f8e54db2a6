package room

import (
	"context"
	"encoding/json"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// quote writes a JSON string.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // strings always marshal
	}
	return b
}

// strippedTypes are the state that someone outside may see of a room.
// spec: client-server API, "Stripped state"
var strippedTypes = [...]string{typeCreate, typeName, typeAvatar, typeTopic, typeJoinRules, typeAlias, typeEncryption}

// Stripped is the stripped state of a room for invites and knocks: create,
// name, avatar, topic, join rules, canonical alias, encryption, the sender's
// member event. spec: client-server API, "Stripped state"
func (s *Service) Stripped(ctx context.Context, rid intern.RID, sender mxid.UserID) ([]json.RawMessage, error) {
	evs, err := s.strippedEvents(ctx, rid, sender)
	if err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, 0, len(evs))
	for _, ev := range evs {
		out = append(out, stripEvent(ev))
	}
	return out, nil
}

// strippedEvents are the events behind Stripped.
func (s *Service) strippedEvents(ctx context.Context, rid intern.RID, sender mxid.UserID) ([]*Event, error) {
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	var out []*Event
	for _, typ := range strippedTypes {
		ev, err := s.stateEvent(ctx, h, sn.sum.root, typ, "")
		if err != nil {
			return nil, err
		}
		if ev != nil {
			out = append(out, ev)
		}
	}
	if sender != "" {
		ev, err := s.stateEvent(ctx, h, sn.sum.root, typeMember, string(sender))
		if err != nil {
			return nil, err
		}
		if ev != nil {
			out = append(out, ev)
		}
	}
	return out, nil
}

// stripEvent writes the stripped form of a state event.
func stripEvent(ev *Event) json.RawMessage {
	b := append(make([]byte, 0, len(ev.JSON)), `{"content":`...)
	b = append(b, ev.Content()...)
	b = append(append(b, `,"sender":`...), quote(string(ev.Sender))...)
	b = append(append(b, `,"state_key":`...), quote(*ev.StateKey)...)
	b = append(append(b, `,"type":`...), quote(ev.Type)...)
	return append(b, '}')
}
