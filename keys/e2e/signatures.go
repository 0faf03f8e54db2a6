package e2e

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// maxSignedObjects bounds one upload of signatures.
const maxSignedObjects = 1000

// signed is one verified signature to store.
type signed struct {
	target mxid.UserID
	uid    intern.UID
	row    signatureRow
}

// UploadSignatures stores what verifies and returns failures per key: of the
// user's own devices by their self-signing key, of their own master key by
// their devices, and of other users' master keys by their user-signing key.
// spec: client-server API, "POST /keys/signatures/upload"
func (s *Service) UploadSignatures(ctx context.Context, u mxid.UserID, sigs map[mxid.UserID]map[string]json.RawMessage) (failures map[mxid.UserID]map[string]json.RawMessage, err error) {
	n := 0
	for _, objects := range sigs {
		n += len(objects)
	}
	if n > maxSignedObjects {
		return nil, httpx.InvalidParam("At most %d keys can be signed at once", maxSignedObjects)
	}
	uid, err := s.owner(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("upload signatures: %w", err)
	}
	keys, err := s.keysOf(s.now(ctx), u, uid, viewer{u, uid})
	if err != nil {
		return nil, fmt.Errorf("upload signatures: %w", err)
	}
	failures = map[mxid.UserID]map[string]json.RawMessage{}
	fail := func(target mxid.UserID, id string, why *httpx.Error) error {
		raw, err := why.MarshalJSON()
		if failures[target] == nil {
			failures[target] = map[string]json.RawMessage{}
		}
		failures[target][id] = raw
		return err
	}
	var good []signed
	others, err := s.mastersOf(ctx, u, sigs)
	if err != nil {
		return nil, fmt.Errorf("upload signatures: %w", err)
	}
	for _, target := range sortedKeys(sigs) {
		for _, id := range sortedKeys(sigs[target]) {
			found, why, err := s.checkSigned(ctx, keys, u, uid, target, id, sigs[target][id], others[target])
			if err == nil && why != nil {
				err = fail(target, id, why)
			}
			if err != nil {
				return nil, fmt.Errorf("upload signatures: %w", err)
			}
			good = append(good, found...)
		}
	}
	if err := s.storeSignatures(ctx, u, uid, good); err != nil {
		return nil, fmt.Errorf("upload signatures: %w", err)
	}
	return failures, nil
}

// mastersOf gets the master keys of the other users that are signed.
func (s *Service) mastersOf(ctx context.Context, u mxid.UserID, sigs map[mxid.UserID]map[string]json.RawMessage) (map[mxid.UserID]json.RawMessage, error) {
	req := map[mxid.UserID][]mxid.DeviceID{}
	for target := range sigs {
		if target != u {
			req[target] = nil
		}
	}
	if len(req) == 0 {
		return nil, nil
	}
	got, err := s.Query(ctx, u, req)
	return got.MasterKeys, err
}

func badSignature(message string) *httpx.Error {
	return httpx.Err(http.StatusBadRequest, "M_INVALID_SIGNATURE", "%s", message)
}

// checkSigned verifies the signatures by u on one object. why is what is wrong
// with it.
func (s *Service) checkSigned(ctx context.Context, keys userKeys, u mxid.UserID, uid intern.UID, target mxid.UserID, id string, raw json.RawMessage, theirs json.RawMessage) (good []signed, why *httpx.Error, err error) {
	m, perr := object(raw)
	if perr != nil {
		return nil, httpx.BadJSON("This isn't a key object"), nil
	}
	all, perr := signaturesOf(m)
	if perr != nil || len(all[u]) == 0 || len(all[u]) > maxSignatures {
		return nil, badSignature("There is no signature by the user, or too many"), nil
	}
	kept, signers := signersFor(keys, u, target, id, theirs)
	switch {
	case kept == nil:
		return nil, httpx.NotFound("The key is not known"), nil
	case !sameObject(kept, raw):
		return nil, badSignature("The signed object is not the one that is known"), nil
	}
	tuid := uid
	if target != u {
		if tuid, err = s.cfg.Intern.User(ctx, target); err != nil {
			return nil, nil, err
		}
	}
	for _, keyID := range sortedKeys(all[u]) {
		sig := all[u][keyID]
		key, ok := signers(keyID)
		if !ok {
			continue // the device's own signature, for example, came along
		}
		if !verifies(raw, key, sig) {
			return nil, badSignature("The signature is wrong"), nil
		}
		good = append(good, signed{target, tuid, signatureRow{Target: id, Signer: keyID, Sig: sig}})
	}
	if len(good) == 0 {
		return nil, badSignature("There is no signature by a key that may sign this one"), nil
	}
	return good, nil, nil
}

