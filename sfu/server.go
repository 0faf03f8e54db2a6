package sfu

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"parley/internal/clock"
)

// Errors of joining.
var (
	// ErrClosed: the server is stopping.
	ErrClosed = errors.New("sfu: closed")
	// ErrFull: the call or the server has as many participants as it may.
	ErrFull = errors.New("sfu: full")
	// ErrBusy: the call can't keep up.
	ErrBusy = errors.New("sfu: busy")
	// ErrRevoked: the token isn't good any more.
	ErrRevoked = errors.New("sfu: token revoked")
	// ErrNoParticipant: there is no such session to resume.
	ErrNoParticipant = errors.New("sfu: no such participant")
	// ErrNoTrack: no such track.
	ErrNoTrack = errors.New("sfu: no such track")
	// ErrTooLarge: something the client said about itself is over its limit.
	ErrTooLarge = errors.New("sfu: too large")
)

// Limits of one server.
const (
	maxCalls        = 10_000
	maxParticipants = 1_000 // of one call
	maxTracks       = 16    // of one participant
	maxLayers       = 4
	maxCodecs       = 4
	maxText         = 512     // bytes of a name, cid or stream
	maxMetadata     = 8 << 10 // bytes of metadata
	maxAttributes   = 16 << 10
	maxAttributeNum = 64
	maxPermissions  = 1_000
	maxSettings     = 4_000 // tracks of one participant that it may have an opinion about
)

// Times.
const (
	// ResumeGrace is how long a participant whose connection broke may take to
	// come back.
	ResumeGrace = 15 * time.Second
	// emptyGrace is how long a call outlives its last participant.
	emptyGrace = 20 * time.Second
	// connectTimeout is how long the first media connection may take.
	connectTimeout = 60 * time.Second
	// mediaTimeout is how long a participant may be without media before it is
	// told to join anew.
	mediaTimeout = 30 * time.Second
	// tokenEvery renews the clients' tokens, tokenLife is how long they work.
	tokenEvery = 5 * time.Minute
	tokenLife  = 10 * time.Minute
	// roomUpdateDelay gathers changes of the number of participants.
	roomUpdateDelay = 3 * time.Second
	// goneMemory is how long those who left are told to those who come back.
	goneMemory = 2 * time.Minute
)

// DataCodec reads and writes the packets of data channels.
type DataCodec interface {
	// Stamp puts the true sender into a packet and says where it goes.
	Stamp(msg []byte, identity, sid string) (DataPacket, error)
}

// DataPacket is a message of a data channel.
type DataPacket struct {
	// Msg is the packet with its sender.
	Msg []byte
	// Identities and SIDs are its recipients; none of both is everybody.
	Identities, SIDs []string
	// Sequence numbers the sender's reliable packets; 0 is none.
	Sequence uint32
}

// Config is what a Server needs.
type Config struct {
	Media  Media
	Tokens Tokens
	Data   DataCodec
	// Presence may be nil.
	Presence Presence
	// Cascade joins calls with those of other servers; nil is none.
	Cascade Cascade
	// ICEServers are what clients get besides the server's own candidates; nil
	// is none.
	ICEServers func(identity string) []ICEServer
	Clock      clock.Clock
	Log        *slog.Logger
}

// Server has the calls of this process. Safe for concurrent use.
type Server struct {
	cfg Config

	mu     sync.Mutex
	calls  map[string]*Call
	closed bool
	people int
}

// NewServer makes a server without calls.
func NewServer(cfg Config) *Server {
	return &Server{cfg: cfg, calls: map[string]*Call{}}
}

// Admit says whether a join with this grant would be let in now: nil,
// ErrClosed, ErrFull or ErrRevoked.
func (s *Server) Admit(g Grant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admit(g)
}

func (s *Server) admit(g Grant) error {
	c := s.calls[g.Room]
	switch {
	case s.closed:
		return ErrClosed
	case s.cfg.Tokens.Revoked(g):
		return ErrRevoked
	case c == nil && len(s.calls) >= maxCalls, c != nil && c.people >= maxParticipants:
		return ErrFull
	}
	return nil
}

