// Package sdp reads and writes the session descriptions of a call's
// connections: it keeps the m-lines of one connection over all renegotiations,
// answers the client's offers and makes offers of its own. It is pure: no I/O,
// no goroutine, no clock.
package sdp
