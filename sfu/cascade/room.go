package cascade

import (
	"context"
	"maps"
	"slices"
	"time"

	"parley/internal/mxid"
)

// usersFactor is how many participants each joined user of a server may have:
// devices, and what is left of connections that broke.
const usersFactor = 5

// room is a call, as the service's inbox sees it.
type room struct {
	s     *Service
	alias string
	call  *call
	// locals are this server's own participants, as others are told of them.
	locals  map[uint32]part
	bySID   map[string]uint32
	sids    map[uint32]string // tracks of locals, by number
	sources map[uint32][maxLayers]uint32
	peers   map[mxid.ServerName]*presence
	asked   bool      // Rooms.Servers is under way
	looked  time.Time // when discover was last called
}

// presence is a call on the link to one server.
type presence struct {
	room   *room
	peer   *peer
	number uint32 // ours on this link, 0 before open
	theirs uint32 // the other server's, 0 before its open

	told    bool // the other server took our open
	refused bool // it has no clients in the call
	ledger  *ledger
	digest  time.Time

	replica *replica
	// hidden are participants whose identity hasn't been found yet.
	hidden map[uint32]part
	wants  map[uint32]want // ours, by the other server's track
	flows  map[uint32]*flowing
}

// want is what is wanted of a track.
type want struct {
	seq  uint32
	mask uint8
}

// updated takes what clients were told of this server's own participants.
func (r *room) updated(now []local) {
	for _, l := range now {
		n, known := r.bySID[l.sid]
		switch {
		case l.gone && known:
			r.forget(n)
			delete(r.bySID, l.sid)
		case !l.gone:
			if !known {
				n = r.call.numbers.next()
				r.bySID[l.sid] = n
			}
			r.take(n, l)
		}
	}
	if len(r.locals) == 0 {
		r.leave()
		return
	}
	r.discover()
	for _, p := range r.peers {
		p.tell()
		p.export()
	}
}

// take notes a participant and its tracks.
func (r *room) take(n uint32, l local) {
	r.forget(n)
	p := part{Part: n, PID: l.pid, Salt: l.salt}
	for _, t := range l.tracks {
		p.Tracks = append(p.Tracks, t.track)
		r.sids[t.Track] = t.sid
		if old, was := r.sources[t.Track]; was {
			r.moved(t.Track, old, t.ssrcs)
		}
		r.sources[t.Track] = t.ssrcs
	}
	r.locals[n] = p
	for t := range r.sources {
		if r.sids[t] == "" {
			delete(r.sources, t)
		}
	}
}

// moved ends the flows of layers that come from another stream now: their
// numbers start anew.
func (r *room) moved(t uint32, old, now [maxLayers]uint32) {
	for i := range old {
		if old[i] != 0 && old[i] != now[i] {
			for _, p := range r.peers {
				if f := p.flows[t]; f != nil {
					f.stop(i)
				}
			}
		}
	}
}

func (r *room) forget(n uint32) {
	for _, t := range r.locals[n].Tracks {
		delete(r.sids, t.Track)
	}
	delete(r.locals, n)
}

// discover asks which servers take part, and turns to those that looked for
// the call before.
func (r *room) discover() {
	s := r.s
	now := s.now()
	r.looked = now
	for i, until := range s.interest {
		if i.alias == r.alias {
			delete(s.interest, i)
			if now.Before(until) {
				r.approach(i.server)
			}
		}
	}
	if r.asked {
		return
	}
	r.asked = true
	s.spawn(func(ctx context.Context) {
		servers, err := s.cfg.Rooms.Servers(ctx, r.alias)
		s.post(func() {
			r.asked = false
			if err != nil || s.calls[r.alias] != r {
				return
			}
			for _, name := range servers {
				r.approach(name)
			}
		})
	})
}

