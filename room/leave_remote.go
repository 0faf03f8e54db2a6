package room

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/eventform"
)

// leaveRemote declines an invite of a room, or takes back a knock at one, that
// this server isn't in. The user has left even if no server of the room can be
// told.
// spec: server-server API, "Leaving Rooms (Rejecting Invites)"
func (s *Service) leaveRemote(ctx context.Context, p MembershipParams) error {
	via, err := s.viaServers(ctx, p)
	if err != nil {
		return err
	}
	event := leaveEvent(p, s.cfg.Clock.Now().UnixMilli())
	for _, to := range via {
		sent, err := s.leaveVia(ctx, to, p)
		if err == nil {
			event = sent
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.cfg.Log.Info("leaving through a server failed", "server", string(to), "error", err)
	}
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, p.Room)
	if err != nil || !ok {
		return err
	}
	return s.onRoom(ctx, rid, func(w *work) error {
		if len(w.local) > 0 {
			// The room's own state knows by now, or will.
			if _, m, err := w.member(p.Sender); err != nil || m == Join {
				return err
			}
		}
		return w.setOutOfBand(outOfBand{user: p.Sender, membership: Leave, sender: p.Sender, event: event})
	})
}

// leaveEvent stands for the leave that no server of the room could be told of,
// so that the user's other clients hear of it.
func leaveEvent(p MembershipParams, ts int64) json.RawMessage {
	who := quote(string(p.Sender))
	return fmt.Appendf(nil, `{"content":{"membership":"leave"},"origin_server_ts":%d,"room_id":%s,"sender":%s,"state_key":%s,"type":%q}`,
		ts, quote(string(p.Room)), who, who, typeMember)
}

// leftOutside is the event with which a user left a room that this server
// wasn't in.
func (s *Service) leftOutside(ctx context.Context, h *hot, user mxid.UserID, u userRoom) (*Event, error) {
	row, err := s.invitation(ctx, h.rid, user)
	if err != nil || row.Event == nil {
		return nil, err
	}
	ev := gjson.ParseBytes(row.Event)
	m := meta{state: true, ord: u.ord, ts: ev.Get("origin_server_ts").Int(), depth: ev.Get("depth").Int(), hash: sha256.Sum256(row.Event)}
	if f, err := eventform.Parse(h.version, row.Event); err == nil {
		m.hash = f.ID.Hash()
	}
	return makeEvent(h, 0, m, "", row.Event), nil
}

// leaveVia leaves through one server and returns the event.
func (s *Service) leaveVia(ctx context.Context, to mxid.ServerName, p MembershipParams) (json.RawMessage, error) {
	made, err := s.cfg.Remote.MakeLeave(ctx, to, p.Room, p.Sender)
	if err != nil {
		return nil, err
	}
	if made.Version == "" { // servers may leave it out
		if made.Version, err = s.versionOf(ctx, p.Room); err != nil {
			return nil, err
		}
	}
	ev, err := s.fromTemplate(p, Leave, made)
	if err != nil {
		return nil, err
	}
	return ev.JSON(), s.cfg.Remote.SendLeave(ctx, to, ev.JSON(), p.Room, mxid.EventID(ev.EventID()))
}

// versionOf is the version of a room as far as it is known.
func (s *Service) versionOf(ctx context.Context, room mxid.RoomID) (string, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil || !ok {
		return "1", err
	}
	_, version, err := s.cfg.Intern.RoomID(ctx, rid)
	return version, err
}

// knockRemote knocks at a room through other servers.
// spec: server-server API, "Knocking upon a room"
func (s *Service) knockRemote(ctx context.Context, p MembershipParams) error {
	via, err := s.viaServers(ctx, p)
	if err != nil {
		return err
	}
	if len(via) == 0 {
		return httpx.NotFound("No server is known through which to knock at that room")
	}
	var failed error
	for _, to := range via {
		err := s.knockVia(ctx, to, p)
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Info("knocking through a server failed", "server", string(to), "error", err)
		failed = worse(failed, err)
	}
	return failed
}

// knockVersions are the room versions in which one can knock.
func knockVersions() []string { return Versions()[6:] }

func (s *Service) knockVia(ctx context.Context, to mxid.ServerName, p MembershipParams) error {
	made, err := s.cfg.Remote.MakeKnock(ctx, to, p.Room, p.Sender, knockVersions())
	if err != nil {
		return remoteError(err, "The other server could not be reached")
	}
	ev, err := s.fromTemplate(p, Knock, made)
	if err != nil {
		return err
	}
	state, err := s.cfg.Remote.SendKnock(ctx, to, ev.JSON(), p.Room, mxid.EventID(ev.EventID()))
	if err != nil {
		return remoteError(err, "The other server could not be reached")
	}
	shown, err := s.outsideState(ctx, p.Room, made.Version, state)
	var hx *httpx.Error
	if errors.As(err, &hx) && hx.Status == http.StatusBadRequest {
		shown, err = nil, nil // the knock counts, whatever the server says of the room
	}
	if err != nil {
		return err
	}
	h, err := s.outsideRoom(ctx, p.Room, made.Version)
	if err != nil {
		return err
	}
	shown = append(shown, stripped(typeMember, string(p.Sender), string(p.Sender), string(ev.Content())))
	return s.setOutOfBand(ctx, h, outOfBand{user: p.Sender, membership: Knock, sender: p.Sender, stripped: shown, event: ev.JSON()})
}
