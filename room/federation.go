package room

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// Answers to other servers. Every method checks that the asking server may
// know what it asks for: it has a joined user in the room (or the event's
// history visibility lets it see the event), and the room's server ACL lets it
// in. Errors are *httpx.Error.
// spec: server-server API

var (
	errACL          = httpx.Forbidden("Your server is not allowed in this room")
	errServerOut    = httpx.Forbidden("Your server is not in this room")
	errNoRoomHere   = httpx.NotFound("This server is not in that room")
	errEventUnknown = httpx.NotFound("Event not found")
)

// peer is another server that asks about a room, at one moment of the room.
type peer struct {
	ctx  context.Context
	s    *Service
	h    *hot
	sn   *snapshot
	name mxid.ServerName
	sid  intern.SID // 0: nobody of it was ever seen
	// former: the server isn't in the room now. It may have what happened
	// while it was, so that it can learn how it came to be put out.
	former bool
}

// guest checks that this server is in the room and that the room's ACL lets
// the other one in, which need not be in the room.
func (s *Service) guest(ctx context.Context, origin mxid.ServerName, room mxid.RoomID) (*peer, error) {
	h, sn, err := s.known(ctx, room)
	var hx *httpx.Error
	if errors.As(err, &hx) || err == nil && len(sn.local) == 0 {
		return nil, errNoRoomHere
	}
	if err != nil {
		return nil, err
	}
	ok, err := s.serverAllowed(ctx, h, sn, origin)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errACL
	}
	sid, _, err := s.cfg.Intern.LookupServer(ctx, origin)
	return &peer{ctx: ctx, s: s, h: h, sn: sn, name: origin, sid: sid}, err
}

// asker is guest for servers that are or were in the room.
func (s *Service) asker(ctx context.Context, origin mxid.ServerName, room mxid.RoomID) (*peer, error) {
	p, err := s.guest(ctx, origin, room)
	if err != nil {
		return nil, err
	}
	p.former = !p.sn.hasServer(p.sid)
	if p.former && p.sid == 0 {
		return nil, errServerOut
	}
	return p, nil
}

// memberServer is guest for servers that must be in the room.
func (s *Service) memberServer(ctx context.Context, origin mxid.ServerName, room mxid.RoomID) (*peer, error) {
	p, err := s.asker(ctx, origin, room)
	if err == nil && p.former {
		err = errServerOut
	}
	return p, err
}

// admits reports whether the server may know of an event at all.
func (p *peer) admits(ev *Event) (bool, error) {
	if !p.former {
		return true, nil
	}
	if ev.Flags&FlagOutlier != 0 {
		return false, nil
	}
	joined, err := p.h.tree.Get(p.ctx, ev.meta.before, serverKey(p.sid))
	return joined > 0, err
}

// event is a stored event of the room that isn't rejected and that the server
// may know of.
func (p *peer) event(id mxid.EventID) (*Event, error) {
	ev, err := p.s.LoadID(p.ctx, p.h.rid, id)
	if errors.Is(err, storage.ErrNotFound) || err == nil && ev.Flags&FlagRejected != 0 {
		err = errEventUnknown
	}
	if err != nil {
		return nil, err
	}
	ok, err := p.admits(ev)
	if err == nil && !ok {
		err = errServerOut
	}
	return ev, err
}

// maySee judges whether the history visibility lets the server have an event
// whole. spec: server-server API, "Backfilling and retrieving missing events";
// client-server API, "Room history visibility"
func (p *peer) maySee(ev *Event) (bool, error) {
	if ev.Sender.Server() == p.name {
		return true, nil
	}
	if ev.Flags&FlagOutlier != 0 {
		return false, nil // its time isn't known
	}
	for _, root := range []statetree.Root{ev.meta.before, ev.meta.after} {
		ok, err := p.maySeeAt(root)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (p *peer) maySeeAt(root statetree.Root) (bool, error) {
	vis, err := p.s.stateEvent(p.ctx, p.h, root, typeHistory, "")
	if err != nil {
		return false, err
	}
	at := historyShared
	if vis != nil {
		at = parseVisibility(gjson.GetBytes(vis.JSON, "content.history_visibility").Str)
	}
	if at == historyShared || at == historyWorld {
		return true, nil
	}
	joined, err := p.h.tree.Get(p.ctx, root, serverKey(p.sid))
	if err != nil || joined > 0 {
		return err == nil, err
	}
	if at != historyInvited {
		return false, nil
	}
	return p.invitedAt(root)
}

// invitedAt looks for an invited user of the server in a state: rarely needed,
// so it walks the state.
func (p *peer) invitedAt(root statetree.Root) (bool, error) {
	evs, err := p.s.stateEvents(p.ctx, p.h, root)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(evs, func(ev *Event) bool {
		return ev.membership() == Invite && mxid.UserID(*ev.StateKey).Server() == p.name
	}), nil
}

// show is the event as the server may have it: redacted if it may not see the
// content.
func (p *peer) show(ev *Event) (json.RawMessage, error) {
	ok, err := p.maySee(ev)
	if err != nil {
		return nil, err
	}
	if ok || ev.Flags&FlagRedacted != 0 {
		return ev.JSON, nil
	}
	return eventform.Redact(p.h.version, ev.JSON)
}

// showAll shows those events that the server may know of. One that isn't in
// the room and may know of none is told so.
func (p *peer) showAll(evs []*Event) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(evs))
	for _, ev := range evs {
		ok, err := p.admits(ev)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		js, err := p.show(ev)
		if err != nil {
			return nil, err
		}
		out = append(out, js)
	}
	if p.former && len(out) == 0 {
		return nil, errServerOut
	}
	return out, nil
}

