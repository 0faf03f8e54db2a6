package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protowire"
)

// The few messages of the LiveKit client protocol that a call needs, by their
// field numbers.
const (
	requestOffer    = 1
	requestAddTrack = 4
	requestLeave    = 8
	requestPing     = 16

	responseJoin      = 1
	responseAnswer    = 2
	responseTrickle   = 4
	responsePublished = 6
	responseLeave     = 8
	responseSections  = 25
)

// answer is the server's answer to an offer.
type answer struct {
	id  uint64
	sdp string
}

// signalEvents is what a server says.
type signalEvents struct {
	answers   chan answer
	trickles  chan string // candidate lines
	published chan string // client IDs of tracks
	sections  chan [2]int // further audio and video sections to receive
	failed    chan error
}

// signalling is one participant's connection to the server.
type signalling struct {
	ws *websocket.Conn
	signalEvents
}

// admission is where and how to join a call.
type admission struct {
	url, token string
}

// dialSignalling joins with an offer.
func dialSignalling(ctx context.Context, a admission, sdp string) (*signalling, error) {
	var client, settings, join []byte
	client = appendVarint(client, 1, 5) // Go
	client = appendString(client, 2, "2.0.0")
	client = appendVarint(client, 3, 17)
	client = appendVarint(client, 12, 1)
	settings = appendVarint(settings, 1, 1) // subscribe to everything
	join = appendBytes(join, 1, client)
	join = appendBytes(join, 2, settings)
	join = appendBytes(join, 6, description("offer", sdp, 1))
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(join); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	wrapped := appendVarint(nil, 1, 1)
	wrapped = appendBytes(wrapped, 2, packed.Bytes())

	q := url.Values{"access_token": {a.token}, "join_request": {base64.URLEncoding.EncodeToString(wrapped)}}
	ws, _, err := websocket.Dial(ctx, strings.TrimRight(a.url, "/")+"/rtc/v1?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("signalling: %w", withoutToken(err, a.token))
	}
	ws.SetReadLimit(4 << 20)
	s := &signalling{ws: ws, signalEvents: signalEvents{
		answers: make(chan answer, 8), trickles: make(chan string, 32), published: make(chan string, 8),
		sections: make(chan [2]int, 32), failed: make(chan error, 1),
	}}
	go s.read(ctx)
	return s, nil
}

// withoutToken keeps tokens out of what is printed.
func withoutToken(err error, token string) error {
	return errors.New(strings.ReplaceAll(err.Error(), url.QueryEscape(token), "…"))
}

func (s *signalling) read(ctx context.Context) {
	for {
		_, raw, err := s.ws.Read(ctx)
		if err == nil {
			err = s.handle(raw)
		}
		if err != nil {
			s.failed <- err
			return
		}
	}
}

func (s *signalling) handle(raw []byte) error {
	kind, body, err := firstField(raw)
	if err != nil {
		return err
	}
	switch kind {
	case responseAnswer:
		f := fields(body)
		s.answers <- answer{id: f.number(3), sdp: f.text(2)}
	case responseTrickle:
		var c struct{ Candidate string }
		if json.Unmarshal([]byte(fields(body).text(1)), &c) == nil {
			s.trickles <- c.Candidate
		}
	case responsePublished:
		s.published <- fields(body).text(1)
	case responseSections:
		f := fields(body)
		s.sections <- [2]int{int(f.number(1)), int(f.number(2))}
	case responseLeave:
		return fmt.Errorf("the server ends the session, reason %d", fields(body).number(2))
	}
	return nil
}

func (s *signalling) send(ctx context.Context, kind protowire.Number, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.ws.Write(ctx, websocket.MessageBinary, appendBytes(nil, kind, body))
}

func (s *signalling) offer(ctx context.Context, sdp string, id uint64) error {
	return s.send(ctx, requestOffer, description("offer", sdp, id))
}

// addTrack announces a track and waits for the server to accept it.
func (s *signalling) addTrack(ctx context.Context, t *published) error {
	var b []byte
	b = appendString(b, 1, t.cid)
	if t.video {
		b = appendVarint(b, 3, 1)
		b = appendVarint(b, 4, 1280)
		b = appendVarint(b, 5, 720)
		b = appendVarint(b, 8, 1) // camera
		for i, l := range t.layers {
			quality := uint64(i)
			if len(t.layers) == 1 {
				quality = 2
			}
			layer := appendVarint(nil, 1, quality)
			layer = appendVarint(layer, 2, uint64(1280>>(len(t.layers)-1-i)))
			layer = appendVarint(layer, 3, uint64(720>>(len(t.layers)-1-i)))
			layer = appendVarint(layer, 4, uint64(l.bitrate))
			b = appendBytes(b, 9, layer)
		}
	} else {
		b = appendVarint(b, 8, 2) // microphone
	}
	b = appendVarint(b, 13, 1) // no RED
	if err := s.send(ctx, requestAddTrack, b); err != nil {
		return err
	}
	select {
	case cid := <-s.published:
		if cid != t.cid {
			return fmt.Errorf("track %s is published instead of %s", cid, t.cid)
		}
		return nil
	case err := <-s.failed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("publishing a track: %w", ctx.Err())
	}
}

func (s *signalling) ping(ctx context.Context) error {
	return s.send(ctx, requestPing, appendVarint(nil, 1, uint64(time.Now().UnixMilli())))
}

func (s *signalling) leave(ctx context.Context) {
	_ = s.send(ctx, requestLeave, appendVarint(nil, 2, 1))
	_ = s.ws.Close(websocket.StatusNormalClosure, "")
}

func description(kind, sdp string, id uint64) []byte {
	b := appendString(nil, 1, kind)
	b = appendString(b, 2, sdp)
	return appendVarint(b, 3, id)
}

func appendVarint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func appendBytes(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func appendString(b []byte, n protowire.Number, v string) []byte { return appendBytes(b, n, []byte(v)) }

// message is a decoded protobuf message: the last value of each field.
type message map[protowire.Number]any

func (m message) text(n protowire.Number) string {
	b, _ := m[n].([]byte)
	return string(b)
}

func (m message) number(n protowire.Number) uint64 {
	v, _ := m[n].(uint64)
	return v
}

func fields(raw []byte) message {
	m := message{}
	for len(raw) > 0 {
		n, kind, size := protowire.ConsumeTag(raw)
		if size < 0 {
			return m
		}
		raw = raw[size:]
		switch kind {
		case protowire.VarintType:
			v, size := protowire.ConsumeVarint(raw)
			if size < 0 {
				return m
			}
			m[n], raw = v, raw[size:]
		case protowire.BytesType:
			v, size := protowire.ConsumeBytes(raw)
			if size < 0 {
				return m
			}
			m[n], raw = v, raw[size:]
		default:
			size := protowire.ConsumeFieldValue(n, kind, raw)
			if size < 0 {
				return m
			}
			raw = raw[size:]
		}
	}
	return m
}

// firstField gives the number and the bytes of a oneof's field.
func firstField(raw []byte) (protowire.Number, []byte, error) {
	n, kind, size := protowire.ConsumeTag(raw)
	if size < 0 {
		return 0, nil, protowire.ParseError(size)
	}
	if kind != protowire.BytesType {
		return n, nil, nil
	}
	body, size := protowire.ConsumeBytes(raw[size:])
	if size < 0 {
		return 0, nil, protowire.ParseError(size)
	}
	return n, body, nil
}
