// Package signal speaks the LiveKit client protocol: WebSockets with protobuf
// or JSON frames, the tokens that open them, and the translation to and from
// the core's messages. It keeps no state of calls.
//
// A connection has one goroutine, the one of its HTTP request, that reads; what
// is written goes through an inbox whose goroutine lives only while there is
// something to write. Pings come from a timer.
package signal
