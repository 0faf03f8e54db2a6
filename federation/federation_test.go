package federation_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"parley/internal/testnet"
)

// Nothing is answered to who hasn't signed, whatever they send, and unknown
// routes say so.
func TestUnsignedRequests(t *testing.T) {
	n := testnet.New(t, "a")
	client, base := n.Client("a")
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{
		"/_matrix/key/v2/server":                          200,
		"/_matrix/federation/v1/version":                  200,
		"/_matrix/federation/v1/openid/userinfo":          401,
		"/_matrix/federation/v1/state/!x:a?event_id=$x":   401,
		"/_matrix/federation/v1/backfill/!x:a?v=$x":       401,
		"/_matrix/federation/v1/query/profile?user_id=@x": 401,
		"/_matrix/federation/v1/publicRooms":              401,
		"/_matrix/federation/v1/nothing":                  404,
	} {
		res, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	for name, body := range map[string][]byte{
		"not JSON":  []byte("{"),
		"nested":    bytes.Repeat([]byte("["), 1<<20),
		"too large": append([]byte(`{"x":"`), append(bytes.Repeat([]byte("x"), 20<<20), `"}`...)...),
		"unsigned":  []byte(`{"pdus":[]}`),
	} {
		req, err := http.NewRequest(http.MethodPut, base+"/_matrix/federation/v1/send/1", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			continue // the server hung up in the middle of it
		}
		_ = res.Body.Close()
		if res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
}
