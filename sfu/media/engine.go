package media

import (
	"math/rand/v2"
	"sync"

	"parley/sfu/forward"
	"parley/sfu/transport"
)

// Limits of a room.
const (
	maxPeers         = 1000 // of a room
	maxTracks        = 16   // that a peer publishes
	maxSubscriptions = 400  // of a peer: two m-lines at most for each
)

// Engine serves the rooms of the process. Safe for concurrent use.
type Engine struct {
	cfg        Config
	candidates []string
}

// NewEngine makes an engine on an open transport.
func NewEngine(cfg Config) *Engine {
	e := &Engine{cfg: cfg}
	for _, c := range cfg.Transport.Candidates() {
		e.candidates = append(e.candidates, c.Attribute())
	}
	return e
}

// NewRoom makes a room and pins it to the least loaded shard.
func (e *Engine) NewRoom(ev RoomEvents) *Room {
	r := &Room{engine: e, shard: e.shard(), events: ev, peers: map[*Peer]struct{}{}}
	r.plane = plane{room: r, speakers: forward.NewSpeakers(), tracks: map[*forward.Track]*Track{}}
	r.shard.Do(r.plane.start)
	return r
}

// shard is where a new room or trunk goes.
func (e *Engine) shard() *transport.Shard {
	if e.cfg.Together {
		return e.cfg.Transport.Shards()[0]
	}
	return e.cfg.Transport.PickShard()
}

// Room is one call. Safe for concurrent use.
type Room struct {
	engine *Engine
	shard  *transport.Shard
	events RoomEvents
	plane  plane

	// mu guards the control state of the room's peers and tracks.
	mu     sync.Mutex
	peers  map[*Peer]struct{}
	closed bool
}

// Close ends every peer of the room.
func (r *Room) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	for p := range r.peers {
		p.shut()
	}
	r.shard.Do(r.plane.end)
}

// NewPeer makes a participant. ErrTooMany, ErrClosed.
func (r *Room) NewPeer(cfg PeerConfig) (*Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case len(r.peers) >= maxPeers:
		return nil, ErrTooMany
	}
	p := &Peer{room: r, cfg: cfg, tracks: map[string]*Track{}, subs: map[*Track]*subscription{}, prefs: map[*Track]Preference{}}
	p.links = append(p.links, newLink(p, Publisher))
	if cfg.Dual {
		p.links = append(p.links, newLink(p, Subscriber))
	}
	r.wait(func() {
		for _, l := range p.links {
			l.open()
		}
	})
	r.peers[p] = struct{}{}
	return p, nil
}

// wait runs f on the shard and waits for its turn. When the transport is closed,
// f runs all the same.
func (r *Room) wait(f func()) {
	done := make(chan struct{})
	r.shard.Do(func() {
		defer close(done)
		f()
	})
	<-done
}

// random is a number for SSRCs and session IDs, which needn't be secret.
func random() uint64 { return rand.Uint64() }
