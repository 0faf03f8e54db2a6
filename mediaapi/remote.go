package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"parley/federation/fedclient"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

const (
	// fetchLimit bounds one fetch: 100 MiB at 200 kB/s.
	fetchLimit = 10 * time.Minute
	// failureLife is how long a failed fetch isn't tried again.
	failureLife = time.Minute
	// maxFailures bounds the memory of failed fetches.
	maxFailures = 4096
	// maxUserFetches bounds the fetches that one user has caused and that are
	// under way: a room full of pictures, not a crawl.
	maxUserFetches = 24
	// fetchesPerMinute bounds what one user causes in time, and all requests
	// without a token together.
	fetchesPerMinute = 300
	// maxStrangerFetches is the same for all requests without a token together.
	maxStrangerFetches = 8
)

// failure is a fetch that failed and until when that is remembered.
type failure struct {
	err   error
	until time.Time
}

func remoteTooLarge() error {
	return httpx.Err(http.StatusBadGateway, "M_TOO_LARGE", "The file is larger than this server takes from others")
}

// fetch gets a file from its server, once however many ask, and stores it.
func (s *Service) fetch(ctx context.Context, server mxid.ServerName, mediaID string, k key, uid uint32) (*record, error) {
	if s.cfg.Remote == nil {
		return nil, unknownID()
	}
	if err := s.recentFailure(k); err != nil {
		return nil, err
	}
	if !s.beginFetch(uid) {
		return nil, httpx.LimitExceeded(5 * time.Second)
	}
	defer s.endFetch(uid)
	err := s.once(ctx, "fetch "+string(k[:]), fetchLimit, func(ctx context.Context) error {
		err := s.fetchNow(ctx, server, mediaID, k)
		if err != nil {
			s.rememberFailure(k, err)
			s.discard(k)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.load(ctx, k)
}

func (s *Service) fetchNow(ctx context.Context, server mxid.ServerName, mediaID string, k key) error {
	// It may be there since the caller has looked.
	if _, err := s.load(ctx, k); !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	if err := s.forgetOver(ctx, k); err != nil {
		return err
	}
	if err := s.fetchSlots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.fetchSlots.Release(1)
	limit := min(s.cfg.MaxUpload, s.cfg.RemoteCache)
	m, err := s.cfg.Remote.DownloadMedia(ctx, server, mediaID, limit)
	if err != nil {
		return fetchError(err)
	}
	defer m.Body.Close()
	id, n, err := s.store(k, m.Body, limit)
	if err != nil {
		return fetchError(err)
	}
	rec := &record{Ready: true, Type: contentType(m.ContentType), Name: dispositionName(m.ContentDisposition),
		Size: n, Blob: id, Legacy: s.cfg.Legacy, Day: day(s.cfg.Clock.Now()), Born: lastDay(s.cfg.Clock.Now())}
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		tx.Put(cacheRow(rec.Day, k), storage.Key{}.U64(uint64(rec.bytes())))
		tx.OnCommit(func() { s.addCached(rec.bytes()) })
		setTimers(tx, k, rec)
		return s.put(tx, k, rec)
	})
	if err != nil {
		s.drop(id)
		return err
	}
	s.cfg.Blobs.Settled(id)
	s.evictSoon()
	return nil
}

// forgetOver erases an older copy whose time is over, before the sweep does.
func (s *Service) forgetOver(ctx context.Context, k key) error {
	if _, err := s.cfg.KV.Get(ctx, k.row()); err != nil {
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	}
	dying, err := s.bury(ctx, []key{k}, s.over, nil)
	if err != nil {
		return err
	}
	return s.finish(ctx, dying)
}

// fetchError says what another server did in words for the client.
func fetchError(err error) error {
	var src sourceError
	switch {
	case errors.Is(err, fedclient.ErrTooLarge), errors.Is(err, errTooLarge):
		return remoteTooLarge()
	case errors.As(err, &src) && !errors.Is(err, context.DeadlineExceeded):
		return httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The file's server broke off")
	}
	return err
}

func (s *Service) recentFailure(k key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.failures[k]
	if ok && s.cfg.Clock.Now().Before(f.until) {
		return f.err
	}
	delete(s.failures, k)
	return nil
}

func (s *Service) rememberFailure(k key, err error) {
	if s.ctx.Err() != nil || errors.Is(err, storage.ErrUnavailable) {
		return // our fault, not the other server's
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) >= maxFailures {
		clear(s.failures)
	}
	s.failures[k] = failure{err, s.cfg.Clock.Now().Add(failureLife)}
}

func (s *Service) beginFetch(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := maxUserFetches
	if uid == 0 {
		limit = maxStrangerFetches
	}
	if now := s.cfg.Clock.Now(); now.Sub(s.minute) >= time.Minute || now.Before(s.minute) {
		s.minute = now
		clear(s.caused)
	}
	if s.fetches[uid] >= limit || s.caused[uid] >= fetchesPerMinute {
		return false
	}
	s.fetches[uid]++
	s.caused[uid]++
	return true
}

func (s *Service) endFetch(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetches[uid]--; s.fetches[uid] == 0 {
		delete(s.fetches, uid)
	}
}

func (s *Service) addCached(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cached += n
}

func (s *Service) cachedBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cached
}

