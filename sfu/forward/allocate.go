package forward

// step is what of a track is forwarded: a layer, and within its stream the
// highest spatial and temporal layer.
type step struct{ layer, sid, tid int }

var nothing = step{-1, -1, -1}

const anyLayer = MaxLayers - 1

// option is a step and what it costs, bit/s.
type option struct {
	step step
	cost int
}

// maxOptions bounds the options of one track: the temporal layers of the lowest
// layer, and the others.
const maxOptions = 2 * MaxLayers

// Hysteresis of the allocation.
const (
	raiseMargin = 1.15        // free bandwidth that a raise must leave
	keepMargin  = 0.9         // a running layer may exceed its share by so much
	lastMargin  = 0.7         // the same for the least layer
	raiseAfter  = 2 * second  // between a fall and the next raise
	raiseAtMost = 12 * second // the same after raises that did not hold
	raiseHolds  = 10 * second // a raise that lasts so long was right
	retryAfter  = 10 * second // tries to go on with what was held back
	retryAtMost = 60 * second
	settle      = 500 * millisecond // between two raises
)

// desired returns the layer that the preference asks for, -1 for none.
func (d *DownTrack) desired() int {
	t, p := d.track, &d.prefers
	if p.Disabled || d.closed {
		return -1
	}
	if d.pass {
		return min(d.layer, t.layers-1)
	}
	top := t.layers - 1
	if p.Width > 0 && p.Height > 0 {
		for i := range top {
			if t.specs[i].fits(p.Width, p.Height) {
				return i
			}
		}
		return top
	}
	switch p.Quality {
	case QualityLow:
		return 0
	case QualityMedium:
		return min(1, top)
	}
	return top
}

// fits reports whether the layer fills a picture of w times h, about. The
// shorter side counts: pictures are cropped or framed to the place they have.
func (l *LayerSpec) fits(w, h int) bool {
	have, need := l.Height, h
	if l.Width < l.Height {
		have, need = l.Width, w
	}
	return have > 0 && have*10 >= need*9
}

// wants returns the layers that d can make use of: the desired one and those
// below, in case the bandwidth falls.
func (d *DownTrack) wants() Layers {
	top := d.desired()
	if top < 0 {
		return 0
	}
	if d.pass && !d.track.svc { // else the one stream has them all
		return 1 << top
	}
	return 1<<(top+1) - 1
}

// available returns the layer nearest to the desired one that is being sent.
func (d *DownTrack) available(desired int) int {
	for i := desired; i >= 0; i-- {
		if d.track.active(i) {
			return i
		}
	}
	for i := desired + 1; i < d.track.layers; i++ {
		if d.track.active(i) {
			return i
		}
	}
	return desired
}

// options lists what may be forwarded of a video track, cheapest first.
func (d *DownTrack) options(list *[maxOptions]option) []option {
	desired := d.desired()
	if desired < 0 || d.track.muted {
		return nil
	}
	top := desired
	if !d.pass {
		top = d.available(desired)
	}
	if !d.track.active(top) { // costs nothing until it comes
		list[0] = d.option(top, anyLayer)
		list[0].cost = 0
		return list[:1]
	}
	n := 0
	for i := 0; i <= top; i++ {
		if i != top && (d.pass || !d.track.active(i)) {
			continue
		}
		tid := d.topTemporal(i)
		if n == 0 && !d.pass {
			for low := range tid {
				list[n] = d.option(i, low)
				n++
			}
		}
		list[n] = d.option(i, tid)
		if tid == d.sentTemporal(i) {
			list[n].step.tid = anyLayer
		}
		n++
	}
	return list[:n]
}

func (d *DownTrack) option(layer, tid int) option {
	s := step{layer, anyLayer, tid}
	if d.track.svc {
		s.sid = layer
	}
	return option{s, d.track.bitrate(layer, tid)}
}

// sentTemporal returns the highest temporal layer that comes in.
func (d *DownTrack) sentTemporal(layer int) int {
	if s := d.track.stream(layer); s != nil && s.rates.known {
		return s.rates.temporal()
	}
	return 0
}

