package cascade

import "parley/sfu/media"

// flowing is a track of this server's client on its way to another server. It
// belongs to the service's inbox.
type flowing struct {
	x     *presence
	track uint32
	want  want
	out   [maxLayers]*media.Export
	busy  bool // the call's actor makes exports
	told  want // what the last flow answered
}

// wanted takes the other server's wish.
func (x *presence) wanted(m *message) {
	if x.room.sids[m.Track] == "" {
		return // it has ended meanwhile
	}
	f := x.flows[m.Track]
	if f == nil {
		f = &flowing{x: x, track: m.Track}
		x.flows[m.Track] = f
	}
	if m.Seq <= f.want.seq {
		return
	}
	f.want = want{seq: m.Seq, mask: m.Mask & (1<<maxLayers - 1)}
	f.settle()
}

// export looks again at what flows: tracks may have ended or moved.
func (x *presence) export() {
	for t, f := range x.flows {
		if x.room.sids[t] == "" {
			f.end()
			delete(x.flows, t)
			continue
		}
		f.settle()
	}
}

// stop ends everything that flows.
func (x *presence) stop() {
	for t, f := range x.flows {
		f.end()
		delete(x.flows, t)
	}
}

func (f *flowing) end() {
	f.want.mask = 0
	for i := range f.out {
		f.stop(i)
	}
}

func (f *flowing) stop(layer int) {
	if x := f.out[layer]; x != nil {
		x.Stop()
		f.out[layer], f.told = nil, want{}
	}
}

// settle makes what flows what is wanted.
func (f *flowing) settle() {
	var missing []int
	for i := range f.out {
		switch wanted := f.want.mask&(1<<i) != 0; {
		case !wanted:
			f.stop(i)
		case f.out[i] == nil:
			missing = append(missing, i)
		}
	}
	if f.busy {
		return
	}
	if len(missing) == 0 {
		f.tell()
		return
	}
	f.busy = true
	x := f.x
	svc, tr, sid := x.room.s, x.peer.media, x.room.sids[f.track]
	if !x.room.call.export(sid, tr, missing, func(made map[int]*media.Export) {
		svc.post(func() { f.made(tr, made) })
	}) {
		f.busy = false
	}
}

// made takes the exports that the call's actor has made.
func (f *flowing) made(tr *media.Trunk, made map[int]*media.Export) {
	f.busy = false
	current := f.x.flows[f.track] == f && f.x.peer.media == tr
	for i, e := range made {
		if current && f.out[i] == nil && f.want.mask&(1<<i) != 0 {
			f.out[i] = e
			f.told = want{}
		} else {
			e.Stop()
		}
	}
	if current {
		f.tell()
		if len(made) > 0 {
			f.settle() // another wish may have come meanwhile
		}
	}
}

// tell says where the layers come.
func (f *flowing) tell() {
	if f.told == f.want {
		return
	}
	f.told = f.want
	m := &message{Kind: kindFlow, Track: f.track, Seq: f.want.seq}
	for i, e := range f.out {
		if e != nil {
			m.Flows = append(m.Flows, flow{Layer: uint8(i), SSRC: e.SSRC, RTX: e.RTX})
		}
	}
	f.x.send(m)
}
