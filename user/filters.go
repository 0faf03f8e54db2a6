package user

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of filters. Clients store a handful of some hundred bytes.
const (
	maxFilterBytes = 64 << 10
	maxFilters     = 1000 // per user
)

// A filter's ID is the keyed hash of its user and text, which is its row key
// as well: the same filter stored again gets the same ID.
func filterKey(uid intern.UID, id [16]byte) storage.Key {
	return storage.K("fi").U32(uint32(uid)).Bytes(id[:])
}

// SaveFilter stores a filter and returns its ID; Filter gives it back
// (storage.ErrNotFound).
// spec: client-server API, "Filtering"
func (s *Service) SaveFilter(ctx context.Context, u mxid.UserID, filter json.RawMessage) (string, error) {
	if len(filter) > maxFilterBytes {
		return "", httpx.TooLarge("Filters have at most %d bytes", maxFilterBytes)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, filter); err != nil {
		return "", httpx.NotJSON("The filter is not JSON")
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return "", fmt.Errorf("save filter: %w", err)
	}
	hash := s.cfg.Vault.Hash("filter", string(u), compact.String())
	key := filterKey(uid, hash)
	id := base64.RawURLEncoding.EncodeToString(hash[:])
	if _, err := s.cfg.KV.Get(ctx, key); err == nil {
		return id, nil
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		rows, err := tx.Scan(storage.K("fi").U32(uint32(uid)).Prefix(), false, maxFilters)
		if err != nil {
			return err
		}
		if len(rows) >= maxFilters {
			return httpx.TooLarge("A user has at most %d filters", maxFilters)
		}
		return s.putSealed(tx, uid, key, json.RawMessage(compact.Bytes()))
	})
	if err != nil {
		return "", fmt.Errorf("save filter: %w", err)
	}
	return id, nil
}

// Filter is a stored filter; storage.ErrNotFound.
func (s *Service) Filter(ctx context.Context, u mxid.UserID, id string) (json.RawMessage, error) {
	raw, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil || len(raw) != 16 {
		return nil, fmt.Errorf("filter: %w", storage.ErrNotFound)
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	var filter json.RawMessage
	if err := s.open(s.reader(ctx), filterKey(uid, [16]byte(raw)), &filter); err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	return filter, nil
}
