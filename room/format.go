package room

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room/eventform"
	"parley/storage"
	"parley/storage/intern"
)

// FormatOptions says for whom an event is written.
type FormatOptions struct {
	Viewer     mxid.UserID
	Device     mxid.DeviceID // gets unsigned.transaction_id of the events that it sent
	OmitRoomID bool          // inside /sync
	Federation bool          // event_format "federation"
	Aggregate  bool          // bundle relations into unsigned
	// StateList leaves out prev_content, replaces_state and membership, which
	// would cost further reads for each event of a long list of state.
	StateList bool
	// Ignored says whose events don't count in aggregations; nil: nobody's.
	Ignored func(mxid.UserID) bool
}

// Formatter writes events of one room as one client sees them. It is for one
// request: not for concurrent use.
type Formatter struct {
	ctx  context.Context
	s    *Service
	h    *hot
	o    FormatOptions
	view *viewer
	now  int64 // milliseconds
	aggs map[Num]*aggregation
	// nested marks the latest event of a thread inside its root, which gets
	// no thread of its own.
	nested bool
}

// Formatter prepares to write events of a room.
func (s *Service) Formatter(ctx context.Context, rid intern.RID, o FormatOptions) (*Formatter, error) {
	h, err := s.room(ctx, rid)
	if err != nil {
		return nil, err
	}
	view, err := s.newViewer(ctx, h, o.Viewer)
	if err != nil {
		return nil, err
	}
	return &Formatter{ctx: ctx, s: s, h: h, o: o, view: view, now: s.cfg.Clock.Now().UnixMilli()}, nil
}

// FormatClient writes an event as clients see it: unsigned with age,
// prev_content, replaces_state, redacted_because, transaction_id, membership,
// m.relations. spec: client-server API, "Room event format"
func (s *Service) FormatClient(ctx context.Context, ev *Event, o FormatOptions) (json.RawMessage, error) {
	list, err := s.FormatAll(ctx, ev.RID, []*Event{ev}, o)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// FormatAll is FormatClient for events of one room, cheaper than one by one.
func (s *Service) FormatAll(ctx context.Context, rid intern.RID, evs []*Event, o FormatOptions) ([]json.RawMessage, error) {
	f, err := s.Formatter(ctx, rid, o)
	if err != nil {
		return nil, err
	}
	if err := f.Prepare(evs); err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, len(evs))
	for i, ev := range evs {
		if out[i], err = f.Append(make([]byte, 0, len(ev.JSON)+512), ev); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Prepare reads the relations of events that Append will write, all at once.
// Without it Append writes no aggregations.
func (f *Formatter) Prepare(evs []*Event) error {
	if !f.o.Aggregate {
		return nil
	}
	var err error
	f.aggs, err = f.aggregate(evs)
	return err
}

// Append appends the JSON of an event to dst.
func (f *Formatter) Append(dst []byte, ev *Event) ([]byte, error) {
	if f.o.Federation {
		dst = append(dst, ev.JSON[:len(ev.JSON)-1]...)
	} else {
		dst = f.appendFields(dst, ev)
	}
	dst = append(dst, `,"unsigned":{`...)
	dst, err := f.appendUnsigned(dst, ev)
	if err != nil {
		return nil, fmt.Errorf("room: format event: %w", err)
	}
	return append(dst, "}}"...), nil
}

// appendFields writes the members of an event that clients get, as they stand
// in the stored event, without the closing brace.
func (f *Formatter) appendFields(dst []byte, ev *Event) []byte {
	dst = append(dst, `{"event_id":`...)
	dst = appendString(dst, string(ev.ID))
	if !f.o.OmitRoomID {
		dst = append(dst, `,"room_id":`...)
		dst = appendString(dst, string(ev.Room))
	}
	redactsAtTop := false
	gjson.ParseBytes(ev.JSON).ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "content":
			dst = append(dst, `,"content":`...)
			dst = appendContent(dst, ev, v.Raw)
			return true
		case "redacts":
			redactsAtTop = true
		case "origin_server_ts", "sender", "state_key", "type", eventform.StickyMember:
		default:
			return true
		}
		dst = append(append(append(append(dst, ','), k.Raw...), ':'), v.Raw...)
		return true
	})
	// Room version 11 moved "redacts" into the content; clients of either age
	// get it in both places.
	// spec: room version 11, "Moving the redacts property"
	if ev.Redacts != "" && !redactsAtTop {
		dst = append(dst, `,"redacts":`...)
		dst = appendString(dst, string(ev.Redacts))
	}
	return dst
}

func appendContent(dst []byte, ev *Event, raw string) []byte {
	if ev.Redacts == "" || len(raw) < 2 || gjson.Get(raw, "redacts").Exists() {
		return append(dst, raw...)
	}
	dst = append(dst, `{"redacts":`...)
	dst = appendString(dst, string(ev.Redacts))
	if raw != "{}" {
		dst = append(dst, ',')
	}
	return append(dst, raw[1:]...)
}