// signersFor finds the object as it is known, nil if it isn't, and the keys
// of u that may sign it, by key ID.
func signersFor(keys userKeys, u, target mxid.UserID, id string, theirs json.RawMessage) (kept json.RawMessage, signers func(keyID string) (ed25519.PublicKey, bool)) {
	one := func(use usage) func(string) (ed25519.PublicKey, bool) {
		key, _, err := parseCrossKey(keys.cross[use], u, use.String())
		return func(keyID string) (ed25519.PublicKey, bool) {
			return key.ed, err == nil && keyID == edPrefix+key.id
		}
	}
	if target != u {
		if key, _, err := parseCrossKey(theirs, target, master.String()); err != nil || key.id != id {
			return nil, nil
		}
		return theirs, one(userSigning)
	}
	if d, found := keys.device(mxid.DeviceID(id)); found {
		return d.keys, one(selfSigning)
	}
	if key, _, err := parseCrossKey(keys.cross[master], u, master.String()); err != nil || key.id != id {
		return nil, nil
	}
	return keys.cross[master], func(keyID string) (ed25519.PublicKey, bool) {
		name, ok := strings.CutPrefix(keyID, edPrefix)
		d, found := keys.device(mxid.DeviceID(name))
		if !ok || !found {
			return nil, false
		}
		key, err := edKey(d.keys, d.id)
		return key, err == nil
	}
}

// storeSignatures stores verified signatures and tells who sees them.
func (s *Service) storeSignatures(ctx context.Context, u mxid.UserID, uid intern.UID, good []signed) error {
	if len(good) == 0 {
		return nil
	}
	var a audience
	if slices.ContainsFunc(good, func(g signed) bool { return g.target == u }) {
		var err error
		if a, err = s.audience(ctx, u); err != nil {
			return err
		}
	}
	err := s.do(ctx, func(tx *storage.Tx) error {
		var devices []mxid.DeviceID
		signedMaster := false
		for _, g := range good {
			news, err := s.putSignature(tx, uid, g)
			if err != nil || !news {
				if err != nil {
					return err
				}
				continue
			}
			switch isDevice, err := tx.Has(s.deviceKeyRow(u, uid, mxid.DeviceID(g.row.Target))); {
			case err != nil:
				return err
			case g.target != u:
				if err := changedFor(tx, g.uid, uid); err != nil {
					return err
				}
			case isDevice:
				devices = append(devices, mxid.DeviceID(g.row.Target))
			default:
				signedMaster = true
			}
		}
		return s.announceSigned(tx, u, uid, devices, signedMaster, a)
	})
	if err != nil {
		return err
	}
	s.wake(append(a.wake, uint32(uid))...)
	return nil
}

func (s *Service) putSignature(tx *storage.Tx, signer intern.UID, g signed) (news bool, err error) {
	key := s.signatureKey(g.uid, signer, g.row)
	var old signatureRow
	err = s.open(tx.Get, key, &old)
	if err != nil && !isNotFound(err) {
		return false, err
	}
	if err == nil && old == g.row {
		return false, nil
	}
	return true, s.put(tx, vault.User(uint32(signer)), key, g.row)
}

func (s *Service) announceSigned(tx *storage.Tx, u mxid.UserID, uid intern.UID, devices []mxid.DeviceID, signedMaster bool, a audience) error {
	if len(devices) > 0 {
		if err := s.announce(tx, u, uid, devices, "", a); err != nil {
			return err
		}
	}
	if signedMaster {
		return s.announceSigning(tx, u, uid, a)
	}
	return nil
}
