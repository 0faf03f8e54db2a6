package forward

import "encoding/binary"

// bandwidth estimates what a subscriber's connection carries, from when packets
// came at its other end (Google congestion control, draft-ietf-rmcat-gcc-02):
// growing delay is a queue that fills, and means less; heavy loss means less;
// else a little more is tried. Probes find free bandwidth faster.
type bandwidth struct {
	start, most int
	active      bool  // transport-wide numbers are in use
	heard       bool  // and there was feedback
	last        int64 // when
	limit       int   // REMB, 0 none

	packets   []sentPacket // ring by transport-wide number; nil until needed
	newest    uint64
	accounted uint64 // losses up to here are counted
	reference int64  // time base of the last feedback, in 64 ms, unwrapped

	queue int64 // delay by queues at the last feedback
	seen  int64 // when the path was last seen congested; 0 never
	since int64 // and since when it was
	lost  int64 // when it was last seen to lose much; 0 never
	delay delayEstimate
	acked throughput
	rate  rateControl
	loss  lossControl
	probe probeCluster
}

// sentPacket is a packet that feedback may speak of.
type sentPacket struct {
	at    int64
	n     uint32 // low bits of the number
	size  uint16
	heard bool // feedback spoke of it
	acked bool // and said that it came
	again bool // it was lost and sent again under its number: tells nothing more
	probe bool
}

const (
	sentPackets  = 2048
	minBitrate   = 30_000
	startBitrate = 1_000_000
	mostBitrate  = 50_000_000
)

func (b *bandwidth) init(start, most int) {
	if start == 0 {
		start = startBitrate
	}
	if most == 0 {
		most = mostBitrate
	}
	b.start, b.most = min(start, most), most
	b.rate.init(b.start)
	b.delay.init()
}

// sent notes packet n.
func (b *bandwidth) sent(n uint64, size int, now int64) {
	if b.packets == nil {
		b.packets = make([]sentPacket, sentPackets)
		b.accounted = n - 1
	}
	b.active, b.newest = true, n
	b.packets[n%sentPackets] = sentPacket{at: now, n: uint32(n), size: uint16(size), probe: b.probe.running}
	if b.probe.running {
		b.probe.count(size)
	}
}

// again notes that the packet with the low bits n of its number is sent again
// as it was, because it was lost.
func (b *bandwidth) again(n uint16) {
	if b.packets == nil {
		return
	}
	if p := b.find(b.unwrap(n)); p != nil {
		p.again = true
	}
}

// unwrap finds the number near the newest with the low bits n.
func (b *bandwidth) unwrap(n uint16) uint64 {
	return b.newest + uint64(int64(int16(n-uint16(b.newest))))
}

// find returns what is known of packet n, nil if nothing.
func (b *bandwidth) find(n uint64) *sentPacket {
	if p := &b.packets[n%sentPackets]; p.n == uint32(n) && p.at != 0 {
		return p
	}
	return nil
}

// estimate returns the bandwidth, bit/s, 0 when it is not known.
func (b *bandwidth) estimate() int {
	rate := 0
	if b.active {
		rate = b.rate.bitrate
	}
	if b.limit > 0 && (rate == 0 || b.limit < rate) && !b.heard {
		rate = b.limit
	}
	return min(rate, b.most)
}

// pace returns the rate that the pacer multiplies.
func (b *bandwidth) pace() int {
	if rate := b.estimate(); rate > 0 {
		return max(rate, 300_000)
	}
	return mostBitrate
}

// remb takes a receiver's own estimate; it counts where there is no feedback.
func (b *bandwidth) remb(rate int) { b.limit = max(rate, minBitrate) }

