// Package sfu is the core of calls: who takes part, what they publish, who
// subscribes to what. It knows nothing of the wire format: sfu/signal
// translates between a client's WebSocket and the messages declared here, and
// the packet plane is behind the Media interface, which sfu/media implements.
//
// A Server has Calls, one per room alias. Each Call is an actor: everything
// that concerns it runs in its inbox, one item at a time, and what the items
// changed is told to the participants once per batch. So nothing in a call is
// locked, and a storm of joins costs few messages. The actor's goroutine exists
// only while there is something to do.
//
// All of it is in memory only; nothing about people is logged.
package sfu
