package sync

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"

	"parley/internal/mxid"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

const (
	// maxToDevice is the number of to-device messages in one response.
	maxToDevice = 100
	// workers bounds the rooms of one response that are worked on at a time.
	workers = 4
	// batch is the number of rooms of an initial sync that are in memory
	// before they are written.
	batch = 32
)

// build is one attempt at a response: everything between the client's token
// and one head position.
type build struct {
	h      *Handler
	ctx    context.Context
	req    *Request
	since  uint64 // 0: initial
	next   Token  // next_batch
	tasks  []task
	typing map[intern.RID]bool // rooms where who types has changed

	global   []user.AccountDatum
	roomData map[mxid.RoomID][]user.AccountDatum
	allData  func() (map[mxid.RoomID][]user.AccountDatum, error)
	ignored  func(mxid.UserID) bool
	messages []json.RawMessage // to-device

	mu      sync.Mutex // of devices, next.Lost and next.Behind
	devices deviceChanges
}

// section is where a room stands in a response.
type section uint8

const (
	inJoin section = iota
	inInvite
	inKnock
	inLeave
)

func (s section) String() string { return [...]string{"join", "invite", "knock", "leave"}[s%4] }

// task is one room that may have something to show.
type task struct {
	section section
	ref     room.Ref
	id      mxid.RoomID
}

// build puts a response together and writes it, unless there is nothing to
// say and it isn't the last attempt.
func (h *Handler) build(ctx context.Context, req *Request, out *output, last bool) (done bool, err error) {
	b := &build{h: h, ctx: ctx, req: req}
	if req.Since != nil {
		b.since = req.Since.Pos
	}
	if err := b.gather(); err != nil {
		return false, fmt.Errorf("sync: %w", err)
	}
	if req.Since == nil {
		return true, b.stream(out)
	}
	rooms := &roomsWriter{}
	if err := b.run(b.tasks, rooms.add); err != nil {
		return false, fmt.Errorf("sync: %w", err)
	}
	lists, err := b.deviceLists()
	if err != nil {
		return false, fmt.Errorf("sync: %w", err)
	}
	if !last && rooms.count == 0 && lists.empty() && len(b.global) == 0 && len(b.messages) == 0 {
		return false, nil
	}
	head, err := b.head(lists)
	if err != nil {
		return false, fmt.Errorf("sync: %w", err)
	}
	return true, out.write(append(rooms.end(head), '}'))
}

// everything reports whether the response has all rooms.
func (b *build) everything() bool { return b.req.Since == nil || b.req.FullState }

// gather fixes the head position and finds what may have changed up to there.
func (b *build) gather() error {
	refs, err := b.refs()
	if err != nil {
		return err
	}
	typing, serial := b.h.cfg.Rooms.TypingSince(b.typingSince())
	b.next.Typing = serial
	b.typing = make(map[intern.RID]bool, len(typing))
	for _, rid := range typing {
		b.typing[rid] = true
	}
	if err := b.gatherUser(); err != nil {
		return err
	}
	if err := b.addOthers(&refs); err != nil {
		return err
	}
	if err := b.addTasks(refs); err != nil {
		return err
	}
	b.limitAllSticky()
	if len(b.tasks) > 0 {
		return b.readIgnored()
	}
	b.ignored = func(mxid.UserID) bool { return false }
	return nil
}

func (b *build) typingSince() uint64 {
	if b.req.Since == nil {
		return 0
	}
	return b.req.Since.Typing
}

// refs reads the head and the rooms that changed up to it. The list is in step
// with commits and may be ahead of the head for the moment in which a commit
// is being published.
func (b *build) refs() ([]room.Ref, error) {
	for {
		b.next.Pos = max(b.h.cfg.Head.Head(), b.since)
		list := b.h.cfg.Rooms.Refs
		if !b.everything() {
			list = func(ctx context.Context, uid intern.UID) ([]room.Ref, uint64, error) {
				return b.h.cfg.Rooms.RefsChanged(ctx, uid, b.since)
			}
		}
		refs, newest, err := list(b.ctx, b.req.UID)
		if err != nil || newest <= b.next.Pos {
			return refs, err
		}
		if err := b.ctx.Err(); err != nil {
			return nil, err
		}
		runtime.Gosched()
	}
}

// gatherUser reads what doesn't belong to a room: account data and to-device
// messages. After a wake-up without a new position there is none.
func (b *build) gatherUser() error {
	b.next.ToDevice = b.next.Pos
	if b.req.Since != nil && b.since == b.next.Pos && b.req.Since.ToDevice == b.since && !b.req.FullState {
		return nil
	}
	data, err := b.h.cfg.Users.AccountDataSince(b.ctx, b.req.User, b.since)
	if err != nil {
		return err
	}
	b.roomData = map[mxid.RoomID][]user.AccountDatum{}
	for _, d := range data {
		if d.Room != "" {
			b.roomData[d.Room] = append(b.roomData[d.Room], d)
		} else if f := b.req.Filter.f.AccountData; room.MatchesType(f.Types, f.NotTypes, d.Type) {
			b.global = append(b.global, d)
		}
	}
	b.allData = sync.OnceValues(b.readAllData)
	return b.readToDevice()
}

// readAllData is the account data of every room, for those that are new to the
// client.
func (b *build) readAllData() (map[mxid.RoomID][]user.AccountDatum, error) {
	if b.since == 0 {
		return b.roomData, nil
	}
	data, err := b.h.cfg.Users.AccountDataSince(b.ctx, b.req.User, 0)
	out := map[mxid.RoomID][]user.AccountDatum{}
	for _, d := range data {
		out[d.Room] = append(out[d.Room], d)
	}
	return out, err
}

