package fedclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys"
	"parley/keys/vault"
)

func TestXMatrix(t *testing.T) {
	want := XMatrix{Origin: "a.example:8448", Destination: "b.example", Key: "ed25519:k_1", Signature: "ab+/9"}
	for _, h := range []string{
		want.String(),
		`X-Matrix origin=a.example:8448,destination=b.example,key="ed25519:k_1",sig="ab+/9"`,
		`X-Matrix origin=a.example:8448,destination=b.example,key=ed25519:k_1,sig=ab+/9`,
		"x-matrix  \t Origin = \"a.example:8448\" ,\tKEY=\"ed25519:k_1\" , sig=\"ab+/9\" , destination=\"b.example\" , other=\"x,y=z\"",
		`X-Matrix origin="a\.example:8448",destination="b.exam\ple",key="ed25519:k\_1",sig="ab+/9",`,
	} {
		if got, ok := ParseXMatrix(h); !ok || got != want {
			t.Errorf("%s: %+v %v", h, got, ok)
		}
	}
	for _, h := range []string{
		``, `X-Matrix`, `X-Matrix `, `Bearer abc`, `X-Matrix origin="a",key="k"`, `X-Matrix origin="a",sig="s"`, `X-Matrix key="k",sig="s"`,
		`X-Matrix origin="a",key="k",sig="s`, `X-Matrix origin="a",key="k",sig="s\`, `X-Matrix origin="a" key="k",sig="s"`,
		`X-Matrix origin="a",origin="b",key="k",sig="s"`, `X-Matrix origin="a",key="k",sig="s"x`, `X-Matrix =,origin="a"`,
		`X-Matrix origin,key="k",sig="s"`, `X-Matrix origin=,key="k",sig="s"`, `X-Matrix origin="",key="k",sig="s"`, "X-Matrix origin=\"a\",key=k\x00,sig=\"s\"",
	} {
		if x, ok := ParseXMatrix(h); ok {
			t.Errorf("%q was accepted: %+v", h, x)
		}
	}
}

func testSigner(t testing.TB, name mxid.ServerName) *keys.Signer {
	t.Helper()
	s, err := keys.NewSigner(name, vault.OpenMemorySeed(string(name)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// knownKeys verifies with the keys of given signers.
type knownKeys map[mxid.ServerName]*keys.Signer

func (k knownKeys) VerifyJSONs(_ context.Context, reqs []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	out := make([]gomatrixserverlib.VerifyJSONResult, len(reqs))
	for i, r := range reqs {
		s, ok := k[mxid.ServerName(r.ServerName)]
		if !ok {
			out[i].Error = keys.ErrNoKey
			continue
		}
		out[i].Error = keys.VerifyJSON(s.Name(), s.KeyID(), s.PublicKey(), r.Message)
	}
	return out, nil
}

// signFor makes the header that a sender would.
func signFor(t testing.TB, s *keys.Signer, dest mxid.ServerName, method, uri, body string) string {
	t.Helper()
	m := map[string]any{"method": method, "uri": uri, "origin": string(s.Name()), "destination": string(dest)}
	if body != "" {
		m["content"] = json.RawMessage(body)
	}
	b, _ := json.Marshal(m)
	sig, err := s.Signature(b)
	if err != nil {
		t.Fatal(err)
	}
	return XMatrix{Origin: s.Name(), Destination: dest, Key: s.KeyID(), Signature: sig}.String()
}

func TestVerifyRequest(t *testing.T) {
	a, b := testSigner(t, "a.example"), testSigner(t, "b.example")
	self := mxid.ServerName("self.example")
	known := knownKeys{"a.example": a}
	const uri, body = "/_matrix/federation/v1/send/1?x=%24y&z=a+b", `{"pdus":[], "é":"<>&"}`
	good := signFor(t, a, self, "PUT", uri, body)
	noDest := strings.Replace(good, `destination="self.example",`, "", 1)
	tests := []struct {
		name    string
		headers []string
		method  string
		uri     string
		body    string
		ok      bool
	}{
		{"good", []string{good}, "PUT", uri, body, true},
		{"no destination in the header", []string{noDest}, "PUT", uri, body, true},
		{"body in another form", []string{good}, "PUT", uri, `{"é":"<>&","pdus":[]}`, true},
		{"another scheme beside it", []string{"Bearer x", good}, "PUT", uri, body, true},
		{"other method", []string{good}, "POST", uri, body, false},
		{"other path", []string{good}, "PUT", uri + "2", body, false},
		{"path in another encoding", []string{good}, "PUT", strings.Replace(uri, "%24", "$", 1), body, false},
		{"other body", []string{good}, "PUT", uri, `{"pdus":[1],"é":"<>&"}`, false},
		{"no body", []string{good}, "PUT", uri, "", false},
		{"for another server", []string{signFor(t, a, "other.example", "PUT", uri, body)}, "PUT", uri, body, false},
		{"another destination in the header", []string{strings.Replace(good, "self.example", "other.example", 1)}, "PUT", uri, body, false},
		{"unknown server", []string{signFor(t, b, self, "PUT", uri, body)}, "PUT", uri, body, false},
		{"two servers", []string{good, signFor(t, b, self, "PUT", uri, body)}, "PUT", uri, body, false},
		{"another server's signature", []string{strings.Replace(signFor(t, b, self, "PUT", uri, body), "b.example", "a.example", 1)}, "PUT", uri, body, false},
		{"no header", nil, "PUT", uri, body, false},
		{"no X-Matrix header", []string{"Bearer x"}, "PUT", uri, body, false},
		{"malformed", []string{"X-Matrix origin=a.example"}, "PUT", uri, body, false},
		{"malformed beside a good one", []string{good, "X-Matrix x"}, "PUT", uri, body, false},
		{"bad origin", []string{strings.Replace(good, "a.example", "a_example", 1)}, "PUT", uri, body, false},
		{"from ourselves", []string{signFor(t, testSigner(t, self), self, "PUT", uri, body)}, "PUT", uri, body, false},
		{"too many", slicesRepeat(good, 9), "PUT", uri, body, false},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(tt.method, tt.uri, nil)
		r.Header["Authorization"] = tt.headers
		origin, err := VerifyRequest(r, []byte(tt.body), self, time.UnixMilli(1), known)
		var e *httpx.Error
		if tt.ok && (err != nil || origin != "a.example") {
			t.Errorf("%s: %q %v", tt.name, string(origin), err)
		}
		if !tt.ok && (!errors.As(err, &e) || e.Status != http.StatusUnauthorized || e.Code != "M_UNAUTHORIZED") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func slicesRepeat(s string, n int) []string {
	return strings.Split(strings.Repeat(s+"\n", n-1)+s, "\n")
}

type failingKeys struct{}

func (failingKeys) VerifyJSONs(context.Context, []gomatrixserverlib.VerifyJSONRequest) ([]gomatrixserverlib.VerifyJSONResult, error) {
	return nil, errors.New("disk")
}

func TestVerifyRequestPassesFailures(t *testing.T) {
	r := httptest.NewRequest("GET", "/x", nil)
	r.Header.Set("Authorization", signFor(t, testSigner(t, "a.example"), "b.example", "GET", "/x", ""))
	var e *httpx.Error
	if _, err := VerifyRequest(r, nil, "b.example", time.Now(), failingKeys{}); err == nil || errors.As(err, &e) {
		t.Errorf("%v", err)
	}
}

func FuzzParseXMatrix(f *testing.F) {
	f.Add(XMatrix{"a", "b", "ed25519:1", "sig"}.String())
	f.Add(`X-Matrix origin=a,key="k\"",sig=s , x=y`)
	f.Fuzz(func(t *testing.T, h string) {
		x, ok := ParseXMatrix(h)
		if !ok {
			return
		}
		if again, ok := ParseXMatrix(x.String()); !ok || again != x {
			t.Errorf("%q -> %+v -> %q -> %+v", h, x, x.String(), again)
		}
	})
}

func FuzzVerifyRequest(f *testing.F) {
	a := testSigner(f, "a.example")
	f.Add("/x", []byte(`{"a":1}`), signFor(f, a, "b.example", "PUT", "/x", `{"a":1}`))
	f.Fuzz(func(t *testing.T, uri string, body []byte, header string) {
		r := &http.Request{Method: "PUT", RequestURI: "/" + uri, Header: http.Header{"Authorization": {header}}}
		_, err := VerifyRequest(r, body, "b.example", time.UnixMilli(1), knownKeys{"a.example": a})
		if err == nil && (uri != "x" && uri != "/x" || !bytes.Contains(body, []byte(`"a"`))) {
			t.Errorf("forged: %q %q %q", uri, body, header)
		}
	})
}
