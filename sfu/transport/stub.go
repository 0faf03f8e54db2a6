// Package transport moves packets between clients and the packet plane: UDP
// sockets, ICE-lite, DTLS, SRTP and data channels.
package transport

import (
	"net"
	"time"
)

// Server is a set of shards on one UDP port.
type Server struct{}

// Shard is one socket and one goroutine.
type Shard struct{}

// Conn is one client's transport; all methods belong to its shard's goroutine.
type Conn struct{}

// Open starts the shards.
func Open(cfg Config) (*Server, error) { panic("unimplemented") }

// Close ends all Conns and waits for the shards.
func (s *Server) Close() { panic("unimplemented") }

// Candidates lists the server's host candidates, best first.
func (s *Server) Candidates() []Candidate { panic("unimplemented") }

// Fingerprint is the value for a=fingerprint.
func (s *Server) Fingerprint() string { panic("unimplemented") }

// Shards lists all shards.
func (s *Server) Shards() []*Shard { panic("unimplemented") }

// PickShard returns the least loaded shard. Safe for concurrent use.
func (s *Server) PickShard() *Shard { panic("unimplemented") }

// AcceptTCP takes over a connection that speaks ICE-TCP.
func (s *Server) AcceptTCP(c net.Conn) { panic("unimplemented") }

// Do runs f on the shard's goroutine. Safe for concurrent use.
func (s *Shard) Do(f func()) { panic("unimplemented") }

// Every runs f each Tick until stop. Shard only.
func (s *Shard) Every(f func(now int64)) (stop func()) { panic("unimplemented") }

// Now is the time that handlers are given. Shard only.
func (s *Shard) Now() int64 { panic("unimplemented") }

// NewConn makes a Conn with fresh credentials. Shard only.
func (s *Shard) NewConn(h Handler) *Conn { panic("unimplemented") }

// Shard is where c lives.
func (c *Conn) Shard() *Shard { panic("unimplemented") }

// Local returns the server's current ICE credentials for c.
func (c *Conn) Local() Params { panic("unimplemented") }

// SetRemote says what the client's description said; again after a restart.
func (c *Conn) SetRemote(r Remote) error { panic("unimplemented") }

// Restart makes new local ICE credentials; DTLS, SRTP and data channels stay.
func (c *Conn) Restart() Params { panic("unimplemented") }

// State returns the current state.
func (c *Conn) State() State { panic("unimplemented") }

// SendRTP seals a packet into the shard's send batch; neither slice is kept.
func (c *Conn) SendRTP(header, payload []byte) error { panic("unimplemented") }

// SendRTCP seals a compound packet into the send batch.
func (c *Conn) SendRTCP(packet []byte) error { panic("unimplemented") }

// SendMessage sends on the data channel label and opens it when needed.
func (c *Conn) SendMessage(label string, data []byte, binary bool) error { panic("unimplemented") }

// RTT is the latest estimate of the round trip, 0 when there is none.
func (c *Conn) RTT() time.Duration { panic("unimplemented") }

// Close ends c; its handler is not called again.
func (c *Conn) Close() { panic("unimplemented") }

// Attribute is the candidate as a value of a=candidate.
func (c Candidate) Attribute() string { panic("unimplemented") }
