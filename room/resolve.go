package room

import (
	"context"
	"errors"
	"fmt"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/room/stateres"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// resolve is the resolution of the states of a fork. States that are equal
// need no resolution, which is the common case.
func (w *work) resolve(roots []statetree.Root) (statetree.Root, error) {
	distinct := roots[:1]
	for _, r := range roots[1:] {
		if !hasRoot(distinct, r) {
			distinct = append(distinct[:len(distinct):len(distinct)], r)
		}
	}
	if len(distinct) == 1 {
		return distinct[0], nil
	}
	changes, err := stateres.Resolve(w.ctx, resRoom{w}, w.tree, distinct)
	if err != nil {
		return roots[0], fmt.Errorf("room: resolve state: %w", err)
	}
	return w.apply(distinct[0], changes)
}

func hasRoot(list []statetree.Root, r statetree.Root) bool {
	for _, x := range list {
		if x.Same(r) {
			return true
		}
	}
	return false
}

// resRoom is the work as state resolution sees it.
type resRoom struct{ w *work }

// Version implements stateres.Room.
func (r resRoom) Version() gomatrixserverlib.RoomVersion {
	return gomatrixserverlib.RoomVersion(r.w.h.version)
}

// PDU implements stateres.Room.
func (r resRoom) PDU(_ context.Context, n uint32) (gomatrixserverlib.PDU, error) {
	ev, err := r.w.event(Num(n))
	if err != nil {
		return nil, err
	}
	return ev.PDU()
}

// Rejected implements stateres.Room.
func (r resRoom) Rejected(_ context.Context, n uint32) (bool, error) {
	ev, err := r.w.event(Num(n))
	if err != nil {
		return false, err
	}
	return ev.Flags&FlagRejected != 0, nil
}

// KeyID implements stateres.Room.
func (r resRoom) KeyID(ctx context.Context, typ, key string) (uint32, bool, error) {
	kid, ok, err := r.w.svc.cfg.Intern.LookupStateKey(ctx, typ, key)
	return uint32(kid), ok, err
}

// Graph implements stateres.Room.
func (r resRoom) Graph(context.Context) (*stateres.Graph, error) { return r.w.h.authGraph(r.w.ctx) }

func keyGraph(r intern.RID, chunk int) storage.Key {
	return storage.K("ag").U32(uint32(r)).U32(uint32(chunk))
}

// authGraph is the auth graph of the room, read at first use. Only the room's
// goroutine has it.
func (h *hot) authGraph(ctx context.Context) (*stateres.Graph, error) {
	if h.graph != nil {
		return h.graph, nil
	}
	g := stateres.NewGraph()
	for p, err := range h.svc.cfg.KV.Scan(ctx, storage.K("ag").U32(uint32(h.rid)).Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("room: read auth graph: %w", err)
		}
		if err := g.Load(p.Value); err != nil {
			return nil, err
		}
	}
	h.graph = g
	return g, nil
}

// addToGraph puts a new state event into the auth graph. Auth events that are
// no state events are left out: they make the event fail the auth rules, and
// resolution has no use for them.
func (w *work) addToGraph(ev *Event) error {
	g, err := w.h.authGraph(w.ctx)
	if err != nil {
		return err
	}
	if w.graphFrom < 0 {
		w.graphFrom = g.Len()
	}
	auth := make([]uint32, 0, len(ev.meta.auth))
	for _, a := range ev.meta.auth {
		if _, ok := g.Auth(uint32(a)); ok {
			auth = append(auth, uint32(a))
		}
	}
	return g.Add(uint32(ev.Num), uint32(ev.meta.kid), auth)
}

// graphLen is where to cut the graph back to when what follows is dropped.
func (w *work) graphLen() int {
	if w.h.graph == nil {
		return -1
	}
	return w.h.graph.Len()
}

// cutGraph undoes additions.
func (w *work) cutGraph(length int) {
	if w.h.graph != nil && length >= 0 {
		w.h.graph.Truncate(length)
	} else {
		w.h.graph, w.graphFrom = nil, -1 // loaded since: the rows are what was before
	}
}

// writeGraph writes the chunks that grew.
func (w *work) writeGraph(tx *storage.Tx) {
	if w.graphFrom < 0 {
		return
	}
	for i := w.graphFrom / stateres.ChunkLen; i < w.h.graph.Chunks(); i++ {
		tx.Put(keyGraph(w.h.rid, i), w.h.graph.Chunk(i))
	}
}

var errNoState = errors.New("room: state before the event is not known")
