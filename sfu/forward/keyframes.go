package forward

// keyframes remembers the last key frame of a stream and spreads requests for
// the next.
type keyframes struct {
	seq   uint64 // first packet of the last key frame; 0 none
	at    int64  // when it came
	asked int64  // when a key frame was last requested upstream; 0 never
	due   bool   // somebody asked since, too early to ask again
}

// Times between key frame requests for one layer, and how long a key frame is
// good for starting new subscribers.
const (
	minRequest   = 500 * millisecond
	maxReplayAge = 1500 * millisecond
	maxReplay    = 300 << 10
)

// came notes the first packet of a key frame.
func (k *keyframes) came(p *slot) {
	if p.seq > k.seq {
		k.seq, k.at = p.seq, p.at
		k.due = false
	}
}

// request asks the sender of s for a key frame, at most twice a second.
func (k *keyframes) request(s *stream, now int64) {
	if s.track.kind != Video || s.ssrc == 0 {
		return
	}
	if k.asked != 0 && now-k.asked < minRequest {
		// A request right behind a key frame was sent before it was seen.
		k.due = k.due || k.at < k.asked || now-k.at > minRequest/2
		return
	}
	if p := s.track.source; p != nil {
		k.asked, k.due = now, false
		p.pli(s.ssrc)
	}
}

// tick repeats a request that was held back.
func (k *keyframes) tick(s *stream, now int64) {
	if k.due && now-k.asked >= minRequest {
		k.request(s, now)
	}
}
