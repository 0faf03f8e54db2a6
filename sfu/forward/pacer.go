package forward

// queued is a packet that waits: down track and number, found again in its
// history.
type queued struct {
	d      *DownTrack
	since  int64
	seq    uint16
	repair bool
}

// pacer spreads bursts (key frames) of one subscriber: a number of packets goes
// out at once in each tick, the rest at a multiple of the estimated rate.
type pacer struct {
	queue      []queued // ring, power of two; nil until needed
	head, tail uint64
	burst      int // packets left in this tick that need not wait
	credit     int // bytes that may leave the queue
	repairs    int // bytes that may be retransmitted
	last       int64
}

const (
	burstPackets = 16
	maxQueue     = 1024
	paceFactor   = 2.5
	maxWait      = 2 * second // what waits longer is of no use any more
	repairShare  = 0.5        // of the rate may be spent on retransmissions
)

// free reports whether a packet may go out without waiting.
func (p *pacer) free() bool { return p.head == p.tail && p.burst > 0 }

func (p *pacer) spend(size int) {
	p.burst--
	p.credit -= size
}

// push appends a packet. When the queue is full the packet is lost; the
// receiver asks for it again.
func (p *pacer) push(d *DownTrack, seq uint16, repair bool, now int64) {
	if p.queue == nil {
		p.queue = make([]queued, maxQueue)
	}
	if p.tail-p.head == maxQueue {
		return
	}
	p.queue[p.tail%maxQueue] = queued{d: d, since: now, seq: seq, repair: repair}
	p.tail++
}

// forget drops what waits for d.
func (p *pacer) forget(d *DownTrack) {
	for i := p.head; i < p.tail; i++ {
		if q := &p.queue[i%maxQueue]; q.d == d {
			q.d = nil
		}
	}
}

// drain sends what waits, as far as the rate allows, and opens the next burst.
func (s *Subscriber) drain(now int64) {
	p := &s.pacer
	rate := s.bandwidth.pace()
	elapsed := min(now-p.last, 20*millisecond)
	p.last = now
	quantum := int(int64(float64(rate)*paceFactor) / 8 * elapsed / second)
	p.credit = min(max(p.credit, 0)+quantum, 2*quantum)
	for p.head < p.tail {
		q := p.queue[p.head%maxQueue]
		if p.credit <= 0 {
			break
		}
		p.queue[p.head%maxQueue].d = nil
		p.head++
		if now-q.since < maxWait {
			s.release(q, now)
		}
	}
	p.burst = burstPackets
	repairs := int(int64(float64(rate)*repairShare) / 8 * elapsed / second)
	p.repairs = min(p.repairs+repairs, int(float64(rate)*repairShare)/16)
}

// release sends a packet that waited, if it is still there.
func (s *Subscriber) release(q queued, now int64) {
	if q.d == nil {
		return
	}
	e := q.d.history.get(q.seq)
	if e == nil {
		return
	}
	if p := e.stream.ring.get(e.source); p != nil {
		s.count(p, q.repair)
		s.transmit(q.d, e, p, q.repair, now)
	}
}