// topTemporal returns the highest temporal layer within the wanted frame rate.
func (d *DownTrack) topTemporal(layer int) int {
	tid := d.sentTemporal(layer)
	if d.prefers.FPS <= 0 || tid == 0 {
		return tid
	}
	for fps := d.track.stream(layer).rates.fps; tid > 0 && fps*9 > d.prefers.FPS*10; tid-- {
		fps /= 2
	}
	return tid
}

// before orders down tracks by who is served first; equal ones share.
func (d *DownTrack) before(o *DownTrack) bool {
	switch {
	case d.track.kind != o.track.kind:
		return d.track.kind == Audio
	case d.prefers.Priority != o.prefers.Priority:
		return d.prefers.Priority > o.prefers.Priority
	case d.track.screen != o.track.screen:
		return d.track.screen
	}
	return d.desired() > o.desired()
}

// sort orders the down tracks; they mostly are in order already.
func (s *Subscriber) sort() {
	for i := 1; i < len(s.downs); i++ {
		for k := i; k > 0 && s.downs[k].before(s.downs[k-1]); k-- {
			s.downs[k], s.downs[k-1] = s.downs[k-1], s.downs[k]
		}
	}
}

// allocate shares the bandwidth: audio takes what it needs; each video gets its
// least layer, in order; then the first are raised before the next.
func (s *Subscriber) allocate(now int64) {
	s.dirty, s.nextAllocate = false, now+allocateEvery
	s.sort()
	left, limited := s.bandwidth.estimate(), true
	if left == 0 {
		limited = false
	}
	wanted, videos := 0, 0
	for i, d := range s.downs {
		if d.track.kind == Audio {
			rate := d.track.bitrate(0, anyLayer)
			if !d.track.active(0) || d.track.muted || d.desired() < 0 {
				rate = 0
			}
			left, wanted = left-rate, wanted+rate
			d.grantAudio(now)
			videos = i + 1
		}
	}
	list := s.downs[videos:]
	for _, d := range list {
		d.ladder = d.options(&d.optionList)
		if n := len(d.ladder); n > 0 {
			wanted += d.ladder[n-1].cost
		}
		d.rung = -1
	}
	if limited {
		s.soundFits = left >= 0 || !s.bandwidth.loses(now, stuffedAfter)
		s.share(list, left, now)
		s.overloaded = s.sending(list) > left*3/2
	}
	for _, d := range list {
		if !limited {
			d.rung = len(d.ladder) - 1
		}
		d.apply(now)
	}
	s.stats.Wanted = wanted
}

// sending returns what the layers that go out now cost.
func (s *Subscriber) sending(list []*DownTrack) int {
	sum := 0
	for _, d := range list {
		if d.current != nil {
			sum += d.track.bitrate(d.current.layer, anyLayer)
		}
	}
	return sum
}

// share climbs the ladders of list with left bit/s.
func (s *Subscriber) share(list []*DownTrack, left int, now int64) {
	for _, d := range list {
		left -= d.climb(left, now)
	}
	for from := 0; from < len(list); {
		to := from + 1
		for to < len(list) && !list[from].before(list[to]) {
			to++
		}
		for raised := true; raised; {
			raised = false
			for _, d := range list[from:to] {
				if cost := d.climb(left, now); d.climbed {
					left, raised = left-cost, true
				}
			}
		}
		from = to
	}
}

// climb takes the next rung if left bit/s allow it, and returns what it costs
// more.
func (d *DownTrack) climb(left int, now int64) int {
	d.climbed = false
	next := d.rung + 1
	if next >= len(d.ladder) {
		return 0
	}
	cost := d.ladder[next].cost
	if d.rung >= 0 {
		cost = max(cost-d.ladder[d.rung].cost, 0)
	}
	if next == 0 && d.sub.soundFits && d.mustFlow(now) {
		d.rung, d.climbed = next, true
		return cost
	}
	need, hold := float64(cost)*keepMargin, d.sub.hold
	if next == 0 {
		need, hold = float64(cost)*lastMargin, raiseAfter
	}
	if d.ladder[next].step.above(d.grant) {
		if next > 0 {
			need = float64(cost) * raiseMargin
		}
		if s := d.sub; s.fellAt != 0 && now-s.fellAt < hold || s.raisedAt != 0 && now-s.raisedAt < settle {
			return 0
		}
	}
	if need > float64(left) {
		return 0
	}
	d.rung, d.climbed = next, true
	return cost
}

