package signal

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/signal/wire"
)

// Config is what a Handler needs.
type Config struct {
	Server *sfu.Server
	Tokens *Tokens
	Clock  clock.Clock
	Log    *slog.Logger
}

// Handler serves the signalling endpoints below the path where it is mounted:
// rtc/v1 (one connection for both directions) and rtc (two), with validate.
type Handler struct {
	cfg    Config
	server *wire.ServerInfo
	mux    *http.ServeMux
	open   sync.WaitGroup // connections
}

// New makes a handler.
func New(cfg Config) *Handler {
	h := &Handler{cfg: cfg, mux: http.NewServeMux(),
		server: &wire.ServerInfo{Version: compatible, Protocol: protocolVersion, NodeId: "ND_parley"}}
	h.mux.HandleFunc("GET /rtc/v1", func(w http.ResponseWriter, r *http.Request) { h.connect(w, r, true) })
	h.mux.HandleFunc("GET /rtc", func(w http.ResponseWriter, r *http.Request) { h.connect(w, r, false) })
	h.mux.HandleFunc("GET /rtc/v1/validate", func(w http.ResponseWriter, r *http.Request) { h.validate(w, r, true) })
	h.mux.HandleFunc("GET /rtc/validate", func(w http.ResponseWriter, r *http.Request) { h.validate(w, r, false) })
	return h
}

// Wait returns when every connection has ended, or when ctx does. After the
// server of calls was closed that is when the clients were told.
func (h *Handler) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		h.open.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ServeHTTP serves a path without the prefix of the mount.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Any page may ask: the token is the only authority.
	w.Header().Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Headers", "Authorization")
		w.Header().Set("Access-Control-Allow-Methods", "GET")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// refusal is a status and a text that clients act on.
type refusal struct {
	status int
	text   string
}

func (f *refusal) Error() string { return f.text }

// check reads the token and the request and asks whether there is room. It
// answers the same for a connection and for validate, which the client calls
// when the connection was refused to learn why.
func (h *Handler) check(r *http.Request, single bool) (sfu.Grant, request, error) {
	token := r.URL.Query().Get("access_token")
	if auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && token == "" {
		token = auth
	}
	g, err := h.cfg.Tokens.Parse(token)
	if err != nil {
		return g, request{}, &refusal{http.StatusUnauthorized, "invalid token"}
	}
	req := parseQuery(r.URL.Query())
	if single {
		if req, err = parseJoinRequest(r.URL.Query().Get("join_request")); err != nil {
			return g, req, &refusal{http.StatusBadRequest, "bad join_request"}
		}
	}
	if req.resume != "" {
		return g, req, nil
	}
	switch err := h.cfg.Server.Admit(g); {
	case errors.Is(err, sfu.ErrRevoked):
		return g, req, &refusal{http.StatusUnauthorized, "invalid token"}
	case err != nil:
		return g, req, &refusal{http.StatusServiceUnavailable, "no room for another participant"}
	}
	return g, req, nil
}

func (h *Handler) validate(w http.ResponseWriter, r *http.Request, single bool) {
	if _, _, err := h.check(r, single); err != nil {
		refuse(w, err)
		return
	}
	_, _ = io.WriteString(w, "success")
}

func refuse(w http.ResponseWriter, err error) {
	var f *refusal
	if !errors.As(err, &f) {
		f = &refusal{http.StatusInternalServerError, "internal error"}
	}
	http.Error(w, f.text, f.status)
}

// connect serves one WebSocket until it ends.
func (h *Handler) connect(w http.ResponseWriter, r *http.Request, single bool) {
	g, req, err := h.check(r, single)
	if err != nil {
		refuse(w, err)
		return
	}
	h.open.Add(1)
	defer h.open.Done()
	c := &conn{handler: h, encoder: encoder{server: h.server}}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, OnPongReceived: c.ponged})
	if err != nil {
		return // answered by Accept
	}
	ws.SetReadLimit(maxFrame)
	// The request's context ends with the server's Shutdown only for what is
	// not hijacked; the connection ends by its own rules.
	c.serve(context.WithoutCancel(r.Context()), ws, g, req)
}

// Times and limits of a connection.
const (
	maxFrame = 1 << 20 // bytes; the offer of a call with hundreds of tracks
	// maxQueue is how many messages may wait for a slow client.
	maxQueue     = 4_096
	writeTimeout = 10 * time.Second
	// pingEvery keeps proxies from closing; idleTimeout is without any sign of
	// life.
	pingEvery   = 5 * time.Second
	idleTimeout = 15 * time.Second
	// Requests per second; a large one counts as one for each requestUnit of its
	// bytes. Whoever sends more is read more slowly.
	requestRate  = 50
	requestBurst = 600
	requestUnit  = 2 << 10
)