// readToDevice reads messages that the device hasn't been sent. If there are
// more than fit, the token says how far this response goes.
func (b *build) readToDevice() error {
	if b.req.Device == "" {
		return nil
	}
	from := uint64(0)
	if b.req.Since != nil {
		from = b.req.Since.ToDevice
	}
	msgs, next, err := b.h.cfg.Keys.ToDevice(b.ctx, b.req.UID, b.req.Device, from, b.next.Pos, maxToDevice)
	if err != nil {
		return err
	}
	b.messages = msgs
	if len(msgs) == maxToDevice {
		b.next.ToDevice = next
	}
	return nil
}

// addOthers adds joined rooms that only have new account data or typing, whose
// state the client has wrong, or that have more sticky events for it.
func (b *build) addOthers(refs *[]room.Ref) error {
	if b.everything() || len(b.roomData) == 0 && len(b.typing) == 0 && len(b.req.Since.Lost) == 0 && len(b.req.Since.Behind) == 0 {
		return nil
	}
	have := map[intern.RID]bool{}
	for _, r := range *refs {
		have[r.RID] = true
	}
	rids := make([]intern.RID, 0, len(b.typing)+len(b.roomData))
	for rid := range b.typing {
		rids = append(rids, rid)
	}
	for _, l := range b.req.Since.Lost {
		rids = append(rids, l.rid)
	}
	for _, x := range b.req.Since.Behind {
		rids = append(rids, x.rid)
	}
	for id := range b.roomData {
		rid, _, known, err := b.h.cfg.Rooms.Lookup(b.ctx, id)
		if err != nil {
			return err
		}
		if known {
			rids = append(rids, rid)
		}
	}
	for _, rid := range rids {
		ref, ok, err := b.h.cfg.Rooms.RefOf(b.ctx, b.req.UID, rid)
		if err != nil {
			return err
		}
		if ok && ref.Membership == room.Join && !have[rid] {
			have[rid] = true
			*refs = append(*refs, ref)
		}
	}
	return nil
}

// addTasks decides in which section each room stands.
func (b *build) addTasks(refs []room.Ref) error {
	for _, ref := range refs {
		s, ok := b.sectionOf(ref)
		if !ok {
			continue
		}
		id, err := b.h.cfg.Rooms.RoomID(b.ctx, ref.RID)
		if err != nil {
			return err
		}
		b.tasks = append(b.tasks, task{s, ref, id})
	}
	slices.SortFunc(b.tasks, func(x, y task) int {
		return cmp.Or(cmp.Compare(x.section, y.section), cmp.Compare(x.ref.RID, y.ref.RID))
	})
	return nil
}

func (b *build) sectionOf(ref room.Ref) (s section, ok bool) {
	changed := ref.Ord.Pos() > b.since
	switch ref.Membership {
	case room.Join:
		return inJoin, true
	case room.Invite:
		return inInvite, changed
	case room.Knock:
		return inKnock, changed
	case room.Leave, room.Ban:
		if b.req.Since == nil {
			return inLeave, b.req.Filter.f.Room.IncludeLeave && !ref.Forgotten
		}
		return inLeave, changed // also if forgotten since: the client must hear that it is over
	}
	return 0, false
}

// readIgnored reads whom the user ignores.
// spec: client-server API, "Ignoring Users"
func (b *build) readIgnored() error {
	raw, err := b.h.cfg.Users.AccountData(b.ctx, b.req.User, "", "m.ignored_user_list")
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	ignored := map[mxid.UserID]bool{}
	gjson.GetBytes(raw, "ignored_users").ForEach(func(k, _ gjson.Result) bool {
		ignored[mxid.UserID(k.String())] = true
		return true
	})
	delete(ignored, b.req.User)
	b.ignored = func(u mxid.UserID) bool { return ignored[u] }
	return nil
}

// run works on rooms, some at a time, and hands over what came of each in the
// order of the tasks.
func (b *build) run(tasks []task, emit func(task, []byte) error) error {
	for part := range slices.Chunk(tasks, batch) {
		frags := make([][]byte, len(part))
		if err := b.runPart(part, frags); err != nil {
			return err
		}
		for i, frag := range frags {
			if frag == nil {
				continue
			}
			if err := emit(part[i], frag); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *build) runPart(part []task, frags [][]byte) error {
	if len(part) == 1 {
		var err error
		frags[0], err = b.room(b.ctx, part[0])
		return err
	}
	g, ctx := errgroup.WithContext(b.ctx)
	g.SetLimit(workers)
	for i, t := range part {
		g.Go(func() error {
			var err error
			frags[i], err = b.room(ctx, t)
			return err
		})
	}
	return g.Wait()
}

// room writes one room's object, nil if there is nothing to show.
func (b *build) room(ctx context.Context, t task) ([]byte, error) {
	switch t.section {
	case inJoin:
		return b.joined(ctx, t)
	case inLeave:
		return b.left(ctx, t)
	default:
		return b.invited(ctx, t)
	}
}

// stream writes the response of an initial sync while its rooms are worked on.
func (b *build) stream(out *output) error {
	head, err := b.head(deviceLists{})
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	rooms := &roomsWriter{buf: head}
	err = b.run(b.tasks, func(t task, frag []byte) error {
		if err := rooms.add(t, frag); err != nil {
			return err
		}
		if len(rooms.buf) < flushBytes {
			return nil
		}
		err := out.write(rooms.buf)
		rooms.buf = rooms.buf[:0]
		return err
	})
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return out.write(append(rooms.end(nil), '}'))
}
