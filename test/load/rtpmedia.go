package main

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
)

// Every payload of ours ends with a mark, the track's number and the time when
// it was sent.
const (
	mark     = 0x50617230
	tailSize = 16
)

var epoch = time.Now()

func sinceEpoch() int64 { return int64(time.Since(epoch)) }

// layer is one RTP stream that is sent.
type layer struct {
	rid     string
	ssrc    uint32
	bitrate int
	seq     uint16
	ts      uint32
	sent    uint32
	octets  uint32
	picture uint16
	key     atomic.Bool // the next frame is a key frame
}

// published is a track that a participant sends.
type published struct {
	number uint32
	cid    string
	mid    string
	video  bool
	layers []*layer
}

func newPublished(number uint32, cid string, video bool, bitrates ...int) *published {
	t := &published{number: number, cid: cid, video: video}
	rids := []string{"q", "h", "f"}
	for i, rate := range bitrates {
		l := &layer{rid: rids[i], ssrc: rand.Uint32(), bitrate: rate, seq: uint16(rand.Uint32()), ts: rand.Uint32()}
		l.key.Store(true)
		t.layers = append(t.layers, l)
	}
	return t
}

const (
	audioEvery = 20 * time.Millisecond
	videoEvery = 33 * time.Millisecond
	maxPayload = 1150
	audioBytes = 80
)

// publish sends the tracks until stop, and sender reports every second.
func publish(l *link, tracks []*published, twcc *atomic.Uint32, stop <-chan struct{}) {
	audio, video, report := time.NewTicker(audioEvery), time.NewTicker(videoEvery), time.NewTicker(time.Second)
	defer audio.Stop()
	defer video.Stop()
	defer report.Stop()
	buf := make([]byte, 0, 1500)
	for {
		select {
		case <-stop:
			return
		case <-report.C:
			sendReports(l, tracks)
		case <-audio.C:
			for _, t := range tracks {
				if !t.video {
					t.layers[0].ts += 960
					buf = sendPacket(l, t, t.layers[0], twcc, buf, nil, audioBytes, true)
				}
			}
		case <-video.C:
			for _, t := range tracks {
				for _, y := range t.layers {
					if t.video {
						buf = sendFrame(l, t, y, twcc, buf)
					}
				}
			}
		}
	}
}

// sendFrame sends a VP8 frame of the size that the bit rate gives.
func sendFrame(l *link, t *published, y *layer, twcc *atomic.Uint32, buf []byte) []byte {
	y.ts += uint32(90000 * videoEvery / time.Second)
	y.picture++
	key := y.key.Swap(false)
	left := y.bitrate * int(videoEvery) / int(time.Second) / 8
	for first := true; left > 0; first = false {
		n := max(min(left, maxPayload), 40)
		left -= n
		head := []byte{0x80, 0xF0, 0x80 | byte(y.picture>>8), byte(y.picture), byte(y.picture), 0x20}
		if first {
			head[0] |= 0x10
			frame := byte(0x11) // an inter frame, shown
			if key {
				frame = 0x10
			}
			head = append(head, frame, 0, 0)
			if key {
				head = append(head, 0x9d, 0x01, 0x2a, 0x00, 0x05, 0xd0, 0x02)
			}
		}
		buf = sendPacket(l, t, y, twcc, buf, head, n, left <= 0)
	}
	return buf
}

// sendPacket sends one packet whose payload begins with head and has n bytes.
func sendPacket(l *link, t *published, y *layer, twcc *atomic.Uint32, buf, head []byte, n int, last bool) []byte {
	kind := byte(typeOpus)
	if t.video {
		kind = typeVP8
	}
	if last && t.video {
		kind |= 0x80
	}
	b := append(buf[:0], 0x90, kind)
	b = binary.BigEndian.AppendUint16(b, y.seq)
	b = binary.BigEndian.AppendUint32(b, y.ts)
	b = binary.BigEndian.AppendUint32(b, y.ssrc)
	b = append(b, 0xBE, 0xDE, 0, 0)
	start := len(b)
	b = append(b, extTWCC<<4|1)
	b = binary.BigEndian.AppendUint16(b, uint16(twcc.Add(1)))
	if !t.video {
		b = append(b, extLevel<<4, 0x80|20)
	}
	// Browsers name the section until they have heard that packets arrive.
	if y.sent < 200 {
		b = append(append(b, extMID<<4|byte(len(t.mid)-1)), t.mid...)
		if len(t.layers) > 1 {
			b = append(append(b, extRID<<4|byte(len(y.rid)-1)), y.rid...)
		}
	}
	for (len(b)-start)%4 != 0 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[start-2:], uint16((len(b)-start)/4))
	b = append(b, head...)
	for i := len(head); i < n-tailSize; i++ {
		b = append(b, byte(i))
	}
	b = binary.BigEndian.AppendUint32(b, mark)
	b = binary.BigEndian.AppendUint32(b, t.number)
	b = binary.BigEndian.AppendUint64(b, uint64(sinceEpoch()))
	y.seq++
	y.sent++
	y.octets += uint32(n)
	l.sendRTP(b)
	return b
}

func sendReports(l *link, tracks []*published) {
	now := time.Now()
	ntp := uint64(now.Unix()+2208988800)<<32 | uint64(now.Nanosecond())<<32/1e9
	for _, t := range tracks {
		for _, y := range t.layers {
			raw, err := rtcp.Marshal([]rtcp.Packet{
				&rtcp.SenderReport{SSRC: y.ssrc, NTPTime: ntp, RTPTime: y.ts, PacketCount: y.sent, OctetCount: y.octets},
				&rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{Source: y.ssrc, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "load"}}}}},
			})
			if err == nil {
				l.sendRTCP(raw)
			}
		}
	}
}
