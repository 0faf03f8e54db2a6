package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/storage"
)

// contentLimits are those of a client's event content. The size of the whole
// event is checked when it is built.
var contentLimits = jsonx.Limits{MaxBytes: jsonx.MaxEventBytes, MaxDepth: 100, MaxKeys: 16384, Object: true}

// checkContent refuses content that can't be part of an event.
func checkContent(content json.RawMessage) error {
	err := jsonx.Check(content, contentLimits)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jsonx.ErrTooLarge):
		return httpx.TooLarge("The event is too large")
	case jsonx.Malformed(err):
		return httpx.NotJSON("The content is not JSON")
	}
	return httpx.BadJSON("The content is not an object that an event can have")
}

func checkType(typ string, key *string) error {
	if typ == "" || !utf8.ValidString(typ) || (key != nil && !utf8.ValidString(*key)) {
		return httpx.InvalidParam("The event type is not valid")
	}
	if len(typ) > maxFieldBytes || (key != nil && len(*key) > maxFieldBytes) {
		return httpx.TooLarge("The event type or state key is too long")
	}
	return nil
}

// Send sends one event and returns its ID once it is durable. Invites of users
// of other servers take the way of Invite.
func (s *Service) Send(ctx context.Context, p SendParams) (mxid.EventID, error) {
	if err := checkType(p.Type, p.StateKey); err != nil {
		return "", err
	}
	if len(p.Content) == 0 {
		p.Content = json.RawMessage("{}")
	}
	if err := checkContent(p.Content); err != nil {
		return "", err
	}
	if p.Type == typeCreate {
		return "", httpx.InvalidParam("A room has one create event")
	}
	h, err := s.ourRoom(ctx, p.Room)
	if err != nil {
		return "", err
	}
	if err := stickable(h.version, p.Sticky); err != nil {
		return "", err
	}
	if p.Type == typeMember && p.StateKey != nil {
		return s.sendMember(ctx, h, p)
	}
	if p.StateKey != nil {
		if err := s.checkState(ctx, h, p); err != nil {
			return "", err
		}
	}
	d := draft{typ: p.Type, stateKey: p.StateKey, sender: p.Sender, content: p.Content, redacts: p.Redacts, ts: p.Timestamp, txn: p.TxnKey, sticky: p.Sticky}
	if p.Type == typeRedaction && p.StateKey == nil {
		if err := d.setRedacts(h.version); err != nil {
			return "", err
		}
	}
	return ask(ctx, s, h.rid, func(w *work) (mxid.EventID, error) {
		ev, err := w.sendOnce(d)
		if err != nil {
			return "", err
		}
		return ev.ID, nil
	})
}

// checkState refuses state that the auth rules allow and that makes no sense.
func (s *Service) checkState(ctx context.Context, h *hot, p SendParams) error {
	switch p.Type {
	case typeAlias:
		return s.checkCanonicalAlias(ctx, h, p.Content)
	case typeServerACL:
		return s.checkACL(p.Content)
	case typePowerLevels:
		return s.checkPowers(ctx, h, p.Content)
	}
	return nil
}

// checkPowers refuses power levels that name a creator who has infinite power.
// The auth rules refuse them too; the client hears what is wrong.
// spec: room version 12, "Authorisation rules"
func (s *Service) checkPowers(ctx context.Context, h *hot, content json.RawMessage) error {
	if !h.impl.PrivilegedCreators() {
		return nil
	}
	create, err := s.CurrentState(ctx, h.rid, typeCreate, "")
	if err != nil || create == nil {
		return err
	}
	users := gjson.GetBytes(content, "users").Map()
	for _, id := range creatorsOf(h, create) {
		if _, named := users[id]; named {
			return httpx.BadJSON("Power levels can't name a creator of the room")
		}
	}
	return nil
}

// ourRoom finds a room that this server is in. Any other one gives the
// error of a room that the user isn't in, known or not.
func (s *Service) ourRoom(ctx context.Context, room mxid.RoomID) (*hot, error) {
	h, sn, err := s.known(ctx, room)
	var hx *httpx.Error
	if errors.As(err, &hx) && hx.Status == 404 || err == nil && len(sn.local) == 0 {
		return nil, errNotMember
	}
	return h, err
}

// sendMember sends a member event that came as plain state. An invite goes the
// way of invites, and a join the way of joins: nobody but this server may say
// who authorised it.
func (s *Service) sendMember(ctx context.Context, h *hot, p SendParams) (mxid.EventID, error) {
	target, err := mxid.ParseUserID(*p.StateKey)
	if err != nil {
		return "", httpx.InvalidParam("The state key is not a user ID")
	}
	membership := parseMembership(gjson.GetBytes(p.Content, "membership").Str)
	if membership == None {
		return "", httpx.BadJSON("The membership is not valid")
	}
	m := MembershipParams{Room: p.Room, Sender: p.Sender, Target: target}
	if err := json.Unmarshal(p.Content, &m.Content); err != nil {
		return "", httpx.BadJSON("The content is not an object")
	}
	if membership == Invite {
		ev, err := s.invite(ctx, m)
		if err != nil {
			return "", err
		}
		return ev.ID, nil
	}
	d, err := memberDraft(m, membership)
	if err != nil {
		return "", err
	}
	d.ts, d.txn = p.Timestamp, p.TxnKey
	id, err := ask(ctx, s, h.rid, func(w *work) (mxid.EventID, error) {
		send := w.sendOnce
		if membership == Join && target == p.Sender {
			send = w.sendJoin
		}
		ev, err := send(d)
		if err != nil {
			return "", err
		}
		return ev.ID, nil
	})
	if errors.Is(err, errJoinElsewhere) {
		return "", httpx.Forbidden("You can't join this room this way")
	}
	return id, err
}

