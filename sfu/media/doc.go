// Package media is the media side of a call: it joins the connections of
// sfu/transport, the session descriptions of sfu/sdp and the packet forwarding
// of sfu/forward.
//
// An Engine serves all calls of the process. A Room is one call; it lives on
// one shard of the transport, whose goroutine alone touches the room's
// connections, streams and down-tracks. A Peer is one participant of the room
// with one connection (single: it publishes and subscribes on the same one) or
// two (dual: it publishes on the first and subscribes on the second). A Track is
// what a peer publishes.
//
// Control calls (every exported method) come from the call's actor. They may
// wait for the shard to have its turn, never for the network. State that
// describes the session (m-lines, subscriptions) is kept under the room's lock;
// what touches packets is posted to the shard. Events are callbacks that run on
// the shard's goroutine or inside of a control call: they must not block and
// must not call back into this package; post them to the actor.
//
// The package starts no goroutine.
package media
