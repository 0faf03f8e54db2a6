package clientapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"parley/internal/clock"
	"parley/internal/httpx"
)

// limitClass groups requests that share a budget.
type limitClass uint8

const (
	limNone      limitClass = iota
	limRead                 // cheap reads
	limWrite                // settings of the user
	limMessage              // events
	limEphemeral            // typing, receipts, presence
	limMember               // joins, knocks, leaves, kicks, bans
	limInvite               // invites
	limCreate               // new rooms and upgrades
	limKeys                 // end-to-end keys and to-device messages
	limHeavy                // searches and whatever may ask other servers
	limLogin                // password and token checks
	limRegister             // new accounts
	limGuess                // questions that could be used to guess secrets
	limReport               // reports to the operator
	limDelay                // managing delayed events: a client in a call does so every few seconds
	limDelayAddr            // the same without a token, by address
	limCall                 // joining calls
	limClasses
)

// budget is a sustained rate a second and how many requests may come at once.
// The numbers leave room for a busy human with several clients; a program that
// needs more can be made by the operator to run without limits.
type budget struct {
	perSecond rate.Limit
	burst     int
}

var budgets = [limClasses]budget{
	limRead:      {50, 400},
	limWrite:     {5, 60},
	limMessage:   {10, 60},
	limEphemeral: {10, 60},
	limMember:    {1, 30},
	limInvite:    {1, 60},
	limCreate:    {0.1, 20},
	limKeys:      {50, 500}, // keys of a call go to each device of all who are in it
	limHeavy:     {5, 60},
	limLogin:     {0.2, 10},
	limRegister:  {0.05, 10},
	limGuess:     {1, 60},
	limReport:    {0.1, 10},
	limCall:      {2, 60}, // an office behind one address starts its meetings at the same minute
	limDelay:     {10, 60},
	limDelayAddr: {100, 1000},
}

const (
	// maxBuckets is how many clients a generation of the table remembers;
	// two generations are kept.
	maxBuckets = 50_000
	// saltLife is how long one salt hashes addresses.
	saltLife = time.Hour
)

type bucketKey [17]byte // class, then 16 bytes of who

// limiter counts requests by user number and by salted hash of the address.
// The table is two generations of maps: a full young one becomes the old one,
// so that memory is bounded and those who keep coming are remembered.
type limiter struct {
	clk clock.Clock
	rnd io.Reader

	mu         sync.Mutex
	young, old map[bucketKey]*rate.Limiter
	salt       [2][32]byte // this hour's and the one before
	saltUntil  time.Time
}

func newLimiter(clk clock.Clock, rnd io.Reader) *limiter {
	return &limiter{clk: clk, rnd: rnd, young: map[bucketKey]*rate.Limiter{}}
}

// user takes one request of the class from a local user's budget.
func (l *limiter) user(class limitClass, uid uint32) error {
	k := bucketKey{byte(class)}
	binary.BigEndian.PutUint32(k[13:], uid)
	k[1] = 'u'
	return l.take(class, k, k)
}

// name takes one request from the budget of something named, such as the
// account that a login is for.
func (l *limiter) name(class limitClass, name string) error {
	return l.hashed(class, 'n', []byte(name))
}

// addr takes one request from the budget of a client address: one IPv4
// address, or an IPv6 /56, which is what one customer gets.
func (l *limiter) addr(class limitClass, ip string) error {
	return l.hashed(class, 'a', addrPrefix(ip))
}

func addrPrefix(ip string) []byte {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return []byte("?")
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 56
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return []byte("?")
	}
	return p.Addr().AsSlice()
}

func (l *limiter) hashed(class limitClass, kind byte, who []byte) error {
	salts, err := l.salts()
	if err != nil {
		return err
	}
	return l.take(class, hashKey(salts[0], class, kind, who), hashKey(salts[1], class, kind, who))
}

func hashKey(salt [32]byte, class limitClass, kind byte, who []byte) bucketKey {
	m := hmac.New(sha256.New, salt[:])
	m.Write([]byte{kind})
	m.Write(who)
	k := bucketKey{byte(class)}
	copy(k[1:], m.Sum(nil))
	return k
}

// salts returns the salt of now and the one before, changing them when due.
func (l *limiter) salts() ([2][32]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clk.Now()
	if now.Before(l.saltUntil) {
		return l.salt, nil
	}
	l.salt[1] = l.salt[0]
	if _, err := io.ReadFull(l.rnd, l.salt[0][:]); err != nil {
		return l.salt, err
	}
	if l.saltUntil.IsZero() {
		l.salt[1] = l.salt[0]
	}
	l.saltUntil = now.Add(saltLife)
	return l.salt, nil
}

// take looks for the bucket under k, then under the key of the salt before.
func (l *limiter) take(class limitClass, k, before bucketKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.find(k)
	if b == nil && before != k {
		b = l.find(before)
	}
	if b == nil {
		b = rate.NewLimiter(budgets[class].perSecond, budgets[class].burst)
	}
	l.remember(k, b)
	now := l.clk.Now()
	r := b.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	r.CancelAt(now)
	return httpx.LimitExceeded(wait)
}

func (l *limiter) find(k bucketKey) *rate.Limiter {
	if b := l.young[k]; b != nil {
		return b
	}
	return l.old[k]
}

func (l *limiter) remember(k bucketKey, b *rate.Limiter) {
	if _, ok := l.young[k]; !ok && len(l.young) >= maxBuckets {
		l.old, l.young = l.young, map[bucketKey]*rate.Limiter{}
	}
	l.young[k] = b
}
