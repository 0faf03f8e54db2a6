// Package rtc is the door to calls: it tells clients of the SFU, decides who
// may join which call, and connects what happens in a call with what happens
// in its room.
//
// The same question comes by three ways and is answered by one function
// (Service.admit): over the endpoints that clients of today use, which prove
// who they are by an OpenID token (/livekit/jwt); over the endpoints of MSC4195
// with an access token; and from other servers, signed, for their users. The
// answer depends on our own view of the room: this server must be in it, and
// the user must be joined.
//
// A token names the call by a hash of room and slot, and the participant by a
// hash of user, device and membership (by user and device in the clear for
// clients of before MSC4195). Which hash is who is known here only, in memory,
// bounded, and for as long as a token lives or a participant is connected: so
// that a kick, ban, leave, logout or the end of an account also ends the call.
//
// For clients that ask for it, this package restarts the delayed event with
// which they would leave the call, as long as the SFU sees them, and sends it
// when the SFU doesn't any more. The event and its deadline are kept by package
// room; after a restart of the server, whoever doesn't come back leaves at the
// stored time.
//
// No rows. Goroutines: one timer for what has expired, one for each delegated
// event, and short-lived ones for what must not hold up the SFU or a room;
// Close waits for them.
//
// spec: MSC4143, MSC4195 (and the endpoints of lk-jwt-service), MSC4140
package rtc
