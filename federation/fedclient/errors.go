package fedclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// RemoteError is an error that another server answered with.
type RemoteError struct {
	Server mxid.ServerName
	Status int
	Code   string // M_UNKNOWN when the answer has none
	// Message is written by strangers and may name users: it may be shown to
	// the client that asked, and never logged.
	Message string
	// RetryAfter is how long the server asks us to wait, 0 if it doesn't.
	RetryAfter time.Duration
	// RoomVersion comes with M_INCOMPATIBLE_ROOM_VERSION.
	RoomVersion string
}

// Error has no message, so that it can be logged.
func (e *RemoteError) Error() string {
	return fmt.Sprintf("fedclient: %s answered %d %s", string(e.Server), e.Status, e.Code)
}

// HTTPError is the error as a client of ours may see it. What would make the
// client believe that its own login ended becomes 502.
func (e *RemoteError) HTTPError() *httpx.Error {
	out := &httpx.Error{Status: e.Status, Code: e.Code, Message: e.Message, Extra: map[string]any{}}
	if e.RetryAfter > 0 {
		out.Extra["retry_after_ms"] = e.RetryAfter.Milliseconds()
	}
	if e.RoomVersion != "" {
		out.Extra["room_version"] = e.RoomVersion
	}
	switch {
	case e.Status == http.StatusUnauthorized, e.Code == "M_UNKNOWN_TOKEN", e.Code == "M_MISSING_TOKEN", e.Code == "M_UNAUTHORIZED",
		e.Code == "M_USER_DEACTIVATED", e.Code == "M_USER_LOCKED", e.Code == "M_USER_SUSPENDED", e.Code == "M_CONSENT_NOT_GIVEN":
		out.Status, out.Code = http.StatusBadGateway, "M_UNKNOWN"
	case e.Status < 400:
		out.Status = http.StatusBadGateway
	}
	return out
}

// As gives errors.As an *httpx.Error.
func (e *RemoteError) As(target any) bool {
	p, ok := target.(**httpx.Error)
	if ok {
		*p = e.HTTPError()
	}
	return ok
}

// UnreachableError means that no answer came: discovery, connection,
// certificate, or time.
type UnreachableError struct {
	Server mxid.ServerName
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("fedclient: %s can't be reached: %v", string(e.Server), e.Err)
}

// Unwrap gives the cause, for example netguard.ErrForbidden.
func (e *UnreachableError) Unwrap() error { return e.Err }

// HTTPError is 502.
func (e *UnreachableError) HTTPError() *httpx.Error {
	return httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server can't be reached")
}

// BadAnswerError means that an answer is too large or not what the
// specification says.
type BadAnswerError struct {
	Server mxid.ServerName
	Err    error
}

func (e *BadAnswerError) Error() string {
	return fmt.Sprintf("fedclient: bad answer of %s: %v", string(e.Server), e.Err)
}

// Unwrap gives the cause, for example ErrTooLarge.
func (e *BadAnswerError) Unwrap() error { return e.Err }

// HTTPError is 502.
func (e *BadAnswerError) HTTPError() *httpx.Error {
	return httpx.Err(http.StatusBadGateway, "M_UNKNOWN", "The other server gave an answer that can't be used")
}

// ErrTooLarge means that an answer exceeds the limit of its endpoint.
var ErrTooLarge = errors.New("fedclient: answer too large")

// maxErrorBytes of an error answer are read.
const maxErrorBytes = 64 << 10

// maxRetryAfter bounds what a server can make us wait.
const maxRetryAfter = 24 * time.Hour

// remoteError reads an error answer.
func remoteError(server mxid.ServerName, status int, h http.Header, body []byte) *RemoteError {
	e := &RemoteError{Server: server, Status: status, Code: "M_UNKNOWN"}
	var m struct {
		Code        string  `json:"errcode"`
		Message     string  `json:"error"`
		RetryMillis float64 `json:"retry_after_ms"`
		RoomVersion string  `json:"room_version"`
	}
	if jsonx.Check(body, jsonx.Limits{MaxBytes: maxErrorBytes, MaxDepth: 20, MaxKeys: 1000, Object: true}) == nil && json.Unmarshal(body, &m) == nil {
		if isErrCode(m.Code) {
			e.Code = m.Code
		}
		e.Message = cut(m.Message, 200)
		e.RoomVersion = cut(m.RoomVersion, 32)
	}
	wait := time.Duration(0)
	if m.RetryMillis > 0 {
		wait = time.Duration(min(m.RetryMillis, float64(maxRetryAfter.Milliseconds()))) * time.Millisecond
	}
	if s, err := strconv.ParseUint(h.Get("Retry-After"), 10, 31); err == nil {
		wait = max(wait, time.Duration(s)*time.Second)
	}
	e.RetryAfter = min(wait, maxRetryAfter)
	return e
}

// isErrCode keeps free text out of the place where a code belongs.
func isErrCode(s string) bool {
	return s != "" && len(s) <= 100 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.") == ""
}

// cut shortens a stranger's text and drops what isn't printable.
func cut(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// withoutURL drops the URL, which may name users and rooms, from an error.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
