package push

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"parley/room"
)

// opened is an event whose JSON has been parsed, with what conditions computed
// from it. One event is judged for every local member of its room, so all of
// this happens once.
type opened struct {
	ev   *room.Event
	root map[string]any // numbers as json.Number

	mu    sync.Mutex
	texts map[string]*text // folded values by their own text
}

// open parses an event. Bytes that aren't an object give an event without
// properties.
func open(ev *room.Event) *opened {
	o := &opened{ev: ev, texts: map[string]*text{}}
	d := json.NewDecoder(bytes.NewReader(ev.JSON))
	d.UseNumber()
	if d.Decode(&o.root) != nil || o.root == nil {
		o.root = map[string]any{}
	}
	o.root["event_id"], o.root["room_id"] = string(ev.ID), string(ev.Room)
	return o
}

// property finds a value by its path.
func (o *opened) property(path []string) (v any, ok bool) {
	v = o.root
	for _, p := range path {
		m, isObject := v.(map[string]any)
		if !isObject {
			return nil, false
		}
		if v, ok = m[p]; !ok {
			return nil, false
		}
	}
	return v, true
}

// text returns a string value made ready for matching.
func (o *opened) text(s string) *text {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.texts[s]
	if t == nil {
		t = newText(s)
		t.chars() // so that readers of the shared value never write to it
		o.texts[s] = t
	}
	return t
}

// splitPath cuts a dot-separated property path.
// spec: appendices, "Dot-separated property paths"
func splitPath(s string) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '.' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case s[i] == '.':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(parts, b.String())
}

// openCache keeps the events that are being judged at the moment. The members
// of a room are asked about one event in a row, and rooms work in parallel, so
// a few slots keyed by the event's address are enough. A slot holds its event,
// so an address can't be reused while it is in a slot.
type openCache struct{ slots [64]atomic.Pointer[opened] }

func (c *openCache) get(ev *room.Event) *opened {
	p := uintptr(unsafe.Pointer(ev))
	slot := &c.slots[(p>>4^p>>10)%uintptr(len(c.slots))]
	if o := slot.Load(); o != nil && o.ev == ev {
		return o
	}
	o := open(ev)
	slot.Store(o)
	return o
}
