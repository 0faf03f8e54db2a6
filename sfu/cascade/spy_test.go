package cascade

import (
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/sfu/transport"
)

// spy is a server that keeps every bit that others tell it, after decryption.
// Its name must be the greater one, so that it is dialled.
type spy struct {
	t         *testing.T
	transport *transport.Server
	conn      *transport.Conn // shard only

	mu       sync.Mutex
	offers   []Offer
	messages []string
	packets  [][]byte
	up       bool
}

func (w *world) spy(name mxid.ServerName) *spy {
	w.t.Helper()
	tr, err := transport.Open(transport.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Loopback: true, Shards: 1,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Clock: clock.Real{}})
	must(w.t, err)
	w.t.Cleanup(tr.Close)
	s := &spy{t: w.t, transport: tr}
	w.mu.Lock()
	w.spies[name], w.users[name] = s, 10
	w.mu.Unlock()
	return s
}

// answer takes a link.
func (s *spy) answer(o *Offer) Offer {
	s.mu.Lock()
	s.offers = append(s.offers, *o)
	s.mu.Unlock()
	out := make(chan transport.Params, 1)
	sh := s.transport.Shards()[0]
	sh.Do(func() {
		s.conn = sh.NewConn(s)
		must(s.t, s.conn.SetRemote(o.remote(true)))
		out <- s.conn.Local()
	})
	p := <-out
	return Offer{Version: wireVersion, Epoch: "spy", Nonce: newNonce(), TimeMs: time.Now().UnixMilli(), Ufrag: p.Ufrag, Pwd: p.Pwd,
		Fingerprint: s.transport.Fingerprint(), Candidates: []string{s.transport.Candidates()[0].Addr.String()}}
}

// tell sends a message.
func (s *spy) tell(m *message) {
	s.transport.Shards()[0].Do(func() { _ = s.conn.SendMessage("cascade", m.encode(), true) })
}

func (s *spy) HandleRTP(_ *transport.Conn, p []byte, _ int64)  { s.keep(p) }
func (s *spy) HandleRTCP(_ *transport.Conn, p []byte, _ int64) { s.keep(p) }
func (s *spy) HandleDrained(int64)                             {}

func (s *spy) keep(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets = append(s.packets, append([]byte(nil), p...))
}

func (s *spy) HandleState(_ *transport.Conn, st transport.State) {
	if st == transport.StateConnected {
		s.mu.Lock()
		s.up = true
		s.mu.Unlock()
		s.tell(&message{Kind: kindHello, Epoch: "spy"})
	}
}

func (s *spy) HandleMessage(_ *transport.Conn, _ string, data []byte, _ bool) {
	m, err := decode(data)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	s.messages = append(s.messages, string(data))
	s.mu.Unlock()
	switch m.Kind {
	case kindOpen: // it takes part, and wants everything
		s.tell(&message{Kind: kindOK, Peer: m.Room})
		s.tell(&message{Kind: kindOpen, Room: 1, Alias: m.Alias})
	case kindParts:
		for _, p := range m.Parts {
			for _, t := range p.Tracks {
				s.tell(&message{Kind: kindWant, Room: 1, Track: t.Track, Seq: 1, Mask: 7})
			}
		}
	}
}

// told is everything that was told, and how much media came.
func (s *spy) told() (text string, packets [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		text += m + "\n"
	}
	return text, s.packets
}
