package forward

// wants is dynacast: which layers somebody wants, so that the publisher need
// not encode the others.
type wants struct {
	told  Layers
	since int64 // since when fewer are wanted than told, 0 not
	now   int64 // newest time seen, for changes without a time
}

// unwantedFor is how long a layer must be unwanted before it is told.
const unwantedFor = 5 * second

// want compares what the down tracks want with what was told.
func (t *Track) want(now int64) {
	w := &t.wants
	if now == 0 {
		now = w.now
	}
	w.now = now
	var sum Layers
	for _, d := range t.downs {
		sum |= d.wants()
	}
	next := w.told
	switch {
	case sum&^w.told != 0:
		next |= sum
	case sum == w.told:
		w.since = 0
	case w.since == 0:
		w.since = now
	case now-w.since >= unwantedFor:
		next, w.since = sum, 0
	}
	if next != w.told {
		w.told = next
		if t.onWanted != nil {
			t.onWanted(next)
		}
	}
}
