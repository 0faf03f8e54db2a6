package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

// upgradeTypes are the state events that a new version of a room takes over.
// spec: client-server API, "Room upgrades", server behaviour
var upgradeTypes = [...]string{
	typeServerACL, typeEncryption, typeName, typeAvatar, typeTopic, typeGuestAccess, typeHistory, typeJoinRules,
}

// Limits of what an upgrade takes over beside that.
const (
	maxUpgradeBans     = 1000
	maxUpgradeChildren = 1000
)

// Upgrade replaces a room by a new one of another version: the new room has
// its settings, bans and aliases, the old one a tombstone and power levels
// that silence it.
func (s *Service) Upgrade(ctx context.Context, room mxid.RoomID, user mxid.UserID, version string, additionalCreators []mxid.UserID) (mxid.RoomID, error) {
	if _, err := roomVersion(version); err != nil {
		return "", err
	}
	h, err := s.memberRoom(ctx, room, user)
	if err != nil {
		return "", err
	}
	old, err := s.upgradeSource(ctx, h, user)
	if err != nil {
		return "", err
	}
	next, err := s.createSuccessor(ctx, old, user, version, additionalCreators)
	if err != nil {
		return "", err
	}
	if err := s.moveAliases(ctx, h, next); err != nil {
		return "", err
	}
	err = s.onRoom(ctx, h.rid, func(w *work) error { return w.bury(user, next.id) })
	return next.id, err
}

// source is what an upgrade needs of the old room.
type source struct {
	h      *hot
	last   mxid.EventID
	state  map[string]*Event // by type, those with an empty state key
	bans   []*Event
	space  []*Event // m.space.child
	public bool
}

func (s *Service) upgradeSource(ctx context.Context, h *hot, user mxid.UserID) (*source, error) {
	sn, err := h.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	src := &source{h: h, state: map[string]*Event{}}
	if len(sn.ext) > 0 {
		src.last = sn.ext[len(sn.ext)-1].ID
	}
	for _, typ := range append(upgradeTypes[:], typeCreate, typePowerLevels) {
		ev, err := s.stateEvent(ctx, h, sn.sum.root, typ, "")
		if err != nil {
			return nil, err
		}
		if ev != nil {
			src.state[typ] = ev
		}
	}
	create := src.state[typeCreate]
	if create == nil {
		return nil, errNoState
	}
	p, err := powersOf(create, src.state[typePowerLevels])
	if err != nil {
		return nil, err
	}
	if p.User(string(user)) < p.Event(typeTombstone, true) {
		return nil, httpx.Forbidden("You cannot upgrade this room")
	}
	if src.bans, err = s.bansOf(ctx, h); err != nil {
		return nil, err
	}
	if gjson.GetBytes(create.JSON, "content.type").Str == "m.space" {
		if src.space, err = s.stateOfType(ctx, h, sn, "m.space.child", maxUpgradeChildren); err != nil {
			return nil, err
		}
	}
	src.public, err = s.listed(ctx, h.rid)
	return src, err
}

func (s *Service) bansOf(ctx context.Context, h *hot) ([]*Event, error) {
	var ns []Num
	for p, err := range s.cfg.KV.Scan(ctx, keyMembers(h.rid, Ban).Prefix(), false, maxUpgradeBans) {
		if err != nil {
			return nil, fmt.Errorf("room: read bans: %w", err)
		}
		n, err := decodeNum(p.Value, "mr")
		if err != nil {
			return nil, err
		}
		ns = append(ns, Num(n))
	}
	return s.presentEvents(ctx, h, ns)
}

// stateOfType lists the current state events of a type that aren't empty.
func (s *Service) stateOfType(ctx context.Context, h *hot, sn *snapshot, typ string, limit int) ([]*Event, error) {
	all, err := s.stateEvents(ctx, h, sn.sum.root)
	if err != nil {
		return nil, err
	}
	var out []*Event
	for _, ev := range all {
		if ev.Type == typ && string(ev.Content()) != "{}" && len(out) < limit {
			out = append(out, ev)
		}
	}
	return out, nil
}

