// Package transport moves packets between clients and the packet plane: UDP
// sockets, ICE-lite, DTLS, SRTP and data channels.
//
// A Server listens on one UDP port with one socket for each Shard. A shard is
// one goroutine; a Conn, the transport of one client, lives on one shard, and
// everything of it happens on that goroutine, so that there are no locks. What
// the kernel gives to another shard's socket is handed over in batches. Other
// goroutines reach a shard by Shard.Do.
//
// Packets are read in batches, opened in the receive buffer, given to the
// Conn's Handler, and what the handler sends is sealed into the send batch,
// which goes out at the end of the turn. Neither direction allocates once its
// SSRCs are known.
//
// Goroutines: one for each shard; four for a DTLS handshake while it runs, at
// most 256 at a time; three of pion/sctp for a Conn whose client uses data
// channels; two for a client connected by TCP; one for the TCP listener.
//
// Nothing about people leaves this package but to its Handlers: addresses
// are neither logged nor counted, and the keys live in memory only.
package transport
