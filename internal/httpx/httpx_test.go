package httpx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"parley/internal/jsonx"
)

func request(body string) *http.Request {
	return httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
}

func TestDecodeJSON(t *testing.T) {
	type in struct {
		Name  string            `json:"name"`
		Count int               `json:"count"`
		Users map[string]string `json:"users"`
	}
	tests := []struct {
		body   string
		status int
		code   string
		opts   []Option
	}{
		{body: `{"name":"x","count":3}`},
		{body: ``},
		{body: ``, opts: []Option{NonEmpty()}, status: 400, code: "M_NOT_JSON"},
		{body: `{`, status: 400, code: "M_NOT_JSON"},
		{body: "{\"name\":\"\xff\"}", status: 400, code: "M_NOT_JSON"},
		{body: `{"name":1}`, status: 400, code: "M_BAD_JSON"},
		{body: `{"count":1.5}`, status: 400, code: "M_BAD_JSON"},
		{body: `{"users":{"@a:b":1}}`, status: 400, code: "M_BAD_JSON"},
		{body: `[]`, status: 400, code: "M_BAD_JSON"},
		{body: `{"name":"a","name":"b"}`, status: 400, code: "M_BAD_JSON"},
		{body: `{"name":"\ud800"}`, status: 400, code: "M_BAD_JSON"},
		{body: strings.Repeat("[", 101) + strings.Repeat("]", 101), status: 400, code: "M_BAD_JSON"},
		{body: `{"x":{"y":1}}`, opts: []Option{WithLimits(jsonx.Limits{MaxDepth: 1})}, status: 400, code: "M_BAD_JSON"},
		{body: `{"name":"` + strings.Repeat("x", 200) + `"}`, status: 413, code: "M_TOO_LARGE"},
	}
	for _, tt := range tests {
		for _, chunked := range []bool{false, true} {
			r := request(tt.body)
			if chunked {
				r.ContentLength = -1
			}
			var v in
			err := DecodeJSON(r, 210, &v, tt.opts...)
			var e *Error
			if tt.code == "" {
				if err != nil {
					t.Errorf("%.40q: %v", tt.body, err)
				}
			} else if !errors.As(err, &e) || e.Status != tt.status || e.Code != tt.code {
				t.Errorf("%.40q: %v; want %d %s", tt.body, err, tt.status, tt.code)
			} else if strings.Contains(e.Message, "@a:b") {
				t.Errorf("the error names a user: %s", e.Message)
			}
		}
	}
}

func TestBodyIsNotReadWhenTooLarge(t *testing.T) {
	r := request("")
	r.Body = io.NopCloser(iotest.ErrReader(errors.New("was read")))
	r.ContentLength = 1 << 40
	var e *Error
	if _, err := ReadBody(r, 100); !errors.As(err, &e) || e.Code != "M_TOO_LARGE" {
		t.Errorf("%v", err)
	}
	r.ContentLength = 10
	if _, err := ReadBody(r, 100); !errors.As(err, &e) || e.Code != "M_NOT_JSON" {
		t.Errorf("%v", err)
	}
	r.Body = http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("0123456789")), 5)
	if _, err := ReadBody(r, 100); !errors.As(err, &e) || e.Code != "M_TOO_LARGE" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Body = io.NopCloser(iotest.ErrReader(errors.New("gone")))
	if _, err := ReadBody(r.WithContext(ctx), 100); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	r.Body = nil
	if b, err := ReadBody(r, 100); len(b) != 0 || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

type ownError struct{}

func (ownError) Error() string     { return "secret detail" }
func (ownError) HTTPError() *Error { return Forbidden("no") }

func TestWriteError(t *testing.T) {
	tests := []struct {
		err  error
		want int
		body string
	}{
		{fmt.Errorf("op: %w", NotFound("nothing here")), 404, `{"errcode":"M_NOT_FOUND","error":"nothing here"}`},
		{fmt.Errorf("op: %w", ownError{}), 403, `{"errcode":"M_FORBIDDEN","error":"no"}`},
		{fmt.Errorf("op: %w", context.DeadlineExceeded), 504, `{"errcode":"M_UNKNOWN","error":"The request took too long"}`},
		{context.Canceled, 499, `{"errcode":"M_UNKNOWN","error":"The request was cancelled"}`},
		{errors.New("secret detail"), 500, `{"errcode":"M_UNKNOWN","error":"Internal server error"}`},
		{LimitExceeded(1200 * time.Millisecond), 429, `{"errcode":"M_LIMIT_EXCEEDED","error":"Too many requests, try again later","retry_after_ms":1200}`},
	}
	for _, tt := range tests {
		w := httptest.NewRecorder()
		WriteError(w, tt.err)
		if w.Code != tt.want || w.Body.String() != tt.body || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%v: %d %s", tt.err, w.Code, w.Body)
		}
		if got := w.Header().Get("Retry-After"); (got == "2") != (tt.want == 429) {
			t.Errorf("%v: Retry-After %q", tt.err, got)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	for _, tt := range []struct {
		v    any
		want string
		code int
	}{
		{map[string]string{"a": "<&>"}, `{"a":"<&>"}`, 200},
		{json.RawMessage(`{"z":1,  "a":"<"}`), `{"z":1,  "a":"<"}`, 200},
		{struct{}{}, `{}`, 200},
		{make(chan int), `{"errcode":"M_UNKNOWN","error":"The answer couldn't be encoded"}`, 500},
	} {
		w := httptest.NewRecorder()
		WriteJSON(w, 200, tt.v)
		if w.Code != tt.code || w.Body.String() != tt.want || w.Header().Get("Content-Length") != fmt.Sprint(len(tt.want)) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}
