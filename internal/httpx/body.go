package httpx

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"parley/internal/jsonx"
)

// options of reading a body.
type options struct {
	limits   jsonx.Limits
	nonEmpty bool
}

// Option changes how a body is read.
type Option func(*options)

// NonEmpty refuses an empty body with M_NOT_JSON; otherwise it counts as {}.
func NonEmpty() Option { return func(o *options) { o.nonEmpty = true } }

// WithLimits replaces jsonx.Request. MaxBytes in it is ignored.
func WithLimits(lim jsonx.Limits) Option { return func(o *options) { o.limits = lim } }

// DecodeJSON reads a request body of at most maxBytes, checks it and decodes
// it into v. Errors are *Error: M_TOO_LARGE (413), M_NOT_JSON for what isn't
// JSON, M_BAD_JSON for wrong types, duplicate keys and too much nesting.
func DecodeJSON(r *http.Request, maxBytes int64, v any, opts ...Option) error {
	b, err := ReadJSON(r, maxBytes, opts...)
	if err != nil {
		return err
	}
	return Decode(b, v)
}

// ReadJSON is DecodeJSON without decoding.
func ReadJSON(r *http.Request, maxBytes int64, opts ...Option) (json.RawMessage, error) {
	o := options{limits: jsonx.Request}
	for _, f := range opts {
		f(&o)
	}
	b, err := ReadBody(r, maxBytes)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 && !o.nonEmpty {
		return json.RawMessage("{}"), nil
	}
	o.limits.MaxBytes = 0
	if err := jsonx.Check(b, o.limits); err != nil {
		return nil, jsonError(err)
	}
	return b, nil
}

// ReadBody reads a request body of at most maxBytes. A request that announces
// more is refused before anything is read.
func ReadBody(r *http.Request, maxBytes int64) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	if r.ContentLength > maxBytes {
		return nil, TooLarge("The request is larger than %d bytes", maxBytes)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBytes+1))
	if int64(len(b)) > maxBytes {
		return nil, TooLarge("The request is larger than %d bytes", maxBytes)
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, TooLarge("The request is larger than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
		return nil, NotJSON("The request's body ended early")
	}
	return b, nil
}

// jsonError says what is wrong with a document, without quoting it.
func jsonError(err error) *Error {
	if jsonx.Malformed(err) {
		return NotJSON("The request's body: %v", err)
	}
	return BadJSON("The request's body: %v", err)
}

// Decode decodes checked JSON; what doesn't fit v is M_BAD_JSON.
func Decode(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	var e *Error
	var typ *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e): // from an UnmarshalJSON method
		return e
	case errors.As(err, &typ) && isFieldPath(typ.Field):
		return BadJSON("%s can't be a JSON %s", typ.Field, strings.Fields(typ.Value + " value")[0])
	}
	return BadJSON("A value of the request's body has the wrong type")
}

// isFieldPath tells names of fields, which may be shown, from identifiers
// that stand as keys in maps.
func isFieldPath(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_.") == ""
}
