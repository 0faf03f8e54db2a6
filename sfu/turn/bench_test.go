package turn

import (
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun/v4"
)

// BenchmarkRelay sends packets of a client to the SFU, through pion/turn and
// the relay's socket, and waits for each to come back.
func BenchmarkRelay(b *testing.B) {
	sfu, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer sfu.Close()
	go echo(sfu)
	back := make(chan []byte, 100)
	srv, err := New(Config{Addresses: newTestAddresses(), Clock: testClock{}, SFU: []Endpoint{{netip.AddrPortFrom(world, 7882), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), portOf(sfu))}},
		Send: func(p []byte, _ netip.AddrPort) error { back <- append([]byte(nil), p...); return nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	c := srv.Credentials("alice", "phone", Calls)
	from := netip.MustParseAddrPort("198.51.100.1:4000")
	ask := func(method stun.Method, attrs ...stun.Setter) *stun.Message {
		m := stun.MustBuild(append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attrs...)...)
		srv.Packet(m.Raw, from)
		out := &stun.Message{Raw: <-back}
		if err := out.Decode(); err != nil {
			b.Fatal(err)
		}
		return out
	}
	var nonce stun.Nonce
	if err := nonce.GetFrom(ask(stun.MethodAllocate, transport(17))); err != nil {
		b.Fatal(err)
	}
	signed := func(attrs ...stun.Setter) []stun.Setter {
		return append(attrs, stun.NewUsername(c.Username), stun.NewRealm(realm), nonce, stun.NewLongTermIntegrity(c.Username, realm, c.Password))
	}
	ask(stun.MethodAllocate, signed(transport(17))...)
	ask(stun.MethodChannelBind, signed(stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{0x40, 0, 0, 0}}, peer(netip.AddrPortFrom(world, 7882)))...)
	for r := range srv.ports {
		srv.ports[r].acc.bytes.SetLimit(1 << 40)
		srv.ports[r].acc.bytes.SetBurst(1 << 40)
	}
	data := append([]byte{0x40, 0, 0x04, 0xB0}, make([]byte, 1200)...)
	b.ReportAllocs()
	b.SetBytes(1200)
	for b.Loop() {
		srv.Packet(data, from)
		<-back
	}
}
