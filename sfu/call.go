package sfu

import (
	"crypto/rand"
	"time"

	"parley/internal/actor"
	"parley/sfu/media"
)

// Limits of a call's inbox: what clients ask for is bounded by their own
// limits, so that it never gets near.
const (
	inboxLimit = 1 << 16
	inboxBatch = 256
)

// Call is one call. Its fields belong to the actor, but for those that
// Server.mu guards.
type Call struct {
	server *Server
	name   string
	inbox  *actor.Inbox[func()]
	media  MediaRoom
	// observer is told what clients are told; nil without a cascade.
	observer Observer

	// Guarded by Server.mu.
	entering, people int

	sid        string
	createdMs  int64
	byIdentity map[string]*participant
	bySID      map[string]*participant
	order      []*participant // in the order of joining
	tracks     map[string]*track
	gone       []departed
	loud       map[string]Speaker // by participant, those last told as active
	ended      bool

	// What the batch has changed.
	dirty    []*participant
	missing  []link
	sections []*participant

	roomTimer, emptyTimer func() bool
	told                  RoomInfo
}

// link is a subscription that may have to be made.
type link struct {
	p *participant
	t *track
}

// departed remembers a participant that left, for those who come back.
type departed struct {
	info *ParticipantInfo
	at   time.Time
}

func newCall(s *Server, name string) *Call {
	c := &Call{server: s, name: name, sid: newSID("RM_"), createdMs: s.cfg.Clock.Now().UnixMilli(),
		byIdentity: map[string]*participant{}, bySID: map[string]*participant{}, tracks: map[string]*track{}, loud: map[string]Speaker{}}
	c.inbox = actor.NewInbox(inboxLimit, inboxBatch, c.run)
	c.media = s.cfg.Media.NewRoom(RoomEvents{
		Speakers: func(l []Loudness) { c.post(func() { c.speakers(l) }) },
		Wanted:   func(t string, layers [3]bool) { c.post(func() { c.wanted(t, layers) }) },
	})
	if s.cfg.Cascade != nil {
		c.observer = s.cfg.Cascade.Opened(&Bridge{c})
	}
	return c
}

// run handles a batch of what came in and then tells what it changed.
func (c *Call) run(batch []func()) {
	for _, f := range batch {
		f()
	}
	c.flush()
}

// post queues f; it never blocks.
func (c *Call) post(f func()) {
	if err := c.inbox.Put(f); err == actor.ErrFull {
		c.server.cfg.Log.Error("a call's inbox is full: an event is lost")
	}
}

// ask runs f in the actor and waits for it.
func (c *Call) ask(f func() (*Session, error)) (*Session, error) {
	type result struct {
		s   *Session
		err error
	}
	done := make(chan result, 1)
	if err := c.inbox.Put(func() {
		s, err := f()
		done <- result{s, err}
	}); err == actor.ErrClosed {
		return nil, ErrClosed
	} else if err != nil {
		return nil, ErrBusy
	}
	r := <-done
	return r.s, r.err
}

// after posts f once d has passed.
func (c *Call) after(d time.Duration, f func()) (stop func() bool) {
	return c.server.cfg.Clock.AfterFunc(d, func() { c.post(f) })
}

func (c *Call) now() time.Time { return c.server.cfg.Clock.Now() }

// flush tells what the batch has changed: first who there is, then what may be
// subscribed to, then the negotiations that this needs. A client must know a
// participant before its tracks arrive.
func (c *Call) flush() {
	for len(c.dirty)+len(c.missing)+len(c.sections) > 0 {
		c.flushUpdates()
		c.flushLinks()
		c.flushSections()
	}
}

func (c *Call) flushUpdates() {
	dirty, all, own := c.dirty, &Update{}, []*participant(nil)
	c.dirty = nil
	for _, p := range dirty {
		p.dirty = false
		if p.removed {
			continue
		}
		p.version++
		p.info = nil
		if p.announced() {
			all.Participants = append(all.Participants, p.snapshot())
		} else {
			own = append(own, p)
		}
	}
	if len(all.Participants) > 0 {
		c.tell(all)
	}
	for _, p := range own {
		p.send(&Update{Participants: []*ParticipantInfo{p.snapshot()}})
	}
}

