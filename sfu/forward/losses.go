package forward

// Times of loss recovery, nanoseconds.
const (
	millisecond = int64(1_000_000)
	second      = 1000 * millisecond

	maxMissing    = 256 // more lost at once are not asked for
	maxTries      = 5
	minRetry      = 20 * millisecond
	maxReordering = 60 * millisecond
	defaultRTT    = 100 * millisecond
)

// missing is a packet that was skipped and is asked for.
type missing struct {
	seq   uint64
	next  int64 // when to ask (again)
	asked int64 // when it was asked for last, 0 never
	tries uint8
}

// losses holds the missing packets of a stream, lowest number first.
type losses struct {
	list [maxMissing]missing
	n    int
	// patience is how long a skipped packet may still come by itself before it
	// is asked for; it follows the reordering that is seen.
	patience int64
}

// skip notes that packets from..to-1 were skipped. It reports false, and
// forgets everything, when too much is missing to be recovered.
func (l *losses) skip(from, to uint64, now int64) bool {
	if to-from > maxMissing-uint64(l.n) {
		l.n = 0
		return false
	}
	for ; from < to; from++ {
		l.list[l.n] = missing{seq: from, next: now + l.patience}
		l.n++
	}
	return true
}

// take removes seq, which arrived, and returns its entry.
func (l *losses) take(seq uint64) (m missing, ok bool) {
	for i := range l.n {
		if l.list[i].seq == seq {
			m = l.list[i]
			copy(l.list[i:l.n-1], l.list[i+1:l.n])
			l.n--
			return m, true
		}
	}
	return m, false
}

// late learns from a packet that came by itself though it had been asked for,
// or had nearly been.
func (l *losses) late(by int64) {
	l.patience = min(max(l.patience, by), maxReordering)
}

// recovered learns from a retransmission: real loss makes waiting expensive.
func (l *losses) recovered() { l.patience -= l.patience / 8 }

// due collects the packets to ask for now into pairs and drops those that were
// asked for often enough. It returns the pairs used and how many were given up.
func (l *losses) due(now, rtt int64, pairs []nackPair) (used, lost int) {
	kept := 0
	for i := range l.n {
		m := l.list[i]
		if m.next <= now {
			if m.tries == maxTries {
				lost++
				continue
			}
			if n := appendNACK(pairs, used, uint16(m.seq)); n > 0 {
				used = n
				m.tries++
				m.asked = now
				m.next = now + max(rtt, minRetry)
			}
		}
		l.list[kept] = m
		kept++
	}
	l.n = kept
	return used, lost
}

// appendNACK adds seq to the pairs and returns how many are used then, 0 when
// there is no room.
func appendNACK(pairs []nackPair, used int, seq uint16) int {
	if used > 0 {
		if d := seq - pairs[used-1].first; d >= 1 && d <= 16 {
			pairs[used-1].next |= 1 << (d - 1)
			return used
		}
	}
	if used == len(pairs) {
		return 0
	}
	pairs[used] = nackPair{first: seq}
	return used + 1
}
