package postgres

import (
	"bytes"
	"context"
	"errors"
	"iter"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"parley/storage"
)

// querier is a pool, or the transaction of a view.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// broken reports whether a read failed because its connection had died, as all
// of a pool do when the server restarts, rather than because the server can't
// be reached or has refused it.
func broken(err error) bool {
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case err == nil, errors.Is(err, pgx.ErrNoRows), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &connect):
		return false
	case errors.As(err, &pg):
		return lostInFlight(pg)
	}
	return true
}

// again runs a read once more for every connection of a pool that may be dead.
func again(conns int, read func() error) (err error) {
	for range conns + 1 {
		if err = read(); !broken(err) {
			return err
		}
	}
	return err
}

// Get returns storage.ErrNotFound when the key is absent.
func (e *Engine) Get(ctx context.Context, key []byte) (v []byte, err error) {
	if e.closed.Load() {
		return nil, storage.ErrClosed
	}
	err = again(readConns, func() (err error) { v, err = get(ctx, e.reads, key); return err })
	return v, e.wrap("get", err)
}

func get(ctx context.Context, q querier, key []byte) (v []byte, err error) {
	err = q.QueryRow(ctx, `SELECT v FROM kv WHERE k = $1`, some(key)).Scan(&v)
	if err != nil {
		return nil, err
	}
	return some(v), nil
}

// MultiGet returns one value per key, nil where absent.
func (e *Engine) MultiGet(ctx context.Context, keys [][]byte) (vs [][]byte, err error) {
	if e.closed.Load() {
		return nil, storage.ErrClosed
	}
	err = again(readConns, func() (err error) { vs, err = multiGet(ctx, e.reads, keys); return err })
	return vs, e.wrap("get", err)
}

func multiGet(ctx context.Context, q querier, keys [][]byte) ([][]byte, error) {
	rows, err := q.Query(ctx, `SELECT k, v FROM kv WHERE k = ANY($1::bytea[])`, list(keys))
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	var k, v []byte
	_, err = pgx.ForEachRow(rows, []any{&k, &v}, func() error {
		found[string(k)] = bytes.Clone(some(v))
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(keys))
	for i, key := range keys {
		out[i] = bytes.Clone(found[string(key)])
		if found[string(key)] != nil {
			out[i] = some(out[i])
		}
	}
	return out, nil
}

// scanSQL reads a range; the limit is a number or NULL.
func scanSQL(r storage.Range, reverse bool) (sql string, args []any) {
	sql, args = `SELECT k, v FROM kv WHERE k >= $2`, []any{some(r.Lo)}
	if len(r.Hi) > 0 {
		sql, args = sql+` AND k < $3`, append(args, r.Hi)
	}
	sql += ` ORDER BY k`
	if reverse {
		sql += ` DESC`
	}
	return sql + ` LIMIT $1`, args
}

// Rows that are read before the first is handed out. A scan that ends within
// them has given its connection back by then.
const (
	aheadRows  = 1024
	aheadBytes = 1 << 20
)

// Scan yields the rows of r as they are now: one statement sees one moment.
func (e *Engine) Scan(ctx context.Context, r storage.Range, reverse bool, limit int) iter.Seq2[storage.Pair, error] {
	return func(yield func(storage.Pair, error) bool) {
		if e.closed.Load() {
			yield(storage.Pair{}, storage.ErrClosed)
			return
		}
		sql, args := scanSQL(r, reverse)
		args = append([]any{limitArg(limit)}, args...)
		var rows pgx.Rows
		var page []storage.Pair
		var more bool
		err := again(longConns, func() (err error) {
			if rows, err = e.long.Query(ctx, sql, args...); err != nil {
				return err
			}
			if page, more, err = readPage(rows); err != nil {
				rows.Close()
			}
			return err
		})
		if err != nil {
			yield(storage.Pair{}, e.wrap("scan", err))
			return
		}
		defer rows.Close()
		e.stream(ctx, rows, page, more, yield)
	}
}

func limitArg(limit int) any {
	if limit <= 0 {
		return nil
	}
	return limit
}

// stream hands out the first page and the rest.
func (e *Engine) stream(ctx context.Context, rows pgx.Rows, page []storage.Pair, more bool, yield func(storage.Pair, error) bool) {
	var err error
	for {
		for _, p := range page {
			if !yield(p, nil) {
				return
			}
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(storage.Pair{}, e.wrap("scan", err))
			return
		}
		if !more {
			return
		}
		page, more, err = readPage(rows)
	}
}

func readPage(rows pgx.Rows) (page []storage.Pair, more bool, err error) {
	size := 0
	for rows.Next() {
		var p storage.Pair
		if err := rows.Scan(&p.Key, &p.Value); err != nil {
			return page, false, err
		}
		p.Value = some(p.Value)
		page = append(page, p)
		if size += len(p.Key) + len(p.Value); len(page) >= aheadRows || size >= aheadBytes {
			return page, true, nil
		}
	}
	return page, false, rows.Err()
}

// View gives f a reader on one moment of the store. It holds a connection.
func (e *Engine) View(ctx context.Context, f func(storage.Reader) error) error {
	if e.closed.Load() {
		return storage.ErrClosed
	}
	var tx pgx.Tx
	err := again(longConns, func() (err error) {
		tx, err = e.long.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			return err
		}
		// The moment is that of the first statement: let it be now.
		if _, err = tx.Exec(ctx, `SELECT 1`); err != nil {
			_ = tx.Rollback(context.WithoutCancel(ctx))
		}
		return err
	})
	if err != nil {
		return e.wrap("view", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	return f(&view{e, tx})
}

// view reads in a transaction, one statement at a time.
type view struct {
	e  *Engine
	tx pgx.Tx
}

func (v *view) Get(ctx context.Context, key []byte) ([]byte, error) {
	value, err := get(ctx, v.tx, key)
	return value, v.e.wrap("get", err)
}

func (v *view) MultiGet(ctx context.Context, keys [][]byte) ([][]byte, error) {
	vs, err := multiGet(ctx, v.tx, keys)
	return vs, v.e.wrap("get", err)
}

// Scan reads whole pages, so that the caller can read in between.
func (v *view) Scan(ctx context.Context, r storage.Range, reverse bool, limit int) iter.Seq2[storage.Pair, error] {
	return func(yield func(storage.Pair, error) bool) {
		for left := limit; ; {
			n := aheadRows
			if limit > 0 {
				n = min(n, left)
			}
			page, err := v.page(ctx, r, reverse, n)
			if err != nil {
				yield(storage.Pair{}, err)
				return
			}
			for _, p := range page {
				if !yield(p, nil) {
					return
				}
			}
			left -= len(page)
			if len(page) < n || (limit > 0 && left <= 0) {
				return
			}
			last := page[len(page)-1].Key
			if reverse {
				r.Hi = last
			} else {
				r.Lo = append(bytes.Clone(last), 0)
			}
		}
	}
}

func (v *view) page(ctx context.Context, r storage.Range, reverse bool, n int) ([]storage.Pair, error) {
	sql, args := scanSQL(r, reverse)
	rows, err := v.tx.Query(ctx, sql, append([]any{n}, args...)...)
	if err != nil {
		return nil, v.e.wrap("scan", err)
	}
	defer rows.Close()
	var page []storage.Pair
	for more := true; more; {
		var part []storage.Pair
		part, more, err = readPage(rows)
		page = append(page, part...)
		if err != nil {
			return page, v.e.wrap("scan", err)
		}
	}
	return page, nil
}
