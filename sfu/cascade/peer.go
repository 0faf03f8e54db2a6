package cascade

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"parley/internal/mxid"
	"parley/sfu/media"
)

// Limits of what another server sends in messages.
const (
	messagesPerSecond = 200
	messagesBurst     = 2_000
	maxRooms          = 1_000 // calls of one peer
	maxWaiting        = 100   // who wait for a link
)

// peer is another server and the link to it. It belongs to the service's inbox.
type peer struct {
	s       *Service
	name    mxid.ServerName
	machine machine
	timer   func() bool
	woken   time.Time // until when the other server's wish counts as a need
	nonces  map[string]time.Time
	offers  *rate.Limiter
	waiting []chan<- bool // for the link

	// Of the present link.
	trunk    trunk
	media    *media.Trunk // trunk, for tracks
	link     int          // tells events of links before from those of this one
	hello    bool
	reached  bool // the other server has answered on the connection
	messages *rate.Limiter

	rooms  map[uint32]*presence // by our number
	theirs map[uint32]*presence // by the other server's
	number uint32
}

// refresh looks whether the link is needed, and does what is due.
func (p *peer) refresh() {
	now := p.s.now()
	needed := now.Before(p.woken)
	for _, r := range p.rooms {
		needed = needed || !r.refused
	}
	p.run(p.machine.need(needed && !p.s.closed, now))
}

// ready tells done whether the link is up, once that is known.
func (p *peer) ready(done chan<- bool) {
	if len(p.waiting) >= maxWaiting {
		done <- false
		return
	}
	p.waiting = append(p.waiting, done)
	p.woken = p.s.now().Add(idleTimeout)
	p.refresh()
}

// settle answers those who wait for the link.
func (p *peer) settle() {
	if p.machine.state == asking || p.machine.state == connecting {
		return
	}
	for _, done := range p.waiting {
		done <- p.machine.state == up
	}
	p.waiting = nil
}

// happened takes an event of the link.
func (p *peer) happened(ev event) { p.run(p.machine.step(ev, p.s.now())) }

// run does an action and arms the timer.
func (p *peer) run(a action) {
	switch a {
	case doAsk:
		p.ask()
	case doDrop:
		if p.hello {
			p.send(&message{Kind: kindBye})
		}
		p.drop()
	}
	p.settle()
	if p.timer != nil {
		p.timer()
		p.timer = nil
	}
	if next := p.machine.next(); !next.IsZero() && !p.s.closed {
		p.timer = p.s.cfg.Clock.AfterFunc(max(next.Sub(p.s.now()), time.Millisecond), func() { p.s.post(p.refresh) })
	}
}

// ask dials, or asks the other server to.
func (p *peer) ask() {
	s := p.s
	if !p.machine.dials {
		wake := &Wake{Version: wireVersion, Nonce: newNonce(), TimeMs: s.now().UnixMilli()}
		s.spawn(func(ctx context.Context) {
			absent, err := s.cfg.Federation.CascadeWake(ctx, p.name, wake)
			s.post(func() { p.answered(absent, err) })
		})
		return
	}
	p.drop()
	p.connect()
	link, offer := p.link, s.offer(p.trunk)
	s.spawn(func(ctx context.Context) {
		var answer Offer
		absent, err := s.cfg.Federation.CascadeLink(ctx, p.name, offer, &answer)
		s.post(func() {
			if p.link != link {
				return
			}
			if err == nil && !absent {
				if addrs := s.addresses(answer.Candidates); answer.sound() && len(addrs) > 0 {
					p.trunk.Connect(answer.remote(false), addrs)
					p.fallback(link, s.addresses(answer.TCP))
				} else {
					err = errWire
				}
			}
			p.answered(absent, err)
		})
	})
}

// fallback dials by TCP, too, if the other server isn't heard by UDP soon.
func (p *peer) fallback(link int, addrs []netip.AddrPort) {
	s := p.s
	if len(addrs) == 0 {
		return
	}
	s.cfg.Clock.AfterFunc(udpTime, func() {
		s.post(func() {
			if p.link != link || p.trunk == nil || p.reached {
				return
			}
			s.spawn(func(ctx context.Context) {
				for _, a := range addrs {
					c, err := s.cfg.Guard.DialContext(ctx, "tcp", a.String())
					if err == nil {
						s.post(func() { p.dialled(link, c) })
						return
					}
				}
			})
		})
	})
}

