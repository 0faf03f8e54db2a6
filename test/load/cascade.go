package main

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"parley/sfu/forward"
)

// Mode cascade compares two ways of joining the calls of several servers: links
// between the servers, and clients that connect to each server. It runs the
// server's forwarding code, with sealing, over a network without loss or
// delay, in one goroutine and in made-up time: what it reports are packets,
// bytes, and the processor time of forwarding them without system calls.

// simOptions say what call to simulate.
type simOptions struct {
	sizes string // "3x10,10x10": servers x users
	view  int    // how many pictures a user sees, the first of them big
	mics  int    // microphones that are on
	own   bool   // everybody looks at others, instead of all at the same few
}

const (
	simTick   = 10 * time.Millisecond
	simWarmUp = 8 * time.Second // nobody's layers are told to be wanted no more after 5 s
	simTime   = 4 * time.Second
	// overhead of a packet: IPv4, UDP and the tag of SRTP.
	simOverhead = 20 + 8 + 16
)

// simLayers are the layers of a camera: of 150 kb/s, 500 kb/s and 1.7 Mb/s.
var simLayers = []forward.LayerSpec{{Width: 320, Height: 180, Bitrate: 150_000, FPS: 15}, {Width: 640, Height: 360, Bitrate: 500_000, FPS: 30}, {Width: 1280, Height: 720, Bitrate: 1_700_000, FPS: 30}}

var (
	simExtensions = forward.ExtensionMap{AudioLevel: 1}
	simOpus       = []forward.Format{{Codec: forward.Opus, PT: 111, ClockRate: 48000}}
	simVP8        = []forward.Format{{Codec: forward.VP8, PT: 96, RTX: 97, ClockRate: 90000}}
)

// sim is one call. Everything is in one goroutine.
type sim struct {
	o       simOptions
	links   bool
	now     int64
	ssrc    uint32
	users   []*simUser
	servers []*simServer
	gcm     cipher.AEAD
	scratch []byte
	nonce   [12]byte
}

type simServer struct {
	index    int
	pubs     []*forward.Publisher
	subs     []*forward.Subscriber
	links    map[*simServer]*simLink
	sent     simCount
	connects int
}

// simCount is what left a server: to whom it left, and to all.
type simCount struct{ packets, bytes, foreign int }

type simUser struct {
	s       *sim
	home    *simServer
	pub     *forward.Publisher
	mic     *forward.Track // nil: off
	cam     *forward.Track
	ssrcs   [4]uint32
	seq     [4]uint16
	subs    map[*simServer]*forward.Subscriber
	packets [4][]byte
}

// simLink is one direction of a link.
type simLink struct {
	s        *sim
	from, to *simServer
	sub      *forward.Subscriber
	pub      *forward.Publisher
	imports  map[*forward.Track]*simImport
}

type simImport struct {
	track   *forward.Track
	formats []forward.Format
	streams map[int]forward.StreamBinding
	downs   map[int]*forward.DownTrack
}

// simSink seals what a server sends and counts it.
type simSink struct {
	s       *sim
	from    *simServer
	foreign bool
	to      *forward.Publisher // at the other end of a link
}

func (k *simSink) SendRTP(header, payload []byte) error {
	s := k.s
	k.from.sent.packets++
	size := len(header) + len(payload) + simOverhead
	k.from.sent.bytes += size
	if k.foreign {
		k.from.sent.foreign += size
	}
	sealed := s.gcm.Seal(s.scratch[:0], s.nonce[:], payload, header)
	if k.to == nil {
		return nil
	}
	packet := append(make([]byte, 0, len(header)+len(payload)), header...)
	packet, err := s.gcm.Open(packet, s.nonce[:], sealed, header)
	if err == nil {
		k.to.HandleRTP(packet, s.now)
	}
	return err
}

func (k *simSink) SendRTCP([]byte) error { return nil }

