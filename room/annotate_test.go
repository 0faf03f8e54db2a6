package room

import (
	"encoding/json"
	"fmt"
	"testing"

	"parley/internal/mxid"
)

func TestAnnotationsAreMadeOnce(t *testing.T) {
	r := newRig(t)
	room := r.create(CreateParams{Creator: alice, Preset: "public_chat"})
	r.ok(r.join(room, bob))
	one, two := r.say(room, alice, "one"), r.say(room, alice, "two")
	react := func(who mxid.UserID, typ string, to mxid.EventID, key string) (mxid.EventID, error) {
		content := fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":%q}}`, string(to), key)
		return r.s.Send(r.ctx, SendParams{Room: room, Sender: who, Type: typ, Content: json.RawMessage(content)})
	}
	first, err := react(bob, "m.reaction", one, "+")
	r.ok(err)
	_, err = react(bob, "m.reaction", one, "+")
	r.refused(err, "M_DUPLICATE_ANNOTATION")
	for _, other := range []struct {
		who mxid.UserID
		typ string
		to  mxid.EventID
		key string
	}{{bob, "m.reaction", one, "-"}, {bob, "m.reaction", two, "+"}, {alice, "m.reaction", one, "+"}, {bob, "org.example.mark", one, "+"}, {bob, "m.reaction", "$unknown", "+"}} {
		_, err := react(other.who, other.typ, other.to, other.key)
		r.ok(err)
	}
	_, err = r.s.Send(r.ctx, SendParams{Room: room, Sender: bob, Type: "m.room.redaction", Redacts: first, Content: json.RawMessage(`{}`)})
	r.ok(err)
	_, err = react(bob, "m.reaction", one, "+") // taken back and made anew
	r.ok(err)
	_, err = react(bob, "m.reaction", one, "+")
	r.refused(err, "M_DUPLICATE_ANNOTATION")
}
