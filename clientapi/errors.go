package clientapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/keys/vault"
	"parley/storage"
)

// unrecognized is the answer for what the server doesn't have.
// spec: "Common error codes", M_UNRECOGNIZED
func unrecognized(status int) *httpx.Error {
	return httpx.Err(status, "M_UNRECOGNIZED", "Unrecognized request")
}

// matrixError maps any error to the one that a client sees. known is false
// for what should not happen: the caller logs it.
func matrixError(err error) (e *httpx.Error, known bool) {
	var he *httpx.Error
	if errors.As(err, &he) {
		return he, true
	}
	var ee *echo.HTTPError
	if errors.As(err, &ee) {
		return echoError(ee), true
	}
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, vault.ErrDestroyed):
		return httpx.NotFound("Not found"), true
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrClosed):
		return httpx.Unavailable(), true
	case errors.Is(err, storage.ErrTooLarge):
		return httpx.TooLarge("The request is too large"), true
	}
	e = httpx.FromError(err)
	return e, e.Status != http.StatusInternalServerError
}

func echoError(e *echo.HTTPError) *httpx.Error {
	switch e.Code {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return unrecognized(e.Code)
	case http.StatusRequestEntityTooLarge:
		return httpx.TooLarge("The request is too large")
	}
	return httpx.Err(e.Code, "M_UNKNOWN", "%s", http.StatusText(e.Code))
}

// errorHandler writes errors in the form of the specification.
// spec: "Standard error response"
func errorHandler(log *slog.Logger) echo.HTTPErrorHandler {
	return func(err error, c echo.Context) {
		if c.Response().Committed {
			return
		}
		var challenge *uiaChallenge
		if errors.As(err, &challenge) {
			_ = writeJSON(c, http.StatusUnauthorized, challenge)
			return
		}
		e, known := matrixError(err)
		if !known {
			log.Error("request failed", "route", c.Path(), "error", err)
		}
		if ms, ok := e.Extra["retry_after_ms"].(int64); ok {
			c.Response().Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(float64(ms)/1000)), 10))
		}
		_ = writeJSON(c, e.Status, e)
	}
}

// recoverPanics turns a panic of a handler into a 500. Only the type of the
// panic value and the call stack are logged: the value may hold content.
func recoverPanics(log *slog.Logger) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			defer func() {
				if p := recover(); p != nil {
					if p == http.ErrAbortHandler {
						panic(p)
					}
					log.Error("panic in a request", "route", c.Path(), "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
					err = httpx.Err(http.StatusInternalServerError, "M_UNKNOWN", "Internal server error")
				}
			}()
			return next(c)
		}
	}
}

// writeJSON answers with v, {} if it is nil.
func writeJSON(c echo.Context, status int, v any) error {
	var buf bytes.Buffer
	if v == nil {
		buf.WriteString("{}")
	} else {
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("clientapi: encode answer: %w", err)
		}
	}
	return c.Blob(status, echo.MIMEApplicationJSON, bytes.TrimRight(buf.Bytes(), "\n"))
}
