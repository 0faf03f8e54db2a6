package clientapi

import (
	"container/list"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"parley/internal/clock"
	"parley/internal/httpx"
	"parley/internal/mxid"
)

// The stages of user-interactive authentication that this server has.
// spec: "Authentication types"
const (
	stagePassword = "m.login.password"
	stageDummy    = "m.login.dummy"
	stageToken    = "m.login.registration_token"
)

const (
	// maxUIASessions bounds the table; the oldest session goes first.
	maxUIASessions = 10_000
	// uiaLife is how long a client may take for all stages.
	uiaLife = 15 * time.Minute
)

// uiaSession is what is known of one operation's authentication. It never
// holds a secret that a client sent.
type uiaSession struct {
	id        string
	op        string // the operation, its subject and who asks
	completed []string
	regToken  string // the registration token that passed, to be used up at the end
	expires   time.Time
}

// uiaTable keeps the sessions in memory, oldest first. Safe for concurrent
// use; sessions are handed out as copies.
type uiaTable struct {
	clk clock.Clock
	rnd io.Reader

	mu    sync.Mutex
	byID  map[string]*list.Element
	order list.List
}

func newUIATable(clk clock.Clock, rnd io.Reader) *uiaTable {
	return &uiaTable{clk: clk, rnd: rnd, byID: map[string]*list.Element{}}
}

