package forward

// bandwidth estimates what a subscriber's connection carries.
type bandwidth struct{}

func (b *bandwidth) init(start, most int)                {}
func (b *bandwidth) sent(n uint64, size int, now int64)  {}
func (b *bandwidth) feedback(fci []byte, rtt, now int64) {}
func (b *bandwidth) remb(rate int)                       {}
func (b *bandwidth) tick(now int64)                      {}
func (b *bandwidth) estimate() int                       { return 0 }
func (b *bandwidth) pace() int                           { return 10_000_000 }
func (s *Subscriber) probe(now int64)                    {}
