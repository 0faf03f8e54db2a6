package cascade

import "time"

// Times of a link.
const (
	// askTimeout is how long a request to the other server may take, and
	// connectTimeout the connection after it.
	askTimeout     = 10 * time.Second
	connectTimeout = 15 * time.Second
	// udpTime is how long UDP is tried alone.
	udpTime = 2 * time.Second
	// idleTimeout is how long a link without an open call is kept.
	idleTimeout = 30 * time.Second
	// backoffMost bounds the time between attempts.
	backoffMost = 60 * time.Second
	// incapable is how long a server without a cascade isn't asked again.
	incapable = time.Hour
)

// state of a link.
type state uint8

const (
	idle       state = iota
	asking           // the request to the other server is under way
	connecting       // both descriptions are known
	up
	waiting // until the next attempt
)

// event is what happens to a link.
type event uint8

const (
	evTick     event = iota
	evAnswered       // the other server took our description, or will dial
	evOffered        // the other server dialled: its description was taken
	evRefused        // the request failed
	evAbsent         // the other server has no cascade
	evHello          // the connection is up and the other server said hello
	evLost           // the connection has failed or was closed
	evBye            // the other server doesn't need the link
)

// action is what is to be done.
type action uint8

const (
	doNothing action = iota
	doAsk            // dial, or ask the other server to
	doDrop           // close the connection, if there is one
)

// machine is the state of a link, without the link.
type machine struct {
	state    state
	dials    bool // this server dials
	needed   bool // a call needs it
	attempts int
	until    time.Time // what is under way ends, or the next attempt
	idle     time.Time // since when an up link isn't needed; zero when it is
	jitter   func() float64
}

// need says whether a call needs the link.
func (m *machine) need(needed bool, now time.Time) action {
	m.needed = needed
	return m.step(evTick, now)
}

// step takes an event.
func (m *machine) step(ev event, now time.Time) action {
	switch ev {
	case evAnswered:
		if m.state == asking {
			m.state, m.until = connecting, now.Add(connectTimeout)
		}
		return doNothing
	case evOffered:
		m.state, m.until = connecting, now.Add(connectTimeout)
		return doNothing
	case evHello:
		if m.state == connecting {
			m.state, m.attempts, m.idle = up, 0, now
		}
	case evAbsent:
		m.state, m.until = waiting, now.Add(incapable)
		return doDrop
	case evRefused, evLost:
		if m.state == idle || m.state == waiting {
			return doNothing
		}
		m.fail(now)
		return doDrop
	case evBye:
		m.state, m.attempts = idle, 0
		return doDrop
	}
	return m.tick(now)
}

// tick does what is due.
func (m *machine) tick(now time.Time) action {
	switch m.state {
	case idle:
		if m.needed {
			return m.ask(now)
		}
	case waiting:
		if now.Before(m.until) {
			break
		}
		if m.state = idle; m.needed {
			return m.ask(now)
		}
	case asking, connecting:
		if !now.Before(m.until) {
			m.fail(now)
			return doDrop
		}
	case up:
		switch {
		case m.needed:
			m.idle = time.Time{}
		case m.idle.IsZero():
			m.idle = now
		case now.Sub(m.idle) >= idleTimeout:
			m.state = idle
			return doDrop
		}
	}
	return doNothing
}

func (m *machine) ask(now time.Time) action {
	m.state, m.until = asking, now.Add(askTimeout+connectTimeout)
	return doAsk
}

// fail waits for the next attempt: 1, 2, 4, … 60 s, up to half more or less.
func (m *machine) fail(now time.Time) {
	d := min(time.Second<<min(m.attempts, 6), backoffMost)
	m.attempts++
	m.state, m.until = waiting, now.Add(d/2+time.Duration(float64(d)*m.jitter()))
}

// next is when tick has to be called, zero for no time.
func (m *machine) next() time.Time {
	switch {
	case m.state == asking, m.state == connecting, m.state == waiting && (m.needed || m.attempts > 0):
		return m.until
	case m.state == up && !m.idle.IsZero():
		return m.idle.Add(idleTimeout)
	}
	return time.Time{}
}
