package sfu

import (
	"time"

	"parley/sfu/media"
)

// Grant is what a token allows its bearer.
type Grant struct {
	// Room is the alias of the call, not a room ID.
	Room string
	// Identity is unique in the call and visible to all of it.
	Identity string
	// Name is shown to others; usually empty.
	Name string

	CanPublish, CanSubscribe, CanPublishData, CanUpdateMetadata bool

	// Via makes it a session that only hears and sees the guests of this server;
	// see Guest. Presence isn't told of it.
	Via string
	// First is the identity of the client's first session, if that may be
	// another one: clients of before MSC4195 have one for their own server, and
	// one of MSC4195 for the others.
	First string

	// Note is told to Presence and means nothing to anybody else.
	Note string

	// Sources limits what may be published; empty is no limit.
	Sources []media.Source

	Metadata   string
	Attributes map[string]string

	// Expires ends the use of the token, not a call joined with it.
	Expires time.Time
	// Serial orders tokens by when they were minted. Whoever mints sets it.
	Serial uint64
}

// Why says how a participant's presence ended.
type Why uint8

// The ways to be gone.
const (
	// Left: the client said goodbye, or its page closed the connection.
	Left Why = iota
	// Lost: the client fell silent and did not come back in time.
	Lost
	// Replaced: the same identity joined anew; Joined follows at once.
	Replaced
	// Kicked by Server.Kick.
	Kicked
	// Failed: it never got a media connection, or broke the protocol.
	Failed
	// Shutdown: this server is stopping and has asked its clients to come back.
	Shutdown
)

// Presence is told who takes part: Joined once per participant, then Gone once.
// Calls come from the call's actor in order and must not block.
type Presence interface {
	Joined(room, identity, note string)
	Gone(room, identity string, why Why)
}

// Tokens mints and revokes tokens. Safe for concurrent use.
type Tokens interface {
	// Mint signs a token for g.
	Mint(g Grant) (string, error)
	// Revoke makes all tokens minted until now for this identity worthless.
	Revoke(room, identity string)
	// Revoked reports whether the token that g was read from was revoked.
	Revoked(g Grant) bool
}
