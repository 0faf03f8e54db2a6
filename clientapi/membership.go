package clientapi

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

// maxReason bounds the reason of a membership change or redaction in bytes.
const maxReason = 4096

// membershipRequest is the body of every membership endpoint.
type membershipRequest struct {
	UserID string          `json:"user_id"`
	Reason string          `json:"reason"`
	Medium json.RawMessage `json:"medium"` // invite by third-party ID
}

func (r *request) membership() (q membershipRequest, err error) {
	if err := r.decode(&q); err != nil {
		return q, err
	}
	if len(q.Reason) > maxReason {
		return q, httpx.InvalidParam("The reason is too long")
	}
	return q, nil
}

// join is POST /join/{roomIdOrAlias} and POST /rooms/{roomId}/join.
func (a *API) join(r *request) (any, error) {
	return a.enter(r, func(ctx context.Context, p room.MembershipParams) error {
		err := a.rooms.Join(ctx, p)
		if err == nil {
			a.carryOver(r, p.Room)
		}
		return err
	})
}

// knock is POST /knock/{roomIdOrAlias}.
func (a *API) knock(r *request) (any, error) {
	return a.enter(r, func(ctx context.Context, p room.MembershipParams) error { return a.rooms.Knock(ctx, p) })
}

func (a *API) enter(r *request, how func(context.Context, room.MembershipParams) error) (any, error) {
	var body map[string]json.RawMessage
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	q, err := enterRequest(body)
	if err != nil {
		return nil, err
	}
	id, via, err := a.roomOrAlias(r)
	if err != nil {
		return nil, err
	}
	content, err := a.memberProfile(r, r.User)
	if err != nil {
		return nil, err
	}
	maps.Copy(content, body)
	p := room.MembershipParams{Room: id, Sender: r.User, Target: r.User, Reason: q.Reason, Content: content, Via: via}
	if err := how(r.ctx, p); err != nil {
		return nil, err
	}
	return map[string]string{"room_id": string(id)}, nil
}

// enterRequest takes what the specification knows out of the body of a join or
// knock. The rest becomes part of the member event, as clients expect.
func enterRequest(body map[string]json.RawMessage) (q membershipRequest, err error) {
	if raw, ok := body["reason"]; ok {
		if err := json.Unmarshal(raw, &q.Reason); err != nil {
			return q, httpx.BadJSON("reason must be a string")
		}
	}
	if len(q.Reason) > maxReason {
		return q, httpx.InvalidParam("The reason is too long")
	}
	for _, name := range []string{"reason", "third_party_signed", "membership"} {
		delete(body, name)
	}
	return q, nil
}

// roomOrAlias reads {roomId} or {roomIdOrAlias} and the servers to go through.
func (a *API) roomOrAlias(r *request) (mxid.RoomID, []mxid.ServerName, error) {
	via := r.via()
	name, both := r.params["roomIdOrAlias"]
	if !both {
		name = r.params["roomId"]
	}
	if both && strings.HasPrefix(name, "#") {
		alias, err := mxid.ParseRoomAlias(name)
		if err != nil {
			return "", nil, httpx.InvalidParam("Invalid room alias")
		}
		id, servers, err := a.resolve(r, alias)
		return id, mergeServers(servers, via), err
	}
	id, err := parseRoom(name)
	if s := id.Server(); err == nil && s != "" && s != a.cfg.ServerName && len(via) == 0 {
		via = []mxid.ServerName{s} // the server that made the room may still be in it
	}
	return id, via, err
}

func mergeServers(a, b []mxid.ServerName) []mxid.ServerName {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if len(out) > maxVia {
		out = out[:maxVia]
	}
	return out
}

// other reads a change of somebody else's membership.
func (a *API) other(r *request) (room.MembershipParams, error) {
	id, err := r.room()
	if err != nil {
		return room.MembershipParams{}, err
	}
	q, err := r.membership()
	if err != nil {
		return room.MembershipParams{}, err
	}
	if q.UserID == "" && len(q.Medium) > 0 {
		return room.MembershipParams{}, httpx.Err(http.StatusForbidden, "M_THREEPID_DENIED", "This server can't invite by e-mail address or phone number")
	}
	if q.UserID == "" {
		return room.MembershipParams{}, httpx.MissingParam("user_id is missing")
	}
	target, err := parseUser(q.UserID)
	if err != nil {
		return room.MembershipParams{}, err
	}
	return room.MembershipParams{Room: id, Sender: r.User, Target: target, Reason: q.Reason}, nil
}

// invite is POST /rooms/{roomId}/invite.
func (a *API) invite(r *request) (any, error) {
	p, err := a.other(r)
	if err != nil {
		return nil, err
	}
	if p.Content, err = a.memberProfile(r, p.Target); err != nil {
		return nil, err
	}
	return nil, a.rooms.Invite(r.ctx, p)
}

