package forward

// PublisherConfig makes a Publisher.
type PublisherConfig struct {
	Sink       Sink         // where reports and requests to the sender go
	SSRC       uint32       // our SSRC in RTCP we send
	Extensions ExtensionMap // of the packets that come in
}

// Binding tells a Publisher how the packets of a track look on its connection.
type Binding struct {
	MID     string // of the m-line, matched when SSRCs are not known
	Formats []Format
	Streams []StreamBinding // at most MaxLayers
}

// StreamBinding is one RTP stream of a track: a simulcast layer, or all of it.
// SSRCs may be 0: they are then learned from the mid and rid header extensions.
type StreamBinding struct {
	Layer int // index into TrackConfig.Layers; 0 for a single stream or SVC
	RID   string
	SSRC  uint32
	RTX   uint32
}

// Publisher is the receiving half of one connection.
type Publisher struct{}

// NewPublisher returns a Publisher without tracks.
func NewPublisher(cfg PublisherConfig) *Publisher { panic("unimplemented") }

// SetExtensions replaces the extension IDs after a new negotiation.
func (p *Publisher) SetExtensions(m ExtensionMap) { panic("unimplemented") }

// Add makes packets that match b packets of t. Adding a track again replaces
// its binding and keeps the streams whose SSRC did not change.
func (p *Publisher) Add(t *Track, b Binding) { panic("unimplemented") }

// Remove takes t off the connection. t stays usable (its down tracks wait).
func (p *Publisher) Remove(t *Track) { panic("unimplemented") }

// HandleRTP takes one decrypted RTP packet; it is not kept. Packets that are
// malformed or belong to no track are dropped.
func (p *Publisher) HandleRTP(packet []byte, now int64) { panic("unimplemented") }

// HandleRTCP takes one decrypted compound packet, reads the sender reports and
// BYEs in it and ignores the rest (see Subscriber.HandleRTCP).
func (p *Publisher) HandleRTCP(packet []byte, now int64) { panic("unimplemented") }

// Tick does what is due: NACKs, keyframe requests, receiver reports and
// transport-wide feedback, and the timers of the tracks. Call it every 5 ms.
func (p *Publisher) Tick(now int64) { panic("unimplemented") }

// SetRTT tells the round trip time measured elsewhere, in nanoseconds. Without
// it, the time from a NACK to its retransmission is used.
func (p *Publisher) SetRTT(rtt int64) { panic("unimplemented") }

// ReceiveStats sums up what a Publisher received since it was made.
type ReceiveStats struct {
	Packets, Bytes uint64
	Lost           uint64 // packets that never came, retransmitted ones not counted
	Recovered      uint64 // packets that came by retransmission
	RTT            int64  // nanoseconds, 0 unknown
	Jitter         int64  // nanoseconds, the worst stream's
}

// Stats returns the counters.
func (p *Publisher) Stats() ReceiveStats { panic("unimplemented") }

// Close takes all tracks off the connection.
func (p *Publisher) Close() { panic("unimplemented") }
