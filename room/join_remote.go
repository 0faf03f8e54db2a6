package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/room/authrules"
	"parley/room/eventform"
	"parley/storage/intern"
)

// This file lets local users into rooms through other servers.
// spec: server-server API, "Joining Rooms"

// maxTried is how many servers are tried for one join, leave or knock.
const maxTried = 10

// locks are locks by room. The zero value is ready. Safe for concurrent use.
type locks struct {
	mu sync.Mutex
	m  map[mxid.RoomID]chan struct{} // closed when it is free again
}

// lock waits for a room's lock or the end of ctx.
func (l *locks) lock(ctx context.Context, room mxid.RoomID) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy := l.m[room]
		if busy == nil {
			free := make(chan struct{})
			if l.m == nil {
				l.m = map[mxid.RoomID]chan struct{}{}
			}
			l.m[room] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.m, room)
				l.mu.Unlock()
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// busy is closed when whoever has a room's lock gives it back; nil if nobody
// has it.
func (l *locks) busy(room mxid.RoomID) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[room]
}

// maxAwaitJoin is how long an event waits for a join to be finished.
const maxAwaitJoin = 30 * time.Second

// awaitJoin waits until the join of this server to a room that is under way, if
// there is one, has ended: those who are in the room send their events before
// we know its state. The error is for the sender, to come again later.
func (s *Service) awaitJoin(ctx context.Context, room mxid.RoomID) error {
	busy := s.joining.busy(room)
	if busy == nil {
		return nil
	}
	over := make(chan struct{})
	stop := s.cfg.Clock.AfterFunc(maxAwaitJoin, func() { close(over) })
	defer stop()
	select {
	case <-busy:
		return nil
	case <-over:
		return httpx.Unavailable()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joinRemote joins a room through other servers, one after another until one
// lets the user in. Only one join a room is under way at a time: whoever
// waited for it then joins locally.
func (s *Service) joinRemote(ctx context.Context, p MembershipParams) error {
	unlock, err := s.joining.lock(ctx, p.Room)
	if err != nil {
		return err
	}
	defer unlock()
	ours, err := s.joinLocally(ctx, p)
	if err == nil || !errors.Is(err, errJoinElsewhere) {
		return err
	}
	via, err := s.viaServers(ctx, p)
	if err != nil {
		return err
	}
	if len(via) == 0 {
		return httpx.NotFound("No server is known through which to join that room")
	}
	var failed error
	for _, to := range via {
		err := s.joinVia(ctx, to, p, ours)
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Info("joining through a server failed", "server", string(to), "error", err)
		failed = worse(failed, err)
	}
	return failed
}

// joinLocally joins if this server has come into the room meanwhile and can
// let the user in; errJoinElsewhere otherwise. ours says that it is in the
// room.
func (s *Service) joinLocally(ctx context.Context, p MembershipParams) (ours bool, err error) {
	h, err := s.ourRoom(ctx, p.Room)
	if errors.Is(err, errNotMember) {
		return false, errJoinElsewhere
	}
	if err != nil {
		return false, err
	}
	d, err := memberDraft(p, Join)
	if err != nil {
		return true, err
	}
	return true, s.onRoom(ctx, h.rid, func(w *work) error {
		if len(w.local) == 0 {
			return errJoinElsewhere
		}
		return w.join(d)
	})
}

// worse chooses what a client hears when several servers failed: the first
// plain refusal, else the first answer, else that nobody could be reached.
func worse(had, now error) error {
	rank := func(err error) int {
		var hx *httpx.Error
		switch {
		case err == nil:
			return 0
		case !errors.As(err, &hx) || hx.Status >= 500:
			return 1
		case hx.Status == http.StatusForbidden:
			return 3
		}
		return 2
	}
	if rank(now) > rank(had) {
		return now
	}
	return had
}

// viaServers are the servers to ask: those that the client named and the
// sender of an invite. Without any it is those that are in the room as far as
// is known, and the one in the room's ID.
func (s *Service) viaServers(ctx context.Context, p MembershipParams) ([]mxid.ServerName, error) {
	list := slices.Clone(p.Via)
	rid, known, err := s.cfg.Intern.LookupRoom(ctx, p.Room)
	if err != nil {
		return nil, err
	}
	var row strippedRow
	if known {
		if row, err = s.invitation(ctx, rid, p.Sender); err != nil {
			return nil, err
		}
		list = append(list, row.Sender.Server())
	}
	if list = s.othersOf(list); len(list) > 0 {
		return list, nil
	}
	for _, ev := range row.Stripped {
		list = append(list, mxid.UserID(gjson.GetBytes(ev, "sender").Str).Server())
	}
	if known {
		in, err := s.JoinedServers(ctx, rid)
		if err != nil {
			return nil, err
		}
		list = append(list, in...)
	}
	return s.othersOf(append(list, p.Room.Server())), nil
}

// othersOf are the valid names of other servers in a list, each once.
func (s *Service) othersOf(list []mxid.ServerName) []mxid.ServerName {
	var out []mxid.ServerName
	for _, name := range list {
		if name != s.cfg.ServerName && mxid.ValidServerName(string(name)) && !slices.Contains(out, name) && len(out) < maxTried {
			out = append(out, name)
		}
	}
	return out
}

// invitation is what is known of a user's invite or knock from outside the
// room, the zero value if nothing.
func (s *Service) invitation(ctx context.Context, rid intern.RID, user mxid.UserID) (strippedRow, error) {
	uid, ok, err := s.cfg.Intern.LookupUser(ctx, user)
	if err != nil || !ok {
		return strippedRow{}, err
	}
	return s.readStripped(ctx, uid, rid)
}

// joinVia joins through one server. ours: this server is in the room and only
// lacks somebody who may let the user in.
func (s *Service) joinVia(ctx context.Context, to mxid.ServerName, p MembershipParams, ours bool) error {
	made, err := s.cfg.Remote.MakeJoin(ctx, to, p.Room, p.Sender, Versions())
	if err != nil {
		return remoteError(err, "The other server could not be reached")
	}
	ev, err := s.fromTemplate(p, Join, made)
	if err != nil {
		return err
	}
	answer, err := s.cfg.Remote.SendJoin(ctx, to, ev.JSON(), p.Room, mxid.EventID(ev.EventID()))
	if err != nil {
		return remoteError(err, "The other server could not be reached")
	}
	join, err := s.signedJoin(ctx, ev, answer)
	if err != nil {
		return err
	}
	if ours {
		return s.joinOurs(ctx, to, p.Room, join)
	}
	return s.takeOver(ctx, p.Room, string(ev.Version()), join, answer)
}

// template is what is taken from another server's template of a member event.
type template struct {
	prev, auth []string
	depth      int64
	via        string // join_authorised_via_users_server
}

// fromTemplate makes our user's member event on the place in the graph that a
// template names. Nothing of the template is signed but the references, the
// depth, and who authorises a restricted join.
func (s *Service) fromTemplate(p MembershipParams, m Membership, made MakeResult) (gomatrixserverlib.PDU, error) {
	impl, err := roomVersion(made.Version)
	if err != nil {
		return nil, err
	}
	t, err := s.readTemplate(made, p.Room, p.Sender, m)
	if err != nil {
		return nil, err
	}
	content, err := memberContent(p, m)
	if err == nil && t.via != "" {
		content, err = setMember(content, "join_authorised_via_users_server", t.via)
	}
	if err != nil {
		return nil, err
	}
	target := string(p.Sender)
	ev, err := eventform.Build(&gomatrixserverlib.ProtoEvent{
		SenderID: target, RoomID: string(p.Room), Type: typeMember, StateKey: &target, Version: impl,
		PrevEvents: t.prev, AuthEvents: t.auth, Depth: t.depth, Content: spec.RawJSON(content),
	}, s.cfg.Clock.Now().UnixMilli(), s.cfg.Signer)
	if err != nil {
		return nil, buildError(err)
	}
	return ev, nil
}

// readTemplate checks that a template is of the event that was asked for.
func (s *Service) readTemplate(made MakeResult, room mxid.RoomID, user mxid.UserID, m Membership) (template, error) {
	if jsonx.Check(made.Event, jsonx.Event) != nil || isHashed(made.Version) != (room.Server() == "") {
		return template{}, errRemoteAnswer
	}
	ev := gjson.ParseBytes(made.Event)
	for path, want := range map[string]string{
		"type": typeMember, "room_id": string(room), "sender": string(user), "state_key": string(user), "content.membership": m.String(),
	} {
		if v := ev.Get(path); v.Type != gjson.String || v.Str != want {
			return template{}, errRemoteAnswer
		}
	}
	refs, err := eventform.References(made.Version, ev.Get("prev_events"), ev.Get("auth_events"))
	if err != nil || len(refs.Prev) == 0 {
		return template{}, errRemoteAnswer
	}
	t := template{prev: refs.Prev, auth: refs.Auth, depth: min(max(ev.Get("depth").Int(), 1), maxDepth)}
	via := ev.Get("content.join_authorised_via_users_server")
	if m != Join || !via.Exists() {
		return t, nil
	}
	id, err := mxid.ParseUserID(via.String())
	if err != nil || id.Server() == s.cfg.ServerName {
		return template{}, errRemoteAnswer // our signature must not count as theirs
	}
	t.via = string(id)
	return t, nil
}

// signedJoin is our join, with the signature of the server that authorised it
// if that was needed.
func (s *Service) signedJoin(ctx context.Context, ev gomatrixserverlib.PDU, answer SendJoinResult) (gomatrixserverlib.PDU, error) {
	if !gjson.GetBytes(ev.Content(), "join_authorised_via_users_server").Exists() {
		return ev, nil
	}
	f, err := eventform.Parse(string(ev.Version()), answer.Event)
	if err != nil || f.ID != mxid.EventID(ev.EventID()) || f.Redacted {
		return nil, errRemoteAnswer
	}
	if eventform.Verify(ctx, s.cfg.Verifier, []*eventform.Form{f})[0] != nil {
		return nil, errRemoteAnswer
	}
	return f.PDU()
}

// joinOurs takes a join into a room that this server is in: another server
// only authorised it.
func (s *Service) joinOurs(ctx context.Context, from mxid.ServerName, room mxid.RoomID, join gomatrixserverlib.PDU) error {
	h, err := s.ourRoom(ctx, room)
	if err != nil {
		return err
	}
	ev, err := s.receiveFrom(ctx, h, from, join)
	if err == nil && ev.Flags&hidden != 0 {
		err = httpx.Forbidden("The room does not allow that event")
	}
	return err
}

// takeOver checks the state that came with a join and makes it the room's.
func (s *Service) takeOver(ctx context.Context, room mxid.RoomID, version string, join gomatrixserverlib.PDU, answer SendJoinResult) error {
	state := s.verifyAll(ctx, room, version, answer.State)
	chain := s.verifyAll(ctx, room, version, answer.AuthChain)
	if err := s.checkJoinState(ctx, version, join, state); err != nil {
		return err
	}
	h, err := s.outsideRoom(ctx, room, version)
	if err != nil {
		return err
	}
	pdus, err := inAuthOrder(append(chain, state...))
	if err != nil {
		return err
	}
	nums, err := s.outliers(ctx, h, pdus)
	if err != nil {
		return fmt.Errorf("room: store the state of a joined room: %w", err)
	}
	byID := make(map[mxid.EventID]Num, len(nums))
	for i, n := range nums {
		byID[mxid.EventID(pdus[i].EventID())] = n
	}
	var at []Num
	for _, f := range state {
		if n := byID[f.ID]; n != 0 {
			at = append(at, n)
		}
	}
	_, err = s.installState(ctx, h, at, join)
	if errors.Is(err, errRejoined) {
		_, err = s.receiveFrom(ctx, h, mxid.UserID(join.SenderID()).Server(), join)
	}
	if err == nil {
		s.metEverybody(ctx, h.rid)
	}
	return err
}

// checkJoinState checks that a state is one of this room, and lets the join
// in.
func (s *Service) checkJoinState(ctx context.Context, version string, join gomatrixserverlib.PDU, state []*eventform.Form) error {
	pdus := make([]gomatrixserverlib.PDU, 0, len(state))
	made := ""
	for _, f := range state {
		if f.StateKey == nil {
			continue
		}
		if f.Is(typeCreate, "") {
			if made = f.Content("room_version").Str; made == "" {
				made = "1"
			}
		}
		pdu, err := f.PDU()
		if err == nil {
			pdus = append(pdus, pdu)
		}
	}
	if made != version {
		s.cfg.Log.Info("the state that came with a join lacks the create event or has another version")
		return errRemoteAnswer
	}
	err := authrules.Allowed(ctx, join, authrules.StateOf(pdus))
	if authrules.IsNotAllowed(err) {
		s.cfg.Log.Info("the state that came with a join does not allow it", "reason", err)
		return errRemoteAnswer
	}
	return err
}

// inAuthOrder puts events behind their auth events and drops repetitions.
// Those on a cycle, which only room versions 1 and 2 could have, are dropped.
func inAuthOrder(forms []*eventform.Form) ([]gomatrixserverlib.PDU, error) {
	byID := make(map[mxid.EventID]*eventform.Form, len(forms))
	for _, f := range forms {
		byID[f.ID] = f
	}
	waits := map[mxid.EventID]int{}                              // auth events still to come
	named := make(map[mxid.EventID][]*eventform.Form, len(byID)) // auth event -> who names it
	var ready []*eventform.Form
	for _, f := range forms {
		if byID[f.ID] != f {
			continue // a repetition
		}
		for _, a := range f.Auth {
			if byID[a] != nil && a != f.ID {
				waits[f.ID]++
				named[a] = append(named[a], f)
			}
		}
		if create := createOf(f); byID[create] != nil && create != f.ID {
			waits[f.ID]++
			named[create] = append(named[create], f)
		}
		if waits[f.ID] == 0 {
			ready = append(ready, f)
		}
	}
	out := make([]gomatrixserverlib.PDU, 0, len(byID))
	for i := 0; i < len(ready); i++ {
		if pdu, err := ready[i].PDU(); err == nil {
			out = append(out, pdu)
		}
		for _, f := range named[ready[i].ID] {
			if waits[f.ID]--; waits[f.ID] == 0 {
				ready = append(ready, f)
			}
		}
	}
	return out, nil
}

// createOf is the create event that a version 12 event depends on without
// naming it, "" in older versions.
func createOf(f *eventform.Form) mxid.EventID {
	if f.Room.Server() != "" {
		return ""
	}
	return mxid.EventID("$" + string(f.Room[1:]))
}

// verifyAll returns the events of a room whose form and signatures are good.
func (s *Service) verifyAll(ctx context.Context, room mxid.RoomID, version string, raws []json.RawMessage) []*eventform.Form {
	forms := parseAll(room, version, raws)
	const chunk = 64
	ok := make([]bool, len(forms))
	var wg sync.WaitGroup
	slots := make(chan struct{}, verifyWorkers)
	for from := 0; from < len(forms); from += chunk {
		to := min(from+chunk, len(forms))
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer func() { <-slots; wg.Done() }()
			for i, err := range eventform.Verify(ctx, s.cfg.Verifier, forms[from:to]) {
				ok[from+i] = err == nil
			}
		}()
	}
	wg.Wait()
	good := forms[:0]
	for i, f := range forms {
		if ok[i] {
			good = append(good, f)
		}
	}
	if bad := len(raws) - len(good); bad > 0 {
		s.cfg.Log.Info("dropped events that are malformed or not signed", "events", bad, "of", len(raws))
	}
	return good
}

// verifyWorkers is how many signatures are checked at once for one request.
const verifyWorkers = 4

// parseAll returns the events that are well formed and of the room, without
// repetitions.
func parseAll(room mxid.RoomID, version string, raws []json.RawMessage) []*eventform.Form {
	parsed := make([]*eventform.Form, len(raws))
	var wg sync.WaitGroup
	for k := range verifyWorkers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := k; i < len(raws); i += verifyWorkers {
				if f, err := eventform.Parse(version, raws[i]); err == nil && f.Room == room {
					parsed[i] = f
				}
			}
		}()
	}
	wg.Wait()
	seen := make(map[mxid.EventID]bool, len(raws))
	out := parsed[:0]
	for _, f := range parsed {
		if f != nil && !seen[f.ID] {
			seen[f.ID] = true
			out = append(out, f)
		}
	}
	return out
}