func (c *Call) flushLinks() {
	links := c.missing
	c.missing = nil
	for _, l := range links {
		l.p.subscribe(l.t)
	}
}

func (c *Call) flushSections() {
	queued := c.sections
	c.sections = nil
	for _, p := range queued {
		p.queued = false
		p.negotiate()
	}
}

// tell sends a message to everybody.
func (c *Call) tell(m Message) {
	u, update := m.(*Update)
	for _, p := range c.order {
		if !update || p.grant.Via == "" {
			p.send(m)
		} else if seen := p.sight(u); seen != nil {
			p.send(seen)
		}
	}
	if c.observer != nil {
		c.observer.Tell(m)
	}
}

// changed marks a participant whose info is to be told.
func (c *Call) changed(p *participant) {
	p.info = nil
	if !p.dirty && !p.removed {
		p.dirty = true
		c.dirty = append(c.dirty, p)
	}
}

// info describes the call.
func (c *Call) info() RoomInfo {
	r := RoomInfo{SID: c.sid, Name: c.name, CreatedMs: c.createdMs, Participants: len(c.order)}
	for _, p := range c.order {
		if p.publishing() {
			r.Publishers++
		}
	}
	return r
}

// counted tells the numbers of participants and publishers, a little later.
func (c *Call) counted() {
	if c.roomTimer != nil {
		return
	}
	c.roomTimer = c.after(roomUpdateDelay, func() {
		c.roomTimer = nil
		if info := c.info(); info != c.told {
			c.told = info
			c.tell(&RoomUpdate{Room: info})
		}
	})
}

// checkEmpty ends the call after a while without participants.
func (c *Call) checkEmpty() {
	if len(c.order) > 0 || c.ended || c.emptyTimer != nil {
		return
	}
	c.emptyTimer = c.after(emptyGrace, func() {
		c.emptyTimer = nil
		if len(c.order) == 0 && !c.ended && c.server.end(c) {
			c.close()
		}
	})
}

func (c *Call) close() {
	c.ended = true
	c.media.Close()
	if c.observer != nil {
		c.observer.Closed()
	}
	for _, stop := range []func() bool{c.roomTimer, c.emptyTimer} {
		if stop != nil {
			stop()
		}
	}
}

// shutdown puts everybody out because the server stops.
func (c *Call) shutdown() {
	for len(c.order) > 0 {
		c.remove(c.order[0], Shutdown, ReasonShutdown, ActionReconnect)
	}
	if !c.ended {
		c.close()
	}
}

// speakers tells who speaks, from the loudness of their tracks.
func (c *Call) speakers(levels []Loudness) {
	next := map[string]Speaker{}
	for _, l := range levels {
		t := c.tracks[l.Track]
		if t == nil {
			continue
		}
		t.loud, t.level = l.Active, l.Level
		sid := t.owner.sid
		s := Speaker{SID: sid}
		for _, other := range t.owner.tracks {
			if other.loud && other.level >= s.Level {
				s.Level, s.Active = other.level, true
			}
		}
		next[sid] = s
	}
	out := &Speakers{}
	for sid, s := range next {
		if c.loud[sid] == s || !s.Active && !c.loud[sid].Active {
			continue
		}
		out.Speakers = append(out.Speakers, s)
		if c.loud[sid] = s; !s.Active {
			delete(c.loud, sid)
		}
	}
	if len(out.Speakers) > 0 {
		c.tell(out)
	}
}

// wanted tells a publisher which layers are wanted of its track.
func (c *Call) wanted(id string, layers [3]bool) {
	switch t := c.tracks[id]; {
	case t == nil || !t.published:
	case t.owner.guest != nil:
		c.observer.Wanted(id, layers)
	case t.kind == media.Video:
		t.owner.tellWanted(t, layers)
	}
}

const sidAlphabet = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// newSID makes an identifier that nobody can guess.
func newSID(prefix string) string {
	raw := make([]byte, 14)
	_, _ = rand.Read(raw) // never fails
	for i, b := range raw {
		raw[i] = sidAlphabet[int(b)%len(sidAlphabet)]
	}
	return prefix + string(raw)
}
