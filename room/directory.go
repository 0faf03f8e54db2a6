package room

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// The directory of published rooms: pd<^joined u32><rid> orders them by size,
// pD<rid> has the size under which a room stands there. The order follows the
// real size roughly: a room moves when its size has changed by a twentieth.

// PublicRoom is an entry of the directory in the specification's JSON form.
type PublicRoom struct {
	RoomID           mxid.RoomID    `json:"room_id"`
	Name             string         `json:"name,omitempty"`
	Topic            string         `json:"topic,omitempty"`
	CanonicalAlias   mxid.RoomAlias `json:"canonical_alias,omitempty"`
	AvatarURL        string         `json:"avatar_url,omitempty"`
	NumJoinedMembers int            `json:"num_joined_members"`
	WorldReadable    bool           `json:"world_readable"`
	GuestCanJoin     bool           `json:"guest_can_join"`
	JoinRule         string         `json:"join_rule,omitempty"`
	RoomType         string         `json:"room_type,omitempty"`

	// Not part of the directory's answers.
	Version    string `json:"-"`
	Encryption string `json:"-"` // algorithm, "" if not encrypted
	key        string // row key
}

// Limits of a directory request.
const (
	maxPublicLimit = 100
	// maxPublicScan bounds the rooms that one search looks at.
	maxPublicScan = 10_000
)

func keyListed(joined uint32, r intern.RID) storage.Key {
	return storage.K("pd").U32(^joined).U32(uint32(r))
}
func keyListedAt(r intern.RID) storage.Key { return storage.K("pD").U32(uint32(r)) }

// stageVisibility publishes or hides the room with the rest of a batch.
func (w *work) stageVisibility(public bool) {
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error { return setListed(tx, rid, public, uint32(max(w.sum.joined, 0))) })
}

// setListed moves a room's row in the directory.
func setListed(tx *storage.Tx, rid intern.RID, public bool, joined uint32) error {
	old, listed, err := listedAt(tx.Get(keyListedAt(rid)))
	if err != nil {
		return err
	}
	if listed {
		tx.Delete(keyListed(old, rid))
		tx.Delete(keyListedAt(rid))
	}
	if public {
		tx.Put(keyListed(joined, rid), nil)
		tx.Put(keyListedAt(rid), encodeNum(uint64(joined)))
	}
	return nil
}

func listedAt(row []byte, err error) (joined uint32, listed bool, _ error) {
	if errors.Is(err, storage.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	n, err := decodeNum(row, "pD")
	return uint32(n), true, err
}

// relist keeps a published room near its place by size.
func (w *work) relist() {
	rid := w.h.rid
	w.op(func(tx *storage.Tx) error {
		old, listed, err := listedAt(tx.Get(keyListedAt(rid)))
		now := uint32(max(w.sum.joined, 0))
		if err != nil || !listed || (now-old)*20 <= old && now >= old || now < old && (old-now)*20 <= old {
			return err
		}
		return setListed(tx, rid, true, now)
	})
}

// SetVisibility publishes or hides a room in the directory. It takes the power
// to set the canonical alias.
func (s *Service) SetVisibility(ctx context.Context, room mxid.RoomID, by mxid.UserID, public bool) error {
	h, err := s.memberRoom(ctx, room, by)
	if err != nil {
		return err
	}
	if err := s.mayChangeAliases(ctx, h.rid, by); err != nil {
		return err
	}
	return s.setVisibility(ctx, h, public)
}

func (s *Service) setVisibility(ctx context.Context, h *hot, public bool) error {
	sn, err := h.snapshot(ctx)
	if err != nil {
		return err
	}
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		return setListed(tx, h.rid, public, uint32(max(sn.sum.joined, 0)))
	})
}

// Visibility reports whether the room is published.
func (s *Service) Visibility(ctx context.Context, room mxid.RoomID) (public bool, err error) {
	h, _, err := s.known(ctx, room)
	if err != nil {
		return false, err
	}
	return s.listed(ctx, h.rid)
}