// feedback reads a transport-wide feedback message.
func (b *bandwidth) feedback(fci []byte, rtt, now int64) {
	if b.packets == nil || len(fci) < 8 {
		return
	}
	var r feedbackReader
	if !r.open(fci) {
		return
	}
	if b.heard && now-b.last > outage {
		b.resume()
	}
	b.heard, b.last = true, now
	n := b.unwrap(r.base)
	at := b.unwrapReference(r.reference) * 64 * millisecond
	for ; ; n++ {
		status, delta, ok := r.next()
		if !ok {
			break
		}
		came := status == statusSmall || status == statusLarge
		if came {
			at += int64(delta) * (second / 4000)
		}
		if n > b.newest {
			break
		}
		b.packet(n, came, at)
	}
	b.probed(now)
	if rtt == 0 {
		rtt = defaultRTT
	}
	queue := b.delay.queue()
	lossy := b.loss.excess() > lightLoss
	b.rate.update(b.usage(queue), lossy, b.acked.bitrate(), rtt, now)
	next := b.loss.update(b.rate.bitrate, b.acked.bitrate(), queue, rtt, now)
	if next < b.rate.bitrate {
		b.rate.fell, b.rate.raising = now, false
	}
	b.rate.bitrate = min(max(next, minBitrate), b.most)
	if b.rate.fell == now {
		b.probe.backoff, b.probe.next = 0, max(b.probe.next, now+probeEvery)
	}
	if b.congested() {
		if !b.full(now) {
			b.since = now
		}
		b.seen = now
	}
	if b.loss.excess() > heavyLoss {
		b.lost = now
	}
}

// outage is how long without feedback means that nothing came through.
const outage = second

// resume goes on after an outage with the rate from before: what was lost in it
// tells nothing about the bandwidth.
func (b *bandwidth) resume() {
	b.accounted = b.newest
	b.loss = lossControl{inherent: b.loss.inherent}
	b.delay = delayEstimate{threshold: b.delay.threshold}
	b.acked = throughput{}
	b.queue, b.seen, b.since, b.lost = 0, 0, 0, 0
	b.rate.raising = false
	b.probe = probeCluster{}
}

// usage returns the state of the delay, weighed against the queue that is seen.
// A receiver that stalls, or a jittery path, makes trends but no queue that
// stays: the least delay is low again at once. A queue that is long is too
// much whatever the trend.
func (b *bandwidth) usage(queue int64) usage {
	before := b.queue
	b.queue = queue
	switch state := b.delay.state; {
	case min(queue, before) > longQueue:
		return overuse
	case state == overuse && min(queue, before) < shortQueue:
		return underuse // wait and see
	default:
		return state
	}
}

// Delays of queues: too short to tell anything, and too long for a call.
const (
	shortQueue = 20 * millisecond
	longQueue  = 250 * millisecond
)

// congested reports whether there is more than a trend to show that the path is
// full: packets wait in a queue all the time, or are lost.
func (b *bandwidth) congested() bool {
	return b.delay.queue() > filledQueue || b.loss.excess() > heavyLoss
}

// full reports whether the path was congested lately.
func (b *bandwidth) full(now int64) bool { return b.seen != 0 && now-b.seen < second }

// loses reports whether the path lost what it could not carry in the last d.
// Delay alone can be that of a receiver that has too much to do.
func (b *bandwidth) loses(now, d int64) bool { return b.lost != 0 && now-b.lost < d }

// stuffed reports whether the path has been congested for so long that less
// must be sent at any price.
func (b *bandwidth) stuffed(now int64) bool {
	return b.full(now) && now-b.since >= stuffedAfter && b.loses(now, stuffedAfter)
}

const stuffedAfter = 3 * second

// packet takes what is said about packet n.
func (b *bandwidth) packet(n uint64, came bool, at int64) {
	p := b.find(n)
	if p == nil {
		return
	}
	p.heard = true
	if !came || p.acked || p.again {
		return
	}
	p.acked = true
	b.account(p.at - reorderTime)
	b.acked.add(int(p.size), at)
	b.delay.packet(p.at, at)
	if p.probe {
		b.probe.came(p.at, at, int(p.size))
	}
}

