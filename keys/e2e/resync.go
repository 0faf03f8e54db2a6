package e2e

import (
	"context"
	"sync"
	"time"

	"parley/internal/mxid"
)

// Bounds of background fetching.
const (
	maxResyncs    = 4
	maxResyncWait = 50_000 // users in memory; the rows of more wait for the next Start
	resyncRetry   = 30 * time.Second
	resyncMax     = time.Hour
)

// resyncer fetches stale device lists: one server at a time each, and tries
// again later, for longer and longer, what can't be had now.
type resyncer struct {
	s      *Service
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	waiting int
	servers map[mxid.ServerName]*resyncServer
}

// resyncServer is what is wanted of one server.
type resyncServer struct {
	users   []mxid.UserID
	queued  map[mxid.UserID]bool // the same as a set
	running bool
	wait    time.Duration // before the next try, after failures
	stop    func() bool   // of the timer of the next try
	tried   time.Time     // when it failed last
}

func newResyncer(s *Service) *resyncer {
	ctx, cancel := context.WithCancel(context.Background())
	return &resyncer{s: s, ctx: ctx, cancel: cancel, slots: make(chan struct{}, maxResyncs), servers: map[mxid.ServerName]*resyncServer{}}
}

// add asks for a user's list. That the list went stale is a sign of life of
// its server, so a wait for it ends, but not right after a failure.
func (r *resyncer) add(u mxid.UserID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.waiting >= maxResyncWait {
		return
	}
	d := r.servers[u.Server()]
	if d == nil {
		d = &resyncServer{queued: map[mxid.UserID]bool{}}
		r.servers[u.Server()] = d
	}
	r.pushLocked(d, u)
	if d.stop != nil && r.s.cfg.Clock.Now().Sub(d.tried) >= resyncRetry && d.stop() {
		d.stop = nil
	}
	r.startLocked(u.Server(), d)
}

func (r *resyncer) pushLocked(d *resyncServer, u mxid.UserID) {
	if !d.queued[u] {
		d.queued[u] = true
		d.users = append(d.users, u)
		r.waiting++
	}
}

func (r *resyncer) startLocked(server mxid.ServerName, d *resyncServer) {
	if r.closed || d.running || d.stop != nil {
		return
	}
	d.running = true
	r.wg.Go(func() { r.run(server, d) })
}

// run fetches until nothing is left or the server fails.
func (r *resyncer) run(server mxid.ServerName, d *resyncServer) {
	for {
		u, ok := r.next(server, d)
		if !ok {
			return
		}
		select {
		case r.slots <- struct{}{}:
		case <-r.ctx.Done():
			return
		}
		err := r.s.refetch(r.ctx, u)
		<-r.slots
		if err != nil {
			r.s.cfg.Log.Debug("a device list can't be fetched now", "server", string(server), "error", err)
			r.later(server, d, u)
			return
		}
	}
}

// next takes a user, or forgets the server when there is none.
func (r *resyncer) next(server mxid.ServerName, d *resyncServer) (mxid.UserID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(d.users) == 0 || r.closed {
		d.running = false
		delete(r.servers, server)
		return "", false
	}
	u := d.users[0]
	d.users = d.users[1:]
	delete(d.queued, u)
	r.waiting--
	return u, true
}

// later tries again after a while, longer each time.
func (r *resyncer) later(server mxid.ServerName, d *resyncServer, u mxid.UserID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.running = false
	if r.closed {
		return
	}
	r.pushLocked(d, u)
	d.tried = r.s.cfg.Clock.Now()
	d.wait = min(max(2*d.wait, resyncRetry), resyncMax)
	d.stop = r.s.cfg.Clock.AfterFunc(d.wait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		d.stop = nil
		r.startLocked(server, d)
	})
}

func (r *resyncer) close() {
	r.mu.Lock()
	r.closed = true
	for _, d := range r.servers {
		if d.stop != nil {
			d.stop()
		}
	}
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// refetch brings a stale list up to date, or forgets it when nobody here
// shares a room with the user any more.
func (s *Service) refetch(ctx context.Context, u mxid.UserID) error {
	uid, followed, err := s.follows(ctx, "", u)
	if err != nil {
		return err
	}
	row, err := list(s.reader(ctx), uid)
	if err != nil || !row.Stale {
		return err
	}
	if !followed {
		return s.forget(ctx, u, uid)
	}
	return s.fetch(ctx, u, uid)
}
