package authrules

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// maxThirdPartyChecks bounds the signatures that one invite makes us verify.
// Identity servers use one or two keys.
const maxThirdPartyChecks = 64

// thirdPartyInvite is the rule for invites that take up an invitation by
// e-mail address or telephone number.
func (m *memberCheck) thirdPartyInvite() error {
	now, err := m.membership(m.target)
	if err != nil {
		return err
	}
	if now == spec.Ban {
		return refuse("the target is banned")
	}
	invite, err := object(m.content["third_party_invite"])
	if err != nil {
		return err
	}
	signed, err := object(invite["signed"])
	if err != nil {
		return err
	}
	token := signed.str("token")
	if token == "" || signed.str("mxid") != m.target {
		return refuse("the third-party invite is for somebody else")
	}
	ev, err := m.state(m.ctx, spec.MRoomThirdPartyInvite, token)
	if err != nil {
		return fmt.Errorf("authrules: find a third-party invite: %w", err)
	}
	if ev == nil || string(ev.SenderID()) != m.sender {
		return refuse("the sender made no such third-party invite")
	}
	content, err := object(ev.Content())
	if err != nil {
		return err
	}
	return verifySigned(invite["signed"], signed, thirdPartyKeys(content))
}

// thirdPartyKeys lists the keys of an m.room.third_party_invite event.
func thirdPartyKeys(content fields) []string {
	keys := []string{content.str("public_key")}
	var list []json.RawMessage
	if json.Unmarshal(content["public_keys"], &list) != nil {
		return keys
	}
	for _, raw := range list {
		if entry, err := object(raw); err == nil {
			keys = append(keys, entry.str("public_key"))
		}
	}
	return keys
}

// verifySigned accepts if any signature matches any key. Both are tried in a
// fixed order so that all servers give up at the same point.
func verifySigned(raw json.RawMessage, signed fields, keys []string) error {
	var signatures map[string]map[string]string
	if json.Unmarshal(signed["signatures"], &signatures) != nil {
		return refuse("the third-party invite isn't signed")
	}
	tries := 0
	for _, key := range keys {
		var public spec.Base64Bytes
		if key == "" || public.Decode(key) != nil || len(public) != ed25519.PublicKeySize {
			continue
		}
		for _, server := range slices.Sorted(maps.Keys(signatures)) {
			for _, id := range slices.Sorted(maps.Keys(signatures[server])) {
				if tries++; tries > maxThirdPartyChecks {
					return refuse("the third-party invite has too many signatures")
				}
				if strings.HasPrefix(id, "ed25519:") && gomatrixserverlib.VerifyJSON(
					server, gomatrixserverlib.KeyID(id), ed25519.PublicKey(public), raw) == nil {
					return nil
				}
			}
		}
	}
	return refuse("the third-party invite has no valid signature")
}
