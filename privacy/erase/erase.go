// Package erase does what follows when a person erases their account. By then
// their keys have been destroyed, so nothing of theirs can be read on this
// server any more (docs/decisions/0006); what is left to do is to ask other
// servers, room by room, to redact what they have, to leave the rooms, and to
// delete rows and files that are noise.
//
// Each account under way has a row er<uid>, sealed under the system key: where
// the work stands. It goes on after a restart and is tried again for 30 days.
// The package has one goroutine.
package erase

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

const (
	// batch redactions are sent at once, then one pause is made: a long history
	// must not fill the queues of other servers.
	batch = 20
	pause = time.Second
	// retry is how long to wait after something failed.
	retry = 10 * time.Minute
	// patience is for how many days other servers are asked.
	patience = 40
)

// Media erases files. mediaapi.Service has it.
type Media interface {
	UserKeys(ctx context.Context, uid intern.UID) ([]vault.Ref, error)
	DeleteUser(ctx context.Context, uid uint32) error
	// Sweep removes what files whose key is gone have left.
	Sweep(ctx context.Context) error
}

// Config is what a Service stands on.
type Config struct {
	KV     storage.KV
	Commit *storage.Committer
	Vault  *vault.Vault
	Intern *intern.Table
	Clock  clock.Clock
	Users  *user.Service
	Rooms  *room.Service
	Media  Media
	Log    *slog.Logger
}

// Service erases accounts. Safe for concurrent use.
type Service struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kick   chan struct{}
	resume atomic.Bool // erasures that failed before begin are to be gone on with
}

// job is an er row.
type job struct {
	Day   int32      `json:"day"`             // when it began
	Room  intern.RID `json:"room,omitempty"`  // whose events are being redacted
	After room.Num   `json:"after,omitempty"` // and up to which that is done
}

// New registers with the user service what erasing means.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, kick: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	cfg.Users.OnErase(cfg.Media.UserKeys)
	cfg.Users.OnDeactivated(s.begin)
	return s
}

// Start goes on with what was under way.
func (s *Service) Start() {
	s.wg.Go(s.run)
	s.wake()
}

// Close stops in the middle of whatever is being done.
func (s *Service) Close() {
	s.cancel()
	s.wg.Wait()
}

func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func key(uid intern.UID) storage.Key { return storage.K("er").U32(uint32(uid)) }

// begin runs when the keys of somebody have been destroyed, and before they
// are told.
func (s *Service) begin(ctx context.Context, u mxid.UserID, uid intern.UID, erase bool) error {
	if !erase {
		return nil
	}
	if err := s.save(ctx, uid, job{Day: s.today()}); err != nil {
		return err
	}
	if err := s.cfg.Rooms.ForgetAuthor(ctx, u, uid); err != nil {
		return err
	}
	if err := s.cfg.Rooms.Abandon(ctx, u); err != nil {
		return err
	}
	s.wake()
	return nil
}

func (s *Service) today() int32 { return int32(s.cfg.Clock.Now().Unix() / 86400) }

func (s *Service) save(ctx context.Context, uid intern.UID, j job) error {
	plain, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("erase: encode: %w", err)
	}
	row, err := s.cfg.Vault.Seal(vault.System(), key(uid), plain)
	if err != nil {
		return fmt.Errorf("erase: %w", err)
	}
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Put(key(uid), row); return nil })
	if err != nil {
		return fmt.Errorf("erase: %w", err)
	}
	return nil
}

// jobs are the accounts under way.
func (s *Service) jobs(ctx context.Context) (map[intern.UID]job, error) {
	out := map[intern.UID]job{}
	for p, err := range s.cfg.KV.Scan(ctx, storage.K("er").Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("erase: %w", err)
		}
		plain, err := s.cfg.Vault.Unseal(p.Key, p.Value)
		if err != nil {
			return nil, fmt.Errorf("erase: open a row: %w", err)
		}
		var j job
		if err := json.Unmarshal(plain, &j); err != nil {
			return nil, fmt.Errorf("erase: %w: %w", storage.ErrCorrupt, err)
		}
		out[intern.UID(storage.ReadU32(p.Key, 2))] = j
	}
	return out, nil
}

