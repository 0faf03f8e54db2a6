package transport

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"errors"
	"hash"
	"time"
)

const (
	consentTimeout = 15 * time.Second
	// connectTimeout runs from the first SetRemote to StateConnected.
	connectTimeout = 30 * time.Second
	// pathTimeout is when an address that isn't in use is forgotten.
	pathTimeout = 60 * time.Second

	maxPaths      = 8 // addresses of a Conn
	maxEarly      = 4 // DTLS datagrams kept until SetRemote
	finalInterval = 50 * time.Millisecond
)

// Conn is the transport of one client. All methods belong to the goroutine of
// its shard.
type Conn struct {
	shard   *Shard
	handler *handlerRef
	state   State

	local, previous *credential // previous is valid until local was used
	want            fingerprint
	remoteSet       bool
	remote          Params
	remoteMAC       hash.Hash // nil when the client's password isn't known
	roundTrip       time.Duration
	active          bool // the peer is the DTLS client
	link            bool // the peer is a server
	controlling     bool // we send the checks that nominate
	deadline        int64

	paths       []*path
	selected    *path
	selectedAt  int64
	nominatedAt int64 // first nomination with the current credentials
	heard       int64 // last authentic packet

	early     [][]byte
	handshake *handshake
	began     int64 // when the handshake did
	records   *records
	final     []byte
	finalSent int64
	send, get *srtpContext
	data      *data
	isClient  bool // we are the DTLS client
}

// credential is one generation of local ICE credentials.
type credential struct {
	Params
	conn *Conn
	mac  hash.Hash
}

// path is an address of the client that passed an ICE check.
type path struct {
	target
	conn     *Conn
	tcp      *tcpStream // nil for UDP
	priority uint32
	heard    int64

	// proven is set when the client is known to receive at this address:
	// nothing large goes to an address that was only named as a sender.
	proven  bool
	wanted  bool // select it once it is proven
	proof   [12]byte
	proving bool // proof waits for its answer
	asked   int64
}

const iceChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

func iceRandom(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // doesn't fail
	for i := range b {
		b[i] = iceChars[b[i]&63]
	}
	return string(b)
}

// newCredential makes credentials; the first character of the fragment says
// which shard knows them.
func (s *Shard) newCredential(c *Conn) *credential {
	for {
		p := Params{Ufrag: iceChars[s.index:s.index+1] + iceRandom(9), Pwd: iceRandom(24)}
		if s.ufrags[p.Ufrag] != nil {
			continue
		}
		cred := &credential{Params: p, conn: c, mac: hmac.New(sha1.New, []byte(p.Pwd))}
		s.ufrags[p.Ufrag] = cred
		return cred
	}
}

// NewConn makes a Conn with fresh credentials. h must be comparable (a
// pointer). Shard only.
func (s *Shard) NewConn(h Handler) *Conn {
	c := &Conn{shard: s, handler: s.refer(h)}
	if s.closing {
		c.state = StateClosed
		c.local = &credential{conn: c}
		return c
	}
	c.local = s.newCredential(c)
	s.conns[c] = struct{}{}
	s.load.Add(1)
	return c
}

// Shard is where c lives. Safe for concurrent use.
func (c *Conn) Shard() *Shard { return c.shard }

// Local returns the server's current ICE credentials for c.
func (c *Conn) Local() Params { return c.local.Params }

// State returns the current state.
func (c *Conn) State() State { return c.state }

// SetRemote says what the client's description said; again after an ICE
// restart. The fingerprint and role stay the same for the life of a Conn; an
// error means that c can't go on with this description.
func (c *Conn) SetRemote(r Remote) error {
	if c.ended() {
		return ErrNotConnected
	}
	want, err := parseFingerprint(r.Fingerprint)
	if err != nil {
		return err
	}
	if c.remoteSet && want.sum != c.want.sum {
		return errors.New("transport: the fingerprint of a connection can't change")
	}
	c.remote = Params{r.Ufrag, r.Pwd}
	if c.remoteMAC = nil; r.Pwd != "" {
		c.remoteMAC = hmac.New(sha1.New, []byte(r.Pwd))
	}
	if c.remoteSet {
		return nil
	}
	c.remoteSet, c.want, c.active, c.link = true, want, r.Active, r.Link
	c.deadline = c.shard.now + int64(connectTimeout)
	early := c.early
	c.early = nil
	for _, b := range early {
		c.handleDTLS(b)
	}
	c.dial()
	return nil
}

