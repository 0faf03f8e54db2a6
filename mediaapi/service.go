// Package mediaapi stores files: upload, download, thumbnails, and files of
// other servers fetched once. Each file is encrypted under a key of its own
// (vault.Media); its name, type and owner are sealed under the same key in its
// row, so destroying the key erases all of it. Files on disk have random names.
//
// Rows: mm<hash 16 of server and media ID>->sealed record; mb<blob ID>->hash,
// which file a blob belongs to; mx<uid>0<hash>, the files of a local user;
// mx<uid>1<hash>->expiry, uploads that the user has announced; mq<uid>->bytes
// that the user's files take; mc<day of last use><hash>->bytes, copies of files of
// other servers; mg<hash>->blob IDs, files that are being erased; mz<hash>, files
// in quarantine. Blobs are in storage/blob. A file's end is in the timers' rows
// (privacy/timers), under its hash.
//
// Goroutines: one for maintenance, from New to Close, and one per fetch from
// another server.
//
// URLs are not previewed: the server would visit whatever people write about.
// Clients are told so.
//
// spec: client-server API, "Content Repository"; server-server API, "Content
// Repository"
package mediaapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"parley/federation/fedclient"
	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/privacy/timers"
	"parley/storage"
	"parley/storage/blob"
)

// Remote fetches files of other servers; *fedclient.Client does.
type Remote interface {
	// DownloadMedia fails with fedclient.ErrTooLarge, perhaps while the body
	// is read, when the file has more than maxBytes.
	DownloadMedia(ctx context.Context, to mxid.ServerName, mediaID string, maxBytes int64) (*fedclient.Media, error)
}

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Vault      *vault.Vault
	Blobs      *blob.Store
	Remote     Remote // nil: files of other servers can't be had
	Clock      clock.Clock
	Log        *slog.Logger
	Rand       io.Reader // nil: crypto/rand
	// Book knows how long files are kept; nil: for ever. Whoever has it hands
	// what is due to Expire.
	Book  *timers.Book
	Plans Plans // nil: there are none
	// InUse reports whether a file is a picture that people are known by at
	// present: the owner's, or that of a room that the owner is in. Policies
	// don't end it while it is. nil: none is.
	InUse func(ctx context.Context, owner uint32, uri string) (bool, error)

	MaxUpload   int64 // bytes of a file; 0 = 100 MiB
	UserQuota   int64 // bytes of a user's files; 0 = none
	RemoteCache int64 // bytes of copies of other servers' files; 0 = 10 GiB
	// Legacy lets files that are stored from now on be downloaded without a
	// token. Files that were stored while it was off never can be, those that
	// were stored while it was on always.
	Legacy bool
	// DecodeMemory bounds the memory of all images that are being decoded, in
	// bytes; 0 = 192 MiB.
	DecodeMemory int64
}

// Service is the content repository. Safe for concurrent use.
type Service struct {
	cfg  Config
	stop context.CancelFunc
	ctx  context.Context
	done sync.WaitGroup

	fetchSlots *semaphore.Weighted // fetches from other servers at once
	decodeMem  *semaphore.Weighted // bytes of images being decoded

	mu       sync.Mutex
	flights  map[string]*flight // work that several requests may wait for
	arrivals map[key]*arrival   // announced uploads that downloads wait for
	uploads  map[uint32]int     // by user: uploads under way
	failures map[key]failure    // fetches that failed lately
	cached   int64              // bytes of copies of other servers' files
	garbage  []key              // files that never came to be
	fetches  map[uint32]int     // by user: fetches under way
	caused   map[uint32]int     // by user: fetches of the minute
	minute   time.Time          // when it began
	pins     map[key]int        // files that requests use
	full     chan struct{}      // wakes the maintenance to make room
	buried   chan struct{}      // wakes it to remove the bytes of erased files
}

// The default limits.
const (
	defaultMaxUpload    = 100 << 20
	defaultRemoteCache  = 10 << 30
	defaultDecodeMemory = 192 << 20
	// maxFetches bounds the fetches from other servers at once: enough that a
	// few dead servers don't hold up the rest.
	maxFetches = 32
	// maxUploads bounds the uploads of one user at once.
	maxUploads = 10
	// perFile is added to a file's size when the quota is counted, so that
	// many empty files count too: about what a file takes in folders and rows.
	perFile = 4 << 10
)

// New opens the repository and starts its maintenance.
func New(cfg Config) (*Service, error) {
	setDefault(&cfg.MaxUpload, defaultMaxUpload)
	setDefault(&cfg.RemoteCache, defaultRemoteCache)
	setDefault(&cfg.DecodeMemory, defaultDecodeMemory)
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	s := &Service{
		cfg:        cfg,
		fetchSlots: semaphore.NewWeighted(maxFetches),
		decodeMem:  semaphore.NewWeighted(cfg.DecodeMemory),
		flights:    map[string]*flight{},
		arrivals:   map[key]*arrival{},
		uploads:    map[uint32]int{},
		failures:   map[key]failure{},
		pins:       map[key]int{},
		fetches:    map[uint32]int{},
		caused:     map[uint32]int{},
		full:       make(chan struct{}, 1),
		buried:     make(chan struct{}, 1),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	var err error
	if s.cached, err = s.countCache(); err != nil {
		return nil, fmt.Errorf("mediaapi: count cached files: %w", err)
	}
	s.done.Go(s.maintain)
	return s, nil
}

func setDefault(v *int64, to int64) {
	if *v == 0 {
		*v = to
	}
}

// Close ends the maintenance and the fetches.
func (s *Service) Close() error {
	s.mu.Lock() // nothing flies off after this
	s.stop()
	s.mu.Unlock()
	s.done.Wait()
	return nil
}

// flight is work that several requests wait for.
type flight struct {
	done chan struct{}
	err  error
}

// once runs f in a goroutine of its own unless it is running already under
// this name, and waits for it or for ctx. f's context ends with the service.
func (s *Service) once(ctx context.Context, name string, limit time.Duration, f func(ctx context.Context) error) error {
	s.mu.Lock()
	fl := s.flights[name]
	if fl == nil {
		if s.ctx.Err() != nil {
			s.mu.Unlock()
			return storage.ErrClosed
		}
		fl = &flight{done: make(chan struct{})}
		s.flights[name] = fl
		s.done.Go(func() { s.fly(name, fl, limit, f) })
	}
	s.mu.Unlock()
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Service) fly(name string, fl *flight, limit time.Duration, f func(ctx context.Context) error) {
	ctx, cancel := s.timeout(s.ctx, limit)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			// The value may hold content: name its type only.
			s.cfg.Log.Error("panic in media work", "type", fmt.Sprintf("%T", p))
			fl.err = errors.New("mediaapi: panic")
		}
		s.mu.Lock()
		delete(s.flights, name)
		s.mu.Unlock()
		close(fl.done)
	}()
	fl.err = f(ctx)
}

// timeout is context.WithTimeout on the service's clock.
func (s *Service) timeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := s.cfg.Clock.AfterFunc(d, func() { cancel(context.DeadlineExceeded) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}