// appendUnsigned writes the members of unsigned.
func (f *Formatter) appendUnsigned(dst []byte, ev *Event) ([]byte, error) {
	dst = append(dst, `"age":`...)
	dst = strconv.AppendInt(dst, max(f.now-ev.OriginTS, 0), 10)
	if id := f.transactionID(ev); id != "" {
		dst = append(dst, `,"transaction_id":`...)
		dst = appendString(dst, id)
	}
	if id, ok := strings.CutPrefix(ev.txn, delayTxn); ok && ev.Sender == f.o.Viewer {
		for _, name := range delayIDNames {
			dst = append(appendString(append(dst, ','), name), ':')
			dst = appendString(dst, id)
		}
	}
	dst = f.appendSticky(dst, ev)
	dst, err := f.appendMembership(dst, ev)
	if err != nil {
		return nil, err
	}
	if ev.RedactedBy != 0 {
		if dst, err = f.appendRedaction(dst, ev); err != nil {
			return nil, err
		}
	} else if ev.Flags&FlagRedacted != 0 {
		dst = f.appendEnd(dst, ev)
	}
	if ev.IsState() && !f.o.StateList {
		if dst, err = f.appendPrevious(dst, ev); err != nil {
			return nil, err
		}
	}
	if a := f.aggs[ev.Num]; a != nil {
		return f.appendAggregation(dst, ev, a)
	}
	return dst, nil
}

// delayIDNames are the members of unsigned that tell the sender of a delayed
// event which one it was. spec: MSC4140
var delayIDNames = [...]string{"delay_id", "org.matrix.msc4140.delay_id"}

// appendSticky writes for how much longer a sticky event is that.
// spec: MSC4354, "Sync API changes"
func (f *Formatter) appendSticky(dst []byte, ev *Event) []byte {
	end, ok := f.s.sticky.end(ev.RID, ev.Num)
	if !ok || end <= f.now {
		return dst
	}
	dst = append(dst, `,"msc4354_sticky_duration_ttl_ms":`...)
	return strconv.AppendInt(dst, end-f.now, 10)
}

// transactionID is the client's own ID of an event that the device sent. The
// stored key is device, method and path, room and type, transaction ID.
func (f *Formatter) transactionID(ev *Event) string {
	if ev.txn == "" || f.o.Device == "" || ev.Sender != f.o.Viewer {
		return ""
	}
	device, rest, _ := strings.Cut(ev.txn, "\x00")
	if device != string(f.o.Device) {
		return ""
	}
	return rest[strings.LastIndexByte(rest, 0)+1:]
}

// appendMembership writes the viewer's membership at the event.
// spec: client-server API, "UnsignedData", membership
func (f *Formatter) appendMembership(dst []byte, ev *Event) ([]byte, error) {
	if f.o.Viewer == "" || f.o.StateList || ev.meta.after.IsEmpty() {
		return dst, nil
	}
	st, err := f.view.at(ev.meta.after)
	if err != nil {
		return nil, err
	}
	m := st.membership
	if m == None {
		m = Leave
	}
	dst = append(dst, `,"membership":"`...)
	dst = append(dst, m.String()...)
	return append(dst, '"'), nil
}

// appendRedaction writes redacted_because: the redaction, without unsigned
// members of its own beside its age.
func (f *Formatter) appendRedaction(dst []byte, ev *Event) ([]byte, error) {
	by, err := f.s.event(f.ctx, f.h, ev.RedactedBy)
	if errors.Is(err, storage.ErrNotFound) {
		return dst, nil
	}
	if err != nil {
		return nil, err
	}
	dst = append(dst, `,"redacted_because":`...)
	dst = f.appendFields(dst, by)
	dst = append(dst, `,"unsigned":{"age":`...)
	dst = strconv.AppendInt(dst, max(f.now-by.OriginTS, 0), 10)
	return append(dst, "}}"...), nil
}

// appendEnd writes redacted_because of an event whose content has gone though no
// redaction is known: its time was over. Clients know a redacted event by that
// member alone, so they get a redaction by the sender that exists nowhere else;
// its ID is derived, so that it is the same each time.
// spec: client-server API, "UnsignedData", redacted_because
func (f *Formatter) appendEnd(dst []byte, ev *Event) []byte {
	id := sha256.Sum256([]byte("end of " + string(ev.ID)))
	dst = append(dst, `,"redacted_because":{"event_id":`...)
	dst = appendString(dst, "$"+rawURL.EncodeToString(id[:]))
	dst = append(dst, `,"type":"m.room.redaction","content":{"redacts":`...)
	dst = appendString(dst, string(ev.ID))
	dst = append(dst, `},"redacts":`...)
	dst = appendString(dst, string(ev.ID))
	dst = append(dst, `,"sender":`...)
	dst = appendString(dst, string(ev.Sender))
	if !f.o.OmitRoomID {
		dst = append(dst, `,"room_id":`...)
		dst = appendString(dst, string(ev.Room))
	}
	dst = append(dst, `,"origin_server_ts":`...)
	dst = strconv.AppendInt(dst, ev.OriginTS, 10)
	return append(dst, `,"unsigned":{}}`...)
}

// appendPrevious writes what a state event replaces.
func (f *Formatter) appendPrevious(dst []byte, ev *Event) ([]byte, error) {
	prev, err := f.view.stateEvent(ev.meta.before, ev.meta.kid)
	if err != nil || prev == nil || prev.Num == ev.Num {
		return dst, err
	}
	dst = append(dst, `,"prev_content":`...)
	dst = append(dst, prev.Content()...)
	dst = append(dst, `,"prev_sender":`...)
	dst = appendString(dst, string(prev.Sender))
	dst = append(dst, `,"replaces_state":`...)
	return appendString(dst, string(prev.ID)), nil
}

// appendString writes a JSON string. Identifiers hardly ever need escapes.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			return gjson.AppendJSONString(dst, s)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
