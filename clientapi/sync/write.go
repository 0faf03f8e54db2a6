package sync

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/labstack/echo/v4"
	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/room"
	"parley/user"
)

// flushBytes is how much of a response is collected before it is written.
const flushBytes = 64 << 10

// output is where a response goes.
type output struct {
	start func() *echo.Response // sends the status; called once
	to    *echo.Response
	began bool
}

func (o *output) write(b []byte) error {
	if !o.began {
		o.began = true
		o.to = o.start()
	}
	_, err := o.to.Write(b)
	return err
}

// roomsWriter writes the "rooms" object section by section. What it is given
// must be in the order of the sections.
type roomsWriter struct {
	buf   []byte
	open  section
	count int
}

func (w *roomsWriter) add(t task, frag []byte) error {
	switch {
	case w.count == 0:
		w.buf = append(w.buf, `,"rooms":{`...)
		w.openSection(t.section)
	case t.section != w.open:
		w.buf = append(w.buf, "},"...)
		w.openSection(t.section)
	default:
		w.buf = append(w.buf, ',')
	}
	w.count++
	w.buf = appendString(w.buf, string(t.id))
	w.buf = append(w.buf, ':')
	w.buf = append(w.buf, frag...)
	return nil
}

func (w *roomsWriter) openSection(s section) {
	w.open = s
	w.buf = append(append(append(w.buf, '"'), s.String()...), `":{`...)
}

// end closes what is open and appends everything to dst.
func (w *roomsWriter) end(dst []byte) []byte {
	dst = append(dst, w.buf...)
	if w.count > 0 {
		dst = append(dst, "}}"...)
	}
	return dst
}

// head writes the response without its rooms and without the closing brace.
func (b *build) head(lists deviceLists) ([]byte, error) {
	dst := append(make([]byte, 0, 4<<10), `{"next_batch":"`...)
	dst = append(append(dst, b.next.String()...), '"')
	if len(b.global) > 0 {
		dst = append(dst, `,"account_data":`...)
		dst = appendData(dst, b.global)
	}
	if len(b.messages) > 0 {
		dst = append(dst, `,"to_device":`...)
		dst = appendEvents(dst, b.messages)
	}
	if !lists.empty() {
		dst = append(dst, `,"device_lists":{"changed":`...)
		dst = appendUsers(dst, lists.changed)
		dst = append(dst, `,"left":`...)
		dst = append(appendUsers(dst, lists.left), '}')
	}
	if b.req.Device == "" {
		return dst, nil
	}
	return b.appendKeys(dst)
}

// appendKeys writes how many keys the device has left. Clients take the
// absence of the algorithm that they all use for a server that doesn't count.
func (b *build) appendKeys(dst []byte) ([]byte, error) {
	counts, unused, err := b.h.cfg.Keys.Counts(b.ctx, b.req.User, b.req.Device)
	if err != nil {
		return nil, err
	}
	if counts == nil {
		counts = map[string]int{}
	}
	if _, ok := counts["signed_curve25519"]; !ok {
		counts["signed_curve25519"] = 0
	}
	dst = append(dst, `,"device_one_time_keys_count":`...)
	for i, alg := range slices.Sorted(maps.Keys(counts)) {
		dst = append(dst, "{,"[min(i, 1)])
		dst = append(appendString(dst, alg), ':')
		dst = strconv.AppendInt(dst, int64(counts[alg]), 10)
	}
	dst = append(dst, '}')
	list, err := json.Marshal(append([]string{}, unused...))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"device_unused_fallback_key_types", "org.matrix.msc2732.device_unused_fallback_key_types"} {
		dst = append(append(append(dst, `,"`...), name...), `":`...)
		dst = append(dst, list...)
	}
	return dst, nil
}

// appendEvents writes {"events":[...]}.
func appendEvents(dst []byte, events []json.RawMessage) []byte {
	dst = append(dst, `{"events":[`...)
	for i, ev := range events {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, ev...)
	}
	return append(dst, "]}"...)
}

// appendData writes account data as events.
func appendData(dst []byte, data []user.AccountDatum) []byte {
	dst = append(dst, `{"events":[`...)
	for i, d := range data {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"type":`...)
		dst = appendString(dst, d.Type)
		dst = append(dst, `,"content":`...)
		dst = append(append(dst, d.Content...), '}')
	}
	return append(dst, "]}"...)
}

func appendUsers(dst []byte, users []mxid.UserID) []byte {
	dst = append(dst, '[')
	for i, u := range users {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, string(u))
	}
	return append(dst, ']')
}

// appendString writes a JSON string.
func appendString(dst []byte, s string) []byte { return gjson.AppendJSONString(dst, s) }

// pageToken is a place in a timeline as /messages takes it.
func pageToken(o room.Ord) string { return "t" + strconv.FormatUint(uint64(o), 36) }

// project keeps the fields of an event that event_fields names.
func project(raw []byte, fields [][]string) ([]byte, error) {
	var in map[string]any
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, path := range fields {
		pick(out, in, path)
	}
	return json.Marshal(out)
}

// pick copies the value at a path, making the objects on the way.
func pick(out, in map[string]any, path []string) {
	v, ok := in[path[0]]
	if !ok {
		return
	}
	if len(path) == 1 {
		out[path[0]] = v
		return
	}
	inner, isObject := v.(map[string]any)
	if !isObject {
		return
	}
	next, _ := out[path[0]].(map[string]any)
	if next == nil {
		next = map[string]any{}
	}
	pick(next, inner, path[1:])
	if len(next) > 0 {
		out[path[0]] = next
	}
}
