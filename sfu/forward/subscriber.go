package forward

// SubscriberConfig makes a Subscriber.
type SubscriberConfig struct {
	Sink       Sink
	SSRC       uint32       // sender SSRC of our RTCP
	Extensions ExtensionMap // of the packets that go out
	CNAME      string       // in our sender reports; the same for all tracks that play together
	// StartBitrate and MaxBitrate bound the bandwidth estimate, bit/s; 0 means
	// 2 Mbit/s and 50 Mbit/s. Without transport-wide feedback nothing is
	// limited but by REMB.
	StartBitrate, MaxBitrate int
	// OnPaused is called when a video starts or stops being held back for lack
	// of bandwidth. It must not call back into the package.
	OnPaused func(d *DownTrack, paused bool)
}

// Subscriber is the sending half of one connection.
type Subscriber struct{}

// NewSubscriber returns a Subscriber without tracks.
func NewSubscriber(cfg SubscriberConfig) *Subscriber { panic("unimplemented") }

// SetExtensions replaces the extension IDs after a new negotiation.
func (s *Subscriber) SetExtensions(m ExtensionMap) { panic("unimplemented") }

// DownConfig tells how a track looks on the subscriber's connection. SSRC and
// RTX must be unused on the connection before; RTX 0 means retransmissions go
// out as they were, on SSRC.
type DownConfig struct {
	SSRC, RTX  uint32
	Formats    []Format
	MID        string
	Preference Preference
	// PassThrough forwards the stream of Layer alone, with the sequence numbers
	// and timestamps of the publisher and an untouched payload. It is for links
	// between servers, where whole layers pass.
	PassThrough bool
	Layer       int
}

// Add starts forwarding t.
func (s *Subscriber) Add(t *Track, cfg DownConfig, now int64) *DownTrack { panic("unimplemented") }

// HandleRTCP takes one decrypted compound packet and reads NACKs, PLIs, FIRs,
// receiver reports, transport-wide feedback and REMBs for our streams.
func (s *Subscriber) HandleRTCP(packet []byte, now int64) { panic("unimplemented") }

// Tick does what is due: paced packets, probes, sender reports, allocation.
// Call it every 5 ms.
func (s *Subscriber) Tick(now int64) { panic("unimplemented") }

// SendStats sums up what a Subscriber sent since it was made.
type SendStats struct {
	Packets, Bytes uint64  // media, without retransmissions
	Retransmitted  uint64  // packets
	Padding        uint64  // bytes of probes
	RTT            int64   // nanoseconds, 0 unknown
	Loss           float64 // 0..1, of the last reports
	Estimate       int     // bit/s, 0 unknown
	Wanted         int     // bit/s of the layers that are wanted
	Paused         int     // down tracks held back
}

// Stats returns the counters.
func (s *Subscriber) Stats() SendStats { panic("unimplemented") }

// Close ends all down tracks.
func (s *Subscriber) Close() { panic("unimplemented") }

// DownTrack is one track on its way to one subscriber.
type DownTrack struct{}

// Track returns the track that is forwarded.
func (d *DownTrack) Track() *Track { panic("unimplemented") }

// SetPreference says what the subscriber wants from now on.
func (d *DownTrack) SetPreference(p Preference, now int64) { panic("unimplemented") }

// SetFormats replaces payload types and MID after a new negotiation.
func (d *DownTrack) SetFormats(f []Format, mid string) { panic("unimplemented") }

// Layer returns the layer that is forwarded and its highest temporal layer, -1
// and -1 when nothing is.
func (d *DownTrack) Layer() (spatial, temporal int) { panic("unimplemented") }

// Paused reports whether the track is held back for lack of bandwidth.
func (d *DownTrack) Paused() bool { panic("unimplemented") }

// Close stops forwarding.
func (d *DownTrack) Close() { panic("unimplemented") }
