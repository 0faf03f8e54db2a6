package httpx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
)

// StatusClientClosed is what a request counts as whose client has gone; the
// client never sees it.
const StatusClientClosed = 499

// WriteJSON answers with v in JSON. Raw JSON is written as it is. A value
// that can't be encoded gives a 500 answer.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	b, err := encode(v)
	if err != nil {
		status = http.StatusInternalServerError
		b, _ = encode(Err(status, "M_UNKNOWN", "The answer couldn't be encoded"))
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may have gone
}

func encode(v any) ([]byte, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return raw, nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// WriteError answers with the Matrix error that err stands for.
// spec: client-server API, "Rate limiting" (Retry-After)
func WriteError(w http.ResponseWriter, err error) {
	e := FromError(err)
	if ms, ok := e.Extra["retry_after_ms"].(int64); ok && e.Status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", strconv.FormatInt((ms+999)/1000, 10))
	}
	WriteJSON(w, e.Status, e)
}

// FromError finds the Matrix error in err: an *Error, what an error with the
// method HTTPError() *Error says, 504 for a deadline, else 500. The text of
// other errors is never shown.
func FromError(err error) *Error {
	var e *Error
	var own interface{ HTTPError() *Error }
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &own):
		return own.HTTPError()
	case errors.Is(err, context.DeadlineExceeded):
		return Err(http.StatusGatewayTimeout, "M_UNKNOWN", "The request took too long")
	case errors.Is(err, context.Canceled):
		return Err(StatusClientClosed, "M_UNKNOWN", "The request was cancelled")
	}
	return Err(http.StatusInternalServerError, "M_UNKNOWN", "Internal server error")
}
