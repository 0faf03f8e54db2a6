package room

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"golang.org/x/sync/errgroup"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
)

// Limits of createRoom. All events but the invites of users of other servers
// are committed in one transaction.
const (
	maxCreateInvites = 100
	maxInitialState  = 200
	maxParallelAsks  = 8 // invites to other servers at once
)

// preset is what a preset sets. spec: client-server API, "POST createRoom"
type preset struct{ joinRule, history, guests string }

var presets = map[string]preset{
	"private_chat":         {"invite", "shared", "can_join"},
	"trusted_private_chat": {"invite", "shared", "can_join"},
	"public_chat":          {"public", "shared", "forbidden"},
}

// Create makes a room. The room is there, whole, when it returns; only invites
// of users of other servers come after that.
func (s *Service) Create(ctx context.Context, p CreateParams) (mxid.RoomID, error) {
	if err := s.completeCreate(&p); err != nil {
		return "", err
	}
	var alias mxid.RoomAlias
	if p.AliasName != "" {
		alias = mxid.RoomAlias("#" + p.AliasName + ":" + string(s.cfg.ServerName))
		if err := s.aliasFree(ctx, alias); err != nil {
			return "", err
		}
	}
	drafts, err := s.createDrafts(p, alias)
	if err != nil {
		return "", err
	}
	if err := s.dropBlocked(ctx, &p); err != nil {
		return "", err
	}
	h, create, err := s.newRoom(ctx, p.Version, drafts[0])
	if err != nil {
		return "", err
	}
	if err := s.onRoom(ctx, h.rid, func(w *work) error { return w.populate(create, drafts[1:], p, alias) }); err != nil {
		return "", err
	}
	return h.id, s.inviteOthers(ctx, h.id, p)
}

// completeCreate checks the parameters and fills in the defaults.
func (s *Service) completeCreate(p *CreateParams) error {
	if p.Version == "" {
		p.Version = s.cfg.DefaultVersion
	}
	if _, err := roomVersion(p.Version); err != nil {
		return err
	}
	if p.Preset == "" {
		p.Preset = "private_chat"
		if p.Public {
			p.Preset = "public_chat"
		}
	}
	if _, ok := presets[p.Preset]; !ok {
		return httpx.InvalidParam("There is no such preset")
	}
	if len(p.Invite) > maxCreateInvites || len(p.InitialState) > maxInitialState {
		return httpx.TooLarge("Too many invites or state events for a new room")
	}
	for _, st := range p.InitialState {
		if err := checkType(st.Type, &st.StateKey); err != nil {
			return err
		}
		if st.Type == typeCreate || st.Type == typeMember {
			return httpx.InvalidParam("initial_state can't set members or the create event")
		}
	}
	if p.AliasName != "" {
		if _, err := mxid.ParseRoomAlias("#" + p.AliasName + ":" + string(s.cfg.ServerName)); err != nil {
			return httpx.InvalidParam("The room alias is not valid")
		}
	}
	return nil
}

// dropBlocked leaves out invites of local users who take none: the room is made
// without them.
func (s *Service) dropBlocked(ctx context.Context, p *CreateParams) error {
	var keep []mxid.UserID
	for _, u := range p.Invite {
		if u.Server() == s.cfg.ServerName {
			blocked, err := s.blocksInvites(ctx, u)
			if err != nil {
				return err
			}
			if blocked {
				continue
			}
		}
		keep = append(keep, u)
	}
	p.Invite = keep
	return nil
}

// createDrafts lists the events of a new room in the order of the
// specification, without invites.
func (s *Service) createDrafts(p CreateParams, alias mxid.RoomAlias) ([]draft, error) {
	create, err := createContent(p)
	if err != nil {
		return nil, err
	}
	levels, err := initialPowers(p)
	if err != nil {
		return nil, err
	}
	own := map[string]json.RawMessage{"membership": quote("join")}
	for k, v := range p.CreatorContent {
		own[k] = v
	}
	list := []StateInput{{typeCreate, "", create}, {typeMember, string(p.Creator), object(own)}, {typePowerLevels, "", levels}}
	if alias != "" {
		list = append(list, StateInput{typeAlias, "", object(map[string]json.RawMessage{"alias": quote(string(alias))})})
	}
	list = append(list, presetState(p)...)
	list = append(list, p.InitialState...)
	if p.Name != "" {
		list = append(list, StateInput{typeName, "", object(map[string]json.RawMessage{"name": quote(p.Name)})})
	}
	if p.Topic != "" {
		list = append(list, StateInput{typeTopic, "", topicContent(p.Topic)})
	}
	drafts := make([]draft, len(list))
	for i, st := range list {
		if err := checkContent(st.Content); err != nil {
			return nil, err
		}
		key := st.StateKey
		drafts[i] = draft{typ: st.Type, stateKey: &key, sender: p.Creator, content: st.Content}
	}
	return drafts, nil
}

