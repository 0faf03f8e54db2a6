package admin

import (
	"context"
	"strconv"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// What can be done to files.
const (
	MediaQuarantine = "quarantine" // hide, keep the bytes
	MediaRelease    = "release"    // take out of quarantine
	MediaDelete     = "delete"     // erase
)

// MediaOrder says what to do to which files: exactly one of URIs, User and
// Room is given.
type MediaOrder struct {
	Do   string   `json:"do"`
	URIs []string `json:"uris,omitempty"` // mxc://…
	// User is a user of this server: all files that the user has uploaded.
	User mxid.UserID `json:"user,omitempty"`
	// Room: all files that events of the room name, as far as this server can
	// read them.
	Room mxid.RoomID `json:"room,omitempty"`
}

// Files carries out what an operator orders about files; it returns for how
// many that was new.
type Files interface {
	OrderMedia(ctx context.Context, o MediaOrder) (int, error)
}

// Media implements Control.
func (l *Local) Media(ctx context.Context, o MediaOrder) (int, error) {
	switch o.Do {
	case MediaQuarantine, MediaRelease, MediaDelete:
	default:
		return 0, httpx.InvalidParam("%q can't be done to files", o.Do)
	}
	given := 0
	for _, there := range []bool{len(o.URIs) > 0, o.User != "", o.Room != ""} {
		if there {
			given++
		}
	}
	if given != 1 {
		return 0, httpx.InvalidParam("say which files: their addresses, those of a user, or those of a room")
	}
	if o.User != "" {
		id, err := l.userID(string(o.User))
		if err != nil {
			return 0, err
		}
		o.User = id
	}
	return l.Files.OrderMedia(ctx, o)
}

// Media implements Control.
func (c *Client) Media(ctx context.Context, o MediaOrder) (int, error) {
	res, err := c.call(ctx, call{Op: "media", Media: o})
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(res)
}