// rawAll are the events as they are: state may be had whole.
func rawAll(evs []*Event) []json.RawMessage {
	out := make([]json.RawMessage, len(evs))
	for i, ev := range evs {
		out[i] = ev.JSON
	}
	return out
}

// chainChunk is how many events of an auth chain are read at a time.
const chainChunk = 500

// authChain returns the auth events of some events, theirs, and so on, in
// order of number: whoever is named stands before whoever names it.
func (s *Service) authChain(ctx context.Context, h *hot, of []*Event) ([]*Event, error) {
	seen := map[Num]bool{}
	var todo []Num
	add := func(evs []*Event) {
		for _, ev := range evs {
			for _, a := range ev.meta.auth {
				if !seen[a] {
					seen[a] = true
					todo = append(todo, a)
				}
			}
		}
	}
	add(of)
	var chain []*Event
	for len(todo) > 0 {
		part := todo[:min(len(todo), chainChunk)]
		todo = todo[len(part):]
		evs, err := s.presentEvents(ctx, h, part)
		if err != nil {
			return nil, err
		}
		chain = append(chain, evs...)
		add(evs)
	}
	slices.SortFunc(chain, func(a, b *Event) int { return int(int64(a.Num) - int64(b.Num)) })
	return chain, nil
}

// stateAt is the state before an event, with its auth chain.
func (p *peer) stateAt(id mxid.EventID) (state, auth []*Event, err error) {
	ev, err := p.event(id)
	if err != nil {
		return nil, nil, err
	}
	if ev.Flags&FlagOutlier != 0 {
		return nil, nil, httpx.NotFound("The state at that event is not known")
	}
	if state, err = p.s.stateEvents(p.ctx, p.h, ev.meta.before); err != nil {
		return nil, nil, err
	}
	auth, err = p.s.authChain(p.ctx, p.h, state)
	return state, auth, err
}

// HandleState is spec "GET /_matrix/federation/v1/state/{roomId}".
func (s *Service) HandleState(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) (state, auth []json.RawMessage, err error) {
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, nil, err
	}
	st, au, err := p.stateAt(id)
	return rawAll(st), rawAll(au), err
}

// HandleStateIDs is spec "GET /_matrix/federation/v1/state_ids/{roomId}".
func (s *Service) HandleStateIDs(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) (state, auth []mxid.EventID, err error) {
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, nil, err
	}
	st, au, err := p.stateAt(id)
	return eventIDs(st), eventIDs(au), err
}

func eventIDs(evs []*Event) []mxid.EventID {
	out := make([]mxid.EventID, len(evs))
	for i, ev := range evs {
		out[i] = ev.ID
	}
	return out
}

// HandleEvent is spec "GET /_matrix/federation/v1/event/{eventId}".
func (s *Service) HandleEvent(ctx context.Context, origin mxid.ServerName, id mxid.EventID) (json.RawMessage, error) {
	rid, ok, err := s.roomOf(ctx, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errEventUnknown
	}
	room, _, err := s.cfg.Intern.RoomID(ctx, rid)
	if err != nil {
		return nil, err
	}
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, hideRoom(err)
	}
	ev, err := p.event(id)
	if err != nil {
		return nil, err
	}
	if ev.Flags&FlagOutlier != 0 && ev.IsState() {
		return ev.JSON, nil // state and auth events may be had whole
	}
	return p.show(ev)
}

// hideRoom gives the same answer for an event in a room that the server isn't
// in as for one that doesn't exist.
func hideRoom(err error) error {
	var hx *httpx.Error
	if errors.As(err, &hx) && (hx.Status == http.StatusForbidden || hx.Status == http.StatusNotFound) {
		return errEventUnknown
	}
	return err
}

// HandleEventAuth is spec "GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}".
func (s *Service) HandleEventAuth(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, id mxid.EventID) ([]json.RawMessage, error) {
	p, err := s.asker(ctx, origin, room)
	if err != nil {
		return nil, err
	}
	ev, err := p.event(id)
	if err != nil {
		return nil, err
	}
	chain, err := s.authChain(ctx, p.h, []*Event{ev})
	return rawAll(chain), err
}
