// Package postgres is the storage engine on PostgreSQL (14 or later): one
// table of keys and values, whose byte order is LevelDB's.
//
// A batch is one statement, so it takes one round trip and is whole or not
// there at all. Every commit replaces a marker row and requires its old value;
// when the connection breaks while a commit is under way, replacing the marker
// from another connection settles whether it happened: see commit.go.
//
// Rows of its own: !c, the marker. It runs no goroutines but those of the
// connection pools.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"parley/internal/clock"
	"parley/storage"
)

// Options of Open. The zero value is right for a server.
type Options struct {
	Schema string      // of the table; "" = parley
	Clock  clock.Clock // nil: the system's
	Rand   io.Reader   // nil: crypto/rand
}

const (
	defaultSchema = "parley"
	// Connections: short reads, then scans and views, which hold theirs while
	// the caller works, so that a read inside of a scan always finds one. One
	// writes and one holds the lock.
	readConns = 16
	longConns = 16
	// minVersion is the oldest PostgreSQL whose planner handles long lists of
	// excluded keys well.
	minVersion = 140000
)

// Engine is a store in a database. Safe for concurrent use.
type Engine struct {
	opts   Options
	reads  *pgxpool.Pool
	long   *pgxpool.Pool
	writes *pgxpool.Pool // one connection, SERIALIZABLE
	lock   *pgx.Conn
	closed atomic.Bool
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	commit sync.Mutex // guards the following
	marker []byte     // value of the marker row, nil: unknown
}

var _ storage.KV = (*Engine)(nil)

// Open connects to a database, by URL or key=value pairs, and makes the table
// if it isn't there. Nothing else may have the store open.
func Open(ctx context.Context, dsn string, o Options) (*Engine, error) {
	if o.Schema == "" {
		o.Schema = defaultSchema
	}
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	e := &Engine{opts: o}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.open(ctx, dsn); err != nil {
		e.release()
		return nil, fmt.Errorf("postgres: open: %w", err)
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context, dsn string) (err error) {
	if e.lock, err = e.connect(ctx, dsn); err != nil {
		return err
	}
	if err := e.takeLock(ctx); err != nil {
		return err
	}
	if err := e.makeTable(ctx); err != nil {
		return err
	}
	if e.reads, err = e.pool(ctx, dsn, readConns, "read committed"); err != nil {
		return err
	}
	if e.long, err = e.pool(ctx, dsn, longConns, "repeatable read"); err != nil {
		return err
	}
	e.writes, err = e.pool(ctx, dsn, 1, "serializable")
	return err
}

// session sets what every connection needs.
func (e *Engine) session(c *pgx.ConnConfig, isolation string) {
	c.RuntimeParams["application_name"] = "parley"
	c.RuntimeParams["search_path"] = pgx.Identifier{e.opts.Schema}.Sanitize()
	c.RuntimeParams["default_transaction_isolation"] = isolation
	c.RuntimeParams["synchronous_commit"] = "on"
}

func (e *Engine) connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	e.session(cfg, "read committed")
	return pgx.ConnectConfig(ctx, cfg)
}

func (e *Engine) pool(ctx context.Context, dsn string, conns int32, isolation string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinConns = conns, 0
	e.session(cfg.ConnConfig, isolation)
	return pgxpool.NewWithConfig(ctx, cfg)
}

// takeLock refuses a second process with a clear message. What keeps two from
// writing is not this but the head row: a lock ends with its connection.
func (e *Engine) takeLock(ctx context.Context) error {
	var version int
	var free bool
	err := e.lock.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_try_advisory_lock(hashtextextended($1, 0))`,
		"parley "+e.opts.Schema).Scan(&version, &free)
	switch {
	case err != nil:
		return err
	case version < minVersion:
		return fmt.Errorf("PostgreSQL 14 or later is needed, this is version %d", version)
	case !free:
		return fmt.Errorf("schema %q is in use by another parley process", e.opts.Schema)
	}
	return nil
}

func (e *Engine) makeTable(ctx context.Context) error {
	schema := pgx.Identifier{e.opts.Schema}.Sanitize()
	for _, q := range []string{
		`CREATE SCHEMA IF NOT EXISTS ` + schema,
		// Rows are often replaced: leave room on the page, and clean up early.
		`CREATE TABLE IF NOT EXISTS kv (k bytea PRIMARY KEY, v bytea NOT NULL)
			WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,
		// Values are sealed: compressing them is wasted work.
		`ALTER TABLE kv ALTER v SET STORAGE EXTERNAL`,
	} {
		if _, err := e.lock.Exec(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the connections. It is valid to call it more than once.
func (e *Engine) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	e.cancel()
	e.commit.Lock()
	defer e.commit.Unlock()
	e.release()
	return nil
}

func (e *Engine) release() {
	e.cancel()
	for _, p := range []*pgxpool.Pool{e.reads, e.long, e.writes} {
		if p != nil {
			p.Close()
		}
	}
	if e.lock != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = e.lock.Close(ctx)
	}
}

// wrap gives errors the names of package storage. A server that can't be
// reached or refuses to work is storage.ErrUnavailable.
func (e *Engine) wrap(op string, err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case e.closed.Load():
		return fmt.Errorf("postgres: %s: %w", op, storage.ErrClosed)
	case errors.Is(err, pgx.ErrNoRows):
		return storage.ErrNotFound
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("postgres: %s: %w", op, err)
	case errors.As(err, &pg) && (pg.Code == "XX001" || pg.Code == "XX002"):
		return fmt.Errorf("postgres: %s: %w: %w", op, storage.ErrCorrupt, err)
	}
	return fmt.Errorf("postgres: %s: %w: %w", op, storage.ErrUnavailable, err)
}

// CompactRange lets PostgreSQL forget deleted rows.
func (e *Engine) CompactRange(ctx context.Context, _ storage.Range) error {
	if e.closed.Load() {
		return storage.ErrClosed
	}
	_, err := e.reads.Exec(ctx, `VACUUM kv`)
	return e.wrap("vacuum", err)
}

// Verify reads every row, which checks the sums of all pages if the database
// keeps them.
func (e *Engine) Verify(ctx context.Context) error {
	for _, err := range e.Scan(ctx, storage.Range{}, false, 0) {
		if err != nil {
			return err
		}
	}
	return nil
}
