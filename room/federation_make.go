package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// This file makes templates of member events for users of other servers.

// HandleMakeJoin is spec "GET /_matrix/federation/v1/make_join/{roomId}/{userId}".
func (s *Service) HandleMakeJoin(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	return s.makeMember(ctx, origin, room, user, Join, versions)
}

// HandleMakeLeave is spec "GET /_matrix/federation/v1/make_leave/{roomId}/{userId}".
func (s *Service) HandleMakeLeave(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID) (MakeResult, error) {
	return s.makeMember(ctx, origin, room, user, Leave, nil)
}

// HandleMakeKnock is spec "GET /_matrix/federation/v1/make_knock/{roomId}/{userId}".
func (s *Service) HandleMakeKnock(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, versions []string) (MakeResult, error) {
	return s.makeMember(ctx, origin, room, user, Knock, versions)
}

// makeMember makes a template. versions are those that the other server
// supports, nil if that doesn't matter.
func (s *Service) makeMember(ctx context.Context, origin mxid.ServerName, room mxid.RoomID, user mxid.UserID, m Membership, versions []string) (MakeResult, error) {
	if user.Server() != origin {
		return MakeResult{}, httpx.Forbidden("That user is not one of your server's")
	}
	p, err := s.guest(ctx, origin, room)
	if err != nil {
		return MakeResult{}, err
	}
	if versions != nil && !slices.Contains(versions, p.h.version) {
		return MakeResult{}, incompatible(p.h.version)
	}
	target := string(user)
	d := draft{typ: typeMember, stateKey: &target, sender: user, content: json.RawMessage(`{"membership":"` + m.String() + `"}`)}
	tpl, err := ask(ctx, s, p.h.rid, func(w *work) (_ json.RawMessage, err error) {
		if m == Join {
			if d.content, err = w.authoriseRemoteJoin(d); err != nil {
				return nil, err
			}
		}
		return w.template(d)
	})
	return MakeResult{Version: p.h.version, Event: tpl}, err
}

func incompatible(version string) error {
	return &httpx.Error{Status: http.StatusBadRequest, Code: "M_INCOMPATIBLE_ROOM_VERSION",
		Message: "Your server does not support the version of this room", Extra: map[string]any{"room_version": version}}
}

// authoriseRemoteJoin is authoriseJoin for a user of another server, with the
// errors that tell that server where else to ask.
// spec: server-server API, "Restricted rooms"
func (w *work) authoriseRemoteJoin(d draft) (json.RawMessage, error) {
	_, m, err := w.member(d.sender)
	if err != nil || m == Join || m == Invite {
		return d.content, err
	}
	content, err := w.authoriseJoin(d)
	if errors.Is(err, errJoinElsewhere) {
		return nil, httpx.Err(http.StatusBadRequest, "M_UNABLE_TO_GRANT_JOIN", "This server can not let you in, another one may")
	}
	var hx *httpx.Error
	if !errors.As(err, &hx) || hx.Status != http.StatusForbidden {
		return content, err
	}
	all, err := w.knowsConditions()
	if err == nil && !all {
		err = httpx.Err(http.StatusBadRequest, "M_UNABLE_TO_AUTHORISE_JOIN", "This server can not tell whether you may join")
	}
	if err == nil {
		err = hx
	}
	return nil, err
}

// knowsConditions reports whether this server is in all rooms that the join
// rule names, so that its word about them is final.
func (w *work) knowsConditions() (bool, error) {
	rules, err := w.get(w.sum.root, typeJoinRules, "")
	if err != nil || rules == nil {
		return false, err
	}
	for _, allow := range gjson.GetBytes(rules.JSON, "content.allow").Array() {
		if allow.Get("type").Str != "m.room_membership" {
			continue
		}
		in, err := w.svc.InRoom(w.ctx, mxid.RoomID(allow.Get("room_id").Str))
		if err != nil || !in {
			return false, err
		}
	}
	return true, nil
}

// template is the unsigned event of a draft on the forward extremities, which
// the auth rules allow.
func (w *work) template(d draft) (json.RawMessage, error) {
	prev, before, err := w.forwardPrev()
	if err != nil {
		return nil, err
	}
	proto, err := w.fill(d, prev, before)
	if err != nil {
		return nil, err
	}
	b := w.h.impl.NewEventBuilderFromProtoEvent(proto)
	if w.h.impl.EventFormat() == gomatrixserverlib.EventFormatV1 {
		b.PrevEvents, b.AuthEvents = pairs(b.PrevEvents), pairs(b.AuthEvents)
	}
	js, err := json.Marshal(struct {
		*gomatrixserverlib.EventBuilder
		Origin mxid.ServerName `json:"origin"`
		TS     int64           `json:"origin_server_ts"`
	}{b, d.sender.Server(), w.now})
	if err != nil {
		return nil, fmt.Errorf("room: write template: %w", err)
	}
	pdu, err := w.h.impl.NewEventFromTrustedJSONWithEventID("$template", js, false)
	if err != nil {
		return nil, fmt.Errorf("room: read template: %w", err)
	}
	if err := w.checkAt(pdu, before); err != nil {
		return nil, forbidden(err)
	}
	return js, nil
}

// pairs writes references as room versions 1 and 2 have them. The hash in a
// reference means nothing to anybody any more.
func pairs(ids any) [][2]any {
	out := [][2]any{}
	list, _ := ids.([]string)
	for _, id := range list {
		out = append(out, [2]any{id, map[string]string{"sha256": ""}})
	}
	return out
}
