package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"

	"parley/internal/httpx"
	"parley/internal/mxid"
)

// maxAuthHeaders bounds the Authorization headers of a request, one per key
// of its server.
const maxAuthHeaders = 8

// XMatrix is one Authorization header of a federation request.
// spec: server-server API, "Request Authentication"
type XMatrix struct {
	Origin, Destination mxid.ServerName
	Key                 gomatrixserverlib.KeyID
	Signature           string // unpadded base64
}

// String is the value of the header. Values with a quote or backslash, which
// none of ours can have, are escaped.
func (x XMatrix) String() string {
	q := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace
	return fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`,
		q(string(x.Origin)), q(string(x.Destination)), q(string(x.Key)), q(x.Signature))
}

// ParseXMatrix reads a header value. ok is false for other schemes, malformed
// parameters, and when origin, key or sig is missing or given twice.
// spec: RFC 9110 §11.4
func ParseXMatrix(header string) (x XMatrix, ok bool) {
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "X-Matrix") {
		return XMatrix{}, false
	}
	seen := map[string]bool{}
	for rest = strings.Trim(rest, " \t"); rest != ""; {
		var name, value string
		if name, value, rest, ok = authParam(rest); !ok {
			return XMatrix{}, false
		}
		name = strings.ToLower(name)
		if seen[name] {
			return XMatrix{}, false
		}
		seen[name] = true
		x.set(name, value)
	}
	return x, x.Origin != "" && x.Key != "" && x.Signature != ""
}

func (x *XMatrix) set(name, value string) {
	switch name {
	case "origin":
		x.Origin = mxid.ServerName(value)
	case "destination":
		x.Destination = mxid.ServerName(value)
	case "key":
		x.Key = gomatrixserverlib.KeyID(value)
	case "sig":
		x.Signature = value
	}
}

// authParam reads name=value and the comma after it.
func authParam(s string) (name, value, rest string, ok bool) {
	name, s, ok = strings.Cut(s, "=")
	name, s = strings.TrimRight(name, " \t"), strings.TrimLeft(s, " \t")
	if !ok || !isToken(name, "") {
		return "", "", "", false
	}
	if strings.HasPrefix(s, `"`) {
		value, s, ok = quoted(s[1:])
	} else {
		end := strings.IndexAny(s, ", \t")
		if end < 0 {
			end = len(s)
		}
		value, s = s[:end], s[end:]
		ok = isToken(value, ":/+=[]") // colons from older servers, base64
	}
	s = strings.TrimLeft(s, " \t")
	if !ok || s != "" && s[0] != ',' {
		return "", "", "", false
	}
	return name, value, strings.TrimLeft(s, ", \t"), true
}

// quoted reads a quoted-string after its opening quote.
func quoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == '\\':
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// isToken is RFC 9110 §5.6.2, with some more bytes allowed.
func isToken(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) && !strings.ContainsRune(more, rune(c)) {
			return false
		}
	}
	return s != ""
}

// signedRequest is what is signed for a request.
type signedRequest struct {
	Method      string                                `json:"method"`
	URI         string                                `json:"uri"`
	Origin      mxid.ServerName                       `json:"origin"`
	Destination mxid.ServerName                       `json:"destination"`
	Content     json.RawMessage                       `json:"content,omitempty"`
	Signatures  map[mxid.ServerName]map[string]string `json:"signatures,omitempty"`
}

// VerifyRequest checks the X-Matrix signature of a request to self and
// returns the server that sent it. body has been read, bounded and checked
// (jsonx.Check) before; nil or empty is none. What the signature covers is
// the method, the path with its query, and the body, not the headers.
// Errors are *httpx.Error (401 M_UNAUTHORIZED), those of ctx and of storage.
// spec: server-server API, "Request Authentication"
func VerifyRequest(r *http.Request, body []byte, self mxid.ServerName, now time.Time, v gomatrixserverlib.JSONVerifier) (origin mxid.ServerName, err error) {
	req, err := readSigned(r.Header.Values("Authorization"), self)
	if err != nil {
		return "", err
	}
	req.Method, req.URI = r.Method, requestURI(r)
	if len(body) > 0 {
		req.Content = body
	}
	msg, err := json.Marshal(req)
	if err != nil {
		return "", httpx.NotJSON("The request's body isn't JSON")
	}
	return req.Origin, verifyMessage(r.Context(), req.Origin, msg, now, v)
}

// requestURI is the target as it was sent; the signature is about these bytes.
func requestURI(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI()
}

// readSigned collects the signatures of a request. All must be of one origin.
func readSigned(headers []string, self mxid.ServerName) (*signedRequest, error) {
	req := &signedRequest{Destination: self, Signatures: map[mxid.ServerName]map[string]string{}}
	if len(headers) > maxAuthHeaders {
		return nil, unauthorized("Too many Authorization headers")
	}
	for _, h := range headers {
		scheme, _, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "X-Matrix") {
			continue
		}
		x, ok := ParseXMatrix(h)
		if !ok || !mxid.ValidServerName(string(x.Origin)) {
			return nil, unauthorized("The X-Matrix Authorization header is malformed")
		}
		if req.Origin != "" && req.Origin != x.Origin {
			return nil, unauthorized("The Authorization headers are of different servers")
		}
		if x.Destination != "" && x.Destination != self {
			return nil, unauthorized("The request is signed for another server")
		}
		if req.Origin == "" {
			req.Origin = x.Origin
			req.Signatures[x.Origin] = map[string]string{}
		}
		req.Signatures[x.Origin][string(x.Key)] = x.Signature
	}
	if req.Origin == "" {
		return nil, unauthorized("The request has no X-Matrix Authorization header")
	}
	if req.Origin == self {
		return nil, unauthorized("The request claims to come from this server")
	}
	return req, nil
}

func unauthorized(text string) *httpx.Error {
	return httpx.Err(http.StatusUnauthorized, "M_UNAUTHORIZED", "%s", text)
}

func verifyMessage(ctx context.Context, origin mxid.ServerName, msg []byte, now time.Time, v gomatrixserverlib.JSONVerifier) error {
	res, err := v.VerifyJSONs(ctx, []gomatrixserverlib.VerifyJSONRequest{{
		ServerName:           spec.ServerName(origin),
		AtTS:                 spec.AsTimestamp(now),
		Message:              msg,
		ValidityCheckingFunc: func(at, until spec.Timestamp) bool { return at <= until },
	}})
	if err != nil {
		return fmt.Errorf("verify request: %w", err)
	}
	if len(res) != 1 {
		return errors.New("verify request: no result")
	}
	if res[0].Error != nil {
		return unauthorized("The request's signature can't be verified")
	}
	return nil
}