// countCache adds up what copies of other servers' files take.
func (s *Service) countCache() (total int64, err error) {
	for row, err := range s.cfg.KV.Scan(s.ctx, storage.K("mc").Prefix(), false, 0) {
		if err != nil {
			return 0, err
		}
		if len(row.Value) == 8 {
			total += int64(storage.ReadU64(row.Value, 0))
		}
	}
	return total, nil
}

// touch notes the day on which a copy was last used, so that those that nobody
// wants go first. It is written at most once a day and says nothing about who.
func (s *Service) touch(ctx context.Context, k key, rec *record) {
	today := day(s.cfg.Clock.Now())
	if rec.Day >= today {
		return
	}
	err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		now, err := s.loadTx(tx, k)
		if err != nil || now.Day >= today {
			return err
		}
		tx.Delete(cacheRow(now.Day, k))
		clearTimers(tx, k, now)
		now.Day = today
		setTimers(tx, k, now)
		tx.Put(cacheRow(now.Day, k), storage.Key{}.U64(uint64(now.bytes())))
		return s.put(tx, k, now)
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, storage.ErrNotFound) {
		// The file can be served all the same.
		s.cfg.Log.Debug("media: note last use", "error", err)
	}
}

// evictSoon lets the maintenance make room if the cache is over its limit.
func (s *Service) evictSoon() {
	if s.cachedBytes() <= s.cfg.RemoteCache {
		return
	}
	select {
	case s.full <- struct{}{}:
	default:
	}
}

// evict removes the copies that haven't been used for longest until the cache
// is a tenth below its limit.
func (s *Service) evict(ctx context.Context) error {
	if s.cachedBytes() <= s.cfg.RemoteCache {
		return nil
	}
	for s.cachedBytes() > s.cfg.RemoteCache*9/10 {
		rows, err := s.oldest(ctx, s.cachedBytes()-s.cfg.RemoteCache*9/10)
		if err != nil || len(rows) == 0 {
			return err
		}
		keys := make([]key, len(rows))
		for i, row := range rows {
			keys[i] = key(row.Key[6:])
		}
		if err := s.remove(ctx, keys, nil); err != nil {
			return err
		}
		// A file whose key was destroyed before a crash no longer tells the
		// day under which it stands here.
		err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { return s.removeCacheRows(tx, rows) })
		if err != nil {
			return err
		}
	}
	return nil
}

// oldest lists the copies to remove to free some bytes.
func (s *Service) oldest(ctx context.Context, bytes int64) (rows []storage.Pair, err error) {
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("mc").Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		if len(row.Key) != 2+4+16 || len(row.Value) != 8 {
			return nil, fmt.Errorf("cache row: %w", storage.ErrCorrupt)
		}
		if s.pinned(key(row.Key[6:])) {
			continue
		}
		rows = append(rows, row)
		if bytes -= int64(storage.ReadU64(row.Value, 0)); bytes <= 0 || len(rows) == deleteSlice {
			break
		}
	}
	return rows, nil
}

func (s *Service) removeCacheRows(tx *storage.Tx, rows []storage.Pair) error {
	for _, row := range rows {
		switch there, err := tx.Has(row.Key); {
		case err != nil:
			return err
		case there:
			tx.Delete(row.Key)
			tx.OnCommit(func() { s.addCached(-int64(storage.ReadU64(row.Value, 0))) })
		}
	}
	return nil
}