// Restart makes new local ICE credentials; DTLS, SRTP and data channels stay.
// The old ones are valid until the client uses the new ones.
func (c *Conn) Restart() Params {
	if c.ended() {
		return c.local.Params
	}
	if c.previous != nil {
		delete(c.shard.ufrags, c.previous.Ufrag)
	}
	c.previous = c.local
	c.local = c.shard.newCredential(c)
	return c.local.Params
}

// SendRTP seals a packet into the shard's send batch, which goes out at the
// end of the shard's turn; neither slice is kept. header is the whole RTP
// header with extensions. Sequence numbers of an SSRC must not repeat. While
// the client's address is in doubt packets are lost without an error.
func (c *Conn) SendRTP(header, payload []byte) error {
	if c.send == nil {
		return ErrNotConnected
	}
	if len(header)+len(payload) > MaxPacket {
		return ErrTooLarge
	}
	if !c.reachable() {
		c.shard.counters.lost++
		return nil
	}
	b, err := c.send.sealRTP(c.shard.sock.slot(), header, payload)
	if err != nil {
		return err
	}
	c.shard.transmit(c.selected, b)
	return nil
}

// reachable reports whether there is an address that the client is known to
// receive at.
func (c *Conn) reachable() bool { return c.selected != nil && c.selected.proven }

// SendRTCP seals a compound packet into the send batch.
func (c *Conn) SendRTCP(packet []byte) error {
	if c.send == nil {
		return ErrNotConnected
	}
	if len(packet) > MaxPacket {
		return ErrTooLarge
	}
	if len(packet) < 8 {
		return errSRTP
	}
	if !c.reachable() {
		c.shard.counters.lost++
		return nil
	}
	b, err := c.send.sealRTCP(c.shard.sock.slot(), packet)
	if err != nil {
		return err
	}
	c.shard.transmit(c.selected, b)
	return nil
}

// SendMessage sends on the data channel label and opens it when needed, with
// the settings of LiveKit's channels. data is not kept.
func (c *Conn) SendMessage(label string, data []byte, binary bool) error {
	if c.state != StateConnected {
		return ErrNotConnected
	}
	if len(data) > MaxMessage || len(label) > maxLabel {
		return ErrTooLarge
	}
	if c.data == nil {
		c.startData(true)
	}
	return c.data.send(label, data, binary)
}

// RTT is a smoothed estimate of the round trip to the client, from checks
// every few seconds; 0 when there is none yet.
func (c *Conn) RTT() time.Duration { return c.roundTrip }

// Close ends c; its handler is not called again.
func (c *Conn) Close() { c.end(StateClosed) }

func (c *Conn) ended() bool { return c.state == StateFailed || c.state == StateClosed }

// setState tells the handler.
func (c *Conn) setState(s State) {
	c.state = s
	c.handler.HandleState(c, s)
}

// fail ends c for a reason of ours, and tells the handler.
func (c *Conn) fail() {
	if !c.ended() {
		c.end(StateFailed)
		c.handler.HandleState(c, StateFailed)
	}
}

// end lets go of all that c has but its state.
func (c *Conn) end(s State) {
	if c.ended() {
		c.state = s
		return
	}
	c.state = s
	if c.records != nil {
		c.sendRecord(recordAlert, []byte{1, alertCloseNotify})
	}
	if c.handshake != nil {
		c.handshake.cancel()
	}
	if c.data != nil {
		c.data.close()
	}
	for len(c.paths) > 0 {
		c.dropPath(c.paths[0])
	}
	delete(c.shard.ufrags, c.local.Ufrag)
	if c.previous != nil {
		delete(c.shard.ufrags, c.previous.Ufrag)
	}
	delete(c.shard.conns, c)
	c.shard.release(c.handler)
	c.shard.load.Add(-1)
	c.send, c.get, c.records, c.handshake, c.early = nil, nil, nil, nil, nil
}

// sweep ends what has timed out.
func (c *Conn) sweep(now int64) {
	switch {
	case c.state == StateConnected && now-c.heard > int64(consentTimeout):
		c.shard.counters.expired++
		c.fail()
	case c.state != StateConnected && c.deadline != 0 && now > c.deadline:
		c.shard.counters.expired++
		c.fail()
	default:
		c.dial() // no handshake slot was free
		if c.selected != nil && c.state == StateConnected && now-c.selected.asked > int64(measureInterval) {
			c.prove(c.selected)
		}
		for _, p := range append([]*path(nil), c.paths...) {
			if p != c.selected && now-p.heard > int64(pathTimeout) {
				c.dropPath(p)
			}
		}
	}
}