// kick is POST /rooms/{roomId}/kick.
func (a *API) kick(r *request) (any, error) {
	p, err := a.other(r)
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.Kick(r.ctx, p)
}

// ban is POST /rooms/{roomId}/ban.
func (a *API) ban(r *request) (any, error) {
	p, err := a.other(r)
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.Ban(r.ctx, p)
}

// unban is POST /rooms/{roomId}/unban.
func (a *API) unban(r *request) (any, error) {
	p, err := a.other(r)
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.Unban(r.ctx, p)
}

// leave is POST /rooms/{roomId}/leave.
func (a *API) leave(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	q, err := r.membership()
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.Leave(r.ctx, room.MembershipParams{Room: id, Sender: r.User, Target: r.User, Reason: q.Reason})
}

// leaveAllTime bounds how long a deactivated user's rooms may take to leave.
const leaveAllTime = 5 * time.Minute

// ownRoomsTime bounds how long an erasure is put off by leaving rooms. What is
// left of them is left in the background.
const ownRoomsTime = 500 * time.Millisecond

// leaveOwnRooms leaves those rooms of a user that no other server is in: there
// is nobody to be asked to redact anything.
func (a *API) leaveOwnRooms(ctx context.Context, u mxid.UserID) {
	ctx, cancel := context.WithTimeout(ctx, ownRoomsTime)
	defer cancel()
	a.leaveAll(ctx, u, func(ur room.UserRoom) bool {
		servers, err := a.rooms.Servers(ctx, ur.RID)
		return err == nil && len(servers) == 0 && ctx.Err() == nil
	})
}

// leaveAll leaves those rooms of a user whose account ends that which says
// (nil: all), passing over those that can't be left.
func (a *API) leaveAll(ctx context.Context, u mxid.UserID, which func(room.UserRoom) bool) {
	list, err := a.rooms.UserRooms(ctx, u)
	if err != nil {
		a.log.Warn("rooms of an account that ends", "error", err)
		return
	}
	for _, ur := range list {
		if which != nil && !which(ur) {
			continue
		}
		switch ur.Membership {
		case room.Join, room.Invite, room.Knock:
			if err := a.rooms.Leave(ctx, room.MembershipParams{Room: ur.Room, Sender: u, Target: u}); err != nil {
				a.log.Warn("leave a room of an account that ends", "error", err)
			}
		}
	}
}

// forget is POST /rooms/{roomId}/forget.
func (a *API) forget(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	return nil, a.rooms.Forget(r.ctx, id, r.User)
}

var memberships = map[string]room.Membership{
	"": room.None, "invite": room.Invite, "join": room.Join, "knock": room.Knock, "leave": room.Leave, "ban": room.Ban,
}

// members is GET /rooms/{roomId}/members.
func (a *API) members(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	p := room.MembersParams{Room: id, User: r.User}
	if p.At, err = parseToken(r.query("at")); err != nil {
		return nil, err
	}
	var ok1, ok2 bool
	p.Membership, ok1 = memberships[r.query("membership")]
	p.NotMembership, ok2 = memberships[r.query("not_membership")]
	if !ok1 || !ok2 {
		return nil, httpx.InvalidParam("Unknown membership")
	}
	evs, err := a.rooms.Members(r.ctx, p)
	if err != nil {
		return nil, err
	}
	chunk, err := a.stateEvents(r, evs)
	if err != nil {
		return nil, err
	}
	return map[string]any{"chunk": chunk}, nil
}

// joinedMember is one entry of joined_members; absent names are null.
type joinedMember struct {
	DisplayName *string `json:"display_name"`
	AvatarURL   *string `json:"avatar_url"`
}

// joinedMembers is GET /rooms/{roomId}/joined_members.
func (a *API) joinedMembers(r *request) (any, error) {
	id, err := r.room()
	if err != nil {
		return nil, err
	}
	m, err := a.rooms.Membership(r.ctx, id, r.User)
	if err != nil {
		return nil, err
	}
	if m != room.Join {
		return nil, httpx.Forbidden("You aren't a member of the room")
	}
	evs, err := a.rooms.Members(r.ctx, room.MembersParams{Room: id, User: r.User, Membership: room.Join})
	if err != nil {
		return nil, err
	}
	out := make(map[string]joinedMember, len(evs))
	for _, ev := range evs {
		if ev.StateKey != nil {
			out[*ev.StateKey] = memberNames(ev)
		}
	}
	return map[string]any{"joined": out}, nil
}

// memberNames reads the names of a member event, passing over what isn't a
// string.
func memberNames(ev *room.Event) joinedMember {
	var c struct {
		Content struct {
			DisplayName json.RawMessage `json:"displayname"`
			AvatarURL   json.RawMessage `json:"avatar_url"`
		} `json:"content"`
	}
	if json.Unmarshal(ev.JSON, &c) != nil {
		return joinedMember{}
	}
	return joinedMember{DisplayName: text(c.Content.DisplayName), AvatarURL: text(c.Content.AvatarURL)}
}
