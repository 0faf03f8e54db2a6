package transport

import (
	"net"
	"net/netip"
	"testing"
)

func TestForeign(t *testing.T) {
	stun := func(typ uint16) []byte {
		b := make([]byte, 20)
		b[0], b[1] = byte(typ>>8), byte(typ)
		copy(b[4:], "\x21\x12\xa4\x42")
		return b
	}
	for i, tt := range []struct {
		b    []byte
		want bool
	}{
		{stun(0x0003), true}, {stun(0x0016), true}, {stun(0x0008), true}, {stun(0x0104), true}, // TURN
		{stun(0x0001), false}, {stun(0x0011), false}, {stun(0x0101), false}, {stun(0x0111), false}, // ICE
		{stun(0x0003)[:19], false}, {make([]byte, 20), false}, {nil, false}, {[]byte{64, 0, 0}, false},
		{[]byte{64, 0, 0, 0}, true}, {[]byte{79, 255, 0, 1, 1}, true}, {[]byte{80, 0, 0, 0}, false}, {[]byte{22, 0, 0, 0}, false}, {[]byte{128, 0, 0, 0}, false},
	} {
		if got := foreign(tt.b); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}

// TestForeignIsPassedOn: what is TURN's goes to TURN, and its answers come from
// the same port.
func TestForeignIsPassedOn(t *testing.T) {
	got := make(chan string, 10)
	var srv *Server
	ready := make(chan struct{})
	srv, err := Open(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Shards: 2, Foreign: func(b []byte, from netip.AddrPort) {
		<-ready
		got <- string(b)
		_ = srv.SendForeign([]byte("answer"), from)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	close(ready)
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(srv.Candidates()[0].Addr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("@\x01\x00\x04data")); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "@\x01\x00\x04data" {
		t.Errorf("%q", s)
	}
	b := make([]byte, 100)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "answer" {
		t.Errorf("%q %v", b[:n], err)
	}
}
