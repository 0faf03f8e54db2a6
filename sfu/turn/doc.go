// Package turn is the embedded TURN server, for clients that a firewall keeps
// from reaching the SFU by UDP, for those that want to be seen by nobody but
// this server, and for one-to-one calls.
//
// It opens no port. Clients reach it on ports that are open anyway: over TLS or
// TCP on the port of HTTPS (Serve, behind internal/portmux), over UDP on the
// port of the SFU (Packet, behind sfu/transport). Relay sockets take a free
// port each, but nothing has to be let in from outside: those of calls talk
// with the SFU on the same machine only, over loopback where that is possible;
// those of one-to-one calls send first, which opens the
// way back through a firewall that keeps state.
//
// What a relay may reach is decided for each packet, by address and port, and
// again by IP for each permission: the SFU's own candidates; for credentials
// of one-to-one calls also the public internet as netguard knows it, above port
// 1023, and other relays of this server. Loopback, private, link-local,
// carrier-grade NAT, multicast and own addresses are refused, in IPv4 and in
// every way to write IPv4 in IPv6.
//
// Credentials hold for ten minutes; a relay that was made with them may be
// kept for a day. The user name is sealed: an observer sees neither who it is
// nor that two calls are of the same person.
//
// Everything is in memory. Nothing is logged: the messages of pion/turn name
// addresses. The goroutines are pion's (one for UDP, one for all streams, one
// for each relay) and two for each stream; Close ends them.
//
// RFC 8656, RFC 7065, RFC 7983; server-server and client-server API:
// "Voice over IP"
package turn
