package transport

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v4"
)

func FuzzSTUN(f *testing.F) {
	seed := func(attrs ...stun.Setter) {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, attrs...)...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Raw)
	}
	seed()
	seed(stun.NewUsername("a:b"), priority(1), controlling, useCandidate, stun.NewShortTermIntegrity("x"), stun.Fingerprint)
	seed(stun.NewUsername("nocolon"), controlled, rawAttribute{0x7777, []byte("abc")}, stun.Fingerprint)
	mac := hmac.New(sha1.New, []byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := append([]byte(nil), b...)
		var m stunMessage
		var scratch [integritySize]byte
		if !m.parse(b) {
			return
		}
		theirs := &stun.Message{Raw: append([]byte(nil), b...)}
		if err := theirs.Decode(); err != nil {
			t.Fatalf("taken, but pion says %v", err)
		}
		_ = m.localUfrag()
		if ok := m.integrity(mac, &scratch); ok && stun.NewShortTermIntegrity("x").Check(theirs) != nil {
			t.Fatal("an integrity that isn't there was accepted")
		}
		if !bytes.Equal(in, b) {
			t.Fatal("the message was changed")
		}
		w := newSTUN(make([]byte, 0, sendSlot), stunBindingSuccess, m.transaction())
		w.address(endpointOf(netip.MustParseAddrPort("192.0.2.1:3")))
		var again stunMessage
		if !again.parse(w.finish(mac, &scratch)) || !again.integrity(mac, &scratch) {
			t.Fatal("our answer is broken")
		}
	})
}

// FuzzPacket gives a shard with a connected client any packet from it, as it
// is and sealed.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x80, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3}, uint8(0))
	f.Add([]byte{0x90, 96, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0xbe, 0xde, 0, 1, 1, 2, 3, 4}, uint8(1))
	f.Add([]byte{0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2}, uint8(2))
	f.Add([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}, uint8(0))
	var last []byte
	x := newSealed(f, 1, dtls.SRTP_AEAD_AES_128_GCM, &discard{onRTP: func(p []byte) { last = append(last[:0], p...) }})
	src := source{from: x.addr, shard: x.shard}
	seq := uint16(0)
	f.Fuzz(func(t *testing.T, b []byte, how uint8) {
		if len(b) > MaxPacket {
			return
		}
		last = nil
		switch how % 3 {
		case 0:
			x.shard.handle(append([]byte(nil), b...), &src)
			if last != nil {
				t.Fatal("a packet without a seal came through")
			}
		case 1:
			n := rtpHeaderLen(b)
			if n == 0 || classify(b) != kindRTP {
				return
			}
			seq++
			binary.BigEndian.PutUint16(b[2:], seq)
			binary.BigEndian.PutUint32(b[8:], 5)
			sealed, err := x.client.sealRTP(make([]byte, 0, sendSlot), b[:n], b[n:])
			if err != nil {
				t.Fatal(err)
			}
			x.shard.handle(sealed, &src)
			if !bytes.Equal(last, b) {
				t.Fatal("a good packet got lost or changed")
			}
		case 2:
			if len(b) < 8 {
				return
			}
			if sealed, err := x.client.sealRTCP(make([]byte, 0, sendSlot), b); err == nil {
				x.shard.handle(sealed, &src)
			}
		}
		x.shard.drained()
	})
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1})
	f.Add([]byte{23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 30, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30})
	key := make([]byte, 16)
	gcm, err := newGCM(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &records{seal: gcm, open: gcm}
		for rest := b; ; {
			rec, next, ok := cutRecord(rest)
			if !ok {
				break
			}
			if len(next) >= len(rest) {
				t.Fatal("no progress")
			}
			r.decrypt(rec)
			rest = next
		}
		if len(b) > 1400 {
			return
		}
		sealed, err := r.appendRecord(nil, recordData, b)
		if err != nil {
			t.Fatal(err)
		}
		rec, rest, ok := cutRecord(sealed)
		if !ok || len(rest) != 0 {
			t.Fatal("our record is broken")
		}
		again := append([]byte(nil), rec.body...)
		if got, ok := r.decrypt(rec); !ok || !bytes.Equal(got, b) {
			t.Fatal("our record isn't opened")
		}
		if _, ok := r.decrypt(record{rec.typ, rec.number, again}); ok {
			t.Fatal("a record was opened twice")
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 1, 7, 0, 0, 0, 2, 8, 9})
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), 16<<10)
		buf := make([]byte, recvSlot)
		var back []byte
		for {
			whole := frameBuffered(r)
			n, err := readFrame(r, buf)
			if err != nil {
				if whole && n > 0 {
					t.Fatal("a whole frame was not read")
				}
				break
			}
			back = append(append(back, byte(n>>8), byte(n)), buf[:n]...)
		}
		if !bytes.HasPrefix(b, back) {
			t.Fatal("frames are not what was sent")
		}
	})
}