// createSuccessor makes the new room.
func (s *Service) createSuccessor(ctx context.Context, old *source, user mxid.UserID, version string, extra []mxid.UserID) (*hot, error) {
	p, err := successorParams(old, user, version, extra)
	if err != nil {
		return nil, err
	}
	member, err := s.CurrentState(ctx, old.h.rid, typeMember, string(user))
	if err != nil {
		return nil, err
	}
	if member != nil {
		p.CreatorContent = profileOf(member)
	}
	drafts, err := s.createDrafts(p, "")
	if err != nil {
		return nil, err
	}
	final, err := successorPowers(old, p)
	if err != nil {
		return nil, err
	}
	drafts = append(drafts, transferred(old, user)...)
	if final != nil {
		drafts = append(drafts, stateDraft(user, typePowerLevels, "", final))
	}
	h, create, err := s.newRoom(ctx, version, drafts[0])
	if err != nil {
		return nil, err
	}
	err = s.onRoom(ctx, h.rid, func(w *work) error { return w.populate(create, drafts[1:], p, "") })
	return h, err
}

func stateDraft(user mxid.UserID, typ, key string, content json.RawMessage) draft {
	return draft{typ: typ, stateKey: &key, sender: user, content: content}
}

// profileOf is what a member event says about how the user is shown.
func profileOf(ev *Event) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for _, name := range []string{"displayname", "avatar_url"} {
		if v := gjson.GetBytes(ev.JSON, "content."+name); v.Type == gjson.String {
			out[name] = json.RawMessage(v.Raw)
		}
	}
	return out
}

// successorParams describe the new room: the create event names the old one,
// and the creator has enough power for all that follows.
func successorParams(old *source, user mxid.UserID, version string, extra []mxid.UserID) (CreateParams, error) {
	p := CreateParams{Creator: user, Version: version, Preset: "private_chat", Public: old.public, CreationContent: map[string]json.RawMessage{}}
	create := old.state[typeCreate]
	gjson.GetBytes(create.JSON, "content").ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "creator", "room_version", "predecessor", "additional_creators":
		default:
			p.CreationContent[k.Str] = json.RawMessage(v.Raw)
		}
		return true
	})
	impl, err := roomVersion(version)
	if err != nil {
		return p, err
	}
	predecessor := map[string]json.RawMessage{"room_id": quote(string(old.h.id))}
	if !impl.PrivilegedCreators() { // of no use since the room ID can't be forged
		predecessor["event_id"] = quote(string(old.last))
	}
	p.CreationContent["predecessor"] = object(predecessor)
	if len(extra) > 0 {
		ids, err := json.Marshal(extra)
		if err != nil {
			return p, fmt.Errorf("room: upgrade: %w", err)
		}
		p.CreationContent["additional_creators"] = ids
	}
	for _, typ := range upgradeTypes {
		if ev := old.state[typ]; ev != nil {
			p.InitialState = append(p.InitialState, StateInput{typ, "", ev.Content()})
		}
	}
	if impl.PrivilegedCreators() {
		return p, nil
	}
	users, err := json.Marshal(map[mxid.UserID]int64{user: max(highestLevel(old.state[typePowerLevels]), ownerLevel)})
	p.PowerOverride = object(map[string]json.RawMessage{"users": users})
	return p, err
}

// highestLevel is the highest number in a power levels event.
func highestLevel(ev *Event) int64 {
	if ev == nil {
		return 0
	}
	top := int64(0)
	var walk func(_, v gjson.Result) bool
	walk = func(_, v gjson.Result) bool {
		if v.IsObject() {
			v.ForEach(walk)
		} else if v.Type == gjson.Number {
			top = max(top, v.Int())
		}
		return true
	}
	gjson.GetBytes(ev.JSON, "content").ForEach(walk)
	return top
}

// successorPowers are the old room's power levels in terms of the new room's
// version, nil if it had none.
func successorPowers(old *source, p CreateParams) (json.RawMessage, error) {
	ev := old.state[typePowerLevels]
	if ev == nil {
		return nil, nil
	}
	var content map[string]json.RawMessage
	users := map[string]int64{}
	if err := json.Unmarshal(ev.Content(), &content); err != nil {
		return nil, corrupt("power levels event")
	}
	gjson.GetBytes(ev.JSON, "content.users").ForEach(func(k, v gjson.Result) bool {
		users[k.Str] = v.Int()
		return true
	})
	impl, err := roomVersion(p.Version)
	if err != nil {
		return nil, err
	}
	makers := creatorsOf(old.h, old.state[typeCreate])
	if impl.PrivilegedCreators() {
		extra, err := extraCreators(p)
		if err != nil {
			return nil, err
		}
		for _, id := range append(extra, string(p.Creator)) {
			delete(users, id)
		}
		raiseTombstone(content)
	} else {
		// Creators of the old room had power beyond its numbers.
		for _, id := range makers {
			users[id] = max(highestLevel(ev), ownerLevel)
		}
	}
	raw, err := json.Marshal(users)
	if err != nil {
		return nil, fmt.Errorf("room: upgrade: %w", err)
	}
	content["users"] = raw
	return object(content), nil
}