// dialled takes a TCP connection to the other server.
func (p *peer) dialled(link int, c net.Conn) {
	if p.link != link || p.trunk == nil {
		_ = c.Close()
		return
	}
	p.trunk.ConnectOver(c)
}

// answered takes the outcome of a request.
func (p *peer) answered(absent bool, err error) {
	switch {
	case absent:
		p.happened(evAbsent)
	case err != nil:
		p.s.cfg.Log.Info("calls: no link to another server", "server", string(p.name), "error", err)
		p.happened(evRefused)
	default:
		p.happened(evAnswered)
	}
}

// connect makes the trunk of a new link.
func (p *peer) connect() {
	s := p.s
	p.link++
	link := p.link
	current := func(f func()) {
		s.post(func() {
			if p.link == link && p.trunk != nil {
				f()
			}
		})
	}
	p.media = s.cfg.Engine.NewTrunk(media.TrunkEvents{
		State:   func(st media.State) { current(func() { p.connection(st) }) },
		Message: func(b []byte) { current(func() { p.received(b) }) },
	})
	p.trunk, p.hello, p.reached, p.number = p.media, false, false, 0
	p.messages = rate.NewLimiter(messagesPerSecond, messagesBurst)
}

// connection follows the state of the trunk.
func (p *peer) connection(st media.State) {
	p.reached = true // or lost
	switch st {
	case media.Connected:
		p.send(&message{Kind: kindHello, Epoch: p.s.epoch})
	case media.Failed, media.Closed:
		p.s.cfg.Log.Info("calls: the link to another server is lost", "server", string(p.name))
		p.happened(evLost)
	}
}

// drop ends the link, if there is one, and what of calls is on it.
func (p *peer) drop() {
	if p.trunk == nil {
		return
	}
	for _, r := range p.rooms {
		r.disconnected()
	}
	clear(p.theirs)
	p.trunk.Close()
	p.trunk, p.media, p.hello = nil, nil, false
}

// end is for the end of the service.
func (p *peer) end() {
	if p.timer != nil {
		p.timer()
	}
	if p.hello {
		p.send(&message{Kind: kindBye})
	}
	p.drop()
}

// send sends a message; a link that can't take it is of no use.
func (p *peer) send(m *message) {
	if p.trunk != nil && !p.trunk.Send(m.encode()) {
		link := p.link
		p.s.post(func() {
			if p.link == link {
				p.happened(evLost)
			}
		})
	}
}

// received takes a message.
func (p *peer) received(b []byte) {
	m, err := decode(b)
	if err != nil || !p.messages.AllowN(p.s.now(), 1) || !p.hello && m.Kind != kindHello {
		p.s.cfg.Log.Warn("calls: another server breaks the protocol of links", "server", string(p.name))
		p.happened(evLost)
		return
	}
	switch m.Kind {
	case kindHello:
		if !p.hello {
			p.hello = true
			p.happened(evHello)
			for _, r := range p.rooms {
				r.connected()
			}
			p.refresh()
		}
	case kindBye:
		p.hello = false
		p.happened(evBye)
		p.refresh()
	case kindOpen:
		p.open(m)
	case kindOK:
		if r := p.rooms[m.Peer]; r != nil {
			r.accepted()
		}
	case kindNo:
		if r := p.rooms[m.Peer]; r != nil {
			r.denied()
		}
	default:
		if r := p.theirs[m.Room]; r != nil {
			r.received(m)
		}
	}
}

// open takes the other server's word that it has clients in a call.
func (p *peer) open(m *message) {
	s := p.s
	r := s.calls[m.Alias]
	if r == nil || len(r.locals) == 0 || len(p.theirs) >= maxRooms {
		s.remember(m.Alias, p.name)
		p.send(&message{Kind: kindNo, Peer: m.Room})
		return
	}
	link := p.link
	s.spawn(func(ctx context.Context) {
		users, err := s.cfg.Rooms.Standing(ctx, m.Alias, p.name)
		s.post(func() {
			if p.link != link || p.trunk == nil {
				return
			}
			if err != nil || users == 0 || s.calls[m.Alias] != r || len(r.locals) == 0 {
				p.send(&message{Kind: kindNo, Peer: m.Room})
				return
			}
			r.opened(p, m.Room, users)
		})
	})
}
