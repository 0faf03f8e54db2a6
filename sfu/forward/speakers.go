package forward

// Speaker is a track and how loud it is.
type Speaker struct {
	Track  *Track
	Level  float32 // 0..1, linear
	Active bool
}

// Speakers finds who speaks among the audio tracks of a call, from the levels
// that clients put into header extensions (RFC 6464).
type Speakers struct{}

// NewSpeakers returns Speakers without tracks.
func NewSpeakers() *Speakers { panic("unimplemented") }

// Add takes t, an audio track, into account.
func (s *Speakers) Add(t *Track) { panic("unimplemented") }

// Remove forgets t. It is told once more as silent if it was speaking.
func (s *Speakers) Remove(t *Track) { panic("unimplemented") }

// Tick returns those whose level changed, and those who stopped (level 0, not
// active), loudest first, at most every 400 ms; nil if nothing changed. The
// slice is valid until the next call.
func (s *Speakers) Tick(now int64) []Speaker { panic("unimplemented") }
