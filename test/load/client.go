package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// client is one logged-in account.
type client struct {
	base, token, user, device string
	http                      *http.Client
}

// newHTTP keeps enough connections for everyone.
func newHTTP(conns int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: conns, MaxIdleConns: conns, IdleConnTimeout: 2 * time.Minute,
		ReadBufferSize: 2 << 10, WriteBufferSize: 2 << 10,
	}}
}

// apiError is a Matrix error answer.
type apiError struct {
	Status     int
	Code       string `json:"errcode"`
	Message    string `json:"error"`
	RetryAfter int64  `json:"retry_after_ms"`
	Session    string `json:"session"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s %s", e.Status, e.Code, e.Message) }

// call sends a request and waits out rate limits.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	for {
		err := c.once(ctx, method, path, in, out)
		e, ok := errors.AsType[*apiError](err)
		if !ok || e.Status != http.StatusTooManyRequests {
			return err
		}
		select {
		case <-time.After(time.Duration(max(e.RetryAfter, 50)) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *client) once(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		e := &apiError{Status: res.StatusCode}
		_ = json.NewDecoder(res.Body).Decode(e)
		return e
	}
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// register makes an account the way the options allow.
func register(ctx context.Context, o options, h *http.Client, prefix string, i int) (*client, error) {
	c := &client{base: strings.TrimRight(o.url, "/"), http: h}
	name := fmt.Sprintf("%s-%s-%d", prefix, strings.ToLower(rand.Text()[:8]), i)
	var out struct {
		Token  string `json:"access_token"`
		User   string `json:"user_id"`
		Device string `json:"device_id"`
	}
	var err error
	if o.secret != "" {
		err = c.registerSecret(ctx, o.secret, name, &out)
	} else {
		err = c.registerUIA(ctx, o.token, name, &out)
	}
	c.token, c.user, c.device = out.Token, out.User, out.Device
	return c, err
}

const password = "load-generator-password-1"

func (c *client) registerSecret(ctx context.Context, secret, name string, out any) error {
	const path = "/_synapse/admin/v1/register"
	var n struct{ Nonce string }
	if err := c.call(ctx, "GET", path, nil, &n); err != nil {
		return err
	}
	mac := hmac.New(sha1.New, []byte(secret))
	fmt.Fprintf(mac, "%s\x00%s\x00%s\x00notadmin", n.Nonce, name, password)
	return c.call(ctx, "POST", path, map[string]any{
		"nonce": n.Nonce, "username": name, "password": password, "admin": false, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, out)
}

func (c *client) registerUIA(ctx context.Context, token, name string, out any) error {
	const path = "/_matrix/client/v3/register"
	body := map[string]any{"username": name, "password": password}
	err := c.call(ctx, "POST", path, body, out)
	e, ok := errors.AsType[*apiError](err)
	if !ok || e.Status != http.StatusUnauthorized {
		return err
	}
	auth := map[string]any{"type": "m.login.dummy", "session": e.Session}
	if token != "" {
		auth["type"], auth["token"] = "m.login.registration_token", token
	}
	body["auth"] = auth
	return c.call(ctx, "POST", path, body, out)
}

func (c *client) createRoom(ctx context.Context) (string, error) {
	var out struct {
		RoomID string `json:"room_id"`
	}
	err := c.call(ctx, "POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &out)
	return out.RoomID, err
}

func (c *client) join(ctx context.Context, room string) error {
	return c.call(ctx, "POST", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/join", map[string]any{}, nil)
}

func (c *client) send(ctx context.Context, room, typ, txn string, content any) error {
	return c.call(ctx, "PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/send/"+typ+"/"+txn, content, nil)
}

// syncAnswer is what the load generator reads of a sync.
type syncAnswer struct {
	Next  string `json:"next_batch"`
	Rooms struct {
		Join map[string]struct {
			Timeline struct {
				Events []struct {
					Type    string `json:"type"`
					Content struct {
						SentNS int64 `json:"load_sent_ns"`
					} `json:"content"`
				} `json:"events"`
			} `json:"timeline"`
		} `json:"join"`
	} `json:"rooms"`
}

func (c *client) sync(ctx context.Context, since string, timeout time.Duration, out *syncAnswer) error {
	q := url.Values{"timeout": {fmt.Sprint(timeout.Milliseconds())}, "filter": {`{"room":{"timeline":{"limit":1000},"state":{"lazy_load_members":true}}}`}}
	if since != "" {
		q.Set("since", since)
	}
	return c.call(ctx, "GET", "/_matrix/client/v3/sync?"+q.Encode(), nil, out)
}
