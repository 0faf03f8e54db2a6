package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// maxEDUBytes bounds one EDU; the specification has no limit, events have 64
// KiB, and to-device messages to several devices travel in one EDU.
const maxEDUBytes = 1 << 20

// receiveEDUs applies EDUs in order. A wrong one is dropped; trouble of this
// server is an error, so that durable ones are sent again.
func (a *API) receiveEDUs(ctx context.Context, from mxid.ServerName, edus []json.RawMessage) error {
	for _, raw := range edus {
		if len(raw) > maxEDUBytes || jsonx.Check(raw, jsonx.Request) != nil {
			continue
		}
		var edu struct {
			Type    string          `json:"edu_type"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(raw, &edu) != nil || edu.Content == nil {
			continue
		}
		err := a.receiveEDU(ctx, from, edu.Type, edu.Content)
		if e, ok := errors.AsType[*httpx.Error](err); ok && e.Status < http.StatusInternalServerError {
			a.cfg.Log.Debug("EDU dropped", "server", string(from), "type", edu.Type, "code", e.Code)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *API) receiveEDU(ctx context.Context, from mxid.ServerName, typ string, content json.RawMessage) error {
	switch typ {
	case "m.typing":
		return a.receiveTyping(ctx, from, content)
	case "m.receipt":
		return a.receiveReceipts(ctx, from, content)
	case "m.direct_to_device":
		return a.cfg.Keys.ReceiveToDevice(ctx, from, content)
	case "m.device_list_update":
		return a.cfg.Keys.ReceiveDeviceList(ctx, from, content)
	case "m.signing_key_update", "org.matrix.signing_key_update":
		return a.cfg.Keys.ReceiveSigningKey(ctx, from, content)
	}
	return nil // presence is off; unknown types are ignored, as specified
}

func (a *API) receiveTyping(ctx context.Context, from mxid.ServerName, content json.RawMessage) error {
	var in struct {
		Room   mxid.RoomID `json:"room_id"`
		User   mxid.UserID `json:"user_id"`
		Typing bool        `json:"typing"`
	}
	if err := httpx.Decode(content, &in); err != nil {
		return err
	}
	if in.User.Server() != from {
		return httpx.Forbidden("The user isn't of the sending server")
	}
	if ok, err := a.cfg.Rooms.ServerAllowed(ctx, in.Room, from); err != nil || !ok {
		return err
	}
	return a.cfg.Rooms.ReceiveTyping(ctx, from, in.Room, in.User, in.Typing)
}

// receiveReceipts leaves out rooms whose ACL refuses the server.
func (a *API) receiveReceipts(ctx context.Context, from mxid.ServerName, content json.RawMessage) error {
	var rooms map[mxid.RoomID]json.RawMessage
	if err := httpx.Decode(content, &rooms); err != nil {
		return err
	}
	for id := range rooms {
		ok, err := a.cfg.Rooms.ServerAllowed(ctx, id, from)
		if err != nil {
			return err
		}
		if !ok {
			delete(rooms, id)
		}
	}
	allowed, err := json.Marshal(rooms)
	if err != nil {
		return err
	}
	return a.cfg.Rooms.ReceiveReceipts(ctx, from, allowed)
}
