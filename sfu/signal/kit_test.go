package signal_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"parley/internal/await"
	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/sfutest"
	"parley/sfu/signal"
	"parley/sfu/signal/wire"
)

// world is a signalling server over a packet plane that only remembers.
type world struct {
	t      *testing.T
	clk    *clock.Fake
	tokens *signal.Tokens
	media  *sfutest.Media
	server *sfu.Server
	http   *httptest.Server
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, clk: clock.NewFake(time.Now()), media: &sfutest.Media{}}
	w.tokens = signal.NewTokens(nil, w.clk)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	w.server = sfu.NewServer(sfu.Config{Media: w.media, Tokens: w.tokens, Data: signal.Packets{}, Clock: w.clk, Log: log})
	w.http = httptest.NewServer(http.StripPrefix("/base", signal.New(signal.Config{Server: w.server, Tokens: w.tokens, Clock: w.clk, Log: log})))
	t.Cleanup(w.http.Close)
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) token(identity string) string {
	w.t.Helper()
	s, err := w.tokens.Mint(sfu.Grant{Room: "room", Identity: identity, Name: identity, CanPublish: true, CanSubscribe: true, CanPublishData: true,
		CanUpdateMetadata: true, Expires: w.clk.Now().Add(time.Hour)})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// joinRequest is the query parameter of a join.
func joinRequest(t testing.TB, j *wire.JoinRequest, zip bool) string {
	t.Helper()
	raw, err := proto.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := &wire.WrappedJoinRequest{JoinRequest: raw}
	if zip {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(raw)
		_ = z.Close()
		wrapped = &wire.WrappedJoinRequest{Compression: wire.WrappedJoinRequest_GZIP, JoinRequest: b.Bytes()}
	}
	if raw, err = proto.Marshal(wrapped); err != nil {
		t.Fatal(err)
	}
	return base64.URLEncoding.EncodeToString(raw)
}

// client is a client's end of a WebSocket.
type client struct {
	t    *testing.T
	ws   *websocket.Conn
	text bool
	more chan struct{} // something came, or the end

	mu  sync.Mutex
	got []*wire.SignalResponse
	end error
}

// dial opens a WebSocket; status is the HTTP status if that fails.
func (w *world) dial(path string, q url.Values) (*client, int) {
	w.t.Helper()
	ws, resp, err := websocket.Dial(context.Background(), w.http.URL+"/base"+path+"?"+q.Encode(), nil)
	if err != nil {
		if resp == nil {
			w.t.Fatal(err)
		}
		return nil, resp.StatusCode
	}
	ws.SetReadLimit(1 << 20)
	c := &client{t: w.t, ws: ws, more: make(chan struct{}, 1)}
	go c.readAll()
	w.t.Cleanup(func() { _ = ws.CloseNow() })
	return c, http.StatusSwitchingProtocols
}

func (c *client) readAll() {
	for {
		typ, frame, err := c.ws.Read(context.Background())
		m := &wire.SignalResponse{}
		if err == nil && typ == websocket.MessageText {
			err = protojson.Unmarshal(frame, m)
		} else if err == nil {
			err = proto.Unmarshal(frame, m)
		}
		c.mu.Lock()
		if err == nil {
			c.got = append(c.got, m)
		}
		c.end = err
		c.mu.Unlock()
		select {
		case c.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (c *client) messages() []*wire.SignalResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func (c *client) ended() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.end != nil }

// kind is the name of what a message carries.
func kind(m proto.Message) string {
	r := m.ProtoReflect()
	if f := r.WhichOneof(r.Descriptor().Oneofs().ByName("message")); f != nil {
		return f.JSONName()
	}
	return ""
}

func (c *client) kinds() (out []string) {
	for _, m := range c.messages() {
		out = append(out, kind(m))
	}
	return out
}

// count is how many messages of a kind have come.
func count(c *client, what string) (n int) {
	for _, k := range c.kinds() {
		if k == what {
			n++
		}
	}
	return n
}

// wait returns the nth message (from 0) of a kind.
func (c *client) wait(what string, n int) *wire.SignalResponse {
	c.t.Helper()
	var found *wire.SignalResponse
	await.Until(c.t, what, func() bool {
		i := 0
		for _, m := range c.messages() {
			if kind(m) == what {
				if i == n {
					found = m
					return true
				}
				i++
			}
		}
		return false
	})
	return found
}

// send sends a message, which is one of the wrappers of SignalRequest's oneof.
func (c *client) send(message any) {
	c.t.Helper()
	if err := c.trySend(message); err != nil {
		c.t.Fatal(err)
	}
}

// trySend is send for those who may be put out meanwhile.
func (c *client) trySend(message any) error {
	m := &wire.SignalRequest{}
	reflect.ValueOf(m).Elem().FieldByName("Message").Set(reflect.ValueOf(message))
	typ, marshal := websocket.MessageBinary, proto.Marshal
	if c.text {
		typ, marshal = websocket.MessageText, protojson.Marshal
	}
	frame, err := marshal(m)
	if err != nil {
		return err
	}
	return c.ws.Write(context.Background(), typ, frame)
}

// joinV1 joins as livekit-client does in Chromium.
func (w *world) joinV1(identity string) *client {
	w.t.Helper()
	c, status := w.dial("/rtc/v1", url.Values{"access_token": {w.token(identity)}, "join_request": {joinRequest(w.t, &wire.JoinRequest{
		ConnectionSettings: &wire.ConnectionSettings{AutoSubscribe: true, AdaptiveStream: true},
		ClientInfo:         &wire.ClientInfo{ClientProtocol: 2},
		PublisherOffer:     &wire.SessionDescription{Type: "offer", Sdp: sfutest.Offer(3, 3), Id: 1},
	}, true)}})
	if c == nil {
		w.t.Fatal("status", status)
	}
	return c
}

func (c *client) sid() string { return c.wait("join", 0).GetJoin().GetParticipant().GetSid() }

func (w *world) connect(c *client) *client {
	sid := c.sid()
	w.media.Room().Peer(sid).Config.Events.State(media.Publisher, media.Connected)
	return c
}

// get asks a validate endpoint.
func (w *world) get(path string, q url.Values) (*http.Response, string) {
	w.t.Helper()
	resp, err := http.Get(w.http.URL + "/base" + path + "?" + q.Encode())
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp, strings.TrimSpace(string(body))
}
