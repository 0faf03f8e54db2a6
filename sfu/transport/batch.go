package transport

// Sizes of a shard's batches. A slot holds the largest packet after sealing,
// within an Ethernet frame.
const (
	recvBatch = 64
	recvSlot  = 2048
	sendSlots = 256
	sendSlot  = 1536
	// maxDatagram is the largest datagram that is sent.
	maxDatagram = 1472
	// A run of equal packets to one destination goes out as one GSO
	// message of at most so many segments and bytes: long bursts cause loss
	// on slow links.
	gsoSegments = 8
	gsoBytes    = 10 << 10
)

// source is where a packet came from.
type source struct {
	from  endpoint
	local [16]byte // our address that it was sent to; zero when there is one only
	shard *Shard   // whose socket the kernel gave it to
	tcp   *tcpStream
}

// target is a destination of datagrams. Its path keeps it, so that the batch
// can name it by pointer and find the last message that goes there.
type target struct {
	to    endpoint
	local [16]byte // source address to use; zero lets the kernel choose
	sys   sysTarget
	batch uint64 // the batch in which msg is valid
	msg   int32
}

// message is a run of slots for one target: one datagram or one GSO message.
type message struct {
	to         *target
	head, tail int16
	count      int16
	seg        int32 // size of its segments; the last may be smaller
	bytes      int32
	closed     bool // the last segment is smaller
}

// outbox collects sealed packets until the shard flushes them.
type outbox struct {
	buf   []byte
	size  [sendSlots]int32
	next  [sendSlots]int16
	msgs  [sendSlots]message
	used  int
	count int
	batch uint64
	gso   bool
}

func newOutbox() outbox {
	return outbox{buf: make([]byte, sendSlots*sendSlot), batch: 1}
}

func (o *outbox) full() bool { return o.used == sendSlots }

// slot is the memory for the next packet, with sendSlot bytes of capacity.
func (o *outbox) slot() []byte {
	at := o.used * sendSlot
	return o.buf[at : at : at+sendSlot]
}

func (o *outbox) packet(i int16) []byte {
	return o.buf[int(i)*sendSlot:][:o.size[i]]
}

// push adds the packet of n bytes that stands in slot to the batch. Order is
// kept for each target.
func (o *outbox) push(t *target, n int) {
	i := int16(o.used)
	o.used++
	o.size[i], o.next[i] = int32(n), -1
	if o.gso && t.batch == o.batch {
		if m := &o.msgs[t.msg]; m.takes(int32(n)) {
			o.next[m.tail] = i
			m.tail = i
			m.count++
			m.bytes += int32(n)
			m.closed = int32(n) < m.seg
			return
		}
	}
	t.batch, t.msg = o.batch, int32(o.count)
	o.msgs[o.count] = message{to: t, head: i, tail: i, count: 1, seg: int32(n), bytes: int32(n)}
	o.count++
}

func (m *message) takes(n int32) bool {
	return !m.closed && m.count < gsoSegments && n <= m.seg && m.bytes+n <= gsoBytes
}

// reset starts a new batch.
func (o *outbox) reset() {
	for i := range o.msgs[:o.count] {
		o.msgs[i].to = nil
	}
	o.used, o.count = 0, 0
	o.batch++
}
