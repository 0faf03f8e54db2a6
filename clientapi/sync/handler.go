// Package sync is GET /_matrix/client/v3/sync: what happened to a user since a
// point that the client names, or everything to begin with.
//
// It owns no rows. What a client knows is in the token that it brings; beside
// that the package keeps, in memory and in bounds, which member events each
// device has been sent (lazy loading), which may be lost at any time at the
// cost of sending some again.
//
// A request without news waits in its own goroutine for a wake-up of
// internal/notify; nothing polls. An answer is put together from the stored
// JSON of events without decoding it.
//
// spec: client-server API, "Syncing", "Filtering", "Lazy-loading room
// members", "Extensions to /sync"
package sync

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/clock"
	"parley/internal/notify"
	"parley/keys/e2e"
	"parley/room"
	"parley/user"
)

const (
	// maxTimeout is the longest that a request waits for news. Proxies and
	// mobile networks cut silent connections not much later.
	maxTimeout = 2 * time.Minute
	// maxInitial bounds the initial syncs that are put together at once; the
	// others wait.
	maxInitial = 8
)

// Head is the stream position of the store. storage.Committer has it.
type Head interface{ Head() uint64 }

// Config is what a Handler stands on.
type Config struct {
	Rooms *room.Service
	Users *user.Service
	Keys  *e2e.Service
	Head  Head
	Hub   *notify.Hub
	Clock clock.Clock
	Log   *slog.Logger
}

// Handler answers syncs. Safe for concurrent use.
type Handler struct {
	cfg     Config
	members *sentMembers
	rules   keptRules
	initial chan struct{} // a slot for each initial sync

	stopOnce sync.Once
	stopped  chan struct{}
}

// New returns a handler.
func New(cfg Config) *Handler {
	return &Handler{cfg: cfg, members: newSentMembers(), initial: make(chan struct{}, maxInitial), stopped: make(chan struct{})}
}

// Stop makes waiting requests answer at once with what there is, and later
// ones not wait. For the end of the process.
func (h *Handler) Stop() { h.stopOnce.Do(func() { close(h.stopped) }) }

// Sync is the HTTP side of the endpoint. Errors are *httpx.Error, or anything
// for a 500.
func (h *Handler) Sync(c echo.Context, who user.Session) error {
	ctx := c.Request().Context()
	req, err := h.parse(ctx, c.Request().URL.Query(), who)
	if err != nil {
		return err
	}
	out := &output{start: func() *echo.Response {
		r := c.Response()
		r.Header().Set("Content-Type", "application/json")
		r.Header().Set("Cache-Control", "no-store")
		r.WriteHeader(http.StatusOK)
		return r
	}}
	if err := h.answer(ctx, req, out); err != nil {
		if out.began {
			// Half an answer has been sent: break it off, so that the client
			// asks again.
			h.cfg.Log.Warn("a sync broke off", "err", err)
			panic(http.ErrAbortHandler)
		}
		return err
	}
	return nil
}

// answer waits for news and writes the response.
func (h *Handler) answer(ctx context.Context, req *Request, out *output) error {
	if req.Since == nil {
		select {
		case h.initial <- struct{}{}:
			defer func() { <-h.initial }()
		case <-ctx.Done():
			return ctx.Err()
		}
		h.members.forget(req.key())
	} else if err := h.acknowledge(ctx, req); err != nil {
		return err
	}
	return h.wait(ctx, req, out)
}

// acknowledge drops the to-device messages that the client has got.
func (h *Handler) acknowledge(ctx context.Context, req *Request) error {
	if req.Device == "" || req.Since.ToDevice == 0 {
		return nil
	}
	return h.cfg.Keys.AckToDevice(ctx, req.UID, req.Device, req.Since.ToDevice)
}

// wait puts a response together until one has something to say or the time is
// over. It listens before it looks, so no news falls in between.
func (h *Handler) wait(ctx context.Context, req *Request, out *output) error {
	if req.Since == nil || req.FullState || req.Timeout <= 0 {
		_, err := h.build(ctx, req, out, true)
		return err
	}
	l := h.cfg.Hub.Listen(uint32(req.UID))
	defer l.Close()
	over := make(chan struct{})
	stop := h.cfg.Clock.AfterFunc(req.Timeout, func() { close(over) })
	defer stop()
	for last := false; ; {
		done, err := h.build(ctx, req, out, last)
		if done || err != nil {
			return err
		}
		select {
		case <-l.C:
		case <-over:
			last = true
		case <-h.stopped:
			last = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
