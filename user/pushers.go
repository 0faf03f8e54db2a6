package user

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of pushers.
const (
	maxPushers     = 100     // per user
	maxPusherBytes = 8 << 10 // of one pusher
	maxAppID       = 64      // characters. spec: "POST /pushers/set"
	maxPushkey     = 512
)

// Pusher is where the user wants to be told of events.
// spec: client-server API, "POST /pushers/set"
type Pusher struct {
	Kind       string          `json:"kind"`
	AppID      string          `json:"app_id"`
	Pushkey    string          `json:"pushkey"`
	AppName    string          `json:"app_display_name"`
	DeviceName string          `json:"device_display_name"`
	ProfileTag string          `json:"profile_tag,omitempty"`
	Lang       string          `json:"lang"`
	Data       json.RawMessage `json:"data"`
}

// pusherRow is row pr<uid><hash>. The pusher ends with the device that made
// it.
type pusherRow struct {
	Pusher
	Device mxid.DeviceID `json:"device"`
}

func pushersOf(uid intern.UID) storage.Key { return storage.K("pr").U32(uint32(uid)) }

func (s *Service) pusherKey(u mxid.UserID, uid intern.UID, appID, pushkey string) storage.Key {
	h := s.cfg.Vault.Hash("pusher", string(u), appID, pushkey)
	return pushersOf(uid).Bytes(h[:])
}

// SetPusher makes or changes the pusher with these app ID and pushkey.
func (s *Service) SetPusher(ctx context.Context, u mxid.UserID, d mxid.DeviceID, p Pusher) error {
	if err := p.check(); err != nil {
		return err
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	key := s.pusherKey(u, uid, p.AppID, p.Pushkey)
	err = s.do(ctx, func(tx *storage.Tx) error {
		if _, err := s.active(tx.Get, uid); err != nil {
			return err
		}
		rows, err := tx.Scan(pushersOf(uid).Prefix(), false, maxPushers)
		if err != nil {
			return err
		}
		known, err := tx.Has(key)
		if err != nil {
			return err
		}
		if !known && len(rows) >= maxPushers {
			return httpx.InvalidParam("A user has at most %d pushers", maxPushers)
		}
		return s.putSealed(tx, uid, key, pusherRow{Pusher: p, Device: d})
	})
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	return nil
}

func (p *Pusher) check() error {
	if p.AppID == "" || p.Pushkey == "" {
		return httpx.MissingParam("app_id and pushkey are needed")
	}
	if len([]rune(p.AppID)) > maxAppID || len(p.Pushkey) > maxPushkey {
		return httpx.InvalidParam("app_id or pushkey is too long")
	}
	size := len(p.AppName) + len(p.DeviceName) + len(p.ProfileTag) + len(p.Lang) + len(p.Data)
	if size > maxPusherBytes {
		return httpx.InvalidParam("A pusher has at most %d bytes", maxPusherBytes)
	}
	var data bytes.Buffer
	if err := json.Compact(&data, p.Data); err != nil {
		return httpx.BadJSON("data must be an object")
	}
	p.Data = data.Bytes()
	return nil
}

// DeletePusher removes a pusher, if there is one.
func (s *Service) DeletePusher(ctx context.Context, u mxid.UserID, appID, pushkey string) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("delete pusher: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		tx.Delete(s.pusherKey(u, uid, appID, pushkey))
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete pusher: %w", err)
	}
	return nil
}

// Pushers lists the user's pushers.
func (s *Service) Pushers(ctx context.Context, u mxid.UserID) ([]Pusher, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("pushers: %w", err)
	}
	out := []Pusher{}
	for row, err := range s.cfg.KV.Scan(ctx, pushersOf(uid).Prefix(), false, maxPushers) {
		if err != nil {
			return nil, fmt.Errorf("pushers: %w", err)
		}
		var p pusherRow
		if err := s.unseal(row.Key, row.Value, &p); err != nil {
			return nil, fmt.Errorf("pushers: %w", err)
		}
		out = append(out, p.Pusher)
	}
	return out, nil
}

// dropPushers removes the pushers that these devices made.
func (s *Service) dropPushers(tx *storage.Tx, _ mxid.UserID, uid intern.UID, devices []mxid.DeviceID) error {
	rows, err := tx.Scan(pushersOf(uid).Prefix(), false, maxPushers)
	if err != nil {
		return err
	}
	gone := make(map[mxid.DeviceID]bool, len(devices))
	for _, d := range devices {
		gone[d] = true
	}
	for _, row := range rows {
		var p pusherRow
		if err := s.unseal(row.Key, row.Value, &p); err != nil {
			return err
		}
		if gone[p.Device] {
			tx.Delete(row.Key)
		}
	}
	return nil
}