func (s *Service) listed(ctx context.Context, rid intern.RID) (bool, error) {
	_, listed, err := listedAt(s.cfg.KV.Get(ctx, keyListedAt(rid)))
	return listed, err
}

// PublicRooms lists published rooms, largest first. roomTypes nil: any; an
// entry nil stands for rooms without a type.
func (s *Service) PublicRooms(ctx context.Context, search string, roomTypes []*string, since string, limit int) (rooms []PublicRoom, next, prev string, total int, err error) {
	from, err := parseDirectoryToken(since)
	if err != nil {
		return nil, "", "", 0, err
	}
	if limit <= 0 || limit > maxPublicLimit {
		limit = maxPublicLimit
	}
	search = strings.ToLower(search)
	rooms = []PublicRoom{}
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("pd").Prefix(), false, maxPublicScan) {
		if err != nil {
			return nil, "", "", 0, fmt.Errorf("room: read directory: %w", err)
		}
		total++
		if string(p.Key) <= from || next != "" {
			continue
		}
		if len(rooms) == limit {
			next = directoryToken(lastKey(rooms))
			continue
		}
		pr, err := s.Preview(ctx, intern.RID(storage.ReadU32(p.Key, 6)))
		if err != nil {
			return nil, "", "", 0, err
		}
		if pr.matches(search) && pr.hasType(roomTypes) {
			pr.key = string(p.Key)
			rooms = append(rooms, pr)
		}
	}
	return rooms, next, "", total, nil
}

func lastKey(rooms []PublicRoom) string { return rooms[len(rooms)-1].key }

func directoryToken(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func parseDirectoryToken(t string) (string, error) {
	if t == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(t)
	if err != nil || len(b) != 10 || string(b[:2]) != "pd" {
		return "", httpx.InvalidParam("The since token is not valid")
	}
	return string(b), nil
}

// matches looks for a search term in name, topic and alias.
// spec: client-server API, "POST publicRooms", generic_search_term
func (r *PublicRoom) matches(lower string) bool {
	return lower == "" || strings.Contains(strings.ToLower(r.Name), lower) ||
		strings.Contains(strings.ToLower(r.Topic), lower) || strings.Contains(strings.ToLower(string(r.CanonicalAlias)), lower)
}

func (r *PublicRoom) hasType(types []*string) bool {
	if types == nil {
		return true
	}
	for _, t := range types {
		if t == nil && r.RoomType == "" || t != nil && *t == r.RoomType {
			return true
		}
	}
	return false
}

// Preview is the directory's entry of any room that this server is in, plus
// version and encryption, for summaries.
func (s *Service) Preview(ctx context.Context, rid intern.RID) (PublicRoom, error) {
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return PublicRoom{}, err
	}
	r := PublicRoom{RoomID: h.id, NumJoinedMembers: sn.sum.joined, Version: h.version}
	get := func(typ, field string) string {
		if err != nil {
			return ""
		}
		var v string
		v, err = s.stateString(ctx, h, sn.sum.root, typ, field)
		return v
	}
	r.Name, r.Topic = get(typeName, "name"), get(typeTopic, "topic")
	r.CanonicalAlias = mxid.RoomAlias(get(typeAlias, "alias"))
	r.AvatarURL, r.JoinRule = get(typeAvatar, "url"), get(typeJoinRules, "join_rule")
	r.WorldReadable = get(typeHistory, "history_visibility") == "world_readable"
	r.GuestCanJoin = get(typeGuestAccess, "guest_access") == "can_join"
	r.RoomType, r.Encryption = get(typeCreate, "type"), get(typeEncryption, "algorithm")
	return r, err
}

// stateString reads one string of the content of a state event.
func (s *Service) stateString(ctx context.Context, h *hot, root statetree.Root, typ, field string) (string, error) {
	ev, err := s.stateEvent(ctx, h, root, typ, "")
	if err != nil || ev == nil {
		return "", err
	}
	return gjson.GetBytes(ev.JSON, "content."+field).Str, nil
}
