package node

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/labstack/echo/v4"

	"parley/clientapi/rtc"
	"parley/federation"
	"parley/internal/mxid"
	"parley/internal/netguard"
	"parley/room"
	"parley/sfu"
	"parley/sfu/cascade"
	"parley/sfu/media"
	"parley/sfu/signal"
	"parley/storage/intern"
)

// Types of events that tell who is in a call.
const (
	typeCallMember = "org.matrix.msc3401.call.member"
	typeRTCMember  = "org.matrix.msc4143.rtc.member"
	typeEncrypted  = "m.room.encrypted"
)

// openCascade makes what joins calls with those of other servers.
func (n *Node) openCascade(c *calls, e *media.Engine) sfu.Cascade {
	if !n.cfg.Federation || !n.cfg.CallsCascade {
		return nil
	}
	c.cascade = cascade.New(cascade.Config{ServerName: n.cfg.ServerName, Engine: e, Federation: n.client, Rooms: callRooms{n, c},
		Guard: netguard.New(netguard.Options{Allow: n.cfg.FederationAllow}), Data: signal.Packets{}, Clock: n.clk, Log: n.log})
	n.onClose(func() error { c.cascade.Close(); return nil })
	return c.cascade
}

// serveCascade answers other servers.
func (n *Node) serveCascade(e *echo.Echo, fed *federation.API, s *rtc.Service) {
	c := n.calls
	if c.cascade == nil || fed == nil {
		return
	}
	c.rtc.Store(s)
	s.RegisterCascade(e, fed)
	e.POST(cascade.Path+"/link", fed.Signed(cascade.MaxBody, c.cascade.HandleLink))
	e.POST(cascade.Path+"/wake", fed.Signed(cascade.MaxBody, c.cascade.HandleWake))
}

// left tells those who must know that a user has left a room.
func (n *Node) left(s *rtc.Service) func(mxid.RoomID, mxid.UserID) {
	return func(id mxid.RoomID, u mxid.UserID) {
		s.Left(id, u)
		if c := n.calls.cascade; c != nil {
			c.Recheck(func(alias string) bool {
				of, ok := s.RoomOf(alias)
				return ok && of == id
			})
		}
	}
}

// callRooms tells the cascade of the rooms of calls.
type callRooms struct {
	n *Node
	c *calls
}

// room is the room of a call, if this server is in it.
func (r callRooms) room(ctx context.Context, alias string) (mxid.RoomID, intern.RID, bool, error) {
	s := r.c.rtc.Load()
	if s == nil {
		return "", 0, false, nil
	}
	id, ok := s.RoomOf(alias)
	if !ok {
		return "", 0, false, nil
	}
	if in, err := r.n.rooms.InRoom(ctx, id); err != nil || !in {
		return "", 0, false, err
	}
	rid, _, known, err := r.n.rooms.Lookup(ctx, id)
	return id, rid, known, err
}

// Standing implements cascade.Rooms.
func (r callRooms) Standing(ctx context.Context, alias string, server mxid.ServerName) (int, error) {
	id, rid, ok, err := r.room(ctx, alias)
	if err != nil || !ok {
		return 0, err
	}
	if allowed, err := r.n.rooms.ServerAllowed(ctx, id, server); err != nil || !allowed {
		return 0, err
	}
	return r.n.rooms.JoinedCount(ctx, rid, server)
}

// Servers implements cascade.Rooms: those whose users say in the room that they
// are in a call, or keep an encrypted event there that says something.
func (r callRooms) Servers(ctx context.Context, alias string) ([]mxid.ServerName, error) {
	_, rid, ok, err := r.room(ctx, alias)
	if err != nil || !ok {
		return nil, err
	}
	members, err := r.members(ctx, rid)
	if err != nil {
		return nil, err
	}
	sticky, err := r.n.rooms.StickyEvents(ctx, rid, 0, 1<<62)
	if err != nil {
		return nil, err
	}
	for _, ev := range sticky {
		if ev.Type == typeRTCMember || ev.Type == typeEncrypted {
			members = append(members, ev)
		}
	}
	var out []mxid.ServerName
	for _, ev := range members {
		if s := ev.Sender.Server(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// members are the events of those who are in a call by their word.
func (r callRooms) members(ctx context.Context, rid intern.RID) ([]*room.Event, error) {
	evs, err := r.n.rooms.CurrentStateOf(ctx, rid, typeCallMember)
	return slices.DeleteFunc(evs, func(ev *room.Event) bool { return memberDevice(ev) == "" }), err
}

// memberDevice is the device that a member event names, empty when it has left.
func memberDevice(ev *room.Event) string {
	var c struct {
		Device string `json:"device_id"`
	}
	if json.Unmarshal(ev.Content(), &c) != nil {
		return ""
	}
	return c.Device
}

// Identities implements cascade.Rooms.
func (r callRooms) Identities(ctx context.Context, alias string, server mxid.ServerName) ([]string, error) {
	id, rid, ok, err := r.room(ctx, alias)
	if err != nil || !ok {
		return nil, err
	}
	members, err := r.members(ctx, rid)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, ev := range members {
		if ev.Sender.Server() != server {
			continue
		}
		if m, err := r.n.rooms.Membership(ctx, id, ev.Sender); err != nil || m != room.Join {
			continue
		}
		out = append(out, string(ev.Sender)+":"+memberDevice(ev))
	}
	return out, nil
}
