package user

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Bounds of devices. Servers on the network take names of up to 100
// characters; nobody needs more devices than this, and each costs every
// encrypted message something.
const (
	maxDeviceID   = 255
	maxDeviceName = 100 // runes
	maxDevices    = 500
)

// Device is a client of an account.
type Device struct {
	ID          mxid.DeviceID
	DisplayName string
}

// deviceRow is row dv<uid><hash16 device>.
type deviceRow struct {
	ID      mxid.DeviceID `json:"id"`
	Name    string        `json:"name,omitempty"`
	Now     pair          `json:"now"`
	Before  *pair         `json:"before,omitempty"`  // still good until Now is used
	Session []byte        `json:"session,omitempty"` // hash, key of the rf row
}

func devicesOf(uid intern.UID) storage.Key { return storage.K("dv").U32(uint32(uid)) }

func (s *Service) deviceKey(u mxid.UserID, uid intern.UID, d mxid.DeviceID) storage.Key {
	h := s.cfg.Vault.Hash("device", string(u), string(d))
	return devicesOf(uid).Bytes(h[:])
}

func validDeviceID(d mxid.DeviceID) bool {
	if len(d) == 0 || len(d) > maxDeviceID || !utf8.ValidString(string(d)) {
		return false
	}
	return !strings.ContainsFunc(string(d), func(r rune) bool { return r < ' ' || r == 0x7f })
}

func (s *Service) device(get get, u mxid.UserID, uid intern.UID, d mxid.DeviceID) (deviceRow, error) {
	var row deviceRow
	err := s.open(get, s.deviceKey(u, uid, d), &row)
	return row, err
}

func (s *Service) putDevice(tx *storage.Tx, u mxid.UserID, uid intern.UID, row deviceRow) error {
	return s.putSealed(tx, uid, s.deviceKey(u, uid, row.ID), row)
}

// deviceForLogin reads the device, or begins a new one.
func (s *Service) deviceForLogin(tx *storage.Tx, u mxid.UserID, uid intern.UID, d mxid.DeviceID, name string) (deviceRow, error) {
	row, err := s.device(tx.Get, u, uid, d)
	if !errors.Is(err, storage.ErrNotFound) {
		return row, err
	}
	rows, err := tx.Scan(devicesOf(uid).Prefix(), false, maxDevices)
	if err != nil {
		return row, err
	}
	if len(rows) >= maxDevices {
		return row, httpx.Err(http.StatusForbidden, "M_FORBIDDEN", "This account has %d devices; remove one first", maxDevices)
	}
	return deviceRow{ID: d, Name: cutRunes(name, maxDeviceName)}, nil
}

func cutRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// Devices lists the devices of a local user, in no order.
func (s *Service) Devices(ctx context.Context, u mxid.UserID) ([]Device, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	devices := []Device{}
	for pair, err := range s.cfg.KV.Scan(ctx, devicesOf(uid).Prefix(), false, 0) {
		if err != nil {
			return nil, fmt.Errorf("devices: %w", err)
		}
		var row deviceRow
		err := s.unseal(pair.Key, pair.Value, &row)
		if errors.Is(err, storage.ErrNotFound) {
			continue // erased
		}
		if err != nil {
			return nil, fmt.Errorf("devices: %w", err)
		}
		devices = append(devices, Device{ID: row.ID, DisplayName: row.Name})
	}
	return devices, nil
}

// DeviceNames maps the devices of a local user to their display names. It is
// empty for anyone else.
func (s *Service) DeviceNames(ctx context.Context, u mxid.UserID) (map[mxid.DeviceID]string, error) {
	devices, err := s.Devices(ctx, u)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	names := make(map[mxid.DeviceID]string, len(devices))
	for _, d := range devices {
		names[d.ID] = d.DisplayName
	}
	return names, nil
}

// Device is one device; storage.ErrNotFound.
func (s *Service) Device(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (Device, error) {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return Device{}, fmt.Errorf("device: %w", err)
	}
	row, err := s.device(s.reader(ctx), u, uid, d)
	if err != nil {
		return Device{}, fmt.Errorf("device: %w", err)
	}
	return Device{ID: row.ID, DisplayName: row.Name}, nil
}

// RenameDevice sets a device's display name; storage.ErrNotFound.
func (s *Service) RenameDevice(ctx context.Context, u mxid.UserID, d mxid.DeviceID, name string) error {
	if utf8.RuneCountInString(name) > maxDeviceName {
		return httpx.InvalidParam("Device names have at most %d characters", maxDeviceName)
	}
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("rename device: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		row, err := s.device(tx.Get, u, uid, d)
		if err != nil {
			return err
		}
		row.Name = name
		return s.putDevice(tx, u, uid, row)
	})
	if err != nil {
		return fmt.Errorf("rename device: %w", err)
	}
	if s.onDeviceRenamed != nil {
		s.onDeviceRenamed(context.WithoutCancel(ctx), u, d)
	}
	return nil
}

// RemoveDevices removes devices with their tokens and whatever else is kept
// of them. Those that don't exist are passed over.
func (s *Service) RemoveDevices(ctx context.Context, u mxid.UserID, ds ...mxid.DeviceID) error {
	uid, err := s.lookup(ctx, u)
	if err != nil {
		return fmt.Errorf("remove devices: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		rows := make([]deviceRow, 0, len(ds))
		for _, d := range ds {
			row, err := s.device(tx.Get, u, uid, d)
			if errors.Is(err, storage.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return s.remove(tx, u, uid, rows)
	})
	if err != nil {
		return fmt.Errorf("remove devices: %w", err)
	}
	return nil
}

// removeAll removes every device but keep.
func (s *Service) removeAll(tx *storage.Tx, u mxid.UserID, uid intern.UID, keep mxid.DeviceID) error {
	pairs, err := tx.Scan(devicesOf(uid).Prefix(), false, 0)
	if err != nil {
		return err
	}
	rows := make([]deviceRow, 0, len(pairs))
	for _, p := range pairs {
		var row deviceRow
		err := s.unseal(p.Key, p.Value, &row)
		if errors.Is(err, storage.ErrNotFound) {
			tx.Delete(p.Key) // erased
			continue
		}
		if err != nil {
			return err
		}
		if row.ID != keep {
			rows = append(rows, row)
		}
	}
	return s.remove(tx, u, uid, rows)
}

func (s *Service) remove(tx *storage.Tx, u mxid.UserID, uid intern.UID, rows []deviceRow) error {
	if len(rows) == 0 {
		return nil
	}
	ids := make([]mxid.DeviceID, len(rows))
	for i, row := range rows {
		s.dropTokens(tx, row)
		tx.Delete(s.deviceKey(u, uid, row.ID))
		ids[i] = row.ID
	}
	for _, f := range s.onDevicesRemoved {
		if err := f(tx, u, uid, ids); err != nil {
			return fmt.Errorf("clean up after devices: %w", err)
		}
	}
	return nil
}

// Logout removes a device.
func (s *Service) Logout(ctx context.Context, u mxid.UserID, d mxid.DeviceID) error {
	return s.RemoveDevices(ctx, u, d)
}

// LogoutAll removes every device of a user, each in a transaction of its own.
func (s *Service) LogoutAll(ctx context.Context, u mxid.UserID) error {
	devices, err := s.Devices(ctx, u)
	if err != nil {
		return fmt.Errorf("log out: %w", err)
	}
	for _, d := range devices {
		if err := s.RemoveDevices(ctx, u, d.ID); err != nil {
			return err
		}
	}
	return nil
}
