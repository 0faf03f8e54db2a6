package room

import (
	"context"
	"fmt"
	"slices"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage/intern"
)

// CurrentStateOf are the current state events of a type, without any check of
// who asks. It looks at the whole state.
func (s *Service) CurrentStateOf(ctx context.Context, rid intern.RID, typ string) ([]*Event, error) {
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return nil, err
	}
	var ns []Num
	err = h.tree.Walk(ctx, sn.sum.root, func(key, n uint32) error {
		if statetree.IsDerived(key) {
			return nil
		}
		t, _, err := s.cfg.Intern.Pair(ctx, intern.KID(key))
		if t == typ {
			ns = append(ns, Num(n))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("room: read state: %w", err)
	}
	return s.presentEvents(ctx, h, ns)
}

// JoinedCount is how many users of a server are joined now.
func (s *Service) JoinedCount(ctx context.Context, rid intern.RID, server mxid.ServerName) (int, error) {
	sid, known, err := s.cfg.Intern.LookupServer(ctx, server)
	if err != nil || !known {
		return 0, err
	}
	_, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return 0, err
	}
	if i := slices.IndexFunc(sn.servers, func(c serverCount) bool { return c.sid == sid }); i >= 0 {
		return sn.servers[i].count, nil
	}
	return 0, nil
}
