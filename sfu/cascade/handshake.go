package cascade

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/sfu/transport"
)

// Path of the federation endpoints; each is a signed POST with one of the
// bodies below.
const Path = "/_matrix/federation/unstable/org.parley.cascade/v1"

// Limits of the handshake.
const (
	// MaxBody is the largest body of a request or answer, in bytes.
	MaxBody       = 8 << 10
	wireVersion   = 1
	maxCandidates = 8
	maxNonce      = 64
	// freshFor is how old a request may be, and how long its nonce is
	// remembered.
	freshFor = 60 * time.Second
	// offersBurst and offersEvery bound the offers that a server makes.
	offersBurst = 8
	offersEvery = time.Second
)

// Offer is a server's description of its end of a link, as request and as
// answer.
type Offer struct {
	Version     int      `json:"v"`
	Epoch       string   `json:"epoch"`
	Nonce       string   `json:"nonce"`
	TimeMs      int64    `json:"ts"`
	Ufrag       string   `json:"ufrag"`
	Pwd         string   `json:"pwd"`
	Fingerprint string   `json:"fingerprint"`
	Candidates  []string `json:"candidates"`
	// TCP are addresses for when UDP is blocked (RFC 6544, passive).
	TCP []string `json:"tcp,omitempty"`
}

// Wake asks a server to dial.
type Wake struct {
	Version int    `json:"v"`
	Nonce   string `json:"nonce"`
	TimeMs  int64  `json:"ts"`
}

func (o *Offer) sound() bool {
	return o.Version == wireVersion && len(o.Epoch) <= maxNonce && len(o.Ufrag) >= 4 && len(o.Ufrag) <= 256 &&
		len(o.Pwd) >= 22 && len(o.Pwd) <= 256 && len(o.Fingerprint) <= 256 && len(o.Candidates) <= maxCandidates && len(o.TCP) <= maxCandidates
}

// addresses are the candidates that this server may send to.
func (s *Service) addresses(candidates []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range candidates {
		a, err := netip.ParseAddrPort(c)
		if err == nil && a.Port() != 0 && a.Addr().Zone() == "" && s.cfg.Guard.Check(a.Addr()) == nil {
			out = append(out, a)
		}
	}
	return out
}

// offer describes this end of a trunk.
func (s *Service) offer(t trunk) *Offer {
	o := &Offer{Version: wireVersion, Epoch: s.epoch, Nonce: newNonce(), TimeMs: s.cfg.Clock.Now().UnixMilli(),
		Ufrag: t.Local().Ufrag, Pwd: t.Local().Pwd, Fingerprint: t.Fingerprint()}
	for _, c := range t.Candidates() {
		list := &o.Candidates
		if c.TCP {
			list = &o.TCP
		}
		if len(*list) < maxCandidates {
			*list = append(*list, c.Addr.String())
		}
	}
	return o
}

func (o *Offer) remote(active bool) transport.Remote {
	return transport.Remote{Ufrag: o.Ufrag, Pwd: o.Pwd, Fingerprint: o.Fingerprint, Active: active, Link: true}
}

func errHandshake() error { return httpx.BadJSON("This description of a link can't be used") }

// HandleLink takes the offer of a server that dials and answers it. body is
// checked JSON that origin has signed for this server. The error is a
// *httpx.Error.
func (s *Service) HandleLink(_ context.Context, origin mxid.ServerName, body json.RawMessage) (any, error) {
	var o Offer
	if len(body) > MaxBody || json.Unmarshal(body, &o) != nil || !o.sound() || s.dials(origin) || origin == s.cfg.ServerName {
		return nil, errHandshake()
	}
	type result struct {
		answer *Offer
		err    error
	}
	done := make(chan result, 1)
	if !s.post(func() {
		a, err := s.offered(origin, &o)
		done <- result{a, err}
	}) {
		return nil, httpx.Unavailable()
	}
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	return r.answer, nil
}

// offered accepts a link.
func (s *Service) offered(origin mxid.ServerName, o *Offer) (*Offer, error) {
	p, err := s.handshake(origin, o.Nonce, o.TimeMs)
	if err != nil {
		return nil, err
	}
	p.drop()
	p.connect()
	p.trunk.Connect(o.remote(true), nil)
	p.run(p.machine.step(evOffered, s.now()))
	return s.offer(p.trunk), nil
}

// HandleWake takes the wish of a server that this server dials.
func (s *Service) HandleWake(_ context.Context, origin mxid.ServerName, body json.RawMessage) (any, error) {
	var w Wake
	if len(body) > MaxBody || json.Unmarshal(body, &w) != nil || w.Version != wireVersion || !s.dials(origin) {
		return nil, errHandshake()
	}
	done := make(chan error, 1)
	if !s.post(func() { done <- s.woken(origin, &w) }) {
		return nil, httpx.Unavailable()
	}
	if err := <-done; err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

func (s *Service) woken(origin mxid.ServerName, w *Wake) error {
	p, err := s.handshake(origin, w.Nonce, w.TimeMs)
	if err != nil {
		return err
	}
	now := s.now()
	p.woken = now.Add(idleTimeout)
	if p.machine.state == waiting {
		p.machine.until = now // it is there
	}
	if p.machine.state == up {
		// It has lost the link; ours hasn't noticed yet.
		p.machine.state = idle
		p.drop()
	}
	p.refresh()
	return nil
}

// handshake finds the peer of a request that is fresh, new and not too soon.
func (s *Service) handshake(origin mxid.ServerName, nonce string, ms int64) (*peer, error) {
	now := s.now()
	if d := now.Sub(time.UnixMilli(ms)); s.closed || d > freshFor || d < -freshFor || nonce == "" || len(nonce) > maxNonce {
		return nil, errHandshake()
	}
	p := s.peer(origin)
	if p == nil {
		return nil, httpx.Unavailable()
	}
	for n, until := range p.nonces {
		if now.After(until) {
			delete(p.nonces, n)
		}
	}
	if _, seen := p.nonces[nonce]; seen {
		return nil, errHandshake()
	}
	if !p.offers.AllowN(now, 1) {
		return nil, httpx.LimitExceeded(offersEvery)
	}
	p.nonces[nonce] = now.Add(2 * freshFor)
	return p, nil
}
