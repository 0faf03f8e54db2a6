package sfu

import (
	"errors"
	"maps"

	"parley/sfu/media"
)

// ErrTaken: somebody in the call has this identity.
var ErrTaken = errors.New("sfu: the identity is taken")

// Cascade joins the calls of this server with those of others. Its methods are
// called by a call's actor and must not block.
type Cascade interface {
	// Opened tells of a new call. What happens in it is told to the observer.
	Opened(*Bridge) Observer
}

// Observer is told what happens in a call. Its methods are called by the call's
// actor and must not block.
type Observer interface {
	// Tell passes what all clients are told: guests are in it, too.
	Tell(Message)
	// Data is a message of a data channel of a client, as Stamp made it.
	Data(sid string, reliable bool, d DataPacket)
	// Wanted is which layers of a guest's track anybody here wants.
	Wanted(track string, layers [3]bool)
	// Closed tells that the call has ended.
	Closed()
}

// remoteRoom is what a packet plane must have for guests; engineRoom does.
type remoteRoom interface {
	NewRemote(tr *media.Trunk, cfg PeerConfig) (remotePeer, error)
	Export(tr *media.Trunk, track string, layer, priority int) (*media.Export, error)
	Coding(track string) media.Coding
}

type remotePeer interface {
	MediaPeer
	Import(spec media.TrackSpec, c media.Coding) error
	Flow(track string, flows []media.Flow)
}

// Bridge is a call as its cascade sees it. Everything but Name and Do is for
// the call's actor.
type Bridge struct{ c *Call }

// Name is the alias of the call.
func (b *Bridge) Name() string { return b.c.name }

// Do runs f in the call's actor, after what came before. Safe for concurrent
// use. False when the call has ended.
func (b *Bridge) Do(f func()) bool { return b.c.inbox.Put(f) == nil }

// Coding says how a track is coded.
func (b *Bridge) Coding(track string) media.Coding {
	if r, ok := b.c.media.(remoteRoom); ok {
		return r.Coding(track)
	}
	return media.Coding{}
}

// Exportable reports whether there is such a track of a client of this server,
// and its publisher lets everybody subscribe.
func (b *Bridge) Exportable(track string) bool {
	t := b.c.tracks[track]
	return t != nil && t.published && t.owner.guest == nil && t.owner.allowed == nil
}

// Export sends a layer of a client's track to another server. ErrNoTrack when
// it isn't exportable.
func (b *Bridge) Export(track string, tr *media.Trunk, layer, priority int) (*media.Export, error) {
	r, ok := b.c.media.(remoteRoom)
	if !ok || !b.Exportable(track) {
		return nil, ErrNoTrack
	}
	return r.Export(tr, track, layer, priority)
}

// GuestConfig describes a participant whose client is at another server.
type GuestConfig struct {
	Identity string
	// Server is the client's.
	Server     string
	Attributes map[string]string
	Trunk      *media.Trunk
}

// Guest is such a participant. Its methods are for the call's actor; they do
// nothing once it is gone.
type Guest struct{ p *participant }

// Join lets a guest in. ErrTaken, ErrFull, ErrTooLarge.
func (b *Bridge) Join(cfg GuestConfig) (*Guest, error) {
	c := b.c
	r, ok := c.media.(remoteRoom)
	g := Grant{Room: c.name, Identity: cfg.Identity, CanPublish: true, CanPublishData: true, Attributes: cfg.Attributes}
	switch err := checkJoin(g, Join{Attributes: cfg.Attributes}); {
	case err != nil:
		return nil, err
	case !ok || c.ended:
		return nil, ErrClosed
	case c.byIdentity[cfg.Identity] != nil:
		return nil, ErrTaken
	case len(c.order) >= maxParticipants:
		return nil, ErrFull
	}
	p := c.newParticipant(g, Join{})
	peer, err := r.NewRemote(cfg.Trunk, PeerConfig{SID: p.sid, Events: p.events()})
	if err != nil {
		return nil, err
	}
	p.peer, p.guest, p.home = peer, peer, cfg.Server
	p.everActive, p.state = true, Active
	p.attributes = maps.Clone(cfg.Attributes)
	c.order = append(c.order, p)
	c.byIdentity[p.identity], c.bySID[p.sid] = p, p
	c.server.counted(c, 1)
	c.changed(p)
	c.counted()
	return &Guest{p}, nil
}

// SID is the participant's sid here.
func (g *Guest) SID() string { return g.p.sid }

// Gone reports that the participant has been put out: a client of this server
// has its identity, or the call has ended.
func (g *Guest) Gone() bool { return g.p.removed }

// Publish announces a track of the guest; the sid that it gets here. ErrFull,
// ErrTooLarge, or what the packet plane says.
func (g *Guest) Publish(a AddTrack, c media.Coding) (sid string, err error) {
	p := g.p
	a.CID = "-"
	switch {
	case p.removed:
		return "", ErrClosed
	case len(p.tracks) >= maxTracks:
		return "", ErrFull
	case !a.sound():
		return "", ErrTooLarge
	}
	t := p.newTrack(a)
	t.info.Codecs[0].CID = ""
	if err := p.guest.Import(spec(t, a), c); err != nil {
		return "", err
	}
	p.tracks[t.sid], p.call.tracks[t.sid] = t, t
	p.order = append(p.order, t)
	p.trackNegotiated(t.sid)
	return t.sid, nil
}

// Mute mutes or unmutes a track.
func (g *Guest) Mute(track string, muted bool) {
	if !g.p.removed {
		g.p.mute(track, muted)
	}
}

// Flow says on which streams of the trunk a track comes.
func (g *Guest) Flow(track string, flows []media.Flow) {
	if !g.p.removed {
		g.p.guest.Flow(track, flows)
	}
}

// Unpublish ends a track.
func (g *Guest) Unpublish(track string) {
	if !g.p.removed {
		g.p.unpublish(track)
	}
}

// Data passes a message of the guest's data channel to the clients here.
func (g *Guest) Data(reliable bool, msg []byte) {
	if !g.p.removed {
		g.p.deliver(reliable, msg)
	}
}

// Leave ends the participant.
func (g *Guest) Leave() { g.p.call.remove(g.p, Left, ReasonClient, ActionDisconnect) }

// NewRemote is remoteRoom's.
func (r *engineRoom) NewRemote(tr *media.Trunk, cfg PeerConfig) (remotePeer, error) {
	p, err := r.room.NewRemote(tr, peerConfig(cfg))
	if err != nil {
		return nil, err
	}
	return &enginePeer{Peer: p, room: r}, nil
}

// Export is remoteRoom's.
func (r *engineRoom) Export(tr *media.Trunk, track string, layer, priority int) (*media.Export, error) {
	t := r.tracks[track]
	if t == nil {
		return nil, ErrNoTrack
	}
	return tr.Export(t, layer, priority)
}

// Coding is remoteRoom's.
func (r *engineRoom) Coding(track string) media.Coding {
	if t := r.tracks[track]; t != nil {
		return t.Coding()
	}
	return media.Coding{}
}

// Import is remotePeer's.
func (p *enginePeer) Import(spec media.TrackSpec, c media.Coding) error {
	t, err := p.Peer.Import(spec, c)
	if err == nil {
		p.published(t)
	}
	return err
}