// reorderTime is how long after later packets one may come without counting as
// lost.
const reorderTime = 200 * millisecond

// account counts the packets sent before a time as come or lost.
func (b *bandwidth) account(before int64) {
	b.accounted = max(b.accounted, b.newest-min(b.newest, sentPackets-1))
	for b.accounted < b.newest {
		p := b.find(b.accounted + 1)
		if p != nil && p.at > before {
			return
		}
		b.accounted++
		if p != nil && p.heard { // of others, the feedback was lost
			b.loss.count(p.acked, int(p.size))
		}
	}
}

// unwrapReference extends the 24 bits of a time base.
func (b *bandwidth) unwrapReference(v uint32) int64 {
	if b.reference == 0 {
		b.reference = 1<<24 + int64(v)
		return b.reference
	}
	d := int32((v-uint32(b.reference))<<8) >> 8
	b.reference += int64(d)
	return b.reference
}

// tick runs the timers.
func (b *bandwidth) tick(now int64) { b.probe.tick(now) }

// feedbackReader walks through the packets of a transport-wide feedback
// message.
type feedbackReader struct {
	base      uint16
	left      int
	reference uint32

	chunks []byte
	deltas []byte
	chunk  uint16
	inside int // symbols left in chunk
}

// open reads the head and finds the deltas behind the chunks.
func (r *feedbackReader) open(fci []byte) bool {
	if len(fci) < 8 {
		return false
	}
	r.base = binary.BigEndian.Uint16(fci)
	r.left = int(binary.BigEndian.Uint16(fci[2:]))
	r.reference = binary.BigEndian.Uint32(fci[4:]) >> 8
	if r.left > maxStatusesRead {
		return false
	}
	at := 8
	for n := 0; n < r.left; at += 2 {
		if at+2 > len(fci) {
			return false
		}
		n += chunkSymbols(binary.BigEndian.Uint16(fci[at:]))
	}
	r.chunks, r.deltas = fci[8:at], fci[at:]
	return r.left > 0
}

// maxStatusesRead bounds the packets that one message may speak of; more than
// are remembered are of no use.
const maxStatusesRead = 2 * sentPackets

// chunkSymbols returns how many packets a chunk speaks of, at least 1.
func chunkSymbols(c uint16) int {
	switch {
	case c&0x8000 == 0:
		return max(int(c&0x1fff), 1)
	case c&0x4000 == 0:
		return 14
	}
	return 7
}

// next returns the status of the next packet and its delta in 250 µs.
func (r *feedbackReader) next() (status uint8, delta int16, ok bool) {
	if r.left == 0 {
		return 0, 0, false
	}
	if r.inside == 0 {
		if len(r.chunks) < 2 {
			return 0, 0, false
		}
		r.chunk = binary.BigEndian.Uint16(r.chunks)
		r.chunks = r.chunks[2:]
		r.inside = chunkSymbols(r.chunk)
	}
	r.left--
	r.inside--
	switch {
	case r.chunk&0x8000 == 0:
		status = uint8(r.chunk >> 13 & 3)
	case r.chunk&0x4000 == 0:
		status = uint8(r.chunk >> r.inside & 1)
	default:
		status = uint8(r.chunk >> (2 * r.inside) & 3)
	}
	return r.delta(status)
}

func (r *feedbackReader) delta(status uint8) (uint8, int16, bool) {
	switch status {
	case statusSmall:
		if len(r.deltas) < 1 {
			return 0, 0, false
		}
		d := int16(r.deltas[0])
		r.deltas = r.deltas[1:]
		return status, d, true
	case statusLarge:
		if len(r.deltas) < 2 {
			return 0, 0, false
		}
		d := int16(binary.BigEndian.Uint16(r.deltas))
		r.deltas = r.deltas[2:]
		return status, d, true
	}
	return statusLost, 0, true
}
