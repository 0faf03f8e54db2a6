package forward

import "encoding/binary"

// transportFeedback notes when packets of a connection came, by their
// transport-wide numbers, and tells the sender
// (draft-holmer-rmcat-transport-wide-cc-extensions-01).
type transportFeedback struct {
	at      [feedbackWindow]int64 // arrival; 0: not come
	next    uint64                // first number to report, unwrapped
	high    uint64                // highest that came; 0: none
	pending bool
	count   uint8
	// media is a stream of the sender: Chromium takes no feedback that names
	// none of its own.
	media   uint32
	symbols [maxStatuses]uint8
}

const (
	feedbackWindow = 4096
	maxStatuses    = 384 // in one message
	maxReorder     = 500 // older packets are not reported any more
)

// Status symbols of a packet.
const (
	statusLost = iota
	statusSmall
	statusLarge
)

// record notes that number seq came.
func (t *transportFeedback) record(seq uint16, now int64) {
	var n uint64
	if t.high == 0 {
		n = firstSeq + uint64(seq)
		t.high, t.next = n, n
	} else {
		n = t.high + uint64(int64(int16(seq-uint16(t.high))))
		if n+maxReorder < t.next {
			return
		}
		t.next = min(t.next, n)
	}
	if n > t.high {
		if n-t.high >= feedbackWindow/2 {
			t.next = n // a jump: what was before is not worth telling
			clear(t.at[:])
		}
		for t.high++; t.high < n && t.next < n; t.high++ {
			t.at[t.high%feedbackWindow] = 0
		}
		t.high = n
	}
	t.at[n%feedbackWindow] = max(now, 1)
	t.pending = true
}

// came returns when number n came, 0 if it did not.
func (t *transportFeedback) came(n uint64) int64 { return t.at[n%feedbackWindow] }

// send writes what came since the last time, in as many messages as it takes.
func (t *transportFeedback) send(w *rtcpWriter, sink Sink, ssrc uint32) {
	if !t.pending {
		return
	}
	t.pending = false
	for t.next <= t.high {
		w.need(maxFeedback, sink)
		if !t.message(w, ssrc) {
			break
		}
	}
}

// maxFeedback bounds one message: head, a chunk for every 7 packets, and two
// bytes of time for each.
const maxFeedback = 20 + 2*(maxStatuses/7+2) + 2*maxStatuses + 4

// deltaTick is the unit of arrival times.
const deltaTick = second / 4000

// message writes one message, starting at next, and moves next on.
func (t *transportFeedback) message(w *rtcpWriter, ssrc uint32) bool {
	base := t.next
	first := t.firstFrom(base)
	if first == 0 {
		return false
	}
	reference := first / (64 * millisecond)
	n, bytes := t.collect(base, reference*64*millisecond)
	if bytes == 0 {
		t.next = base + uint64(max(n, 1))
		return true
	}
	size := (20 + t.chunkBytes(n) + bytes + 3) &^ 3
	b := w.begin(rtcpRTPFB, fbTransport, size)
	if b == nil {
		return false
	}
	clear(b[4:])
	binary.BigEndian.PutUint32(b[4:], ssrc)
	binary.BigEndian.PutUint32(b[8:], t.media)
	binary.BigEndian.PutUint16(b[12:], uint16(base))
	binary.BigEndian.PutUint16(b[14:], uint16(n))
	binary.BigEndian.PutUint32(b[16:], uint32(reference&0xffffff)<<8|uint32(t.count))
	t.count++
	t.writeDeltas(t.writeChunks(b[20:], n), base, n, reference*64*millisecond)
	t.next = base + uint64(n)
	return true
}

// collect fills in the symbols of the packets from base on whose times fit
// behind reference, and returns how many there are and how many bytes their
// times take.
func (t *transportFeedback) collect(base uint64, reference int64) (n, bytes int) {
	for ; base+uint64(n) <= t.high && n < maxStatuses; n++ {
		at := t.came(base + uint64(n))
		t.symbols[n] = statusLost
		if at == 0 {
			continue
		}
		d := (at - reference) / deltaTick
		if d < -32768 || d > 32767 {
			return n, bytes
		}
		reference += d * deltaTick
		t.symbols[n] = statusSmall
		if d < 0 || d > 255 {
			t.symbols[n] = statusLarge
			bytes++
		}
		bytes++
	}
	return n, bytes
}

// writeDeltas writes the arrival times of the collected packets.
func (t *transportFeedback) writeDeltas(b []byte, base uint64, n int, last int64) {
	for i := range n {
		if t.symbols[i] == statusLost {
			continue
		}
		d := (t.came(base+uint64(i)) - last) / deltaTick
		last += d * deltaTick
		if t.symbols[i] == statusSmall {
			b[0] = uint8(d)
			b = b[1:]
		} else {
			binary.BigEndian.PutUint16(b, uint16(int16(d)))
			b = b[2:]
		}
	}
}

// firstFrom returns when the first packet from number n on came.
func (t *transportFeedback) firstFrom(n uint64) int64 {
	for ; n <= t.high; n++ {
		if at := t.came(n); at != 0 {
			return at
		}
	}
	return 0
}

// chunk returns how many of the symbols from i on the next chunk holds, and
// whether they are all the same (a run).
func (t *transportFeedback) chunk(i, n int) (length int, run bool) {
	same := 1
	for i+same < n && t.symbols[i+same] == t.symbols[i] {
		same++
	}
	if same >= 7 || i+same == n {
		return same, true
	}
	return min(7, n-i), false
}

func (t *transportFeedback) chunkBytes(n int) int {
	size := 0
	for i := 0; i < n; size += 2 {
		length, _ := t.chunk(i, n)
		i += length
	}
	return size
}

// writeChunks writes the symbols as runs and vectors of seven and returns what
// is left of b.
func (t *transportFeedback) writeChunks(b []byte, n int) []byte {
	for i := 0; i < n; {
		length, run := t.chunk(i, n)
		var v uint16
		if run {
			v = uint16(t.symbols[i])<<13 | uint16(length)
		} else {
			v = 0xc000
			for k := range length {
				v |= uint16(t.symbols[i+k]) << (12 - 2*k)
			}
		}
		binary.BigEndian.PutUint16(b, v)
		b = b[2:]
		i += length
	}
	return b
}
