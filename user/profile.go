package user

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of profiles. spec: client-server API, "PUT /profile/{userId}/{keyName}"
const (
	maxProfileBytes = 64 << 10
	maxProfileKey   = 255
	maxDisplayName  = 256 // runes
	maxAvatarURL    = 1024
)

func profileKey(uid intern.UID) storage.Key { return storage.K("pf").U32(uint32(uid)) }

// Profile is the user's profile fields ("displayname", "avatar_url", custom).
// storage.ErrNotFound: no such account, or a deactivated one.
func (s *Service) Profile(ctx context.Context, u mxid.UserID) (map[string]json.RawMessage, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	account, err := s.account(s.reader(ctx), uid)
	if err == nil && account.Gone {
		err = storage.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	fields, err := s.profile(s.reader(ctx), uid)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return fields, nil
}

func (s *Service) profile(get get, uid intern.UID) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	err := s.open(get, profileKey(uid), &fields)
	if errors.Is(err, storage.ErrNotFound) {
		return fields, nil
	}
	return fields, err
}

// SetProfile sets a field, or removes it if value is nil. Limits: 64 KiB in
// all, key grammar of the specification.
// spec: client-server API, "Profiles"
func (s *Service) SetProfile(ctx context.Context, u mxid.UserID, field string, value json.RawMessage) error {
	value, err := checkProfileField(field, value)
	if err != nil {
		return err
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("set profile: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		if _, err := s.active(tx.Get, uid); err != nil {
			return err
		}
		fields, err := s.profile(tx.Get, uid)
		if err != nil {
			return err
		}
		if value == nil {
			delete(fields, field)
		} else {
			fields[field] = value
		}
		if profileSize(fields) >= maxProfileBytes {
			return httpx.Err(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "A profile must be smaller than %d bytes", maxProfileBytes)
		}
		return s.putSealed(tx, uid, profileKey(uid), fields)
	})
	if err != nil {
		return fmt.Errorf("set profile: %w", err)
	}
	return nil
}

// profileSize is the length of the profile as JSON.
func profileSize(fields map[string]json.RawMessage) int {
	n := len("{}")
	for k, v := range fields {
		n += len(k) + len(v) + len(`"":,`)
	}
	return n
}

// checkProfileField checks a field and gives its value without white space.
func checkProfileField(field string, value json.RawMessage) (json.RawMessage, error) {
	if len(field) > maxProfileKey {
		return nil, httpx.Err(http.StatusBadRequest, "M_KEY_TOO_LARGE", "Profile keys have at most %d bytes", maxProfileKey)
	}
	if !validProfileKey(field) {
		return nil, httpx.InvalidParam("This isn't a profile key")
	}
	if value == nil {
		return nil, nil
	}
	if len(value) > maxProfileBytes {
		return nil, httpx.Err(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "A profile must be smaller than %d bytes", maxProfileBytes)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, value); err != nil {
		return nil, httpx.BadJSON("The value is not JSON")
	}
	return compact.Bytes(), checkProfileValue(field, compact.Bytes())
}

// checkProfileValue checks the types of the fields that the specification
// defines.
func checkProfileValue(field string, value []byte) error {
	if field != "displayname" && field != "avatar_url" && field != "m.tz" {
		return nil
	}
	var text *string
	if err := json.Unmarshal(value, &text); err != nil || text == nil {
		return httpx.BadJSON("This profile field is a string")
	}
	if field == "displayname" && utf8.RuneCountInString(*text) > maxDisplayName {
		return httpx.InvalidParam("Display names have at most %d characters", maxDisplayName)
	}
	if field != "displayname" && len(*text) > maxAvatarURL {
		return httpx.InvalidParam("This profile field has at most %d bytes", maxAvatarURL)
	}
	return nil
}

// validProfileKey checks the common namespaced identifier grammar, which the
// two keys without a namespace follow as well.
// spec: appendices, "Common Namespaced Identifier Grammar"
func validProfileKey(k string) bool {
	if k == "" || k[0] < 'a' || k[0] > 'z' {
		return false
	}
	for i := 0; i < len(k); i++ {
		c := k[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}
