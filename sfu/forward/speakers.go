package forward

import "math"

// Speaker is a track and how loud it is.
type Speaker struct {
	Track  *Track
	Level  float32 // 0..1, linear
	Active bool
}

// When somebody counts as speaking, as LiveKit has it: at least activeShare of
// the packets of a window at or above activeLevel.
const (
	speakerWindow = 400 * millisecond
	activeLevel   = 35  // -dBov
	activeShare   = 0.4 // of the window
	smoothing     = 2   // windows
	levelStep     = 1.0 / 32
	packetTime    = 20 * millisecond // when it can't be told
	maxPacketTime = 120 * millisecond
	levelHertz    = 48000
)

// levelMeter measures an audio track between two windows.
type levelMeter struct {
	loudest uint8 // least -dBov among the loud packets
	loud    int64 // time at or above activeLevel
	ts      uint32
	smooth  float64
	told    float32
}

// observe notes the level of a packet, -dBov. Its timestamp tells how long the
// one before lasted.
func (m *levelMeter) observe(level uint8, ts uint32) {
	lasts := int64(ts-m.ts) * second / levelHertz
	m.ts = ts
	if lasts <= 0 || lasts > maxPacketTime {
		lasts = packetTime
	}
	if level > activeLevel {
		return
	}
	if m.loud == 0 || level < m.loudest {
		m.loudest = level
	}
	m.loud += lasts
}

// window closes a window and returns the smoothed level, 0 for silence.
func (m *levelMeter) window() float32 {
	level := 0.0
	if share := float64(m.loud) / float64(speakerWindow); share >= activeShare {
		// A voice that fills half of the window counts half as loud.
		weight := 20 * math.Log10(min(share, 1))
		level = math.Pow(10, (-float64(m.loudest)+weight)/20)
	}
	m.loud, m.loudest = 0, 0
	m.smooth += (level - m.smooth) / smoothing
	if m.smooth < math.Pow(10, -(activeLevel+6.0)/20) {
		m.smooth = 0
	}
	return float32(math.Ceil(m.smooth/levelStep) * levelStep)
}

// Speakers finds who speaks among the audio tracks of a call, from the levels
// that clients put into header extensions (RFC 6464).
type Speakers struct {
	tracks []*Track
	out    []Speaker
	gone   []*Track // removed while told as speaking
	next   int64
}

// NewSpeakers returns Speakers without tracks.
func NewSpeakers() *Speakers { return &Speakers{} }

// Add takes t, an audio track, into account.
func (s *Speakers) Add(t *Track) { s.tracks = append(s.tracks, t) }

// Remove forgets t. It is told once more as silent if it was speaking.
func (s *Speakers) Remove(t *Track) {
	for i := range s.tracks {
		if s.tracks[i] == t {
			s.tracks = append(s.tracks[:i], s.tracks[i+1:]...)
			if t.level.told > 0 {
				s.gone = append(s.gone, t)
			}
			return
		}
	}
}

// Tick returns those whose level changed, and those who stopped (level 0, not
// active), loudest first, at most every 400 ms; nil if nothing changed. The
// slice is valid until the next call.
func (s *Speakers) Tick(now int64) []Speaker {
	if now < s.next {
		return nil
	}
	s.next = now + speakerWindow
	s.out = s.out[:0]
	for _, t := range s.tracks {
		level := t.level.window()
		if t.muted {
			level = 0
		}
		if level != t.level.told {
			t.level.told = level
			s.insert(Speaker{Track: t, Level: level, Active: level > 0})
		}
	}
	for _, t := range s.gone {
		s.insert(Speaker{Track: t})
	}
	clear(s.gone)
	s.gone = s.gone[:0]
	if len(s.out) == 0 {
		return nil
	}
	return s.out
}

// insert keeps the loudest first.
func (s *Speakers) insert(v Speaker) {
	s.out = append(s.out, v)
	for i := len(s.out) - 1; i > 0 && s.out[i].Level > s.out[i-1].Level; i-- {
		s.out[i], s.out[i-1] = s.out[i-1], s.out[i]
	}
}
