package keys

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// Errors of verification, in the results of VerifyJSONs.
var (
	// ErrNoSignature means that the server hasn't signed, or with no
	// algorithm that we know.
	ErrNoSignature = errors.New("keys: not signed by the server")
	// ErrNoKey means that the server's key couldn't be had: asking again
	// later may help.
	ErrNoKey = errors.New("keys: the server's key isn't known")
	// ErrKeyNotValid means that the key wasn't valid at the time of signing.
	ErrKeyNotValid = errors.New("keys: the key wasn't valid at that time")
	// ErrBadSignature means that the message isn't what the server signed.
	ErrBadSignature = errors.New("keys: wrong signature")
)

// maxSignatures bounds the signatures of one server that are tried.
const maxSignatures = 8

// signed is a message with the signatures of one server, ready to check.
type signed struct {
	sigs    map[gomatrixserverlib.KeyID][]byte
	message []byte // canonical, without signatures and unsigned
}

// parseSigned takes the signatures of a server out of a JSON object.
// spec: appendices, "Checking for a Signature"
func parseSigned(server mxid.ServerName, obj []byte) (signed, error) {
	var top struct {
		Signatures map[string]json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal(obj, &top); err != nil {
		return signed{}, fmt.Errorf("%w: signatures are malformed", ErrNoSignature)
	}
	var all map[gomatrixserverlib.KeyID]string
	if raw, ok := top.Signatures[string(server)]; !ok || json.Unmarshal(raw, &all) != nil {
		return signed{}, ErrNoSignature
	}
	s := signed{sigs: map[gomatrixserverlib.KeyID][]byte{}}
	for id, text := range all {
		sig, err := decodeBase64(text)
		if strings.HasPrefix(string(id), "ed25519:") && err == nil && len(sig) == ed25519.SignatureSize && len(s.sigs) < maxSignatures {
			s.sigs[id] = sig
		}
	}
	if len(s.sigs) == 0 {
		return signed{}, ErrNoSignature
	}
	msg, err := jsonx.CanonicalWithout(obj, "signatures", "unsigned")
	if err != nil {
		return signed{}, fmt.Errorf("%w: %w", ErrBadSignature, err)
	}
	s.message = msg
	return s, nil
}

// decodeBase64 takes the standard alphabet with or without padding.
// spec: appendices, "Unpadded Base64"
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

// VerifyJSON checks one signature with a key that is known.
func VerifyJSON(server mxid.ServerName, id gomatrixserverlib.KeyID, pub ed25519.PublicKey, obj []byte) error {
	s, err := parseSigned(server, obj)
	if err != nil {
		return err
	}
	sig, ok := s.sigs[id]
	if !ok {
		return ErrNoSignature
	}
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, s.message, sig) {
		return ErrBadSignature
	}
	return nil
}
