// Package sender delivers local events and EDUs to other servers: one owner
// goroutine per destination while it has something to send, one transaction in
// flight, back-off, and catch-up from the durable queue after a restart.
//
// spec: server-server API, "Transactions"
package sender

import (
	"context"
	"encoding/json"
	"log/slog"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Transport sends one transaction. federation/fedclient has it.
type Transport interface {
	SendTransaction(ctx context.Context, to mxid.ServerName, txnID string, body json.RawMessage) (results json.RawMessage, err error)
}

// Events reads the events to send. room.Service has it, through node.
type Events interface {
	// OutgoingEvent returns the event's JSON; ok false when it is gone.
	OutgoingEvent(ctx context.Context, room intern.RID, n uint32) (pdu json.RawMessage, ok bool, err error)
	// ServersAt lists the servers that must get the event.
	ServersAt(ctx context.Context, room intern.RID, n uint32) ([]mxid.ServerName, error)
}

// Config is what a Sender stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Clock      clock.Clock
	Transport  Transport
	Events     Events
	Log        *slog.Logger
}

// Sender implements room.Outbox and e2e.Outbox. Safe for concurrent use.
type Sender struct{}

// New reads the queues; Start begins to send.
func New(cfg Config) (*Sender, error) { panic("unimplemented") }
func (s *Sender) Start()              { panic("unimplemented") }

// Close stops all deliveries and saves the cursors.
func (s *Sender) Close() { panic("unimplemented") }

// Alive resets the back-off of a server that has just contacted us.
func (s *Sender) Alive(server mxid.ServerName) { panic("unimplemented") }

// Idle reports that nothing waits to be sent. For tests.
func (s *Sender) Idle() bool { panic("unimplemented") }