// start makes a session for an operation.
func (t *uiaTable) start(op string) (uiaSession, error) {
	id, err := randomID(t.rnd)
	if err != nil {
		return uiaSession{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clk.Now()
	for e := t.order.Front(); e != nil; e = t.order.Front() {
		if s := e.Value.(*uiaSession); len(t.byID) < maxUIASessions && s.expires.After(now) {
			break
		}
		t.drop(e)
	}
	s := &uiaSession{id: id, op: op, expires: now.Add(uiaLife)}
	t.byID[id] = t.order.PushBack(s)
	return *s, nil
}

// get finds a live session.
func (t *uiaTable) get(id string) (uiaSession, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return uiaSession{}, false
	}
	s := e.Value.(*uiaSession)
	if !s.expires.After(t.clk.Now()) {
		t.drop(e)
		return uiaSession{}, false
	}
	c := *s
	c.completed = slices.Clone(s.completed)
	return c, true
}

// complete notes that a stage has passed.
func (t *uiaTable) complete(id, stage, regToken string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byID[id]
	if e == nil {
		return
	}
	s := e.Value.(*uiaSession)
	if !slices.Contains(s.completed, stage) {
		s.completed = append(s.completed, stage)
	}
	if regToken != "" {
		s.regToken = regToken
	}
}

// end forgets a session whose operation is done.
func (t *uiaTable) end(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.byID[id]; e != nil {
		t.drop(e)
	}
}

func (t *uiaTable) drop(e *list.Element) {
	delete(t.byID, e.Value.(*uiaSession).id)
	t.order.Remove(e)
}

// randomID is 128 bits in base64url.
func randomID(rnd io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(rnd, b[:]); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// uiaChallenge is the 401 answer that says what is still to do.
// spec: "User-interactive API in the REST API"
type uiaChallenge struct {
	Code      string         `json:"errcode,omitempty"`
	Message   string         `json:"error,omitempty"`
	Completed []string       `json:"completed,omitempty"`
	Flows     []uiaFlow      `json:"flows"`
	Params    map[string]any `json:"params"`
	Session   string         `json:"session"`
}

func (c *uiaChallenge) Error() string { return "user-interactive authentication required" }

type uiaFlow struct {
	Stages []string `json:"stages"`
}

// authDict is what clients send as "auth".
type authDict struct {
	Type       string     `json:"type"`
	Session    string     `json:"session"`
	Identifier identifier `json:"identifier"`
	User       string     `json:"user"` // deprecated form of identifier
	Password   string     `json:"password"`
	Token      string     `json:"token"`
}

// interact runs one step of user-interactive authentication for an operation.
// subject is what of the request must not change between the steps; flows are
// the ways through. It returns the finished session, whose end the caller
// announces with a.uia.end once the operation is done, or a challenge.
func (a *API) interact(r *request, subject string, auth json.RawMessage, flows []uiaFlow) (uiaSession, error) {
	op := strings.Join([]string{r.rt.method, r.rt.path, string(r.User), subject}, "\x00")
	d, given, err := parseAuth(auth)
	if err != nil {
		return uiaSession{}, err
	}
	s, ok := a.uia.get(d.Session)
	if ok && s.op != op {
		return uiaSession{}, httpx.Forbidden("The operation has changed since the authentication began")
	}
	if !ok {
		if s, err = a.uia.start(op); err != nil {
			return uiaSession{}, err
		}
		if !given || d.Session != "" {
			return uiaSession{}, challenge(s, flows, nil)
		}
	}
	if d.Type != "" && !slices.Contains(s.completed, d.Type) {
		token, err := a.tryStage(r, d, s, flows)
		if err != nil {
			return uiaSession{}, stageError(err, s, flows)
		}
		a.uia.complete(s.id, d.Type, token)
		if s, ok = a.uia.get(s.id); !ok {
			return uiaSession{}, httpx.Unavailable()
		}
	}
	for _, f := range flows {
		if slices.Equal(f.Stages, s.completed) {
			return s, nil
		}
	}
	return uiaSession{}, challenge(s, flows, nil)
}

func parseAuth(auth json.RawMessage) (d authDict, given bool, err error) {
	if len(auth) == 0 || string(auth) == "null" {
		return d, false, nil
	}
	if err := json.Unmarshal(auth, &d); err != nil || !isObject(auth) {
		return d, false, httpx.BadJSON("auth is malformed")
	}
	return d, true, nil
}

func challenge(s uiaSession, flows []uiaFlow, e *httpx.Error) *uiaChallenge {
	c := &uiaChallenge{Completed: s.completed, Flows: flows, Params: map[string]any{}, Session: s.id}
	if e != nil {
		c.Code, c.Message = e.Code, e.Message
	}
	return c
}

// stageError lets the client try a failed stage again; what isn't a failed
// authentication (limits, storage) goes through as it is.
func stageError(err error, s uiaSession, flows []uiaFlow) error {
	e, known := matrixError(err)
	if known && e != errAnotherUser && (e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized) {
		return challenge(s, flows, e)
	}
	return err
}

// tryStage checks one stage, which must be the next one of a flow.
func (a *API) tryStage(r *request, d authDict, s uiaSession, flows []uiaFlow) (regToken string, err error) {
	next := false
	for _, f := range flows {
		n := len(s.completed)
		next = next || len(f.Stages) > n && slices.Equal(f.Stages[:n], s.completed) && f.Stages[n] == d.Type
	}
	if !next {
		return "", httpx.Err(http.StatusUnauthorized, "M_UNRECOGNIZED", "This is not the next stage")
	}
	switch d.Type {
	case stageDummy:
		return "", nil
	case stageToken:
		return d.Token, a.checkRegistrationToken(r, d.Token)
	case stagePassword:
		return "", a.checkOwnPassword(r, d)
	}
	return "", httpx.Err(http.StatusUnauthorized, "M_UNRECOGNIZED", "Unknown authentication type")
}

// errAnotherUser ends an authentication: trying again would not help.
var errAnotherUser = httpx.Forbidden("The authentication is for another user")

// checkOwnPassword checks that the password is the session user's.
func (a *API) checkOwnPassword(r *request, d authDict) error {
	u, err := a.identify(d.Identifier, d.User)
	if err != nil {
		return err
	}
	if u != r.User {
		return errAnotherUser
	}
	if err := a.throttleName(limLogin, string(u)); err != nil {
		return err
	}
	return a.users.CheckPassword(r.ctx, u, d.Password)
}

func (a *API) checkRegistrationToken(r *request, token string) error {
	if err := checkTokenGrammar(token); err != nil {
		return httpx.Err(http.StatusUnauthorized, "M_UNAUTHORIZED", "Invalid registration token")
	}
	ok, err := a.users.RegistrationTokenValid(r.ctx, token)
	if err != nil {
		return err
	}
	if !ok {
		return httpx.Err(http.StatusUnauthorized, "M_UNAUTHORIZED", "Invalid registration token")
	}
	return nil
}

// passwordFlow is how the owner of a session proves to be the owner of the
// account.
func passwordFlow() []uiaFlow { return []uiaFlow{{Stages: []string{stagePassword}}} }

// ownPassword asks for the session user's password before an operation.
func (a *API) ownPassword(r *request, subject string, auth json.RawMessage) (uiaSession, error) {
	return a.interact(r, subject, auth, passwordFlow())
}

// identify finds the user ID of an identifier of this server.
// spec: "Identifier types"
func (a *API) identify(id identifier, legacyUser string) (mxid.UserID, error) {
	switch id.Type {
	case "":
		id.User = legacyUser
	case "m.id.user":
	case "m.id.thirdparty", "m.id.phone":
		return "", httpx.Forbidden("Unknown user or wrong password")
	default:
		return "", httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "Unknown type of identifier")
	}
	if id.User == "" {
		return "", httpx.MissingParam("The user is missing")
	}
	if !strings.HasPrefix(id.User, "@") {
		return mxid.NewUserID(strings.ToLower(id.User), a.cfg.ServerName), nil
	}
	u, err := mxid.ParseUserID(id.User)
	if err != nil || u.Server() != a.cfg.ServerName {
		return "", httpx.Forbidden("Unknown user or wrong password")
	}
	return mxid.NewUserID(strings.ToLower(u.Localpart()), a.cfg.ServerName), nil
}

// identifier names a user. spec: "Identifier types"
type identifier struct {
	Type string `json:"type"`
	User string `json:"user"`
}