func newSim(o simOptions, servers, each int, links bool) *sim {
	s := &sim{o: o, links: links, now: int64(time.Hour), scratch: make([]byte, 0, 2048)}
	block, _ := aes.NewCipher(make([]byte, 16)) // the key is long enough
	s.gcm, _ = cipher.NewGCM(block)
	for i := range servers {
		s.servers = append(s.servers, &simServer{index: i, links: map[*simServer]*simLink{}})
	}
	for i := range servers * each {
		s.users = append(s.users, s.user(s.servers[i%servers], i < o.mics))
	}
	if links {
		for _, from := range s.servers {
			for _, to := range s.servers {
				if from != to {
					from.links[to] = s.link(from, to)
				}
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i, u := range s.users {
		s.watch(u, i, rng)
	}
	return s
}

func (s *sim) nextSSRC() uint32 { s.ssrc++; return s.ssrc }

// user joins at home and publishes.
func (s *sim) user(home *simServer, speaks bool) *simUser {
	u := &simUser{s: s, home: home, subs: map[*simServer]*forward.Subscriber{}, cam: forward.NewTrack(forward.TrackConfig{Kind: forward.Video, Layers: simLayers})}
	u.pub = forward.NewPublisher(forward.PublisherConfig{Sink: &simSink{s: s, from: home}, SSRC: s.nextSSRC(), Extensions: simExtensions})
	home.pubs = append(home.pubs, u.pub)
	b := forward.Binding{Formats: simVP8}
	for l := range 3 {
		u.ssrcs[l] = s.nextSSRC()
		b.Streams = append(b.Streams, forward.StreamBinding{Layer: l, SSRC: u.ssrcs[l]})
	}
	u.pub.Add(u.cam, b)
	if speaks {
		u.ssrcs[3] = s.nextSSRC()
		u.mic = forward.NewTrack(forward.TrackConfig{Kind: forward.Audio})
		u.pub.Add(u.mic, forward.Binding{Formats: simOpus, Streams: []forward.StreamBinding{{SSRC: u.ssrcs[3]}}})
	}
	return u
}

func (s *sim) link(from, to *simServer) *simLink {
	l := &simLink{s: s, from: from, to: to, imports: map[*forward.Track]*simImport{}}
	l.pub = forward.NewPublisher(forward.PublisherConfig{Sink: &simSink{s: s, from: to, foreign: true}, SSRC: s.nextSSRC(), Extensions: simExtensions})
	l.sub = forward.NewSubscriber(forward.SubscriberConfig{Sink: &simSink{s: s, from: from, foreign: true, to: l.pub}, SSRC: s.nextSSRC(), CNAME: "link",
		Extensions: simExtensions, StartBitrate: 400_000_000, MaxBitrate: 400_000_000})
	to.pubs = append(to.pubs, l.pub)
	from.subs = append(from.subs, l.sub)
	from.connects++
	return l
}

// watch subscribes a user to all microphones and to the pictures in their view.
func (s *sim) watch(u *simUser, index int, rng *rand.Rand) {
	if s.links {
		s.connect(u, u.home)
	} else {
		for _, at := range s.servers {
			s.connect(u, at)
		}
	}
	for _, o := range s.users {
		if o != u && o.mic != nil {
			s.subscribe(u, o, o.mic, simOpus, forward.Preference{})
		}
	}
	seen := map[int]bool{index: true}
	for n := 0; n < min(s.o.view, len(s.users)-1); {
		i := firstUnseen(seen) // the same few for all
		if s.o.own {
			i = rng.IntN(len(s.users))
		}
		if seen[i] {
			continue
		}
		seen[i] = true
		p := forward.Preference{Quality: forward.QualityLow}
		if n == 0 {
			p = forward.Preference{Quality: forward.QualityHigh}
		}
		s.subscribe(u, s.users[i], s.users[i].cam, simVP8, p)
		n++
	}
}

func firstUnseen(seen map[int]bool) int {
	for i := 0; ; i++ {
		if !seen[i] {
			return i
		}
	}
}

// connect connects a user to a server to receive.
func (s *sim) connect(u *simUser, at *simServer) {
	sub := forward.NewSubscriber(forward.SubscriberConfig{Sink: &simSink{s: s, from: at, foreign: at != u.home}, SSRC: s.nextSSRC(), CNAME: "user",
		Extensions: simExtensions, StartBitrate: 50_000_000})
	u.subs[at] = sub
	at.subs = append(at.subs, sub)
	at.connects++
}

func (s *sim) subscribe(u, of *simUser, t *forward.Track, f []forward.Format, p forward.Preference) {
	at := of.home
	if s.links {
		at = u.home
		if of.home != u.home {
			t = of.home.links[u.home].imported(t, f)
		}
	}
	u.subs[at].Add(t, forward.DownConfig{SSRC: s.nextSSRC(), RTX: s.nextSSRC(), Formats: f, Preference: p}, s.now)
}

// imported is a track of a server's user at the other end of the link.
func (l *simLink) imported(t *forward.Track, f []forward.Format) *forward.Track {
	x := l.imports[t]
	if x == nil {
		cfg := forward.TrackConfig{Kind: forward.Audio, Unwanted: true}
		if f[0].Codec != forward.Opus {
			cfg = forward.TrackConfig{Kind: forward.Video, Layers: simLayers, Unwanted: true}
		}
		x = &simImport{track: forward.NewTrack(cfg), formats: f, streams: map[int]forward.StreamBinding{}, downs: map[int]*forward.DownTrack{}}
		l.imports[t] = x
		l.pub.Add(x.track, forward.Binding{Formats: f})
	}
	return x.track
}

// settle makes what goes over the link what is wanted at its other end.
func (l *simLink) settle() {
	for t, x := range l.imports {
		changed := false
		for i := range 3 {
			wanted := x.track.Wanted()&(1<<i) != 0
			if d := x.downs[i]; d != nil && !wanted {
				d.Close()
				delete(x.downs, i)
				delete(x.streams, i)
				changed = true
			} else if d == nil && wanted {
				b := forward.StreamBinding{Layer: i, SSRC: l.s.nextSSRC(), RTX: l.s.nextSSRC()}
				x.downs[i] = l.sub.Add(t, forward.DownConfig{SSRC: b.SSRC, RTX: b.RTX, Formats: x.formats, PassThrough: true, Layer: i}, l.s.now)
				x.streams[i] = b
				changed = true
			}
		}
		if changed {
			b := forward.Binding{Formats: x.formats}
			for _, f := range x.streams {
				b.Streams = append(b.Streams, f)
			}
			l.pub.Add(x.track, b)
		}
	}
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	for end := s.now + int64(d); s.now < end; s.now += int64(simTick) {
		step := int(s.now / int64(simTick))
		for _, u := range s.users {
			u.send(step)
		}
		for _, v := range s.servers {
			for _, p := range v.pubs {
				p.Tick(s.now)
			}
			for _, b := range v.subs {
				b.Tick(s.now)
			}
			if step%10 == 0 {
				for _, l := range v.links {
					l.settle()
				}
			}
		}
	}
}

// send sends what a client sends in this step: layers that nobody wants not.
func (u *simUser) send(step int) {
	if u.mic != nil && step%2 == 0 {
		u.packet(3, step, 111, 80, true, true)
	}
	for l, spec := range simLayers {
		if u.cam.Wanted()&(1<<l) == 0 {
			continue
		}
		every := 100 / spec.FPS // steps of 10 ms
		if step%every != 0 {
			continue
		}
		size := spec.Bitrate / 8 * every / 100
		for n, left := 0, size; left > 0; n, left = n+1, left-1150 {
			u.packet(l, step, 96, min(left, 1150), n == 0, left <= 1150)
		}
	}
}

// packet sends one packet; each second has a keyframe.
func (u *simUser) packet(stream, step, pt, size int, first, last bool) {
	size = max(size, 16)
	b := u.packets[stream]
	if cap(b) < 1500 {
		b = make([]byte, 1500)
		u.packets[stream] = b
	}
	hertz := 90000
	if pt == 111 {
		hertz = 48000
	}
	b[0], b[1] = 0x90, byte(pt)
	if last {
		b[1] |= 0x80
	}
	u.seq[stream]++
	binary.BigEndian.PutUint16(b[2:], u.seq[stream])
	binary.BigEndian.PutUint32(b[4:], uint32(step*hertz/100))
	binary.BigEndian.PutUint32(b[8:], u.ssrcs[stream])
	copy(b[12:], []byte{0xbe, 0xde, 0, 1, 0x10, 30, 0, 0}) // audio level
	p := b[20:]
	if pt == 96 {
		p[0], p[1], p[2], p[3] = 0x80, 0x80, 0x80|byte(step>>8)&0x7f, byte(step)
		if first {
			p[0] = 0x90
		}
		if p[4] = 0x11; step%100 < 100/simLayers[stream].FPS {
			p[4] = 0x10
		}
	}
	u.pub.HandleRTP(b[:20+size], u.s.now)
}

// simResult is what one way costs.
type simResult struct {
	Connections int
	Foreign     float64 // Mb/s between servers' networks
	Busiest     float64 // Mb/s out of the server that sends most
	PPS         int     // packets out of all servers in a second
	CPU         float64 // processor seconds in a second, all servers
}

func (s *sim) measure() simResult {
	s.run(simWarmUp)
	for _, v := range s.servers {
		v.sent = simCount{}
	}
	before, _ := measure(os.Getpid(), "") // there is such a process
	s.run(simTime)
	after, _ := measure(os.Getpid(), "")
	r := simResult{CPU: (after.cpuSeconds - before.cpuSeconds) / simTime.Seconds()}
	pairs := 0
	for _, v := range s.servers {
		r.Connections += v.connects
		pairs += len(v.links)
		r.PPS += int(float64(v.sent.packets) / simTime.Seconds())
		r.Foreign += float64(v.sent.foreign) * 8 / 1e6 / simTime.Seconds()
		r.Busiest = max(r.Busiest, float64(v.sent.bytes)*8/1e6/simTime.Seconds())
	}
	r.Connections -= pairs / 2 // a link is one for both
	return r
}

type simRow struct {
	Servers, Users  int
	Links, MultiSFU simResult
}

type simReport []simRow

func (r simReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-8s %-9s %12s %14s %14s %12s %10s\n", "call", "way", "connections", "between Mb/s", "busiest Mb/s", "packets/s", "CPU s/s")
	for _, x := range r {
		for _, w := range []struct {
			name string
			simResult
		}{{"links", x.Links}, {"multi-SFU", x.MultiSFU}} {
			fmt.Fprintf(&b, "%-8s %-9s %12d %14.1f %14.1f %12d %10.3f\n", fmt.Sprintf("%dx%d", x.Servers, x.Users/x.Servers), w.name, w.Connections, w.Foreign, w.Busiest, w.PPS, w.CPU)
		}
	}
	return b.String()
}

func runCascade(ctx context.Context, o options) (any, error) {
	var out simReport
	for _, size := range strings.Split(o.sim.sizes, ",") {
		left, right, _ := strings.Cut(size, "x")
		servers, err := strconv.Atoi(left)
		each, err2 := strconv.Atoi(right)
		if cmp.Or(err, err2) != nil || servers < 2 || servers > 100 || each < 1 || servers*each > 1_000 {
			return nil, fmt.Errorf("%q isn't a number of servers x users", size)
		}
		row := simRow{Servers: servers, Users: servers * each}
		for way, to := range map[bool]*simResult{true: &row.Links, false: &row.MultiSFU} {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			*to = newSim(o.sim, servers, each, way).measure()
		}
		out = append(out, row)
	}
	return out, nil
}