// creatorsOf are the creators of a room of version 12 and later, nil for
// earlier ones.
func creatorsOf(h *hot, create *Event) []string {
	if !h.impl.PrivilegedCreators() {
		return nil
	}
	ids := []string{string(create.Sender)}
	for _, id := range gjson.GetBytes(create.JSON, "content.additional_creators").Array() {
		ids = append(ids, id.Str)
	}
	return ids
}

// raiseTombstone sets the level for tombstones above state_default, as new
// rooms of version 12 have it.
func raiseTombstone(content map[string]json.RawMessage) {
	events := map[string]json.RawMessage{}
	_ = json.Unmarshal(content["events"], &events) // absent or malformed: none
	if gjson.ParseBytes(events[typeTombstone]).Int() < tombstoneLevel12 {
		events[typeTombstone] = json.RawMessage("150")
	}
	content["events"] = object(events)
}

// transferred are the bans and the children of a space.
func transferred(old *source, user mxid.UserID) []draft {
	var out []draft
	for _, ev := range old.space {
		out = append(out, stateDraft(user, ev.Type, *ev.StateKey, ev.Content()))
	}
	for _, ev := range old.bans {
		content := map[string]json.RawMessage{"membership": quote("ban")}
		if r := gjson.GetBytes(ev.JSON, "content.reason"); r.Type == gjson.String {
			content["reason"] = json.RawMessage(r.Raw)
		}
		out = append(out, stateDraft(user, typeMember, *ev.StateKey, object(content)))
	}
	return out
}

// moveAliases points the old room's local aliases, and its place in the
// directory, to the new room.
func (s *Service) moveAliases(ctx context.Context, from, to *hot) error {
	rows, err := s.aliasRows(ctx, from.rid)
	if err != nil {
		return err
	}
	type move struct {
		key  storage.Key
		hash [16]byte
		row  []byte
	}
	var moves []move
	for _, r := range rows {
		m := move{}
		m.key, m.hash = s.keyAlias(r.Alias)
		r.Room = to.rid
		if m.row, err = s.sealAlias(m.key, r); err != nil {
			return err
		}
		moves = append(moves, m)
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		for _, m := range moves {
			tx.Put(m.key, m.row)
			tx.Delete(keyRoomAlias(from.rid, m.hash))
			tx.Put(keyRoomAlias(to.rid, m.hash), nil)
		}
		return setListed(tx, from.rid, false, 0)
	})
}

// bury sends the tombstone and, if the user may, raises the levels of sending
// and inviting in the old room.
func (w *work) bury(user mxid.UserID, next mxid.RoomID) error {
	content := object(map[string]json.RawMessage{"body": quote("This room has been replaced"), "replacement_room": quote(string(next))})
	if _, err := w.send(stateDraft(user, typeTombstone, "", content)); err != nil {
		return err
	}
	// The canonical alias belongs to the new room now.
	if ev, err := w.get(w.sum.root, typeAlias, ""); err != nil {
		return err
	} else if ev != nil {
		if err := w.try(stateDraft(user, typeAlias, "", json.RawMessage("{}"))); err != nil {
			return err
		}
	}
	levels, err := w.get(w.sum.root, typePowerLevels, "")
	if err != nil || levels == nil {
		return err
	}
	var c map[string]json.RawMessage
	if err := json.Unmarshal(levels.Content(), &c); err != nil {
		return corrupt("power levels event")
	}
	quiet := max(50, gjson.ParseBytes(c["users_default"]).Int()+1)
	for _, name := range []string{"events_default", "invite"} {
		c[name] = json.RawMessage(fmt.Sprint(max(quiet, gjson.ParseBytes(c[name]).Int())))
	}
	return w.try(stateDraft(user, typePowerLevels, "", object(c)))
}

// try sends an event that the rules may refuse.
func (w *work) try(d draft) error {
	_, err := w.send(d)
	var hx *httpx.Error
	if errors.As(err, &hx) {
		return nil
	}
	return err
}
