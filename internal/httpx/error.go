// Package httpx has what every HTTP surface of parley shares: Matrix errors,
// bounded request bodies and JSON answers.
package httpx

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Error is a Matrix error with its HTTP status. Handlers return it; one place
// writes it.
// spec: client-server API, "Standard error response"
type Error struct {
	Status  int
	Code    string         // M_FORBIDDEN …
	Message string         // for people; must not name users or rooms
	Extra   map[string]any // further members, for example retry_after_ms
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// MarshalJSON writes errcode, error and the extra members.
func (e *Error) MarshalJSON() ([]byte, error) {
	m := map[string]any{}
	for k, v := range e.Extra {
		m[k] = v
	}
	m["errcode"], m["error"] = e.Code, e.Message
	return json.Marshal(m)
}

// Err makes an error of any status and code.
func Err(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// The common ones.
func Forbidden(format string, a ...any) *Error {
	return Err(http.StatusForbidden, "M_FORBIDDEN", format, a...)
}
func NotFound(format string, a ...any) *Error {
	return Err(http.StatusNotFound, "M_NOT_FOUND", format, a...)
}
func BadJSON(format string, a ...any) *Error {
	return Err(http.StatusBadRequest, "M_BAD_JSON", format, a...)
}
func NotJSON(format string, a ...any) *Error {
	return Err(http.StatusBadRequest, "M_NOT_JSON", format, a...)
}
func InvalidParam(format string, a ...any) *Error {
	return Err(http.StatusBadRequest, "M_INVALID_PARAM", format, a...)
}
func MissingParam(format string, a ...any) *Error {
	return Err(http.StatusBadRequest, "M_MISSING_PARAM", format, a...)
}
func TooLarge(format string, a ...any) *Error {
	return Err(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", format, a...)
}

// LimitExceeded is 429 with retry_after_ms.
func LimitExceeded(retryAfter time.Duration) *Error {
	return &Error{Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: "Too many requests, try again later",
		Extra: map[string]any{"retry_after_ms": retryAfter.Milliseconds()}}
}

// Unavailable is 503, for a store that doesn't take writes at the moment.
func Unavailable() *Error {
	return Err(http.StatusServiceUnavailable, "M_UNKNOWN", "The server can't store anything at the moment, try again later")
}
