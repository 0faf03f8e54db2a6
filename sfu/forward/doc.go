// Package forward is the packet plane of calls: what happens to one RTP or
// RTCP packet between the connection of a publisher and the connections of its
// subscribers.
//
// It is pure. It starts no goroutine, reads no clock, opens no socket and takes
// no lock: the caller passes packets and the time in (`now`, nanoseconds of any
// monotonic clock), and packets leave through a Sink. Everything of one call
// (its Publishers, Tracks, Subscribers, Speakers) must be used from one
// goroutine; two calls share nothing. In steady state no call allocates.
//
//	Publisher --- Track --+-- DownTrack --- Subscriber --- Sink
//	(a connection         +-- DownTrack --- Subscriber --- Sink
//	 that sends)
//
// A Publisher is the receiving half of one connection: it finds the stream of a
// packet, recovers losses (NACK, RTX), reports to the sender (receiver reports,
// transport-wide feedback, keyframe requests). A Track is one microphone or
// camera with its layers. A DownTrack is one Track on its way to one Subscriber:
// it chooses the layer, renumbers packets so that the receiver sees one
// unbroken stream, and answers NACKs from the ring that all subscribers of a
// layer share. A Subscriber is the sending half of one connection: it estimates
// the bandwidth and shares it among its DownTracks.
//
// Media may be encrypted end to end. The package reads RTP headers, header
// extensions, payload descriptors and the first clear byte of a frame, and
// changes nothing of a payload but the picture numbers of VP8 and VP9
// descriptors.
package forward