// Pending is how many accounts are under way.
func (s *Service) Pending(ctx context.Context) (int, error) {
	jobs, err := s.jobs(ctx)
	return len(jobs), err
}

func (s *Service) run() {
	stop := func() bool { return true }
	defer func() { stop() }()
	for s.ctx.Err() == nil {
		stop()
		stop = s.cfg.Clock.AfterFunc(retry, func() { s.resume.Store(true); s.wake() })
		select {
		case <-s.ctx.Done():
		case <-s.kick:
			if err := s.round(s.ctx); err != nil && s.ctx.Err() == nil {
				s.cfg.Log.Warn("an erasure is to be gone on with", "error", err)
			}
		}
	}
}

// round does what can be done now.
func (s *Service) round(ctx context.Context) error {
	var errs []error
	if s.resume.Swap(false) {
		errs = append(errs, s.cfg.Users.Start())
	}
	jobs, err := s.jobs(ctx)
	errs = append(errs, err)
	for uid, j := range jobs {
		errs = append(errs, s.work(ctx, uid, j))
	}
	return errors.Join(errs...)
}

// work does all that is left for one account. Everything in it may be done
// twice.
func (s *Service) work(ctx context.Context, uid intern.UID, j job) error {
	u, err := s.cfg.Intern.UserID(ctx, uid)
	if err != nil {
		return err
	}
	if err := s.cfg.Rooms.PurgeEmpty(ctx); err != nil {
		return err
	}
	if err := s.cfg.Media.DeleteUser(ctx, uint32(uid)); err != nil {
		return fmt.Errorf("delete files: %w", err)
	}
	if err := s.cfg.Media.Sweep(ctx); err != nil {
		return fmt.Errorf("sweep files: %w", err)
	}
	if err := s.cfg.Rooms.ForgetReader(ctx, uid); err != nil {
		return err
	}
	if err := s.leaveRooms(ctx, u, uid, j); err != nil && s.today() < j.Day+patience {
		return err
	}
	err = s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error { tx.Delete(key(uid)); return nil })
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	return nil
}

// leaveRooms asks the servers of each room to redact, and leaves it. A room
// that can't be left at the moment doesn't keep the others.
func (s *Service) leaveRooms(ctx context.Context, u mxid.UserID, uid intern.UID, j job) error {
	rooms, err := s.cfg.Rooms.UserRooms(ctx, u)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range rooms {
		if r.Membership == room.Join {
			err = s.redactRoom(ctx, u, uid, r, &j)
		} else if r.Membership != room.Invite && r.Membership != room.Knock {
			continue
		}
		if err == nil {
			err = s.cfg.Rooms.Leave(ctx, room.MembershipParams{Room: r.Room, Sender: u, Target: u})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, err)
		err = nil
	}
	return errors.Join(errs...)
}

// redactRoom asks the other servers of a room to redact what somebody said
// there. Where they are alone with this server there is nobody to ask.
func (s *Service) redactRoom(ctx context.Context, u mxid.UserID, uid intern.UID, r room.UserRoom, j *job) error {
	servers, err := s.cfg.Rooms.Servers(ctx, r.RID)
	if err != nil || len(servers) == 0 {
		return err
	}
	if j.Room != r.RID {
		j.Room, j.After = r.RID, 0
	}
	for {
		ids, last, err := s.cfg.Rooms.Authored(ctx, r.RID, uid, j.After, batch)
		if err != nil {
			return err
		}
		for _, id := range ids {
			// The rules of the room may forbid it: then it stays with others.
			_, err := s.cfg.Rooms.Send(ctx, room.SendParams{Room: r.Room, Sender: u, Type: "m.room.redaction", Redacts: id,
				Content: json.RawMessage(`{}`), TxnKey: "\x00erase\x00" + string(id)})
			if err := passOver(err); err != nil {
				return err
			}
		}
		if last == 0 {
			return nil
		}
		j.After = last
		if err := s.save(ctx, uid, *j); err != nil {
			return err
		}
		if err := s.cfg.Clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}
