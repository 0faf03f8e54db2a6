package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"parley/storage"
)

// markerKey is the row that every commit replaces by a new random value.
var markerKey = []byte("!c")

// The statement fails with one of these when a condition doesn't hold, which
// undoes all of it: 1/0, ln(0) and sqrt(-1).
const (
	codePrecondition = "22012" // division by zero
	codeMarker       = "2201E" // logarithm of zero
	codeTooLarge     = "2201F" // root of a negative number
)

// A batch in one statement. Each part sees the table as it was before, so no
// key may be touched twice: rows that are put are left out of the deleted
// ranges. The marker row comes with the puts.
//
//	$1 keys that must be absent   $2,$3 rows that must be equal
//	$4,$5 rows to put             $6 keys to delete
//	$7 marker before ('' if none) $8,$9 ranges to delete  $10 room for those
const (
	commitHead = `WITH
		a AS (SELECT count(*) AS n FROM kv WHERE k = ANY($1::bytea[])),
		e AS (SELECT count(*) AS n FROM unnest($2::bytea[], $3::bytea[]) x(k, v) JOIN kv USING (k, v)),
		m AS (SELECT coalesce((SELECT v FROM kv WHERE k = '!c'), ''::bytea) AS v),
		d AS (DELETE FROM kv WHERE k = ANY($6::bytea[])),
		p AS (INSERT INTO kv SELECT k, v FROM unnest($4::bytea[], $5::bytea[]) x(k, v)
			ON CONFLICT (k) DO UPDATE SET v = excluded.v)`
	commitRanges = `,
		r AS (DELETE FROM kv USING unnest($8::bytea[], $9::bytea[]) x(lo, hi)
			WHERE k >= x.lo AND (x.hi = ''::bytea OR k < x.hi) AND k <> '!c' AND k <> ALL($4::bytea[]) RETURNING 1)`
	commitTail = `
		SELECT 1 / (a.n = 0 AND e.n = cardinality($2::bytea[]))::int, ln((m.v = $7::bytea)::int)`
	commitTailRanges = `, sqrt($10::float8 - (SELECT count(*) FROM r))`
	commitFrom       = ` FROM a, e, m`

	commitSQL       = commitHead + commitTail + commitFrom
	commitRangesSQL = commitHead + commitRanges + commitTail + commitTailRanges + commitFrom
)

const (
	// maxRetries bounds the tries of a commit that met another writer.
	maxRetries = 50
	// statementTime is when a commit without an answer counts as broken off.
	// The largest batch takes a second or two.
	statementTime = 30 * time.Second
	// resolvePause is between looks at a server that can't be reached.
	resolvePause = 200 * time.Millisecond
)

var errReserved = errors.New("postgres: rows of !c belong to the engine")

func reserved(key []byte) bool { return bytes.HasPrefix(key, markerKey) }

// Commit checks the preconditions and applies the batch. When the connection
// breaks in between, it returns only once it knows what became of the batch,
// however long the server can't be reached. ctx counts until it has begun.
func (e *Engine) Commit(ctx context.Context, b *storage.Batch) error {
	if err := b.Check(); err != nil {
		return fmt.Errorf("postgres: commit: %w", err)
	}
	e.commit.Lock()
	defer e.commit.Unlock()
	if e.closed.Load() {
		return storage.ErrClosed
	}
	c, err := e.prepare(b)
	if err != nil {
		return err
	}
	for range maxRetries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if again, err := e.try(c); !again {
			return err
		}
	}
	return fmt.Errorf("postgres: commit: %w: too many conflicts with other writers", storage.ErrUnavailable)
}

// change is a batch as parameters of the statement.
type change struct {
	absent, equalKeys, equalValues [][]byte
	putKeys, putValues, dels       [][]byte
	lo, hi                         [][]byte
	room                           int
	token                          []byte // the new marker
}

func (e *Engine) prepare(b *storage.Batch) (*change, error) {
	c := &change{absent: list(b.Absent), dels: list(b.Dels), token: make([]byte, 16)}
	if _, err := io.ReadFull(e.opts.Rand, c.token); err != nil {
		return nil, fmt.Errorf("postgres: random marker: %w", err)
	}
	c.equalKeys, c.equalValues = columns(b.Equal)
	c.putKeys, c.putValues = columns(b.Puts)
	for _, keys := range [][][]byte{c.dels, c.putKeys} {
		for _, k := range keys {
			if reserved(k) {
				return nil, errReserved
			}
		}
	}
	c.putKeys, c.putValues = append(c.putKeys, markerKey), append(c.putValues, c.token)
	for _, r := range b.DelRanges {
		c.lo, c.hi = append(c.lo, some(r.Lo)), append(c.hi, some(r.Hi))
	}
	c.room = storage.MaxBatchRows - len(b.Puts) - len(b.Dels)
	return c, nil
}