// mustFlow reports whether the least layer goes out whatever the estimate says:
// an estimate alone stops no picture, nor keeps a new one from being seen, and
// one that was stopped is tried again after a while, for a connection that
// carries little shows little.
func (d *DownTrack) mustFlow(now int64) bool {
	s := d.sub
	switch {
	case d.grant.layer >= 0:
		return !s.bandwidth.stuffed(now)
	case s.bandwidth.loses(now, second):
		return false
	}
	return !d.started || d.paused && now-s.pausedAt >= s.retry
}

// above reports whether a is more than b.
func (a step) above(b step) bool {
	return a.layer > b.layer || a.layer == b.layer && a.tid > b.tid
}

// apply makes the rung that was reached what is forwarded.
func (d *DownTrack) apply(now int64) {
	next := nothing
	if d.rung >= 0 {
		next = d.ladder[d.rung].step
	}
	held := len(d.ladder) > 0 && d.rung < 0
	switch {
	case next.above(d.grant):
		if d.grant != nothing || d.paused {
			d.sub.raisedAt = now
		}
	case d.grant.above(next) && len(d.ladder) > 0 && d.rung < len(d.ladder)-1:
		d.sub.fell(now)
	}
	d.give(next, now)
	if held != d.paused {
		d.paused = held
		d.sub.noteHeld(held, now)
		if d.sub.onPaused != nil {
			d.sub.onPaused(d, held)
		}
	}
}

// fell notes that a grant fell. If the last raise was not long ago, it was too
// much, and the next waits longer.
func (s *Subscriber) fell(now int64) {
	switch {
	case !s.bandwidth.full(now):
		s.hold = raiseAfter
	case s.raisedAt != 0 && s.raisedAt > s.fellAt && now-s.raisedAt < raiseHolds:
		s.hold = min(max(2*s.hold, raiseAfter), raiseAtMost)
	case now-s.fellAt > s.hold:
		s.hold = raiseAfter
	}
	s.fellAt = now
}

// noteHeld notes that a video was held back or goes on. If it went on only a
// while ago, the next try waits twice as long.
func (s *Subscriber) noteHeld(held bool, now int64) {
	if !held {
		s.resumedAt = now
		return
	}
	s.pausedAt = now
	if now-s.resumedAt > retryAtMost {
		s.retry = 0
	}
	s.retry = min(max(2*s.retry, retryAfter), retryAtMost)
}

// grantAudio forwards an audio track unless it is disabled.
func (d *DownTrack) grantAudio(now int64) {
	next := nothing
	if d.desired() >= 0 {
		next = step{0, anyLayer, anyLayer}
	}
	d.give(next, now)
}

// give aims at a step and starts what can start.
func (d *DownTrack) give(next step, now int64) {
	raised := d.track.svc && next.sid > d.grant.sid && d.current != nil
	d.grant = next
	if next.layer < 0 || d.track.muted {
		d.target = nil
		if next.layer >= 0 {
			d.target = d.track.stream(next.layer)
		}
		d.stop()
		return
	}
	s := d.track.stream(next.layer)
	d.target = s
	if s == nil || s.high == 0 {
		return
	}
	switch {
	case d.pass:
		if d.current == nil && !d.over && (d.previous == nil || d.previous == s) {
			d.current = s
			s.keys.request(s, now)
		}
	case d.current != s:
		if d.current != nil && d.sub.overloaded && d.rung < len(d.ladder)-1 && next.layer < d.current.layer {
			d.stop() // waiting for a key frame would fill the queues on the path
		}
		if !s.codec.video() || !d.enter(s, nil, now) {
			s.keys.request(s, now)
		}
	case raised || d.behind():
		s.keys.request(s, now)
	}
}

// behind reports whether a spatial layer was granted that only a key frame can
// bring.
func (d *DownTrack) behind() bool {
	return d.track.svc && d.numbers.n > 0 && int(d.numbers.last().sid) < d.grant.sid
}
