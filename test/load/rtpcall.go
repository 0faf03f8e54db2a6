package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// participant is one of our clients in a call.
type participant struct {
	link     *link
	recv     *receiver
	signal   *signalling
	tracks   []*published
	twcc     atomic.Uint32
	mu       sync.Mutex // one negotiation at a time
	sections []section
	offers   uint64
	ctx      context.Context
	stop     context.CancelFunc
}

// join enters a call: signalling, then media; returns when media can flow.
func join(ctx context.Context, id *identity, a admission, tracks []*published) (*participant, error) {
	p := &participant{link: newLink(id), tracks: tracks, offers: 1}
	p.ctx, p.stop = context.WithCancel(ctx)
	p.recv = newReceiver(p.link)
	for range 3 {
		p.sections = append(p.sections, section{})
	}
	for range 3 {
		p.sections = append(p.sections, section{video: true})
	}
	if err := p.connect(a); err != nil {
		p.leave()
		return nil, err
	}
	go p.recv.feedback(p.ctx.Done())
	go p.attend()
	for _, t := range tracks {
		if err := p.publish(t); err != nil {
			p.leave()
			return nil, err
		}
	}
	if len(tracks) > 0 {
		go publish(p.link, tracks, &p.twcc, p.ctx.Done())
	}
	return p, nil
}

func (p *participant) connect(a admission) (err error) {
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if p.signal, err = dialSignalling(p.ctx, a, p.offerText()); err != nil {
		return err
	}
	ans, err := p.answer(ctx)
	if err != nil {
		return err
	}
	r := parseAnswer(ans.sdp)
	server, err := p.candidate(ctx, r)
	if err != nil {
		return err
	}
	return p.link.connect(p.ctx, r, server)
}

// candidate gives the server's address, of the answer or told after it.
func (p *participant) candidate(ctx context.Context, r remote) (netip.AddrPort, error) {
	for _, c := range r.candidates {
		return c, nil
	}
	for {
		select {
		case l := <-p.signal.trickles:
			if c, ok := parseCandidate(l); ok {
				return c, nil
			}
		case err := <-p.signal.failed:
			return netip.AddrPort{}, err
		case <-ctx.Done():
			return netip.AddrPort{}, fmt.Errorf("no UDP candidate on this machine's loopback: %w", ctx.Err())
		}
	}
}

func (p *participant) offerText() string {
	return offerText(p.link.ufrag, p.link.pwd, p.link.id.fingerprint, p.sections, int(p.offers))
}

// answer waits for the answer to the newest offer.
func (p *participant) answer(ctx context.Context) (answer, error) {
	for {
		select {
		case a := <-p.signal.answers:
			if a.id == p.offers {
				return a, nil
			}
		case err := <-p.signal.failed:
			return answer{}, err
		case <-ctx.Done():
			return answer{}, fmt.Errorf("no answer to offer %d: %w", p.offers, ctx.Err())
		}
	}
}

// negotiate offers anew after a change of the sections.
func (p *participant) negotiate(change func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	change()
	p.offers++
	if err := p.signal.offer(ctx, p.offerText(), p.offers); err != nil {
		return err
	}
	_, err := p.answer(ctx)
	return err
}

func (p *participant) publish(t *published) error {
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	if err := p.signal.addTrack(ctx, t); err != nil {
		return err
	}
	p.recv.mu.Lock()
	for _, y := range t.layers {
		p.recv.publish[y.ssrc] = y
	}
	p.recv.mu.Unlock()
	return p.negotiate(func() {
		t.mid = fmt.Sprint(len(p.sections))
		p.sections = append(p.sections, section{video: t.video, send: t})
	})
}

// attend answers the server's wish for more sections, and pings.
func (p *participant) attend() {
	ping := time.NewTicker(5 * time.Second)
	defer ping.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-ping.C:
			_ = p.signal.ping(p.ctx)
		case <-p.signal.trickles:
		case want := <-p.signal.sections:
			_ = p.negotiate(func() {
				for range want[0] {
					p.sections = append(p.sections, section{})
				}
				for range want[1] {
					p.sections = append(p.sections, section{video: true})
				}
			})
		}
	}
}

func (p *participant) leave() {
	if p.signal != nil {
		p.signal.leave(p.ctx)
	}
	p.stop()
	p.link.close()
}

// callPlan is who sends what in a call.
type callPlan struct {
	Name        string
	senders     int
	listeners   int
	audio       bool
	video       []int // bit rates of the layers
	description string
}

// callPlans are the calls that can be measured.
var callPlans = []callPlan{
	{"1x20", 1, 20, true, []int{1_500_000}, "one sends audio and 1.5 Mb/s of video to 20"},
	{"1x20layers", 1, 20, true, []int{160_000, 450_000, 1_500_000}, "the same with three layers of video"},
	{"10x10", 10, 0, true, []int{500_000}, "ten, each sends audio and 0.5 Mb/s of video to all"},
	{"1x100audio", 1, 100, true, nil, "one sends audio to 100"},
	{"1x200", 1, 200, true, []int{1_000_000}, "one sends audio and 1 Mb/s of video to 200"},
}

// startCall joins everybody, waits until everything arrives everywhere, and
// says how long that took.
func startCall(ctx context.Context, id *identity, plan callPlan, admissions []admission) (all []*participant, took time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, fmt.Errorf("the call took too long"))
	defer cancel()
	number, total := uint32(0), 0
	tracks := make([][]*published, len(admissions))
	for i := range plan.senders {
		if plan.audio {
			number++
			tracks[i] = append(tracks[i], newPublished(number, rand.Text(), false, 32_000))
		}
		if plan.video != nil {
			number++
			tracks[i] = append(tracks[i], newPublished(number, rand.Text(), true, plan.video...))
		}
		total += len(tracks[i])
	}
	began := time.Now()
	all = make([]*participant, len(admissions))
	var g errgroup.Group
	for i := range admissions {
		g.Go(func() (err error) {
			all[i], err = join(context.WithoutCancel(ctx), id, admissions[i], tracks[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		endCall(all)
		return nil, 0, err
	}
	for i, p := range all {
		for !p.recv.has(total - len(tracks[i])) {
			if time.Since(began) > 90*time.Second {
				endCall(all)
				return nil, 0, fmt.Errorf("participant %d gets %d of %d tracks", i, len(p.recv.tracks), total-len(tracks[i]))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return all, time.Since(began), nil
}

func endCall(all []*participant) {
	var wg sync.WaitGroup
	for _, p := range all {
		if p != nil {
			wg.Go(p.leave)
		}
	}
	wg.Wait()
}
