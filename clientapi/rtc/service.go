package rtc

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
	"parley/sfu"
	"parley/storage"
	"parley/storage/intern"
	"parley/user"
)

// Calls is what rtc needs of the SFU.
type Calls interface {
	// Token makes a token. It makes a participant welcome again who was
	// kicked.
	Token(sfu.Grant) (string, error)
	// Kick ends a participant's part in a call, and all tokens for it, within
	// a second. It doesn't wait for that.
	Kick(alias, identity string)
}

// Rooms is what rtc needs of package room.
type Rooms interface {
	Lookup(ctx context.Context, room mxid.RoomID) (rid intern.RID, version string, known bool, err error)
	InRoom(ctx context.Context, room mxid.RoomID) (bool, error)
	Membership(ctx context.Context, room mxid.RoomID, user mxid.UserID) (room.Membership, error)
	JoinedServers(ctx context.Context, rid intern.RID) ([]mxid.ServerName, error)
	ServerAllowed(ctx context.Context, room mxid.RoomID, server mxid.ServerName) (bool, error)
}

// Delays are the delayed events of local users; *room.Delays has them.
type Delays interface {
	Find(ctx context.Context, id string) (room.DelayedEvent, error)
	Restart(ctx context.Context, id string) error
	Send(ctx context.Context, id string) error
	List(ctx context.Context, user mxid.UserID) ([]room.DelayedEvent, error)
}

// Users is what rtc needs of package user.
type Users interface {
	OpenIDUser(ctx context.Context, token string) (mxid.UserID, error)
	Account(ctx context.Context, u mxid.UserID) (user.Account, error)
	Device(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (user.Device, error)
}

// Remote is what rtc asks of other servers; *fedclient.Client does it.
type Remote interface {
	OpenIDUserInfo(ctx context.Context, to mxid.ServerName, token string) (mxid.UserID, error)
	CallToken(ctx context.Context, to mxid.ServerName, body any) (url, jwt string, err error)
	// CascadeToken asks the server of one of its users for a token there.
	CascadeToken(ctx context.Context, to mxid.ServerName, body any) (url, jwt string, err error)
}

// Limiter slows down who asks too often: the user of a session, or the address
// of a request without one. *clientapi.API is one.
type Limiter interface {
	ThrottleCalls(c echo.Context, who *user.Session) error
}

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	// PublicURL is the base URL for clients.
	PublicURL string
	Calls     Calls
	Rooms     Rooms
	Delays    Delays
	Users     Users
	Remote    Remote  // nil: federation is off
	Cascade   Cascade // nil: no links to other servers
	Limits    Limiter
	// NoteKey seals what a token says of its bearer, NoteKey bytes; with the
	// same one after a restart, clients can come back. nil: they must ask for
	// new tokens.
	NoteKey []byte
	Clock   clock.Clock
	Log     *slog.Logger
}

// Service is the door to calls. Safe for concurrent use.
type Service struct {
	cfg     Config
	media   string // URL of the SFU
	places  *registry
	lookups *turns
	sealer  cipher.AEAD // of notes; nil without a key

	ctx     context.Context // ends with Close
	end     context.CancelFunc
	mu      sync.Mutex
	closed  bool
	sweeps  bool // a sweep is on its way
	running sync.WaitGroup
}

// New makes a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Calls == nil || cfg.Rooms == nil || cfg.Users == nil || cfg.Delays == nil || cfg.Clock == nil || cfg.Log == nil {
		return nil, errors.New("rtc: incomplete configuration")
	}
	media, err := mediaURL(cfg.PublicURL)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, media: media, places: newRegistry(), lookups: newTurns()}
	if s.sealer, err = newSealer(cfg.NoteKey); err != nil {
		return nil, err
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s, nil
}

// mediaURL is the WebSocket URL of the SFU.
func mediaURL(public string) (string, error) {
	u, err := url.Parse(public)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", errors.New("rtc: the base URL for clients must be one of http or https")
	}
	u.Scheme = "ws" + strings.TrimPrefix(u.Scheme, "http")
	return u.JoinPath("livekit", "sfu").String(), nil
}

// ServiceURL is the base URL of the endpoints that clients ask for tokens, to be
// told in discovery.
func ServiceURL(public string) string { return strings.TrimSuffix(public, "/") + "/livekit/jwt" }

// Close stops restarting delayed events, and waits for what is under way.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.places.mu.Lock()
	for _, p := range s.places.places {
		p.leave.stop()
	}
	s.places.mu.Unlock()
	s.running.Wait()
}

// spawn runs f on a goroutine of its own, unless the Service is closed.
func (s *Service) spawn(f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		f(s.ctx)
	}()
}

// later is spawn after a time.
func (s *Service) later(d time.Duration, f func(ctx context.Context)) (stop func() bool) {
	return s.cfg.Clock.AfterFunc(d, func() { s.spawn(f) })
}

