package authrules

import (
	"encoding/json"
	"slices"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// createInfo is what the rules need of a create event.
type createInfo struct {
	eventID  string
	sender   string
	creator  string   // who may join first, and has power without power levels
	creators []string // of version 12 on: who has infinite power
	federate bool
}

// parseCreate reads a create event of a state, which was allowed when it came.
func (v features) parseCreate(ev gomatrixserverlib.PDU) (*createInfo, error) {
	content, err := object(ev.Content())
	if err != nil {
		return nil, err
	}
	c := &createInfo{eventID: ev.EventID(), sender: string(ev.SenderID()), federate: true}
	c.creator = c.sender
	if v.contentCreator {
		c.creator = content.str("creator")
	}
	if raw, ok := content["m.federate"]; ok && string(raw) == "false" {
		c.federate = false
	}
	if v.privilegedMakers {
		c.creators = []string{c.sender}
		var more []string
		if json.Unmarshal(content["additional_creators"], &more) == nil {
			c.creators = append(c.creators, more...)
		}
	}
	return c, nil
}

// isCreator reports whether a user has infinite power.
func (c *createInfo) isCreator(user string) bool { return slices.Contains(c.creators, user) }

// checkFederate refuses senders of other servers in rooms that aren't
// federated.
func (c *createInfo) checkFederate(sender string) error {
	if !c.federate && domain(sender) != domain(c.sender) {
		return refuse("the room isn't open to other servers")
	}
	return nil
}

// createAllowed is rule 1.
func (c *Checker) createAllowed(ev gomatrixserverlib.PDU) error {
	content, err := object(ev.Content())
	if err != nil {
		return err
	}
	switch {
	case !ev.StateKeyEquals(""):
		return refuse("the create event has a state key")
	case len(ev.PrevEventIDs()) > 0:
		return refuse("the create event has prev_events")
	case content.has("room_version") && !Known(content.str("room_version")):
		return refuse("the room version is unknown")
	case c.v.contentCreator && !content.has("creator"):
		return refuse("the create event names no creator")
	}
	if c.v.privilegedMakers {
		return c.createAllowed12(ev, content)
	}
	if domain(ev.RoomID().String()) != domain(string(ev.SenderID())) {
		return refuse("the room ID is of another server than the sender")
	}
	return nil
}

func (c *Checker) createAllowed12(ev gomatrixserverlib.PDU, content fields) error {
	top, err := object(ev.JSON())
	if err != nil {
		return err
	}
	if _, has := top["room_id"]; has {
		return refuse("the create event has a room_id")
	}
	raw, has := content["additional_creators"]
	if !has {
		return nil
	}
	var more []string
	if json.Unmarshal(raw, &more) != nil || more == nil {
		return refuse("additional_creators isn't a list of strings")
	}
	for _, user := range more {
		if _, err := spec.NewUserID(user, true); err != nil {
			return refuse("additional_creators has something else than user IDs")
		}
	}
	return nil
}