// list and some make nil empty, which PostgreSQL tells from NULL.
func list(b [][]byte) [][]byte {
	if b == nil {
		return [][]byte{}
	}
	return b
}

func some(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func columns(ps []storage.Pair) (keys, values [][]byte) {
	keys, values = make([][]byte, 0, len(ps)+1), make([][]byte, 0, len(ps)+1)
	for _, p := range ps {
		keys, values = append(keys, p.Key), append(values, some(p.Value))
	}
	return keys, values
}

// try runs the statement once. again means that nothing has happened and
// another try may work.
func (e *Engine) try(c *change) (again bool, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, statementTime)
	defer cancel()
	if e.marker == nil {
		if e.marker, err = e.readMarker(ctx); err != nil {
			return false, e.wrap("read marker", err)
		}
	}
	args := []any{c.absent, c.equalKeys, c.equalValues, c.putKeys, c.putValues, c.dels, e.marker}
	sql := commitSQL
	if len(c.lo) > 0 {
		sql, args = commitRangesSQL, append(args, c.lo, c.hi, c.room)
	}
	_, err = e.writes.Exec(ctx, sql, args...)
	if err == nil {
		e.marker = c.token
		return false, nil
	}
	var pg *pgconn.PgError
	switch {
	case pgconn.SafeToRetry(err):
		// Nothing has been sent.
	case errors.As(err, &pg) && !lostInFlight(pg):
		return e.refused(pg)
	default:
		return false, e.resolve(c, err)
	}
	if e.closed.Load() {
		return false, storage.ErrClosed
	}
	return false, e.wrap("commit", err)
}

// refused is an answer of the server: the statement has been undone.
func (e *Engine) refused(pg *pgconn.PgError) (again bool, err error) {
	switch pg.Code {
	case codePrecondition:
		return false, fmt.Errorf("postgres: commit: %w", storage.ErrConflict)
	case codeTooLarge:
		return false, fmt.Errorf("postgres: commit: deleted ranges with more than %d rows: %w", storage.MaxBatchRows, storage.ErrTooLarge)
	case codeMarker:
		e.marker = nil // another process has written
		return true, nil
	case "40001", "40P01": // serialization failure, deadlock
		return true, nil
	}
	return false, e.wrap("commit", pg)
}

// lostInFlight reports whether the server was shutting down, which it may say
// after the commit.
func lostInFlight(pg *pgconn.PgError) bool {
	return pg.Severity == "FATAL" || pg.Severity == "PANIC"
}

// resolve finds out what became of a commit whose answer is missing. Replacing
// the marker that the commit needs either waits for it and fails, or makes it
// impossible for ever.
func (e *Engine) resolve(c *change, cause error) error {
	old := e.marker
	e.marker = nil
	for {
		done, err := e.settle(c, old)
		switch {
		case err == nil && done:
			e.marker = c.token
			return nil
		case err == nil:
			return fmt.Errorf("postgres: commit: %w: %w", storage.ErrUnavailable, cause)
		}
		if err := e.opts.Clock.Sleep(e.ctx, resolvePause); err != nil {
			return fmt.Errorf("postgres: commit, outcome unknown: %w", storage.ErrClosed)
		}
	}
}

// settle reports whether the commit has happened.
func (e *Engine) settle(c *change, old []byte) (done bool, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, statementTime)
	defer cancel()
	fence := append([]byte("fence"), c.token...)
	var tag pgconn.CommandTag
	if len(old) == 0 {
		tag, err = e.reads.Exec(ctx, `INSERT INTO kv VALUES ($1, $2) ON CONFLICT DO NOTHING`, markerKey, fence)
	} else {
		tag, err = e.reads.Exec(ctx, `UPDATE kv SET v = $2 WHERE k = $1 AND v = $3`, markerKey, fence, old)
	}
	if err != nil || tag.RowsAffected() == 1 {
		return false, err
	}
	now, err := e.readMarker(ctx)
	return err == nil && bytes.Equal(now, c.token), err
}

// readMarker returns an empty value when there is no marker yet.
func (e *Engine) readMarker(ctx context.Context) ([]byte, error) {
	v := []byte{}
	err := e.reads.QueryRow(ctx, `SELECT v FROM kv WHERE k = $1`, markerKey).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		return []byte{}, nil
	}
	return v, err
}
