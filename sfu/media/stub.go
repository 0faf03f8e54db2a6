package media

// NewEngine makes an engine on an open transport.
func NewEngine(cfg Config) *Engine { return &Engine{cfg: cfg} }

// NewRoom makes a room and pins it to the least loaded shard.
func (e *Engine) NewRoom(ev RoomEvents) *Room { panic("unimplemented") }

// Room is one call.
type Room struct{}

// Close ends every peer of the room.
func (r *Room) Close() { panic("unimplemented") }

// NewPeer makes a participant. ErrTooMany, ErrClosed.
func (r *Room) NewPeer(cfg PeerConfig) (*Peer, error) { panic("unimplemented") }

// Peer is one participant.
type Peer struct{}

// Track is one published track. Its methods are safe for concurrent use.
type Track struct{}

// ID is the track's sid.
func (t *Track) ID() string { panic("unimplemented") }

// Spec is what was announced; Muted is as it was then.
func (t *Track) Spec() TrackSpec { panic("unimplemented") }

// Info is what is known of the media now.
func (t *Track) Info() TrackInfo { panic("unimplemented") }

// Negotiated reports whether an offer has brought its m-line.
func (t *Track) Negotiated() bool { panic("unimplemented") }

// Wanted is what RoomEvents.Wanted told last.
func (t *Track) Wanted() [3]bool { panic("unimplemented") }

// Publisher is the peer that publishes it.
func (t *Track) Publisher() *Peer { panic("unimplemented") }

// Close ends the participant: its connections, tracks and subscriptions.
func (p *Peer) Close() { panic("unimplemented") }

// Publish announces a track before the offer that carries its m-line.
// ErrTooMany, ErrClosed.
func (p *Peer) Publish(spec TrackSpec) (*Track, error) { panic("unimplemented") }

// Unpublish ends a track and all subscriptions to it.
func (p *Peer) Unpublish(id string) { panic("unimplemented") }

// SetMuted stops or resumes the forwarding of a published track.
func (p *Peer) SetMuted(id string, muted bool) { panic("unimplemented") }

// Answer takes the client's offer and answers it. An error leaves the session
// as it was.
func (p *Peer) Answer(offer string) (Answer, error) { panic("unimplemented") }

// Sections counts the m-lines that a single peer's subscriptions still need.
// Zero with NegotiationNeeded means: any new offer will do.
func (p *Peer) Sections() Sections { panic("unimplemented") }

// Offer makes an offer for a dual peer's second connection. restart gives it
// new ICE credentials and replaces an offer that is outstanding.
func (p *Peer) Offer(restart bool) (Offer, error) { panic("unimplemented") }

// SetAnswer takes the client's answer to the outstanding offer.
func (p *Peer) SetAnswer(answer string) error { panic("unimplemented") }

// Subscribe adds a track of another peer; publisherSID ("PA_…") names its
// stream. It flows after the next negotiation. A second call does nothing.
func (p *Peer) Subscribe(t *Track, publisherSID string) error { panic("unimplemented") }

// Unsubscribe ends a subscription; its m-line is free after the next negotiation.
func (p *Peer) Unsubscribe(t *Track) { panic("unimplemented") }

// SetPreference says what of a subscribed track is wanted. It may come before
// Subscribe and is kept until the track ends.
func (p *Peer) SetPreference(t *Track, pref Preference) { panic("unimplemented") }

// SendData sends a message on "_reliable" or "_lossy"; dropped when the channel
// isn't open or too much waits. msg must not change afterwards.
func (p *Peer) SendData(reliable bool, msg []byte) { panic("unimplemented") }