// presetState is what the preset sets and initial_state doesn't. Guest access
// that is forbidden isn't said: that is what its absence means.
func presetState(p CreateParams) []StateInput {
	ps := presets[p.Preset]
	var out []StateInput
	for _, st := range []struct{ typ, field, value string }{
		{typeJoinRules, "join_rule", ps.joinRule},
		{typeHistory, "history_visibility", ps.history},
		{typeGuestAccess, "guest_access", ps.guests},
	} {
		given := slices.ContainsFunc(p.InitialState, func(i StateInput) bool { return i.Type == st.typ && i.StateKey == "" })
		if !given && st.value != "forbidden" {
			out = append(out, StateInput{st.typ, "", object(map[string]json.RawMessage{st.field: quote(st.value)})})
		}
	}
	return out
}

// topicContent has the topic in both forms.
// spec: client-server API, "m.room.topic", m.topic
func topicContent(topic string) json.RawMessage {
	body := object(map[string]json.RawMessage{"body": quote(topic), "mimetype": quote("text/plain")})
	rich := append(append([]byte(`{"m.text":[`), body...), `]}`...)
	return object(map[string]json.RawMessage{"topic": quote(topic), "m.topic": rich})
}

// object writes a JSON object of values that are JSON already.
func object(m map[string]json.RawMessage) json.RawMessage {
	b, err := json.Marshal(m)
	if err != nil {
		return json.RawMessage(`null`) // refused by checkContent
	}
	return b
}

func createContent(p CreateParams) (json.RawMessage, error) {
	c := map[string]json.RawMessage{}
	for k, v := range p.CreationContent {
		c[k] = v
	}
	impl, err := roomVersion(p.Version)
	if err != nil {
		return nil, err
	}
	delete(c, "creator")
	if impl.CreatorInCreateEvent() {
		c["creator"] = quote(string(p.Creator))
	}
	c["room_version"] = quote(p.Version)
	if !impl.PrivilegedCreators() {
		return object(c), nil
	}
	extra, err := extraCreators(p)
	if err != nil {
		return nil, err
	}
	delete(c, "additional_creators")
	if len(extra) > 0 {
		if c["additional_creators"], err = json.Marshal(extra); err != nil {
			return nil, fmt.Errorf("room: create: %w", err)
		}
	}
	return object(c), nil
}

// extraCreators are the additional creators: those that were asked for, and
// with trusted_private_chat everybody invited.
func extraCreators(p CreateParams) ([]string, error) {
	var ids []string
	if raw := p.CreationContent["additional_creators"]; raw != nil {
		if err := json.Unmarshal(raw, &ids); err != nil {
			return nil, httpx.InvalidParam("additional_creators is not a list of user IDs")
		}
	}
	if p.Preset == "trusted_private_chat" {
		for _, u := range p.Invite {
			ids = append(ids, string(u))
		}
	}
	var out []string
	for _, id := range ids {
		if _, err := mxid.ParseUserID(id); err != nil {
			return nil, httpx.InvalidParam("additional_creators has something that is not a user ID")
		}
		if id != string(p.Creator) && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out, nil
}

// Levels of a new room. spec: client-server API, "POST createRoom",
// "m.room.power_levels"; room version 12: tombstones need more than
// state_default.
const (
	ownerLevel       = 100
	tombstoneLevel12 = 150
)

func initialPowers(p CreateParams) (json.RawMessage, error) {
	impl, err := roomVersion(p.Version)
	if err != nil {
		return nil, err
	}
	users := map[string]int64{}
	tombstone := int64(ownerLevel)
	if impl.PrivilegedCreators() {
		tombstone = tombstoneLevel12
	} else {
		users[string(p.Creator)] = ownerLevel
		if p.Preset == "trusted_private_chat" {
			for _, u := range p.Invite {
				users[string(u)] = ownerLevel
			}
		}
	}
	levels := map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": 0,
		"events": map[string]int64{
			typeName: 50, typeAvatar: 50, typeAlias: 50, typePowerLevels: 100, typeHistory: 100,
			typeTombstone: tombstone, typeServerACL: 100, typeEncryption: 100,
			// Who may write may be in a call.
			"org.matrix.msc3401.call.member": 0, "m.call.member": 0,
			"org.matrix.msc4143.rtc.member": 0, "m.rtc.member": 0,
		},
	}
	if p.Preset == "public_chat" {
		levels["invite"] = 50
	}
	content, err := json.Marshal(levels)
	if err != nil || len(p.PowerOverride) == 0 {
		return content, err
	}
	var merged, over map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(content, &merged), json.Unmarshal(p.PowerOverride, &over)); err != nil {
		return nil, httpx.BadJSON("power_level_content_override is not an object")
	}
	for k, v := range over {
		merged[k] = v
	}
	return object(merged), nil
}

