package forward

// probeCluster is a short burst above the estimate that shows whether more gets
// through.
type probeCluster struct {
	running bool
	target  int // bit/s
	started int64
	sent    int // bytes

	waiting   bool // sent, the answer is not in
	ended     int64
	packets   int // sent in it
	arrived   int
	first     int64 // when the first burst was sent
	last      int64
	firstCame int64 // when its last packet came
	lastCame  int64
	bytes     int // come after the first burst

	next    int64 // when to probe again
	backoff int64
}

const (
	probeTime      = 30 * millisecond
	probeWait      = second
	probeEvery     = 5 * second
	probeAtMost    = 15 * second
	probeHeadroom  = 1.25
	probeMargin    = 0.9
	probeGrowth    = 2
	probeArrivals  = 0.8
	minProbeBursts = 5 * millisecond
)

func (c *probeCluster) begin(target int, now int64) {
	*c = probeCluster{running: true, target: target, started: now, next: c.next, backoff: c.backoff}
}

// count notes that a packet was sent in the cluster.
func (c *probeCluster) count(size int) {
	c.sent += size
	c.packets++
}

// due returns how many bytes the cluster should have sent by now, more than it
// has.
func (c *probeCluster) due(now int64) int {
	elapsed := now - c.started + 5*millisecond
	return int(int64(c.target)/8*elapsed/second) - c.sent
}

// came takes the times of a packet of the cluster.
func (c *probeCluster) came(sent, at int64, size int) {
	c.arrived++
	if c.first == 0 {
		c.first = sent
	}
	if sent == c.first {
		c.firstCame = max(c.firstCame, at)
	} else {
		c.bytes += size
	}
	c.last, c.lastCame = max(c.last, sent), max(c.lastCame, at)
}

// tick ends a cluster, and the wait for its answer.
func (c *probeCluster) tick(now int64) {
	if c.running && now-c.started >= probeTime {
		c.running, c.waiting, c.ended = false, true, now
	}
	if c.waiting && now-c.ended > probeWait {
		c.waiting = false
	}
}

// result returns what got through, bit/s, once most of the cluster has come
// that usual loss leaves.
func (c *probeCluster) result(loss float64) (rate int, ok bool) {
	if !c.waiting || float64(c.arrived) < probeArrivals*(1-loss)*float64(c.packets) || c.last-c.first < minProbeBursts || c.lastCame <= c.firstCame {
		return 0, false
	}
	sent := int64(c.bytes) * 8 * second / (c.last - c.first)
	came := int64(c.bytes) * 8 * second / (c.lastCame - c.firstCame)
	if float64(came) < probeMargin*float64(sent) {
		return int(float64(came) * 0.95), true
	}
	return int(min(sent, came)), true
}

// probed takes the result of a cluster.
func (b *bandwidth) probed(now int64) {
	c := &b.probe
	rate, ok := c.result(b.loss.inherent)
	if !ok {
		return
	}
	c.waiting = false
	if rate > b.rate.bitrate && b.delay.state != overuse {
		b.rate.bitrate = min(rate, b.most)
		b.rate.capacity = 0
		if float64(rate) > probeMargin*float64(c.target) {
			c.backoff, c.next = 0, now // there may be more
		}
	}
}

// calm reports whether nothing speaks against a probe. What was seen before the
// feedback ceased (because nothing is sent) says nothing any more.
func (b *bandwidth) calm(now int64) bool {
	if now-b.last > outage {
		return true
	}
	return b.delay.state == normal && b.loss.excess() <= lightLoss && (b.rate.fell == 0 || now-b.rate.fell >= probeEvery/2)
}

// probe begins a cluster when layers are held back, and fills it with
// retransmissions or padding.
func (s *Subscriber) probe(now int64) {
	b := &s.bandwidth
	c := &b.probe
	if c.running {
		s.fillProbe(now)
		return
	}
	if !b.heard || c.waiting || now < c.next || s.stats.Wanted == 0 || s.pacer.head != s.pacer.tail || s.probeTrack() == nil {
		return
	}
	estimate := b.estimate()
	most := min(int(float64(s.stats.Wanted)*probeHeadroom), b.most)
	if estimate >= most || !b.calm(now) {
		return
	}
	c.backoff = min(max(c.backoff*2, probeEvery), probeAtMost)
	c.next = now + c.backoff
	c.begin(min(probeGrowth*estimate, most), now)
	s.fillProbe(now)
}

// fillProbe sends what the cluster is short of.
func (s *Subscriber) fillProbe(now int64) {
	d := s.probeTrack()
	if d == nil {
		return
	}
	c := &s.bandwidth.probe
	seq := d.seq
	for tries := 0; tries < len(d.history) && c.due(now) > 0; tries++ {
		before := c.sent
		e := d.history.get(seq)
		seq--
		if e == nil {
			break
		}
		if p := e.stream.ring.get(e.source); p != nil && p.size > 600 {
			s.transmit(d, e, p, true, now)
		}
		s.stats.Padding += uint64(c.sent - before)
	}
	for c.due(now) > 0 {
		before := c.sent
		s.padRTX(d, now)
		if c.sent == before {
			return
		}
		s.stats.Padding += uint64(c.sent - before)
	}
}

// probeTrack returns a down track whose retransmission stream can carry a
// probe, one that is playing if there is any.
func (s *Subscriber) probeTrack() *DownTrack {
	var found *DownTrack
	for _, d := range s.downs {
		if d.rtx == 0 || s.of(d).TransportCC == 0 {
			continue
		}
		if d.current != nil {
			return d
		}
		found = d
	}
	return found
}

// padRTX sends a packet of padding on the retransmission stream.
func (s *Subscriber) padRTX(d *DownTrack, now int64) {
	for i := range d.formats {
		if f := &d.formats[i]; f.RTX != 0 {
			d.rtxSeq++
			s.pad(d, f.RTX, d.rtx, d.rtxSeq-1, d.ts, 255, now)
			return
		}
	}
}
