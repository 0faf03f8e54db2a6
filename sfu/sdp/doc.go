// Package sdp reads and writes the session descriptions of a call's
// connections: it keeps the m-lines of one connection over all renegotiations,
// answers the client's offers and makes offers of its own. It is pure: no I/O,
// no goroutine, no clock.
//
// A Session is one connection. The server is ICE-lite, has one candidate per
// port and waits for the client's DTLS handshake; all m-lines are one bundle. A
// published m-line is answered with one codec (and its retransmissions), so that
// who subscribes knows what comes before it comes. RED isn't taken: it would
// have to be unwrapped for clients without it, which encrypted media forbids.
//
// A track that is sent (Sender) waits until it has an m-line: one on which the
// client only receives, in answers, or one of ours, in offers. An m-line whose
// track went is inactive once before another track takes it, for only then the
// client sees a new track.
package sdp
