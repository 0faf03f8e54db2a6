package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// maxBody bounds requests and answers on the socket.
const maxBody = 64 << 10

// call is one request on the socket; which members count depends on Op.
type call struct {
	Op    string        `json:"op"`
	User  NewUser       `json:"user,omitzero"`
	Name  string        `json:"name,omitempty"`
	Plan  string        `json:"plan,omitempty"`
	Uses  int           `json:"uses,omitempty"`
	Valid time.Duration `json:"valid,omitempty"`
	Media MediaOrder    `json:"media,omitzero"`
}

type answer struct {
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Listen makes the socket, readable by its owner only, replacing one that a
// crash left behind.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("admin: another server answers on %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Handler serves c to the other end of the socket.
func Handler(c Control) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q call
		var a answer
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil {
			a.Error = "unreadable request"
		} else if res, err := dispatch(r.Context(), c, q); err != nil {
			a.Error = message(err)
		} else {
			a.Result = res
		}
		_ = json.NewEncoder(w).Encode(a)
	})
}

func message(err error) string {
	if e, ok := errors.AsType[*httpx.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

func dispatch(ctx context.Context, c Control, q call) (string, error) {
	switch q.Op {
	case "add_user":
		id, err := c.AddUser(ctx, q.User)
		return string(id), err
	case "deactivate":
		return "", c.Deactivate(ctx, q.Name)
	case "erase":
		return "", c.Erase(ctx, q.Name)
	case "set_plan":
		return "", c.SetPlan(ctx, q.Name, q.Plan)
	case "new_registration_token":
		return c.NewRegistrationToken(ctx, q.Uses, q.Valid)
	case "rotate_root":
		return "", c.RotateRoot(ctx)
	case "media":
		n, err := c.Media(ctx, q.Media)
		return strconv.Itoa(n), err
	}
	return "", fmt.Errorf("the running server doesn't know the operation %q; it may be of another version", q.Op)
}

// Client is Control over the socket of a running server.
type Client struct{ http http.Client }

// Dial connects to the socket; an error means that no server runs there.
func Dial(path string) (*Client, error) {
	probe, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	_ = probe.Close()
	return &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}}, nil
}

func (c *Client) call(ctx context.Context, q call) (string, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control/", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var a answer
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&a); err != nil {
		return "", fmt.Errorf("admin: unreadable answer: %w", err)
	}
	if a.Error != "" {
		return "", errors.New(a.Error)
	}
	return a.Result, nil
}

// AddUser implements Control.
func (c *Client) AddUser(ctx context.Context, u NewUser) (mxid.UserID, error) {
	id, err := c.call(ctx, call{Op: "add_user", User: u})
	return mxid.UserID(id), err
}

// Deactivate implements Control.
func (c *Client) Deactivate(ctx context.Context, name string) error {
	_, err := c.call(ctx, call{Op: "deactivate", Name: name})
	return err
}

// Erase implements Control.
func (c *Client) Erase(ctx context.Context, name string) error {
	_, err := c.call(ctx, call{Op: "erase", Name: name})
	return err
}

// SetPlan implements Control.
func (c *Client) SetPlan(ctx context.Context, name, plan string) error {
	_, err := c.call(ctx, call{Op: "set_plan", Name: name, Plan: plan})
	return err
}

// NewRegistrationToken implements Control.
func (c *Client) NewRegistrationToken(ctx context.Context, uses int, valid time.Duration) (string, error) {
	return c.call(ctx, call{Op: "new_registration_token", Uses: uses, Valid: valid})
}

// RotateRoot implements Control.
func (c *Client) RotateRoot(ctx context.Context) error {
	_, err := c.call(ctx, call{Op: "rotate_root"})
	return err
}
