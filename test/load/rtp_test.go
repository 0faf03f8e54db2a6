package main

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

func TestFeedbackTellsWhatArrived(t *testing.T) {
	var a arrivals
	start := int64(5_000_000_000)
	// 65534 to 3, without 65535, two out of order, one after a long pause.
	for i, seq := range []uint16{65534, 1, 0, 2, 3} {
		a.add(seq, start+int64(i)*1_000_000+int64(i/4)*100_000_000)
	}
	raw, err := a.take().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var f rtcp.TransportLayerCC
	if err := f.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	if f.BaseSequenceNumber != 65534 || f.PacketStatusCount != 6 || len(f.RecvDeltas) != 5 {
		t.Errorf("feedback from %d, %d packets, %d arrived", f.BaseSequenceNumber, f.PacketStatusCount, len(f.RecvDeltas))
	}
	sum := int64(f.ReferenceTime) * 64_000
	for _, d := range f.RecvDeltas {
		sum += d.Delta
	}
	if want := (start + 104_000_000) / 1000; sum < want-250 || sum > want {
		t.Errorf("the last packet arrived at %d µs, want %d", sum, want)
	}
	if a.take() != nil {
		t.Error("feedback of nothing")
	}
}

func TestPacketsAreReadAsTheyAreWritten(t *testing.T) {
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: typeVP8, SequenceNumber: 7, SSRC: 9}, Payload: []byte("payload")}
	for id, value := range map[uint8]string{extMID: "12", extTWCC: "\x01\x02"} {
		if err := p.SetExtension(id, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := transportSeq(raw); !ok || n != binary.BigEndian.Uint16([]byte{1, 2}) {
		t.Errorf("transport-wide number %d, %v", n, ok)
	}
	for n := range raw {
		transportSeq(append([]byte(nil), raw[:max(n, 12)]...)) // must not panic
	}
}

func TestAnswerIsRead(t *testing.T) {
	r := parseAnswer(strings.ReplaceAll(`v=0
a=ice-ufrag:abc
a=ice-pwd:secret
a=setup:passive
a=candidate:1 1 udp 2130706431 127.0.0.1 7881 typ host
a=candidate:2 1 tcp 1671430143 127.0.0.1 7881 typ host tcptype passive
a=candidate:3 1 udp 2130706431 192.0.2.1 7881 typ host
`, "\n", "\r\n"))
	if r.ufrag != "abc" || r.pwd != "secret" || r.active || len(r.candidates) != 1 || r.candidates[0].Port() != 7881 {
		t.Errorf("%+v", r)
	}
}
