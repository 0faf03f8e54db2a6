package signal

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"parley/internal/actor"
	"parley/sfu"
	"parley/sfu/signal/wire"
)

// conn is one WebSocket. The core writes to it as sfu.Signal.
type conn struct {
	handler *Handler
	encoder encoder
	ws      *websocket.Conn
	ctx     context.Context
	cancel  context.CancelFunc
	out     *actor.Inbox[sfu.Message]

	// text is set once the client has sent a text frame: it wants JSON.
	text  atomic.Bool
	heard atomic.Int64 // last sign of life, Unix nanoseconds

	mu       sync.Mutex
	stopPing func() bool
	ended    bool
}

// closing is the last thing in the queue.
type closing struct{ sfu.Message }

// pong answers both forms of ping.
type pong struct {
	sfu.Message
	response *wire.SignalResponse
}

// serve joins and then reads until the end.
func (c *conn) serve(ctx context.Context, ws *websocket.Conn, g sfu.Grant, req request) {
	c.ws = ws
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.out = actor.NewInbox(maxQueue, 64, c.write)
	c.alive()
	defer c.end()
	s, err := c.enter(g, req)
	if err != nil {
		c.refused(err)
		return
	}
	c.schedulePing()
	if c.read(s) {
		s.Lost()
	}
}

// enter joins or resumes.
func (c *conn) enter(g sfu.Grant, req request) (*sfu.Session, error) {
	if req.resume != "" {
		return c.handler.cfg.Server.Resume(g, req.resume, req.sync, c)
	}
	return c.handler.cfg.Server.Join(g, req.join, c)
}

// refused tells why there is no session. The first message must be a leave
// then; whoever wanted to resume joins anew.
func (c *conn) refused(err error) {
	leave := &sfu.Leave{Reason: sfu.ReasonJoinFailure}
	switch {
	case errors.Is(err, sfu.ErrNoParticipant):
		leave = &sfu.Leave{Reason: sfu.ReasonStateMismatch, Action: sfu.ActionReconnect}
	case errors.Is(err, sfu.ErrClosed):
		leave = &sfu.Leave{Reason: sfu.ReasonShutdown, Action: sfu.ActionReconnect}
	}
	c.Send(leave)
	c.Close()
	c.drain()
}

// read handles frames until the connection ends. It reports whether it broke,
// so that the client may come back.
func (c *conn) read(s *sfu.Session) (broke bool) {
	clk := c.handler.cfg.Clock
	limiter := rate.NewLimiter(requestRate, requestBurst)
	for {
		typ, frame, err := c.ws.Read(c.ctx)
		if err != nil {
			return true
		}
		c.alive()
		now := clk.Now()
		if wait := limiter.ReserveN(now, 1+len(frame)/requestUnit).DelayFrom(now); wait > 0 && clk.Sleep(c.ctx, wait) != nil {
			return true
		}
		text := typ == websocket.MessageText
		c.text.Store(text)
		m, err := decode(frame, text)
		if err != nil {
			_ = s.Broke()
			c.drain()
			return false
		}
		done, err := c.request(s, m)
		if done {
			c.drain()
			return false
		}
		if err != nil {
			return true // the call can't keep up; the client may try again
		}
	}
}

// request handles what concerns the connection itself and passes on the rest.
func (c *conn) request(s *sfu.Session, m *wire.SignalRequest) (done bool, err error) {
	now := c.handler.cfg.Clock.Now().UnixMilli()
	switch r := m.Message.(type) {
	case *wire.SignalRequest_Ping:
		c.Send(pong{response: &wire.SignalResponse{Message: &wire.SignalResponse_Pong{Pong: now}}})
	case *wire.SignalRequest_PingReq:
		c.Send(pong{response: &wire.SignalResponse{Message: &wire.SignalResponse_PongResp{
			PongResp: &wire.Pong{LastPingTimestamp: r.PingReq.GetTimestamp(), Timestamp: now}}}})
	case *wire.SignalRequest_Leave:
		return true, s.Leave()
	default:
		return false, handle(s, m)
	}
	return false, nil
}

// Send queues a message; a client that doesn't read is cut off.
func (c *conn) Send(m sfu.Message) {
	if err := c.out.Put(m); errors.Is(err, actor.ErrFull) {
		c.cancel()
	}
}

// Close ends the connection after what is queued.
func (c *conn) Close() { c.Send(closing{}) }

// write is the inbox's: it writes a batch of frames.
func (c *conn) write(batch []sfu.Message) {
	for _, m := range batch {
		if c.ctx.Err() != nil {
			return
		}
		if _, last := m.(closing); last {
			c.closed()
			return
		}
		frame, typ := c.frame(m)
		ctx, cancel := context.WithTimeout(c.ctx, writeTimeout)
		err := c.ws.Write(ctx, typ, frame)
		cancel()
		if err != nil {
			c.cancel()
			return
		}
	}
}

func (c *conn) frame(m sfu.Message) ([]byte, websocket.MessageType) {
	e := c.encoder
	typ := websocket.MessageBinary
	if c.text.Load() {
		e.text, typ = true, websocket.MessageText
	}
	if p, ok := m.(pong); ok {
		return e.frame(p.response), typ
	}
	return e.encode(m), typ
}

// closed says goodbye and waits a moment for the client's answer; the reader
// ends with the connection.
func (c *conn) closed() {
	_ = c.ws.Close(websocket.StatusNormalClosure, "")
	c.cancel()
}

// drain reads until the writer has closed the connection.
func (c *conn) drain() {
	stop := c.handler.cfg.Clock.AfterFunc(idleTimeout, c.cancel)
	defer stop()
	for {
		if _, _, err := c.ws.Read(c.ctx); err != nil {
			return
		}
	}
}

// end releases everything.
func (c *conn) end() {
	c.mu.Lock()
	c.ended = true
	if c.stopPing != nil {
		c.stopPing()
	}
	c.mu.Unlock()
	c.cancel()
	_ = c.ws.CloseNow()
}

func (c *conn) alive() { c.heard.Store(c.handler.cfg.Clock.Now().UnixNano()) }

func (c *conn) ponged(context.Context, []byte) { c.alive() }

// schedulePing pings after a while, over and over, and cuts a connection that
// has shown no sign of life for too long.
func (c *conn) schedulePing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.stopPing = c.handler.cfg.Clock.AfterFunc(pingEvery, c.ping)
	}
}

func (c *conn) ping() {
	if c.handler.cfg.Clock.Now().UnixNano()-c.heard.Load() >= int64(idleTimeout) {
		c.cancel()
		return
	}
	c.schedulePing()
	ctx, cancel := context.WithTimeout(c.ctx, writeTimeout)
	defer cancel()
	_ = c.ws.Ping(ctx)
}