// Join lets a client in; what the core has to say goes to sig, *Joined first.
// A participant with the same identity is put out.
func (s *Server) Join(g Grant, j Join, sig Signal) (*Session, error) {
	if err := checkJoin(g, j); err != nil {
		return nil, err
	}
	c, err := s.enter(g)
	if err != nil {
		return nil, err
	}
	defer s.leave(c)
	return c.ask(func() (*Session, error) { return c.join(g, j, sig) })
}

// Resume gives a participant whose connection broke a new one; *Resumed comes
// first. ErrNoParticipant when it isn't there any more.
func (s *Server) Resume(g Grant, sid string, sync *SyncState, sig Signal) (*Session, error) {
	s.mu.Lock()
	c, closed := s.calls[g.Room], s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case s.cfg.Tokens.Revoked(g):
		return nil, ErrRevoked
	case c == nil:
		return nil, ErrNoParticipant
	}
	return c.ask(func() (*Session, error) { return c.resume(g, sid, sync, sig) })
}

// Kick puts a participant out and makes its tokens worthless until new ones
// are minted. It does nothing for whoever isn't there.
func (s *Server) Kick(room, identity string) {
	s.cfg.Tokens.Revoke(room, identity)
	s.mu.Lock()
	c := s.calls[room]
	s.mu.Unlock()
	if c == nil {
		return
	}
	c.post(func() {
		for _, p := range slices.Clone(c.order) {
			if p.identity == identity || p.belongs(identity) {
				c.remove(p, Kicked, ReasonRemoved, ActionDisconnect)
			}
		}
		// It may have been given a fresh token until now.
		s.cfg.Tokens.Revoke(room, identity)
	})
}

// Exists reports whether a call runs.
func (s *Server) Exists(room string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[room] != nil
}

// Count is the number of calls and of participants of all calls.
func (s *Server) Count() (calls, participants int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls), s.people
}

// Close asks every client to come back later, ends all calls and refuses new
// ones. It returns when every call has ended.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	calls := make([]*Call, 0, len(s.calls))
	for _, c := range s.calls {
		calls = append(calls, c)
	}
	s.mu.Unlock()
	for _, c := range calls {
		c.post(c.shutdown)
	}
	for _, c := range calls {
		c.inbox.Close()
	}
}

// enter finds or makes the call of a grant and keeps it from ending until
// leave.
func (s *Server) enter(g Grant) (*Call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(g); err != nil {
		return nil, err
	}
	c := s.calls[g.Room]
	if c == nil {
		c = newCall(s, g.Room)
		s.calls[g.Room] = c
	}
	c.entering++
	return c, nil
}

func (s *Server) leave(c *Call) {
	s.mu.Lock()
	c.entering--
	s.mu.Unlock()
	c.post(c.checkEmpty) // the join may have failed
}

// counted keeps the number of participants where Admit can read it.
func (s *Server) counted(c *Call, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.people += by
	s.people += by
}

// end forgets a call unless somebody is entering it.
func (s *Server) end(c *Call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.entering > 0 || c.people > 0 || s.calls[c.name] != c {
		return false
	}
	delete(s.calls, c.name)
	return true
}

// checkJoin holds the limits of what a client says about itself.
func checkJoin(g Grant, j Join) error {
	if g.Room == "" || g.Identity == "" || len(g.Room) > maxText || len(g.Identity) > maxText || len(g.Name) > maxText ||
		len(j.Metadata) > maxMetadata || attributesSize(j.Attributes) > maxAttributes || len(j.Attributes) > maxAttributeNum ||
		len(j.AddTracks) > maxTracks || len(j.Capabilities) > 32 {
		return ErrTooLarge
	}
	return nil
}

func attributesSize(m map[string]string) int {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
	}
	return n
}