func FuzzDCEP(f *testing.F) {
	f.Add(dcepOpen(dcepUnordered|dcepRetransmits, 0, "_lossy"))
	f.Add([]byte{3})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseDCEP(b)
		if !ok {
			return
		}
		if again, ok := parseDCEP(dcepOpen(m.kind, m.value, m.label)); !ok || again != m {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

// fuzzedAssociation is an association between data and a real peer, into which
// a fuzzer puts packets.
type fuzzedAssociation struct {
	data *data
	peer *data
	mu   sync.Mutex
	tag  [8]byte // ports and verification tag of the peer's packets
}

func newFuzzedAssociation(f testing.TB) *fuzzedAssociation {
	x := &fuzzedAssociation{}
	pool := &sync.Pool{New: func() any { return new([MaxMessage]byte) }}
	up := make(chan struct{}, 10)
	deliver := func(string, []byte, bool) { up <- struct{}{} }
	var ready sync.WaitGroup
	ready.Add(1)
	x.data = &data{scratch: pool, failed: func() {}, deliver: deliver, out: func(b []byte) { ready.Wait(); x.peer.push(b) }}
	x.peer = &data{scratch: pool, failed: func() {}, deliver: deliver, isClient: true, out: func(b []byte) {
		ready.Wait()
		x.mu.Lock()
		if b[12] != 1 { // INIT has no tag
			copy(x.tag[:], b)
		}
		x.mu.Unlock()
		x.data.push(b)
	}}
	startData(x.data, false)
	startData(x.peer, true)
	ready.Done()
	if err := x.peer.send("label", []byte("hello"), true); err != nil {
		f.Fatal(err)
	}
	<-up
	return x
}

// FuzzSCTP puts chunks into an association with the right tag and checksum.
func FuzzSCTP(f *testing.F) {
	chunk := func(typ byte, body ...byte) []byte {
		return append([]byte{typ, 3, 0, byte(4 + len(body))}, body...)
	}
	f.Add(chunk(0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 51, 1, 2, 3, 4))
	f.Add(chunk(1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 9, 0, 0, 0, 1))
	f.Add(chunk(3, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 2, 0, 0, 0, 5))
	f.Add(chunk(4, 0, 1, 0, 8, 1, 2, 3, 4))
	f.Add(chunk(130, 0, 13, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9))
	f.Add(chunk(192, 0, 0, 0, 9, 0, 1, 0, 1))
	x := newFuzzedAssociation(f)
	f.Cleanup(func() { x.data.close(); x.peer.close() })
	table := crc32.MakeTable(crc32.Castagnoli)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > sctpMTU {
			return
		}
		for range sctpStreams(append(make([]byte, 12), b...)) {
		}
		x.mu.Lock()
		packet := append(append(append([]byte(nil), x.tag[:]...), 0, 0, 0, 0), b...)
		x.mu.Unlock()
		binary.LittleEndian.PutUint32(packet[8:], crc32.Checksum(packet, table))
		select {
		case x.data.in <- packet:
		case <-time.After(50 * time.Millisecond): // an ABORT or the like ended it: a new one
			x.data.close()
			x.peer.close()
			x = newFuzzedAssociation(t)
		}
	})
}

// FuzzHandshake gives a DTLS server any datagrams.
func FuzzHandshake(f *testing.F) {
	srv := &Server{}
	var err error
	if srv.cert, err = newCertificate(time.Unix(1e9, 0)); err != nil {
		f.Fatal(err)
	}
	first := make(chan []byte, 10)
	h := srv.startHandshake(0, true, fingerprint{}, func(b []byte) { first <- append([]byte(nil), b...) }, func(*session, error) {})
	f.Add(<-first, []byte{20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 1})
	h.cancel()
	f.Fuzz(func(t *testing.T, one, two []byte) {
		done := make(chan struct{})
		h := srv.startHandshake(0, false, fingerprint{}, func([]byte) {}, func(s *session, err error) {
			if err == nil {
				t.Error("connected")
			}
			close(done)
		})
		if h == nil {
			t.Fatal("no place")
		}
		h.pipe.push(one)
		h.pipe.push(two)
		for { // until pion has taken both and comes back for more
			h.pipe.mu.Lock()
			idle := len(h.pipe.queue) == 0
			h.pipe.mu.Unlock()
			if idle {
				break
			}
			runtime.Gosched()
		}
		h.cancel()
		<-done
	})
}
