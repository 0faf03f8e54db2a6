package eventform

import (
	"context"
	"fmt"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"

	"parley/internal/mxid"
)

// signers are the servers that must have signed the event: all in each, and
// one of any if there are some.
// spec: server-server API, "Validating hashes and signatures on received
// events"; room version 8, "Authorisation rules"
func (f *Form) signers() (each, any []mxid.ServerName) {
	sender := f.Sender.Server()
	member := f.Type == "m.room.member" && f.StateKey != nil
	membership := f.Content("membership").Str
	switch {
	case member && membership == "invite" && f.Content("third_party_invite").Exists():
		// The invited user's server may have made it in the sender's name;
		// the auth rules check the identity server's signature inside.
		any = append(any, sender, mxid.UserID(*f.StateKey).Server())
	default:
		each = append(each, sender)
	}
	v, _ := rulesOf(f.Version)
	if !v.hashedIDs {
		if _, s, ok := strings.Cut(string(f.ID), ":"); ok && mxid.ServerName(s) != sender {
			each = append(each, mxid.ServerName(s))
		}
	}
	if member && membership == "join" && v.restricted {
		if via := f.Content("join_authorised_via_users_server"); via.Exists() {
			each = append(each, mxid.UserID(via.String()).Server())
		}
	}
	return each, any
}

// SignedBy reports whether the event carries a signature of a server, checked
// or not.
func (f *Form) SignedBy(server mxid.ServerName) bool {
	found := false
	gjson.GetBytes(f.JSON, "signatures").ForEach(func(k, v gjson.Result) bool {
		found = found || k.Str == string(server) && v.IsObject()
		return !found
	})
	return found
}

// Verify checks the signatures of events. The error at the index of an event
// is nil if all that it must have been signed by have done so.
func Verify(ctx context.Context, keys gomatrixserverlib.JSONVerifier, events []*Form) []error {
	errs := make([]error, len(events))
	var reqs []gomatrixserverlib.VerifyJSONRequest
	var of []check
	for i, f := range events {
		each, any := f.signers()
		for _, s := range each {
			reqs, of = append(reqs, f.request(s)), append(of, check{event: i})
		}
		for _, s := range any {
			reqs, of = append(reqs, f.request(s)), append(of, check{event: i, any: true})
		}
	}
	results, err := keys.VerifyJSONs(ctx, reqs)
	if err == nil && len(results) != len(reqs) {
		err = fmt.Errorf("%d answers to %d requests", len(results), len(reqs))
	}
	if err != nil {
		for i := range errs {
			errs[i] = fmt.Errorf("eventform: verify signatures: %w", err)
		}
		return errs
	}
	judge(of, results, errs)
	return errs
}

// VerifyBy checks the signature of one server.
func (f *Form) VerifyBy(ctx context.Context, keys gomatrixserverlib.JSONVerifier, server mxid.ServerName) error {
	results, err := keys.VerifyJSONs(ctx, []gomatrixserverlib.VerifyJSONRequest{f.request(server)})
	if err == nil && len(results) == 1 {
		err = results[0].Error
	}
	if err != nil {
		return fmt.Errorf("eventform: signature: %w", err)
	}
	return nil
}

// check says what a request to verify is for.
type check struct {
	event int
	any   bool // one of several that would do
}

func judge(of []check, results []gomatrixserverlib.VerifyJSONResult, errs []error) {
	anyOK := map[int]bool{}
	for j, r := range results {
		if of[j].any && r.Error == nil {
			anyOK[of[j].event] = true
		}
	}
	for j, r := range results {
		if r.Error != nil && !(of[j].any && anyOK[of[j].event]) {
			errs[of[j].event] = fmt.Errorf("eventform: signature: %w", r.Error)
		}
	}
}

func (f *Form) request(server mxid.ServerName) gomatrixserverlib.VerifyJSONRequest {
	return gomatrixserverlib.VerifyJSONRequest{
		ServerName: spec.ServerName(server), AtTS: spec.Timestamp(max(f.OriginTS, 0)),
		Message: f.signed, ValidityCheckingFunc: f.keyValid,
	}
}

// keyValid reports whether a key counts for the event: whether its room version
// is strict about that says the library, which reads the time of the machine,
// so that it is only asked about times long ago. How far into the future a key
// counts is the key ring's matter.
// spec: room version 5, "Signing key validity period"
func (f *Form) keyValid(at, until spec.Timestamp) bool {
	if strict := !f.impl.SignatureValidityCheck(2, 1); strict {
		return at <= until
	}
	return f.impl.SignatureValidityCheck(at, until)
}