// errUnauthorized is the one answer to everybody who isn't let in: whether it is
// for the token, the user or the room isn't their business.
// spec: MSC4195, "Error handling and information disclosure"
func errUnauthorized() error {
	return httpx.Err(401, "M_UNAUTHORIZED", "The request could not be authorised")
}

// entry is a request to join a call, by somebody who has proven who they are.
type entry struct {
	room   mxid.RoomID
	slot   string
	user   mxid.UserID
	device mxid.DeviceID
	member string // of MSC4195, "" for clients of before
	// everybody may publish over the endpoint of before MSC4195, whose
	// clients all publish to one SFU.
	everybody bool
	// via asks for the participants of this server only, through a link to it.
	via   mxid.ServerName
	delay string // delayed event to delegate, "" for none
}

func (e entry) place() place {
	id := legacyIdentity(e.user, e.device)
	if e.member != "" {
		id = identity(e.user, e.device, e.member)
	}
	return place{key: key{alias(e.room, e.slot), id}, room: e.room, user: e.user, device: e.device}
}

// answer is what a client needs to join.
type answer struct {
	URL string `json:"url"`
	JWT string `json:"jwt"`
}

// admit lets somebody into a call.
func (s *Service) admit(ctx context.Context, e entry) (answer, error) {
	p, err := s.enter(ctx, e)
	if err != nil {
		return answer{}, err
	}
	if e.delay != "" {
		if err := s.delegate(ctx, p, e.delay); err != nil {
			return answer{}, err
		}
	}
	// Others publish on the SFU of their own server.
	// spec: MSC4195, "LiveKit JWT Permission Grants"
	publish := e.everybody || s.local(e.user) && e.via == ""
	g := sfu.Grant{Room: p.alias, Identity: p.identity, CanPublish: publish, CanSubscribe: true,
		CanPublishData: publish, CanUpdateMetadata: publish, Via: string(e.via), Note: s.seal(e, p.key), Expires: s.cfg.Clock.Now().Add(TokenLifetime)}
	if e.via != "" {
		g.First = legacyIdentity(e.user, e.device)
	}
	jwt, err := s.cfg.Calls.Token(g)
	if err != nil {
		return answer{}, fmt.Errorf("rtc: make a token: %w", err)
	}
	if s.isRevoked(p) { // in between; the kick may have come before the token
		s.cfg.Calls.Kick(p.alias, p.identity)
		return answer{}, errUnauthorized()
	}
	return answer{URL: s.media, JWT: jwt}, nil
}

// enter checks a request and remembers whose place it is.
func (s *Service) enter(ctx context.Context, e entry) (*place, error) {
	if err := s.known(ctx, e); err != nil {
		return nil, err
	}
	p, err := s.places.reserve(e.place(), s.cfg.Clock.Now())
	if err != nil {
		return nil, err
	}
	s.sweepLater()
	ok, err := s.joined(ctx, e.room, e.user)
	if err == nil && !ok {
		s.revoke([]*place{p})
		err = errUnauthorized()
	}
	return p, err
}

// known checks that a local user's account is in use, and that they have the
// device: it is by the device that a logout ends calls.
func (s *Service) known(ctx context.Context, e entry) error {
	if !s.local(e.user) {
		return nil
	}
	a, err := s.cfg.Users.Account(ctx, e.user)
	if err == nil && (a.Deactivated || a.Locked) {
		return errUnauthorized()
	}
	if err == nil {
		_, err = s.cfg.Users.Device(ctx, e.user, e.device)
	}
	return hideNotFound(err)
}

func hideNotFound(err error) error {
	if e := (*httpx.Error)(nil); errors.Is(err, storage.ErrNotFound) || errors.As(err, &e) && e.Status == 404 {
		return errUnauthorized()
	}
	return err
}

// joined reports whether a user is joined to a room that this server is in,
// from where its access list lets them come.
func (s *Service) joined(ctx context.Context, id mxid.RoomID, u mxid.UserID) (bool, error) {
	in, err := s.cfg.Rooms.InRoom(ctx, id)
	if err != nil || !in {
		return false, err
	}
	m, err := s.cfg.Rooms.Membership(ctx, id, u)
	if err != nil || m != room.Join {
		return false, err
	}
	return s.cfg.Rooms.ServerAllowed(ctx, id, u.Server())
}

func (s *Service) local(u mxid.UserID) bool { return u.Server() == s.cfg.ServerName }

func (s *Service) isRevoked(p *place) bool {
	s.places.mu.Lock()
	defer s.places.mu.Unlock()
	return p.revoked
}

// sweepLater forgets what has expired, once a while.
func (s *Service) sweepLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweeps || s.closed {
		return
	}
	s.sweeps = true
	s.cfg.Clock.AfterFunc(sweepTime, func() {
		more := s.places.sweep(s.cfg.Clock.Now())
		s.mu.Lock()
		s.sweeps = false
		s.mu.Unlock()
		if more {
			s.sweepLater()
		}
	})
}
