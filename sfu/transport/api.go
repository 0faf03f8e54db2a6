package transport

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"parley/internal/clock"
)

// Config says where a Server listens and what it tells clients about that.
type Config struct {
	// Listen is the UDP address of all shards. Port 0 takes a free one.
	Listen netip.AddrPort
	// TCP, when not nil, is accepted from by the server as the ICE-TCP
	// passive candidate. Connections of a listener shared with something
	// else come through AcceptTCP instead.
	TCP net.Listener
	// Advertise lists the addresses for candidates. Empty means the
	// addresses of this machine (or the one that Listen names).
	Advertise []netip.Addr
	// Foreign takes what comes to the UDP port and is TURN's: ChannelData, and
	// STUN messages of other methods than Binding. It is called on the
	// goroutine of a shard, must not block and must not keep the packet. nil:
	// they are dropped. SendForeign is the way back.
	Foreign func(packet []byte, from netip.AddrPort)
	// Loopback adds 127.0.0.1 to the candidates; for tests.
	Loopback bool
	// Shards is the number of sockets and goroutines; 0 means one per core.
	Shards int
	Log    *slog.Logger
	Clock  clock.Clock
}

// Candidate is one address at which the server takes ICE checks.
type Candidate struct {
	Addr     netip.AddrPort
	TCP      bool // passive ICE-TCP (RFC 6544), else UDP
	Priority uint32
}

// Params are ICE credentials.
type Params struct{ Ufrag, Pwd string }

// Remote is what a client's session description says about its transport.
type Remote struct {
	Ufrag, Pwd string
	// Fingerprint is the value of a=fingerprint: "sha-256 AA:BB:…".
	Fingerprint string
	// Active is set when the client takes the role of DTLS client
	// (a=setup:active); otherwise the server starts the handshake.
	Active bool
	// Link is set when the peer is a server, which sends the media of many:
	// it may use 16 times as many SSRCs as a client.
	Link bool
}

// State of a Conn. A Conn only moves forward: New, Connecting, Connected, then
// Failed and Closed, or Closed at once.
type State uint8

// States of a Conn.
const (
	// StateNew waits for the first valid ICE check.
	StateNew State = iota
	// StateConnecting has an address and is in the DTLS handshake.
	StateConnecting
	// StateConnected carries media and data.
	StateConnected
	// StateFailed heard nothing for 15 s, or the handshake went wrong. The
	// Conn is useless; its owner closes it.
	StateFailed
	// StateClosed was closed by Close or by the peer's close_notify.
	StateClosed
)

// Handler takes what arrives for a Conn. All methods run on the goroutine of
// the Conn's shard and must not block.
type Handler interface {
	// HandleRTP takes a decrypted RTP packet, valid only during the call.
	// The handler may change its bytes.
	HandleRTP(c *Conn, packet []byte, now int64)
	// HandleRTCP takes a decrypted compound RTCP packet, valid only during
	// the call.
	HandleRTCP(c *Conn, packet []byte, now int64)
	// HandleState tells of each change of state but that to StateClosed by
	// the owner's own Close.
	HandleState(c *Conn, s State)
	// HandleMessage takes a message of the data channel label. data belongs
	// to the handler.
	HandleMessage(c *Conn, label string, data []byte, binary bool)
	// HandleDrained says that the read batch in which this handler was
	// given packets has ended and that what was sent is flushed next. A
	// handler that serves several Conns is told once.
	HandleDrained(now int64)
}

// Errors of sending.
var (
	// ErrNotConnected is returned by the Send methods before StateConnected
	// and after the end.
	ErrNotConnected = errors.New("transport: not connected")
	// ErrTooLarge is returned for a packet over MaxPacket or a message over
	// MaxMessage.
	ErrTooLarge = errors.New("transport: packet too large")
	// ErrReused is returned for an RTP packet whose sequence number was
	// used before on its SSRC, or is too old to tell: sealing it could use
	// a nonce twice. One of the last 128 packets of an SSRC may be sent
	// again if not a bit of it has changed; the first such try on an SSRC
	// fails, as from then on it is remembered what was sent.
	ErrReused = errors.New("transport: sequence number was used before")
	// ErrBusy is returned by SendMessage while too much waits to be sent.
	ErrBusy = errors.New("transport: data channel buffer is full")
	// ErrClosed is returned by a Server that was closed.
	ErrClosed = errors.New("transport: closed")
)

// Limits of packets and messages, in bytes.
const (
	// MaxPacket is the largest RTP or RTCP packet before sealing: with the
	// tag it fills an Ethernet frame.
	MaxPacket = maxDatagram - gcmTag
	// MaxMessage is the largest message of a data channel.
	MaxMessage = 64 << 10
)

// Tick is the period of the functions given to Shard.Every while packets come;
// without any, they may have to wait a little longer.
const Tick = 5 * time.Millisecond