// approach opens the call to a server that may take part.
func (r *room) approach(name mxid.ServerName) {
	s := r.s
	if name == s.cfg.ServerName || len(r.locals) == 0 {
		return
	}
	if p := r.peers[name]; p != nil {
		return
	}
	s.spawn(func(ctx context.Context) {
		users, err := s.cfg.Rooms.Standing(ctx, r.alias, name)
		s.post(func() {
			if err == nil && users == 0 {
				s.remember(r.alias, name)
			}
			if err == nil && users > 0 && s.calls[r.alias] == r && len(r.locals) > 0 && r.peers[name] == nil && len(r.peers) < maxServers {
				if p := s.peer(name); p != nil {
					r.presence(p, users)
					p.refresh()
				}
			}
		})
	})
}

// presence finds or makes the call on a link.
func (r *room) presence(p *peer, users int) *presence {
	x := r.peers[p.name]
	if x == nil {
		x = &presence{room: r, peer: p}
		x.reset(users)
		r.peers[p.name] = x
		p.number++
		x.number = p.number
		p.rooms[x.number] = x
		if p.hello {
			x.connected()
		}
	}
	x.replica.most = users * usersFactor
	return x
}

// opened takes a server's open that was found to be right.
func (r *room) opened(p *peer, theirs uint32, users int) {
	if r.peers[p.name] == nil && len(r.peers) >= maxServers {
		p.send(&message{Kind: kindNo, Peer: theirs})
		return
	}
	x := r.presence(p, users)
	if x.theirs != 0 { // opened anew: what was told before doesn't count
		delete(p.theirs, x.theirs)
		r.call.vanished(p.name)
		x.replica, x.hidden = newReplica(users*usersFactor), map[uint32]part{}
	}
	x.theirs = theirs
	p.theirs[theirs] = x
	p.send(&message{Kind: kindOK, Peer: theirs})
	if x.refused {
		x.refused = false
		x.connected()
	}
	p.refresh()
}

// leave closes the call everywhere: no client of this server is in it.
func (r *room) leave() {
	for _, p := range r.peers {
		p.close()
	}
}

// closed forgets a call that has ended.
func (r *room) closed() {
	r.leave()
	delete(r.s.calls, r.alias)
}

// recheck asks again whether the servers may take part.
func (r *room) recheck() {
	for name, p := range r.peers {
		r.s.spawn(func(ctx context.Context) {
			users, err := r.s.cfg.Rooms.Standing(ctx, r.alias, name)
			r.s.post(func() {
				switch {
				case err != nil || r.peers[name] != p:
				case users == 0:
					p.close()
					r.s.remember(r.alias, name) // it may come back
				default:
					p.replica.most = users * usersFactor
					p.reveal()
				}
			})
		})
	}
}

// sweep tells digests and looks again for what was missing.
func (r *room) sweep(now time.Time) {
	r.recheck()
	if len(r.locals) > 0 && now.Sub(r.looked) >= discoverTime {
		r.discover()
	}
	for _, p := range r.peers {
		if p.told && now.Sub(p.digest) >= digestEvery {
			p.digest = now
			p.send(p.ledger.digest())
		}
	}
}

// reset forgets what was said on a link.
func (x *presence) reset(users int) {
	x.theirs, x.told, x.refused = 0, false, false
	x.ledger, x.replica = newLedger(), newReplica(users*usersFactor)
	x.hidden, x.wants, x.flows = map[uint32]part{}, map[uint32]want{}, map[uint32]*flowing{}
}

// send sends a message about the call.
func (x *presence) send(m *message) {
	m.Room = x.number
	x.peer.send(m)
}

// connected opens the call on a link that has come up.
func (x *presence) connected() { x.send(&message{Kind: kindOpen, Alias: x.room.alias}) }

// disconnected takes the end of the link: the server's participants leave.
func (x *presence) disconnected() {
	x.stop()
	x.room.call.vanished(x.peer.name)
	x.reset(x.replica.most / usersFactor)
}

// close ends the call on the link.
func (x *presence) close() {
	p := x.peer
	if p.hello {
		x.send(&message{Kind: kindClose})
	}
	x.stop()
	x.room.call.vanished(p.name)
	delete(p.rooms, x.number)
	if x.theirs != 0 {
		delete(p.theirs, x.theirs)
	}
	delete(x.room.peers, p.name)
	p.refresh()
}

