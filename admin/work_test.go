package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"testing"
)

func workServer(t *testing.T, works map[string]Work) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: WithWorks(http.NotFoundHandler(), works)}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWork(t *testing.T) {
	hung := make(chan struct{})
	c := workServer(t, map[string]Work{
		"double": func(_ context.Context, request json.RawMessage, say func(string, int64, int64)) (any, error) {
			var n int
			if err := json.Unmarshal(request, &n); err != nil {
				return nil, err
			}
			say("doubling", 1, 2)
			say("doubling", 2, 2)
			return 2 * n, nil
		},
		"fail": func(context.Context, json.RawMessage, func(string, int64, int64)) (any, error) {
			return nil, errors.New("the disk is full")
		},
		"wait": func(ctx context.Context, _ json.RawMessage, say func(string, int64, int64)) (any, error) {
			say("waiting", 0, 0)
			<-ctx.Done()
			close(hung)
			return nil, ctx.Err()
		},
	})
	var got int
	steps := 0
	if err := c.Work(t.Context(), "double", 21, &got, func(string, int64, int64) { steps++ }); err != nil || got != 42 || steps != 2 {
		t.Errorf("%d after %d steps, %v", got, steps, err)
	}
	if err := c.Work(t.Context(), "fail", 1, &got, nil); err == nil || err.Error() != "the disk is full" {
		t.Errorf("%v", err)
	}
	if err := c.Work(t.Context(), "absent", 1, &got, nil); err == nil {
		t.Error("a work that doesn't exist")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Work(ctx, "wait", 1, &got, func(string, int64, int64) { cancel() }); err == nil {
		t.Error("a cancelled work has ended well")
	}
	<-hung // the server has noticed
}
