package rtc

import (
	"context"
	"slices"

	"parley/internal/mxid"
	"parley/sfu"
	"parley/storage"
	"parley/storage/intern"
)

// This file ends calls with the right to be in them.

// Left says that a user is no longer joined to a room. It doesn't block: for
// room.Service.OnLeave.
func (s *Service) Left(id mxid.RoomID, u mxid.UserID) {
	g := s.places
	s.revoke(g.take(func() map[*place]struct{} { return g.rooms[id] }, func(p *place) bool { return p.user == u }))
	if s.local(u) {
		s.spawn(func(ctx context.Context) { s.abandoned(ctx, id) })
	}
}

// abandoned ends the calls of a room that this server is no longer in: from
// now on it isn't told who else leaves.
func (s *Service) abandoned(ctx context.Context, id mxid.RoomID) {
	in, err := s.cfg.Rooms.InRoom(ctx, id)
	if err != nil {
		s.cfg.Log.Warn("calls of a room that was left", "error", err)
	}
	if !in {
		g := s.places
		s.revoke(g.take(func() map[*place]struct{} { return g.rooms[id] }, func(*place) bool { return true }))
	}
}

// DevicesRemoved ends the calls of devices, once they are gone. For
// user.Service.OnDevicesRemoved.
func (s *Service) DevicesRemoved(tx *storage.Tx, u mxid.UserID, _ intern.UID, devices []mxid.DeviceID) error {
	gone := slices.Clone(devices)
	tx.AfterHead(func() { s.out(u, func(p *place) bool { return slices.Contains(gone, p.device) }) })
	return nil
}

// Deactivated ends the calls of an account. For user.Service.OnDeactivated.
func (s *Service) Deactivated(_ context.Context, u mxid.UserID, _ intern.UID, _ bool) error {
	s.out(u, func(*place) bool { return true })
	return nil
}

// Locked ends the calls of an account that has been locked. For
// user.Service.OnLocked.
func (s *Service) Locked(u mxid.UserID) { s.out(u, func(*place) bool { return true }) }

func (s *Service) out(u mxid.UserID, fits func(*place) bool) {
	g := s.places
	s.revoke(g.take(func() map[*place]struct{} { return g.users[u] }, fits))
}

// revoke puts participants out, for good until they are let in again.
func (s *Service) revoke(out []*place) {
	if len(out) == 0 {
		return
	}
	s.places.mu.Lock()
	for _, p := range out {
		s.places.dropLocked(p)
	}
	s.places.mu.Unlock()
	s.spawn(func(ctx context.Context) {
		for _, p := range out {
			s.cfg.Calls.Kick(p.alias, p.identity)
		}
		for _, p := range out {
			s.finish(ctx, p)
		}
	})
}

// Joined is told by the SFU that a participant has come. Whoever has a token
// that we don't know of any more, or has lost the right to it meanwhile, is put
// out again.
func (s *Service) Joined(alias, identity, note string) {
	k := key{alias, identity}
	p := s.places.connect(k)
	back := p == nil
	var e entry
	if back {
		p, e = s.returned(k, note)
	}
	s.spawn(func(ctx context.Context) {
		if p == nil {
			s.cfg.Calls.Kick(alias, identity)
			return
		}
		if ok, err := s.joined(ctx, p.room, p.user); err == nil && !ok {
			s.revoke([]*place{p})
			return
		}
		if back {
			s.welcome(ctx, p, e)
		}
		s.restart(ctx, p)
	})
}

// Gone is told by the SFU that a participant has left, or was lost and didn't
// come back. After a shutdown of this server clients come back; who doesn't,
// leaves at the stored time.
func (s *Service) Gone(alias, identity string, why sfu.Why) {
	if why == sfu.Replaced {
		return // here again already
	}
	p := s.places.disconnect(key{alias, identity}, s.cfg.Clock.Now(), why == sfu.Shutdown)
	if p == nil || why == sfu.Shutdown { // nil: put out by us
		return
	}
	s.spawn(func(ctx context.Context) { s.finish(ctx, p) })
}