// newRoom builds the create event, which from room version 12 on gives the
// room its ID, and numbers the room.
func (s *Service) newRoom(ctx context.Context, version string, d draft) (*hot, gomatrixserverlib.PDU, error) {
	impl, err := roomVersion(version)
	if err != nil {
		return nil, nil, err
	}
	var id mxid.RoomID
	if !impl.DomainlessRoomIDs() {
		opaque, err := randomID()
		if err != nil {
			return nil, nil, err
		}
		id = mxid.RoomID("!" + opaque + ":" + string(s.cfg.ServerName))
	}
	pdu, err := eventform.Build(&gomatrixserverlib.ProtoEvent{
		SenderID: string(d.sender), RoomID: string(id), Type: d.typ, StateKey: d.stateKey,
		Content: spec.RawJSON(d.content), Version: impl, Depth: 1, PrevEvents: []string{}, AuthEvents: []string{},
	}, s.createTime(), s.cfg.Signer)
	if err != nil {
		return nil, nil, buildError(err)
	}
	if id == "" {
		id = mxid.RoomID("!" + pdu.EventID()[1:])
	}
	rid, err := s.cfg.Intern.Room(ctx, id, version)
	if err != nil {
		return nil, nil, fmt.Errorf("room: number a room: %w", err)
	}
	h, err := s.room(ctx, rid)
	return h, pdu, err
}

// createTime is the time of a create event. No two are the same: from room
// version 12 on the room ID is a hash of the create event, and a user who makes
// two rooms at once would make one.
func (s *Service) createTime() int64 {
	now := s.cfg.Clock.Now().UnixMilli()
	for {
		last := s.lastCreate.Load()
		if now <= last {
			now = last + 1
		}
		if s.lastCreate.CompareAndSwap(last, now) {
			return now
		}
	}
}

// randomID is the opaque part of a room ID up to version 11.
func randomID() (string, error) {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 18)
	for i := range b {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return "", fmt.Errorf("room: random room ID: %w", err)
		}
		b[i] = letters[n.Int64()]
	}
	return string(b), nil
}

// populate stages all that a new room begins with.
func (w *work) populate(create gomatrixserverlib.PDU, drafts []draft, p CreateParams, alias mxid.RoomAlias) error {
	if !w.sum.root.IsEmpty() {
		return httpx.Err(400, "M_ROOM_IN_USE", "The room exists already")
	}
	if err := w.checkAt(create, w.sum.root); err != nil {
		return createRefused(err)
	}
	if _, err := w.addLive(create, w.sum.root, FlagLocal, ""); err != nil {
		return err
	}
	for _, d := range drafts {
		if _, err := w.send(d); err != nil {
			return createRefused(err)
		}
	}
	for _, u := range p.Invite {
		if u.Server() != w.svc.cfg.ServerName || u == p.Creator {
			continue
		}
		d, err := memberDraft(inviteParams(w.h.id, p, u), Invite)
		if err != nil {
			return err
		}
		if _, err := w.send(d); err != nil {
			return createRefused(err)
		}
	}
	if alias != "" {
		if err := w.stageAlias(alias, p.Creator); err != nil {
			return err
		}
	}
	if p.Public {
		w.stageVisibility(true)
	}
	return nil
}

// createRefused: what the client asked for can't be the state of a room.
func createRefused(err error) error {
	var hx *httpx.Error
	if errors.As(forbidden(err), &hx) && hx.Status == 403 {
		return httpx.Err(400, "M_INVALID_ROOM_STATE", "The power levels don't allow the rest of the room's state")
	}
	return err
}

func inviteParams(room mxid.RoomID, p CreateParams, target mxid.UserID) MembershipParams {
	c := map[string]json.RawMessage{}
	for k, v := range p.InviteContent[target] {
		c[k] = v
	}
	if p.IsDirect {
		c["is_direct"] = json.RawMessage("true")
	}
	return MembershipParams{Room: room, Sender: p.Creator, Target: target, Content: c}
}

// inviteOthers invites the users of other servers to a new room. The room
// stays when a server can't be reached; only when nobody could be invited does
// the creator get the error.
func (s *Service) inviteOthers(ctx context.Context, room mxid.RoomID, p CreateParams) error {
	var others []mxid.UserID
	for _, u := range p.Invite {
		if u.Server() != s.cfg.ServerName {
			others = append(others, u)
		}
	}
	errs := make([]error, len(others))
	var g errgroup.Group
	g.SetLimit(maxParallelAsks)
	for i, u := range others {
		g.Go(func() error {
			if errs[i] = s.Invite(ctx, inviteParams(room, p, u)); errs[i] != nil {
				s.cfg.Log.Info("an invite to a new room failed", "server", string(u.Server()), "error", errs[i])
			}
			return nil
		})
	}
	_ = g.Wait() // never fails: errs has the failures
	if len(others) > 0 && len(others) == len(p.Invite) && !slices.Contains(errs, nil) {
		return errs[0]
	}
	return nil
}
