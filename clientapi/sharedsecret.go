package clientapi

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
)

const (
	// maxNonces bounds the table of nonces that wait to be used.
	maxNonces = 1000
	nonceLife = time.Minute
)

// nonceTable has the nonces of shared-secret registration, each good for one
// attempt within a minute. Safe for concurrent use.
type nonceTable struct {
	clk clock.Clock
	rnd io.Reader

	mu    sync.Mutex
	until map[string]time.Time
	order []string // oldest first
}

func newNonceTable(clk clock.Clock, rnd io.Reader) *nonceTable {
	return &nonceTable{clk: clk, rnd: rnd, until: map[string]time.Time{}}
}

func (t *nonceTable) make() (string, error) {
	n, err := randomID(t.rnd)
	if err != nil {
		return "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clk.Now()
	for len(t.order) > 0 && (len(t.order) >= maxNonces || !t.until[t.order[0]].After(now)) {
		delete(t.until, t.order[0])
		t.order = t.order[1:]
	}
	t.until[n] = now.Add(nonceLife)
	t.order = append(t.order, n)
	return n, nil
}

// use takes a nonce out and says whether it was good.
func (t *nonceTable) use(n string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.until[n]
	delete(t.until, n)
	return ok && until.After(t.clk.Now())
}

// secretNonce is GET /_synapse/admin/v1/register, by which programs that know
// the shared secret make accounts. The path and the form are those of
// Synapse's admin API, which such programs speak.
func (a *API) secretNonce(*request) (any, error) {
	if a.cfg.Settings.RegistrationSecret == "" {
		return nil, unrecognized(http.StatusNotFound)
	}
	n, err := a.nonces.make()
	if err != nil {
		return nil, err
	}
	return map[string]string{"nonce": n}, nil
}

type secretRequest struct {
	Nonce       string `json:"nonce"`
	Username    string `json:"username"`
	DisplayName string `json:"displayname"`
	Password    string `json:"password"`
	Admin       bool   `json:"admin"`
	UserType    string `json:"user_type"`
	MAC         string `json:"mac"`
}

// secretRegister is POST /_synapse/admin/v1/register.
func (a *API) secretRegister(r *request) (any, error) {
	if a.cfg.Settings.RegistrationSecret == "" {
		return nil, unrecognized(http.StatusNotFound)
	}
	var q secretRequest
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if err := a.checkSecretRequest(q); err != nil {
		return nil, err
	}
	acc, err := a.newAccount(r, strings.ToLower(q.Username), q.Password, q.Admin)
	if err != nil {
		return nil, err
	}
	if q.DisplayName != "" {
		if err := a.users.SetProfile(r.ctx, acc.UserID, "displayname", mustString(q.DisplayName)); err != nil {
			return nil, err
		}
	}
	return a.newSession(r, acc.UserID, deviceRequest{})
}

// checkSecretRequest takes the nonce and compares the MAC in constant time.
func (a *API) checkSecretRequest(q secretRequest) error {
	if q.Username == "" || q.Password == "" || q.Nonce == "" || q.MAC == "" {
		return httpx.MissingParam("nonce, username, password and mac are needed")
	}
	if strings.ContainsRune(q.Username+q.Password+q.UserType, 0) || len(q.Password) > maxPassword {
		return httpx.InvalidParam("Invalid username or password")
	}
	if len(q.DisplayName) > maxDisplayName {
		return httpx.InvalidParam("The display name is too long")
	}
	if !a.nonces.use(q.Nonce) {
		return httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "Unrecognised nonce")
	}
	got, err := hex.DecodeString(q.MAC)
	if err != nil || !hmac.Equal(got, secretMAC(a.cfg.Settings.RegistrationSecret, q)) {
		return httpx.Forbidden("HMAC incorrect")
	}
	return a.checkPassword(q.Password)
}

func secretMAC(secret string, q secretRequest) []byte {
	parts := []string{q.Nonce, q.Username, q.Password, "notadmin"}
	if q.Admin {
		parts[3] = "admin"
	}
	if q.UserType != "" {
		parts = append(parts, q.UserType)
	}
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(strings.Join(parts, "\x00")))
	return m.Sum(nil)
}
