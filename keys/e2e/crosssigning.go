package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// SigningUpload is POST /keys/device_signing/upload.
type SigningUpload struct {
	Master      json.RawMessage `json:"master_key"`
	SelfSigning json.RawMessage `json:"self_signing_key"`
	UserSigning json.RawMessage `json:"user_signing_key"`
}

func (r SigningUpload) by() map[usage]json.RawMessage {
	out := map[usage]json.RawMessage{}
	for use, raw := range map[usage]json.RawMessage{master: r.Master, selfSigning: r.SelfSigning, userSigning: r.UserSigning} {
		if present(raw) {
			out[use] = raw
		}
	}
	return out
}

// HasMasterKey says whether uploading another one needs authentication.
func (s *Service) HasMasterKey(ctx context.Context, u mxid.UserID) (bool, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return false, fmt.Errorf("master key: %w", err)
	}
	_, found, err := s.cross(s.reader(ctx), u, uid, master)
	return found, err
}

// SameKeys says whether the upload changes nothing; then it doesn't need
// authentication.
// spec: client-server API, "POST /keys/device_signing/upload" (MSC3967)
func (s *Service) SameKeys(ctx context.Context, u mxid.UserID, r SigningUpload) (bool, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return false, fmt.Errorf("compare cross-signing keys: %w", err)
	}
	for use, raw := range r.by() {
		key, _, err := parseCrossKey(raw, u, use.String())
		if err != nil {
			return false, keyError(err)
		}
		old, found, err := s.cross(s.reader(ctx), u, uid, use)
		if err != nil || !found || old.id != key.id {
			return false, err
		}
	}
	return true, nil
}

// errRaced means that the keys changed between reading and writing.
var errRaced = errors.New("the cross-signing keys have changed meanwhile")

// UploadSigning stores cross-signing keys: a master key, and others signed by
// it or by the one that is there. M_MISSING_PARAM, M_INVALID_SIGNATURE,
// M_FORBIDDEN when a key is the same as a device ID.
// spec: client-server API, "Cross-signing"
func (s *Service) UploadSigning(ctx context.Context, u mxid.UserID, r SigningUpload) error {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return fmt.Errorf("upload cross-signing keys: %w", err)
	}
	for range 3 {
		if err = s.uploadSigning(ctx, u, uid, r); !errors.Is(err, errRaced) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("upload cross-signing keys: %w", err)
	}
	return nil
}

func (s *Service) uploadSigning(ctx context.Context, u mxid.UserID, uid intern.UID, r SigningUpload) error {
	old, hasOld, err := s.cross(s.reader(ctx), u, uid, master)
	if err != nil {
		return err
	}
	keys, err := checkSigning(u, old, hasOld, r)
	if err != nil || len(keys) == 0 {
		return err
	}
	names, err := s.cfg.Devices.DeviceNames(ctx, u)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if _, taken := names[mxid.DeviceID(key.id)]; taken {
			return httpx.Forbidden("A device has this key's ID")
		}
	}
	a, err := s.audience(ctx, u)
	if err != nil {
		return err
	}
	news := false
	err = s.do(ctx, func(tx *storage.Tx) error {
		now, has, err := s.cross(tx.Get, u, uid, master)
		if err != nil {
			return err
		}
		if has != hasOld || now.id != old.id {
			return errRaced
		}
		news, err = s.setSigning(tx, u, uid, keys, a)
		return err
	})
	if err == nil && news {
		s.wake(a.wake...)
	}
	return err
}

// checkSigning checks the uploaded keys and their signatures.
func checkSigning(u mxid.UserID, old crossKey, hasOld bool, r SigningUpload) (map[usage]crossKey, error) {
	uploads := r.by()
	out := map[usage]crossKey{}
	top := old
	if raw, ok := uploads[master]; ok {
		key, _, err := parseCrossKey(raw, u, master.String())
		if err != nil {
			return nil, keyError(err)
		}
		top, hasOld, out[master] = key, true, key
	}
	for _, use := range []usage{selfSigning, userSigning} {
		raw, ok := uploads[use]
		if !ok {
			continue
		}
		if !hasOld {
			return nil, httpx.Err(http.StatusBadRequest, "M_MISSING_PARAM", "There is no master key to sign this key")
		}
		key, sigs, err := parseCrossKey(raw, u, use.String())
		if err != nil {
			return nil, keyError(err)
		}
		if !verifies(raw, top.ed, sigs[u][edPrefix+top.id]) {
			return nil, keyError(errSignature)
		}
		if key.id == top.id {
			return nil, httpx.InvalidParam("The keys must differ from one another")
		}
		out[use] = key
	}
	if out[selfSigning].id != "" && out[selfSigning].id == out[userSigning].id {
		return nil, httpx.InvalidParam("The keys must differ from one another")
	}
	return out, nil
}

// setSigning stores what is new of the keys, drops what the replaced ones
// signed, and tells everyone.
func (s *Service) setSigning(tx *storage.Tx, u mxid.UserID, uid intern.UID, keys map[usage]crossKey, a audience) (news bool, err error) {
	told := false // whether others see the change
	for _, use := range []usage{master, selfSigning, userSigning} {
		key, ok := keys[use]
		if !ok {
			continue
		}
		old, found, err := s.cross(tx.Get, u, uid, use)
		if err != nil {
			return false, err
		}
		if found && string(old.raw) == string(key.raw) {
			continue
		}
		news = true
		told = told || use != userSigning
		if found && old.id != key.id {
			if err := s.dropReplaced(tx, u, uid, use, old, keys); err != nil {
				return false, err
			}
		}
		if err := s.put(tx, s.ref(u, uid), crossKeyRow(uid, use), crossRow{key.id, key.raw}); err != nil {
			return false, err
		}
	}
	switch {
	case !news:
		return false, nil
	case told:
		return true, s.announceSigning(tx, u, uid, a)
	}
	return true, changedFor(tx, uid, uid)
}

// dropReplaced deletes what hangs on a replaced key: the signatures on it and
// by it, and with a master key the other keys that it signed, unless they are
// replaced as well.
func (s *Service) dropReplaced(tx *storage.Tx, u mxid.UserID, uid intern.UID, use usage, old crossKey, keys map[usage]crossKey) error {
	if err := s.dropSignatures(tx, uid, uid, func(row signatureRow) bool {
		return row.Target == old.id || row.Signer == edPrefix+old.id
	}); err != nil || use != master {
		return err
	}
	for _, other := range []usage{selfSigning, userSigning} {
		if _, replaced := keys[other]; !replaced {
			tx.Delete(crossKeyRow(uid, other))
		}
	}
	return s.owe(tx, uid, workRow{Key: old.id}) // others may have signed it, any number of them
}

// announceSigning gives the user's list a new position and queues the EDU
// with the cross-signing keys as they are now.
func (s *Service) announceSigning(tx *storage.Tx, u mxid.UserID, uid intern.UID, a audience) error {
	row, err := list(tx.Get, uid)
	if err != nil {
		return err
	}
	changed(tx, uid, &row)
	if len(a.servers) > 0 {
		keys, err := s.keysOf(within(tx), u, uid, nobody)
		if err != nil {
			return err
		}
		edu := signingKeyEDU{UserID: u, Master: keys.cross[master], SelfSigning: keys.cross[selfSigning]}
		if err := s.queue(tx, a.servers, "m.signing_key_update", edu); err != nil {
			return err
		}
	}
	return putPlain(tx, listKey(uid), row)
}