// accepted: the other server took our open.
func (x *presence) accepted() {
	x.told, x.refused, x.digest = true, false, x.room.s.now()
	x.ledger.set(x.visible())
	for _, m := range x.ledger.snapshot() {
		x.send(m)
	}
	for t, w := range x.wants {
		x.send(&message{Kind: kindWant, Track: t, Seq: w.seq, Mask: w.mask})
	}
}

// denied: the other server has no clients in the call. It may open it later.
func (x *presence) denied() {
	x.refused = true
	x.peer.refresh()
}

// visible are the participants that other servers are told of.
func (x *presence) visible() map[uint32]part { return maps.Clone(x.room.locals) }

// tell tells what has changed.
func (x *presence) tell() {
	if x.told {
		for _, m := range x.ledger.set(x.visible()) {
			x.send(m)
		}
	}
}

// received takes a message of the other server about the call.
func (x *presence) received(m *message) {
	switch m.Kind {
	case kindClose:
		x.stop()
		x.room.call.vanished(x.peer.name)
		delete(x.peer.theirs, x.theirs)
		x.reset(x.replica.most / usersFactor)
		x.denied()
	case kindSnap, kindParts, kindDigest:
		c, resync := x.replica.apply(m)
		if resync {
			x.send(&message{Kind: kindResync})
		}
		x.apply(c)
	case kindResync:
		if x.told {
			for _, m := range x.ledger.snapshot() {
				x.send(m)
			}
		}
	case kindWant:
		x.wanted(m)
	case kindFlow:
		if w, ok := x.wants[m.Track]; ok && m.Seq == w.seq {
			x.room.call.flow(x.peer.name, m.Track, m.Flows)
		}
	case kindData:
		if _, known := x.replica.parts[m.Part]; known {
			x.room.call.data(x.peer.name, m.Part, m.Reliable, m.Blob)
		}
	}
}

// apply passes on what changed among the server's participants.
func (x *presence) apply(c changes) {
	var named []named
	for _, p := range c.parts {
		if p.Salt != "" {
			x.hidden[p.Part] = p
			continue
		}
		named = append(named, name(p, p.PID))
	}
	for _, n := range c.gone {
		delete(x.hidden, n)
	}
	if len(named)+len(c.gone) > 0 {
		x.room.call.apply(x.peer.name, x.peer.media, named, c.gone)
	}
	x.reveal()
	for t := range x.wants {
		if !x.has(t) {
			delete(x.wants, t)
		}
	}
}

// has reports whether the server has told of a track.
func (x *presence) has(t uint32) bool {
	for _, p := range x.replica.parts {
		if slices.ContainsFunc(p.Tracks, func(o track) bool { return o.Track == t }) {
			return true
		}
	}
	return false
}

// reveal looks for the identities of hidden participants.
func (x *presence) reveal() {
	if len(x.hidden) == 0 {
		return
	}
	r, server, hidden := x.room, x.peer.name, maps.Clone(x.hidden)
	r.s.spawn(func(ctx context.Context) {
		ids, err := r.s.cfg.Rooms.Identities(ctx, r.alias, server)
		if err != nil {
			return
		}
		who := map[string]string{} // by pseudonym
		for _, p := range hidden {
			for _, id := range ids {
				if hide(r.alias, id, p.Salt) == p.PID {
					who[p.PID] = id
				}
			}
		}
		r.s.post(func() {
			if r.peers[server] != x {
				return
			}
			var found []named
			for n, p := range x.hidden {
				if id, ok := who[p.PID]; ok {
					found = append(found, name(p, id))
					delete(x.hidden, n)
				}
			}
			if len(found) > 0 {
				r.call.apply(server, x.peer.media, found, nil)
			}
		})
	})
}

// want tells the other server which layers of its track are wanted here.
func (x *presence) want(t uint32, mask uint8) {
	if old, ok := x.wants[t]; !x.has(t) || ok && old.mask == mask || !ok && mask == 0 {
		return
	}
	w := want{seq: x.wants[t].seq + 1, mask: mask}
	x.wants[t] = w
	if x.told {
		x.send(&message{Kind: kindWant, Track: t, Seq: w.seq, Mask: w.mask})
	}
}
