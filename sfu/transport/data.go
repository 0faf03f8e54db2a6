package transport

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pion/sctp"

	"parley/internal/obs"
)

const (
	maxStreams        = 16 // data channels of a Conn
	sctpMTU           = 1180
	sctpReceiveBuffer = 256 << 10
	sctpInQueue       = 256 // packets between the shard and the association
	// What may wait to be sent on one channel.
	maxBuffered      = 1 << 20
	maxBufferedLossy = 128 << 10
	// What may wait for the association to come up.
	maxWaiting = 64
)

// data runs the SCTP association of one Conn (RFC 8831). pion/sctp brings
// three goroutines; data adds none: messages are taken from the streams on
// sctp's read loop, each time it comes back for the next packet.
type data struct {
	in       chan []byte
	done     chan struct{}
	stop     sync.Once
	out      func(packet []byte) // any goroutine
	deliver  func(label string, msg []byte, binary bool)
	failed   func()
	isClient bool // of DTLS: our streams are even

	mu      sync.Mutex
	assoc   *sctp.Association
	early   []uint16 // streams that data came for before assoc was known
	streams map[uint16]*channel
	waiting []waitingMessage
	scratch *sync.Pool
}

// channel is one data channel.
type channel struct {
	stream *sctp.Stream
	label  string
	open   bool // its label is known
	kind   byte // channel type of DCEP
	value  uint32
	ours   bool // we opened it, and kind takes effect with the acknowledgement
}

type waitingMessage struct {
	label  string
	data   []byte
	binary bool
}

// startData begins the association; when active is set we send the first
// packet.
func startData(d *data, active bool) {
	d.in, d.done = make(chan []byte, sctpInQueue), make(chan struct{})
	d.streams = map[uint16]*channel{}
	go func() {
		assoc, err := d.connect(active)
		if err != nil {
			d.close()
			return
		}
		d.established(assoc)
	}()
}

func (d *data) connect(active bool) (*sctp.Association, error) {
	options := []sctp.AssociationOption{
		sctp.WithNetConn((*sctpConn)(d)),
		sctp.WithLoggerFactory(obs.Silence{}),
		sctp.WithMTU(sctpMTU),
		sctp.WithMaxReceiveBufferSize(sctpReceiveBuffer),
		sctp.WithMaxMessageSize(MaxMessage),
		sctp.WithEnableInterleaving(false),
	}
	if active {
		all := make([]sctp.ClientOption, len(options))
		for i, o := range options {
			all[i] = o
		}
		return sctp.ClientWithOptions(all...)
	}
	all := make([]sctp.ServerOption, len(options))
	for i, o := range options {
		all[i] = o
	}
	return sctp.ServerWithOptions(all...)
}

// established takes up what came before the association was known.
func (d *data) established(assoc *sctp.Association) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.assoc = assoc
	for _, id := range d.early {
		d.register(id)
	}
	d.early = nil
	d.poll()
	for _, w := range d.waiting {
		// The message was accepted; a full buffer can't be told any more.
		_ = d.write(w.label, w.data, w.binary)
	}
	d.waiting = nil
}

// push gives the association a copy of a packet; a full queue drops it, SCTP
// sends it again.
func (d *data) push(b []byte) {
	select {
	case d.in <- append([]byte(nil), b...):
	default:
	}
}

// close ends the association without waiting for it.
func (d *data) close() { d.stop.Do(func() { close(d.done) }) }

// send sends a message or keeps it until the association is up.
func (d *data) send(label string, msg []byte, binary bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.assoc != nil {
		return d.write(label, msg, binary)
	}
	if len(d.waiting) >= maxWaiting {
		return ErrBusy
	}
	d.waiting = append(d.waiting, waitingMessage{label, slices.Clone(msg), binary})
	return nil
}

// write sends on the channel label and opens it when there is none.
func (d *data) write(label string, msg []byte, binary bool) error {
	ch := d.find(label)
	if ch == nil {
		var err error
		if ch, err = d.dial(label); err != nil {
			return err
		}
	}
	limit := uint64(maxBuffered)
	if ch.kind != dcepReliable {
		limit = maxBufferedLossy
	}
	if ch.stream.BufferedAmount()+uint64(len(msg)) > limit {
		return ErrBusy
	}
	ppi, empty := sctp.PayloadTypeWebRTCString, sctp.PayloadTypeWebRTCStringEmpty
	if binary {
		ppi, empty = sctp.PayloadTypeWebRTCBinary, sctp.PayloadTypeWebRTCBinaryEmpty
	}
	if len(msg) == 0 {
		msg, ppi = []byte{0}, empty
	}
	if _, err := ch.stream.WriteSCTP(msg, ppi); err != nil {
		return ErrNotConnected
	}
	return nil
}

// find prefers the channel that the peer opened.
func (d *data) find(label string) (found *channel) {
	for _, ch := range d.streams {
		if ch.open && ch.label == label && (found == nil || found.ours) {
			found = ch
		}
	}
	return found
}

// dial opens a channel with the settings of LiveKit's channels.
func (d *data) dial(label string) (*channel, error) {
	if len(d.streams) >= maxStreams {
		return nil, ErrBusy
	}
	id := uint16(1)
	if d.isClient {
		id = 0
	}
	for d.streams[id] != nil {
		id += 2
	}
	ch := d.register(id)
	if ch == nil {
		return nil, ErrNotConnected
	}
	ch.open, ch.ours, ch.label = true, true, label
	if label == "_lossy" || label == "_data_track" {
		ch.kind, ch.value = dcepUnordered|dcepRetransmits, 0
	}
	if _, err := ch.stream.WriteSCTP(dcepOpen(ch.kind, ch.value, label), sctp.PayloadTypeWebRTCDCEP); err != nil {
		return nil, ErrNotConnected
	}
	return ch, nil
}

