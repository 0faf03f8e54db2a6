package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Work is something that takes its time on a running server: it tells how far
// it is, and ends when the one who asked hangs up.
type Work func(ctx context.Context, request json.RawMessage, say func(what string, done, total int64)) (any, error)

// workPath begins the paths of works on the control socket.
const workPath = "/jobs/"

// maxWorkLine bounds a line of an answer.
const maxWorkLine = 16 << 20

// workLine is a line of the answer: a step, or the end.
type workLine struct {
	What        string          `json:"what,omitempty"`
	Done, Total int64           `json:",omitempty"`
	Result      json.RawMessage `json:"result,omitempty"`
	Error       string          `json:"error,omitempty"`
	End         bool            `json:"end,omitempty"`
}

// WithWorks serves works beside what h serves.
func WithWorks(h http.Handler, works map[string]Work) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	for name, work := range works {
		mux.HandleFunc("POST "+workPath+name, func(w http.ResponseWriter, r *http.Request) { serveWork(w, r, work) })
	}
	return mux
}

func serveWork(w http.ResponseWriter, r *http.Request, work Work) {
	enc := json.NewEncoder(w)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWorkLine))
	if err != nil {
		_ = enc.Encode(workLine{Error: "unreadable request", End: true})
		return
	}
	result, err := work(r.Context(), body, func(what string, done, total int64) {
		_ = enc.Encode(workLine{What: what, Done: done, Total: total})
		_ = http.NewResponseController(w).Flush()
	})
	end := workLine{End: true}
	if err == nil {
		end.Result, err = json.Marshal(result)
	}
	if err != nil {
		end.Error = message(err)
	}
	_ = enc.Encode(end)
}

// Work asks the running server for a work and waits for its end. say may be
// nil.
func (c *Client) Work(ctx context.Context, name string, request, result any, say func(what string, done, total int64)) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control"+workPath+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the running server doesn't know %q; it may be of another version", name)
	}
	for dec := json.NewDecoder(res.Body); ; {
		var l workLine
		if err := dec.Decode(&l); err != nil {
			return fmt.Errorf("the server has stopped in the middle: %w", err)
		}
		switch {
		case l.Error != "":
			return errors.New(l.Error)
		case l.End:
			return json.Unmarshal(l.Result, result)
		case say != nil:
			say(l.What, l.Done, l.Total)
		}
	}
}
