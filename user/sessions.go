package user

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Session is who sends a request.
type Session struct {
	User   mxid.UserID
	UID    intern.UID
	Device mxid.DeviceID
	Admin  bool
	Guest  bool
	// Locked sessions may only log out, Suspended ones not take part; who
	// serves requests refuses the rest.
	Locked, Suspended bool
}

// Authenticate finds the session of an access token.
// M_UNKNOWN_TOKEN (soft_logout when expired) as *httpx.Error.
func (s *Service) Authenticate(ctx context.Context, token string) (Session, error) {
	end, ok := tokenEnd(accessPrefix, token)
	if !ok {
		return Session{}, errUnknownToken(false)
	}
	hash := s.cfg.Vault.TokenHash(kindAccess, token)
	sess, found := s.sessions.get(hash)
	if !found {
		var err error
		if sess, err = s.loadSession(ctx, hash); err != nil {
			return Session{}, err
		}
	}
	if !end.IsZero() && !s.cfg.Clock.Now().Before(end) {
		return Session{}, errUnknownToken(true)
	}
	return sess, nil
}

// loadSession reads the session of a token from the store, and at the first
// use of a refreshed token ends the pair before it.
func (s *Service) loadSession(ctx context.Context, hash [32]byte) (Session, error) {
	generation := s.sessions.generation()
	var row sessionRow
	err := s.open(s.reader(ctx), accessKey(hash[:]), &row)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return Session{}, errUnknownToken(false)
	case err != nil:
		return Session{}, fmt.Errorf("authenticate: %w", err)
	case row.Ended:
		return Session{}, errUnknownToken(true)
	}
	account, err := s.account(s.reader(ctx), row.UID)
	if err != nil {
		return Session{}, fmt.Errorf("authenticate: %w", err)
	}
	if account.Gone {
		return Session{}, errUnknownToken(false)
	}
	user, err := s.cfg.Intern.UserID(ctx, row.UID)
	if err != nil {
		return Session{}, fmt.Errorf("authenticate: %w", err)
	}
	sess := Session{User: user, UID: row.UID, Device: row.Device, Admin: account.Admin, Guest: account.Guest,
		Locked: account.Locked, Suspended: account.Suspended}
	if row.Fresh {
		if err := s.settle(ctx, sess, hash); err != nil {
			return Session{}, err
		}
		return sess, nil // settling has moved the generation on: cached at the next use
	}
	s.sessions.put(hash, sess, generation)
	return sess, nil
}

// settle ends the pair before a refreshed one that is used for the first time.
func (s *Service) settle(ctx context.Context, sess Session, hash [32]byte) error {
	gone := false
	err := s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.device(tx.Get, sess.User, sess.UID, sess.Device)
		if errors.Is(err, storage.ErrNotFound) || err == nil && !bytes.Equal(row.Now.Access, hash[:]) {
			// It has ended, or a newer refresh has made it the one before.
			known, err := tx.Has(accessKey(hash[:]))
			gone = !known
			return err
		}
		if err != nil {
			return err
		}
		s.dropPair(tx, row.Before)
		row.Before = nil
		if err := s.putSealed(tx, sess.UID, accessKey(hash[:]), sessionRow{UID: sess.UID, Device: sess.Device}); err != nil {
			return err
		}
		return s.putDevice(tx, sess.User, sess.UID, row)
	})
	if errors.Is(err, storage.ErrUnavailable) {
		return nil // reading goes on while nothing can be written
	}
	if err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	if gone {
		return errUnknownToken(false)
	}
	return nil
}

// sessionCache keeps the sessions of tokens that were used lately. A session
// that was read before a change is not let in after it: put needs the
// generation from before the read.
type sessionCache struct {
	mu  sync.RWMutex
	gen uint64
	m   map[[32]byte]Session
}

// maxSessions bounds the cache: about 200 bytes each.
const maxSessions = 1 << 17

func newSessionCache() *sessionCache { return &sessionCache{m: map[[32]byte]Session{}} }

func (c *sessionCache) get(hash [32]byte) (Session, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	sess, ok := c.m[hash]
	return sess, ok
}

func (c *sessionCache) generation() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.gen
}

func (c *sessionCache) put(hash [32]byte, sess Session, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != generation {
		return
	}
	if len(c.m) >= maxSessions {
		for k := range c.m { // any one: map order is random enough
			delete(c.m, k)
			break
		}
	}
	c.m[hash] = sess
}

func (c *sessionCache) drop(hash [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	delete(c.m, hash)
}

// dropUser forgets every session of a user. It walks the cache: for rare
// changes only.
func (c *sessionCache) dropUser(uid intern.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	for k, sess := range c.m {
		if sess.UID == uid {
			delete(c.m, k)
		}
	}
}
