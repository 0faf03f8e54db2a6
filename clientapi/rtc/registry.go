package rtc

import (
	"sync"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

const (
	// TokenLifetime is how long a token may be used to join. The SFU gives
	// fresh ones to those who are in a call, for as long.
	TokenLifetime = 10 * time.Minute
	// keepFor is how long after its last use a place is remembered: somebody
	// who has left may come back with a token from just before.
	keepFor = 2 * TokenLifetime
	// maxPlaces of everybody, maxOwn of one user: the devices of a person,
	// in several calls, and what is left of earlier attempts.
	maxPlaces = 100_000
	maxOwn    = 100
	sweepTime = time.Minute
)

// key is how the SFU knows a participant.
type key struct{ alias, identity string }

// place is what one device may take in one call. Fields are guarded by
// registry.mu.
type place struct {
	key
	room   mxid.RoomID
	user   mxid.UserID
	device mxid.DeviceID

	connected bool
	revoked   bool      // no longer in the registry
	until     time.Time // when it is forgotten, unless connected
	leave     *leave    // nil: not delegated
}

// registry knows who the participants are. In memory only.
type registry struct {
	mu     sync.Mutex
	places map[key]*place
	users  map[mxid.UserID]map[*place]struct{}
	rooms  map[mxid.RoomID]map[*place]struct{}
	calls  map[string]map[*place]struct{} // by alias
}

func newRegistry() *registry {
	return &registry{places: map[key]*place{}, users: map[mxid.UserID]map[*place]struct{}{}, rooms: map[mxid.RoomID]map[*place]struct{}{},
		calls: map[string]map[*place]struct{}{}}
}

// errFull answers when too many are in calls, or try to be.
func errFull() error { return httpx.Unavailable() }

// reserve finds or makes the place of a request. It must be there before the
// room is asked, so that a kick from then on finds it.
func (g *registry) reserve(p place, now time.Time) (*place, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.places[p.key]
	if old != nil && (old.user != p.user || old.device != p.device || old.room != p.room) {
		return nil, errUnauthorized() // legacy identities aren't hashes: @a:b:C:D is ambiguous
	}
	if old == nil {
		if len(g.users[p.user]) >= maxOwn {
			return nil, httpx.LimitExceeded(sweepTime)
		}
		if len(g.places) >= maxPlaces {
			return nil, errFull()
		}
		old = &p
		g.places[p.key] = old
		add(g.users, p.user, old)
		add(g.rooms, p.room, old)
		add(g.calls, p.alias, old)
	}
	if until := now.Add(keepFor); until.After(old.until) {
		old.until = until
	}
	return old, nil
}

func add[K comparable](m map[K]map[*place]struct{}, k K, p *place) {
	if m[k] == nil {
		m[k] = map[*place]struct{}{}
	}
	m[k][p] = struct{}{}
}

func drop[K comparable](m map[K]map[*place]struct{}, k K, p *place) {
	if delete(m[k], p); len(m[k]) == 0 {
		delete(m, k)
	}
}

// dropLocked forgets a place.
func (g *registry) dropLocked(p *place) {
	if p.revoked {
		return
	}
	p.revoked = true
	delete(g.places, p.key)
	drop(g.users, p.user, p)
	drop(g.rooms, p.room, p)
	drop(g.calls, p.alias, p)
}

// connect marks a participant as there; nil if there is no such place.
func (g *registry) connect(k key) *place {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.places[k]
	if p != nil {
		p.connected = true
	}
	return p
}

// disconnect marks a participant as gone, and remembers the place for a while.
// back stops what waits for the participant, who will be asked to come back.
func (g *registry) disconnect(k key, now time.Time, back bool) *place {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.places[k]
	if p == nil {
		return nil
	}
	p.connected, p.until = false, now.Add(keepFor)
	if back {
		p.leave.stop()
	}
	return p
}

// take forgets the places that fit, and returns them.
func (g *registry) take(in func() map[*place]struct{}, fits func(*place) bool) []*place {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*place
	for p := range in() {
		if fits(p) {
			g.dropLocked(p)
			out = append(out, p)
		}
	}
	return out
}

// sweep forgets the places that nobody uses, and reports whether any are left.
// A delegated leave whose participant never came is sent when its time comes.
func (g *registry) sweep(now time.Time) (more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.places {
		if !p.connected && now.After(p.until) {
			g.dropLocked(p)
		}
	}
	return len(g.places) > 0
}

// RoomOf is the room of a call that somebody has a place in.
func (s *Service) RoomOf(alias string) (mxid.RoomID, bool) {
	s.places.mu.Lock()
	defer s.places.mu.Unlock()
	for p := range s.places.calls[alias] {
		return p.room, true
	}
	return "", false
}

// size is the number of places.
func (g *registry) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.places)
}
