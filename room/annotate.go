package room

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/tidwall/gjson"

	"parley/internal/httpx"
	"parley/storage/intern"
)

// maxAnnotations bounds the annotations of an event among which an equal one
// is looked for.
const maxAnnotations = 5000

// mayAnnotate refuses an annotation that its sender has made already: the same
// type and key on the same event.
// spec: client-server API, "Event annotations and reactions", "Server behaviour"
func (w *work) mayAnnotate(d draft) error {
	key, ok := annotationKey(d.content)
	if !ok || d.stateKey != nil {
		return nil
	}
	_, parentID, _ := relationOf(wrapContent(d.content))
	parent, err := w.lookupNum(parentID)
	if err != nil || parent == 0 {
		return err
	}
	again := func(ev *Event) bool {
		k, ok := annotationKey(json.RawMessage(gjson.GetBytes(ev.JSON, "content").Raw))
		return ok && k == key && ev.Type == d.typ && ev.Sender == d.sender
	}
	// What the actor has made and not stored yet.
	for _, ev := range w.byNum {
		if _, target, ok := ev.relation(); ok && target == parentID && ev.Flags&FlagRedacted == 0 && again(ev) {
			return errAnnotated
		}
	}
	uid, err := w.svc.cfg.Intern.User(w.ctx, d.sender)
	if err != nil {
		return fmt.Errorf("room: number a sender: %w", err)
	}
	return w.searchAnnotations(parent, uid, again)
}

// searchAnnotations looks through the stored annotations of a user.
func (w *work) searchAnnotations(parent Num, uid intern.UID, again func(*Event) bool) error {
	rows := keyRelations(w.h.rid, parent).U8(uint8(relAnnotation)).Prefix()
	for p, err := range w.svc.cfg.KV.Scan(w.ctx, rows, true, maxAnnotations) {
		if err != nil {
			return fmt.Errorf("room: read annotations: %w", err)
		}
		rel, err := decodeRelation(p)
		if err != nil {
			return err
		}
		if rel.sender != uid {
			continue
		}
		ev, err := w.event(rel.n)
		if err != nil {
			return err
		}
		if ev.Flags&(FlagRedacted|FlagRejected|FlagSoftFailed) == 0 && again(ev) {
			return errAnnotated
		}
	}
	return nil
}

var errAnnotated = httpx.Err(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "You have reacted with this already")

// annotationKey is the key of an annotation's content.
func annotationKey(content json.RawMessage) (string, bool) {
	r := gjson.GetBytes(content, `m\.relates_to`)
	key := r.Get("key")
	if r.Get("rel_type").Str != "m.annotation" || key.Type != gjson.String {
		return "", false
	}
	return key.Str, true
}

// wrapContent makes an event of a content, as far as relationOf looks at it.
func wrapContent(content json.RawMessage) []byte {
	return append(append([]byte(`{"content":`), content...), '}')
}