// register makes or finds the stream id and follows it. Its reads return at
// once from here on: the read deadline is in the past.
func (d *data) register(id uint16) *channel {
	if ch := d.streams[id]; ch != nil {
		return ch
	}
	stream, err := d.assoc.OpenStream(id, sctp.PayloadTypeWebRTCBinary)
	if err != nil || stream == nil {
		return nil
	}
	_ = stream.SetReadDeadline(time.Unix(1, 0))
	ch := &channel{stream: stream}
	d.streams[id] = ch
	return ch
}

// poll takes all messages that are complete.
func (d *data) poll() {
	if len(d.streams) == 0 {
		return
	}
	buf := d.scratch.Get().(*[MaxMessage]byte)
	defer d.scratch.Put(buf)
	for id, ch := range d.streams {
		for {
			n, ppi, err := ch.stream.ReadSCTP(buf[:])
			if errors.Is(err, sctp.ErrReadDeadlineExceeded) {
				break
			}
			if errors.Is(err, io.ErrShortBuffer) {
				d.failed() // a message larger than we allow
				return
			}
			if err != nil || !d.take(ch, ppi, buf[:n]) {
				_ = ch.stream.Close()
				delete(d.streams, id)
				break
			}
		}
	}
}

// take handles one message; false closes the channel.
func (d *data) take(ch *channel, ppi sctp.PayloadProtocolIdentifier, msg []byte) bool {
	switch ppi {
	case sctp.PayloadTypeWebRTCDCEP:
		return d.control(ch, msg)
	case sctp.PayloadTypeWebRTCStringEmpty, sctp.PayloadTypeWebRTCBinaryEmpty:
		msg = nil
	case sctp.PayloadTypeWebRTCString, sctp.PayloadTypeWebRTCBinary:
	default:
		return true
	}
	if ch.open { // else it overtook the opening message of an unordered channel
		binary := ppi == sctp.PayloadTypeWebRTCBinary || ppi == sctp.PayloadTypeWebRTCBinaryEmpty
		d.deliver(ch.label, slices.Clone(msg), binary)
	}
	return true
}

// control handles a message of the establishment protocol (RFC 8832).
func (d *data) control(ch *channel, msg []byte) bool {
	if len(msg) > 0 && msg[0] == dcepAckType {
		if ch.ours {
			ch.settle()
		}
		return true
	}
	open, ok := parseDCEP(msg)
	if !ok {
		return false
	}
	ch.label, ch.kind, ch.value, ch.open, ch.ours = open.label, open.kind, open.value, true, false
	_, err := ch.stream.WriteSCTP([]byte{dcepAckType}, sctp.PayloadTypeWebRTCDCEP)
	ch.settle()
	return err == nil
}

// settle applies the reliability of the channel.
func (ch *channel) settle() {
	ch.stream.SetReliabilityParams(ch.kind&dcepUnordered != 0, ch.kind&^dcepUnordered, ch.value)
}

// prepare opens the streams that a packet carries data for, so that sctp never
// has to queue a stream for acceptance.
func (d *data) prepare(packet []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range sctpStreams(packet) {
		switch {
		case d.streams[id] != nil:
		case len(d.streams)+len(d.early) >= maxStreams:
			return false
		case d.assoc != nil:
			d.register(id)
		case !slices.Contains(d.early, id):
			d.early = append(d.early, id)
		}
	}
	return true
}

// sctpStreams yields the stream identifiers of a packet's DATA chunks
// (RFC 9260, 3.3.1).
func sctpStreams(b []byte) func(yield func(uint16) bool) {
	return func(yield func(uint16) bool) {
		if len(b) < 12 {
			return
		}
		for b = b[12:]; len(b) >= 4; {
			n := int(binary.BigEndian.Uint16(b[2:]))
			if n < 4 || n > len(b) {
				return
			}
			if (b[0] == 0 || b[0] == 64) && n >= 16 && !yield(binary.BigEndian.Uint16(b[8:])) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// sctpConn is the net.Conn that the association runs on.
type sctpConn data

// Read implements net.Conn. That it is called means that the packet before
// has been dealt with, so it looks for messages first.
func (s *sctpConn) Read(b []byte) (int, error) {
	d := (*data)(s)
	d.mu.Lock()
	if d.assoc != nil {
		d.poll()
	}
	d.mu.Unlock()
	select {
	case packet := <-d.in:
		if !d.prepare(packet) {
			d.failed()
			return 0, io.EOF
		}
		return copy(b, packet), nil
	case <-d.done:
		return 0, io.EOF
	}
}

// Write implements net.Conn.
func (s *sctpConn) Write(b []byte) (int, error) {
	select {
	case <-s.done:
		return 0, net.ErrClosed
	default:
	}
	s.out(slices.Clone(b))
	return len(b), nil
}

// Close implements net.Conn.
func (s *sctpConn) Close() error {
	(*data)(s).close()
	return nil
}

func (s *sctpConn) LocalAddr() net.Addr              { return pipeAddr{} }
func (s *sctpConn) RemoteAddr() net.Addr             { return pipeAddr{} }
func (s *sctpConn) SetDeadline(time.Time) error      { return nil }
func (s *sctpConn) SetReadDeadline(time.Time) error  { return nil }
func (s *sctpConn) SetWriteDeadline(time.Time) error { return nil }
