package fedclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

const userAgent = "parley"

// Time limits of whole requests, from discovery to the last byte.
const (
	shortTime = 20 * time.Second // small questions, asked while a client waits
	usualTime = 60 * time.Second // transactions and events
	longTime  = 5 * time.Minute  // whole room states, media
)

// Size limits of answers.
const (
	smallAnswer = 64 << 10  // one small object
	eventAnswer = 1 << 20   // one event and what goes with it
	listAnswer  = 16 << 20  // lists of rooms, devices, keys
	pageAnswer  = 32 << 20  // 100 events and more: backfill, missing events
	idsAnswer   = 64 << 20  // event IDs of a whole room
	stateAnswer = 256 << 20 // a whole room
)

// call is one request.
type call struct {
	method   string
	path     string // escaped
	query    url.Values
	body     json.RawMessage // nil: none
	unsigned bool
	once     bool // not to be repeated on another connection
	big      bool // takes its turn, for the memory of its answer
	array    bool // the answer is an array, not an object
	max      int64
	timeout  time.Duration
}

// path joins an endpoint and its escaped parameters.
func path(endpoint string, params ...string) string {
	var b strings.Builder
	b.WriteString(endpoint)
	for _, p := range params {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// answer is a successful response. Its body is limited to call.max.
type answer struct {
	header http.Header
	body   io.ReadCloser
}

// send makes the request. The answer's body must be closed; the time limit
// runs until then.
func (c *Client) send(ctx context.Context, to mxid.ServerName, q call) (*answer, error) {
	if to == c.cfg.ServerName {
		return nil, &UnreachableError{to, errors.New("this server doesn't ask itself")}
	}
	end, err := c.takeTurn(ctx, q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	res, err := c.roundTrip(ctx, to, q)
	if err != nil {
		cancel()
		end()
		return nil, err
	}
	body := &limitedBody{r: res.Body, left: q.max, done: sync.OnceFunc(func() { cancel(); end() })}
	if res.StatusCode/100 == 2 {
		return &answer{res.Header, body}, nil
	}
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes))
	return nil, remoteError(to, res.StatusCode, res.Header, text)
}

// takeTurn waits until not too many big answers are being read.
func (c *Client) takeTurn(ctx context.Context, q call) (end func(), err error) {
	if !q.big {
		return func() {}, nil
	}
	select {
	case c.big <- struct{}{}:
		return func() { <-c.big }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Client) roundTrip(ctx context.Context, to mxid.ServerName, q call) (*http.Response, error) {
	t, err := c.found.resolve(ctx, to)
	if err != nil {
		return nil, &UnreachableError{to, err}
	}
	req, err := c.newRequest(context.WithValue(ctx, targetKey{}, t), to, t, q)
	if err != nil {
		return nil, err
	}
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.found.forget(to)
		}
		return nil, &UnreachableError{to, withoutURL(err)}
	}
	return res, nil
}

func (c *Client) newRequest(ctx context.Context, to mxid.ServerName, t *target, q call) (*http.Request, error) {
	target := "https://" + t.pool + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("fedclient: make request: %w", withoutURL(err))
	}
	req.Host = t.host
	req.Header.Set("User-Agent", userAgent)
	if q.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !q.once {
		req.Header["Idempotency-Key"] = nil // tells net/http only, isn't sent
	}
	if q.unsigned {
		return req, nil
	}
	auth, err := c.authorization(to, q.method, req.URL.RequestURI(), q.body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", auth)
	return req, nil
}

// authorization signs a request.
// spec: server-server API, "Request Authentication"
func (c *Client) authorization(to mxid.ServerName, method, uri string, body json.RawMessage) (string, error) {
	b, err := json.Marshal(signedRequest{Method: method, URI: uri, Origin: c.cfg.ServerName, Destination: to, Content: body})
	if err != nil {
		return "", fmt.Errorf("fedclient: sign request: %w", err)
	}
	sig, err := c.cfg.Signer.Signature(b)
	if err != nil {
		return "", fmt.Errorf("fedclient: sign request: %w", err)
	}
	return XMatrix{Origin: c.cfg.ServerName, Destination: to, Key: c.cfg.Signer.KeyID(), Signature: sig}.String(), nil
}

// limitedBody ends with ErrTooLarge after left bytes. Closing it ends the
// request's time limit and its turn, too.
type limitedBody struct {
	r    io.ReadCloser
	left int64
	done func() // may be called more than once
}

func (l *limitedBody) Read(p []byte) (int, error) {
	if l.left <= 0 { // one byte more tells the end from too much
		if n, err := l.r.Read(make([]byte, 1)); n == 0 && err != nil {
			return 0, err
		} else if n == 0 {
			return 0, nil
		}
		return 0, ErrTooLarge
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	return n, err
}

func (l *limitedBody) Close() error {
	l.done()
	return l.r.Close()
}

// raw makes the request and returns the whole answer, checked JSON.
func (c *Client) raw(ctx context.Context, to mxid.ServerName, q call) (json.RawMessage, error) {
	a, err := c.send(ctx, to, q)
	if err != nil {
		return nil, err
	}
	defer a.body.Close()
	b, err := io.ReadAll(a.body)
	if err != nil {
		return nil, readError(to, err)
	}
	lim := jsonx.Answer
	lim.Object = !q.array
	if err := jsonx.Check(b, lim); err != nil {
		return nil, &BadAnswerError{to, err}
	}
	return b, nil
}

// readError tells a bad answer from a connection that broke.
func readError(to mxid.ServerName, err error) error {
	if errors.Is(err, ErrTooLarge) {
		return &BadAnswerError{to, err}
	}
	return &UnreachableError{to, err}
}

// ask is raw with the answer decoded into v.
func (c *Client) ask(ctx context.Context, to mxid.ServerName, q call, v any) error {
	b, err := c.raw(ctx, to, q)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &BadAnswerError{to, errors.New("a member has the wrong type")}
	}
	return nil
}

func get(p string, query url.Values, max int64, timeout time.Duration) call {
	return call{method: http.MethodGet, path: p, query: query, max: max, timeout: timeout}
}

// withBody is a call with a JSON body.
func withBody(method, p string, body any, max int64, timeout time.Duration) (call, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return call{}, fmt.Errorf("fedclient: encode request: %w", err)
	}
	return call{method: method, path: p, body: b, max: max, timeout: timeout}, nil
}