// checkACL refuses a server ACL that would lock this server out of the room:
// nobody here could take it back.
func (s *Service) checkACL(content json.RawMessage) error {
	if !compileACL(content).allows(string(s.cfg.ServerName)) {
		return httpx.Forbidden("The server ACL would lock out this server")
	}
	return nil
}

// setRedacts puts the redacted event's ID where the room version has it. A
// client may give it in the content in all versions.
func (d *draft) setRedacts(version string) error {
	if d.redacts == "" {
		d.redacts = mxid.EventID(gjson.GetBytes(d.content, "redacts").Str)
	}
	if _, err := mxid.ParseEventID(string(d.redacts)); err != nil {
		return httpx.InvalidParam("The redacted event is not named")
	}
	if !redactsInContent(version) {
		return nil
	}
	content, err := setMember(d.content, "redacts", string(d.redacts))
	d.content, d.redacts = content, ""
	return err
}

// setMember sets one member of a JSON object.
func setMember(obj json.RawMessage, name string, value any) (json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(obj, &m); err != nil {
		return nil, httpx.BadJSON("The content is not an object")
	}
	v, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("room: set %s: %w", name, err)
	}
	m[name] = v
	return json.Marshal(m)
}

// sendOnce is send, but for a transaction key that was used before: that gives
// the event it gave then. The same key always comes to the same room, whose
// goroutine this is, so looking first is enough.
func (w *work) sendOnce(d draft) (*Event, error) {
	if d.typ == typeRedaction && d.stateKey == nil {
		if err := w.mayAskRedaction(d); err != nil {
			return nil, err
		}
	}
	if d.txn == "" {
		return w.sendNew(d)
	}
	uid, err := w.svc.cfg.Intern.User(w.ctx, d.sender)
	if err != nil {
		return nil, fmt.Errorf("room: number a sender: %w", err)
	}
	key := keyTxn(uid, w.svc.cfg.Vault.Hash("txn", d.txn))
	if ev, err := w.sentBefore(key); err != nil || ev != nil {
		return ev, err
	}
	ev, err := w.sendNew(d)
	if err != nil {
		return nil, err
	}
	w.txns[string(key)] = ev.Num
	row := txnRow{rid: w.h.rid, n: ev.Num, day: uint32(w.now / milliDay)}
	w.op(func(tx *storage.Tx) error {
		tx.Put(key, row.encode())
		w.ageTxn(tx, uid)
		return nil
	})
	return ev, nil
}

// sendNew sends what hasn't been sent before.
func (w *work) sendNew(d draft) (*Event, error) {
	if err := w.mayAnnotate(d); err != nil {
		return nil, err
	}
	return w.send(d)
}

// sentBefore finds the event of a transaction, nil if it is new.
func (w *work) sentBefore(key storage.Key) (*Event, error) {
	if n := w.txns[string(key)]; n != 0 {
		if ev := w.byNum[n]; ev != nil { // else it was rolled back
			return ev, nil
		}
	}
	row, err := w.svc.cfg.KV.Get(w.ctx, key)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("room: read transaction: %w", err)
	}
	t, err := decodeTxn(row)
	if err != nil || t.rid != w.h.rid {
		return nil, err
	}
	ev, err := w.event(t.n)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil // erased since
	}
	return ev, err
}

// mayAskRedaction: a local user redacts their own events, or needs the power.
// The auth rules would let anybody redact what came from their server.
// spec: client-server API, "Redactions"
func (w *work) mayAskRedaction(d draft) error {
	id := d.redacts
	if id == "" {
		id = mxid.EventID(gjson.GetBytes(d.content, "redacts").Str)
	}
	target, err := w.lookup(id)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if target != nil && target.Sender == d.sender {
		return nil
	}
	p, err := w.powersAt(w.sum.root)
	if err != nil {
		return err
	}
	if p.User(string(d.sender)) < p.Redact() {
		return httpx.Forbidden("You don't have permission to redact that event")
	}
	return nil
}

// checkCanonicalAlias refuses new local aliases that don't point to the room.
// spec: client-server API, "m.room.canonical_alias"
func (s *Service) checkCanonicalAlias(ctx context.Context, h *hot, content json.RawMessage) error {
	sn, err := h.snapshot(ctx)
	if err != nil {
		return err
	}
	var had []string
	if ev, err := s.stateEvent(ctx, h, sn.sum.root, typeAlias, ""); err != nil {
		return err
	} else if ev != nil {
		had = aliasesIn(ev.Content())
	}
	for _, name := range aliasesIn(content) {
		if slices.Contains(had, name) {
			continue
		}
		a, err := mxid.ParseRoomAlias(name)
		if err != nil {
			return httpx.InvalidParam("An alias is not valid")
		}
		if a.Server() != s.cfg.ServerName {
			continue // nobody but its server can say
		}
		room, _, err := s.ResolveAlias(ctx, a)
		var hx *httpx.Error
		if err != nil && !errors.As(err, &hx) {
			return err
		}
		if err != nil || room != h.id {
			return httpx.Err(400, "M_BAD_ALIAS", "An alias does not point to this room")
		}
	}
	return nil
}

func aliasesIn(content json.RawMessage) []string {
	var out []string
	if a := gjson.GetBytes(content, "alias").Str; a != "" {
		out = append(out, a)
	}
	for _, a := range gjson.GetBytes(content, "alt_aliases").Array() {
		out = append(out, a.Str)
	}
	return out
}
