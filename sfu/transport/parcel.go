package transport

const parcelSize = 32

// parcel is a batch of packets on the way to the shard of their Conns.
type parcel struct {
	n    int
	size [parcelSize]int
	src  [parcelSize]source
	buf  [parcelSize][recvSlot]byte
}

func (p *parcel) add(b []byte, src *source) {
	p.size[p.n] = copy(p.buf[p.n][:], b)
	p.src[p.n] = *src
	p.n++
}

// forward hands a packet over to the shard that owns it, at the end of the
// read batch.
func (s *Shard) forward(owner *Shard, b []byte, src *source) {
	s.counters.handedOver++
	// It is counted where it is handled.
	s.counters.packetsIn--
	s.counters.bytesIn -= uint64(len(b))
	p := s.outgoing[owner.index]
	if p == nil {
		p = s.srv.parcels.Get().(*parcel)
		s.outgoing[owner.index] = p
	}
	p.add(b, src)
	if p.n == parcelSize {
		s.dispatch(owner)
	}
}

// handOver sends off the parcels of this read batch.
func (s *Shard) handOver() {
	for i, p := range s.outgoing {
		if p != nil {
			s.dispatch(s.srv.shards[i])
		}
	}
}

func (s *Shard) dispatch(owner *Shard) {
	p := s.outgoing[owner.index]
	s.outgoing[owner.index] = nil
	if !owner.post(p) {
		s.counters.lost += uint64(p.n)
		s.srv.recycle(p)
	}
}

// unpack handles a parcel of another shard or of a TCP connection.
func (s *Shard) unpack(p *parcel) {
	for i := 0; i < p.n; {
		i = s.unpackFrom(p, i)
	}
	s.srv.recycle(p)
}

func (s *Shard) unpackFrom(p *parcel, i int) (next int) {
	defer func() {
		if r := recover(); r != nil {
			s.crashed(r)
			next = i + 1
		}
	}()
	for ; i < p.n; i++ {
		s.handle(p.buf[i][:p.size[i]], &p.src[i])
	}
	return i
}

func (srv *Server) recycle(p *parcel) {
	for i := range p.n {
		p.src[i] = source{}
	}
	p.n = 0
	srv.parcels.Put(p)
}
