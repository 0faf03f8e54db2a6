package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of key backups.
const (
	maxBackups         = 100 // versions that a user hasn't deleted
	maxBackupAlgorithm = 255
	maxSessionBytes    = 16 << 10
	maxSessions        = 500_000 // of one backup
	maxSessionID       = 255
	sessionSlice       = 250 // sessions written in one transaction, 4 MB at most
)

var authDataLimits = jsonx.Limits{MaxBytes: 64 << 10, MaxDepth: 16, MaxKeys: 1024, Object: true}
var sessionLimits = jsonx.Limits{MaxBytes: maxSessionBytes, MaxDepth: 16, MaxKeys: 256, Object: true}

// BackupVersion is a backup's public description.
type BackupVersion struct {
	Version   string          `json:"version"`
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int             `json:"count"`
	ETag      string          `json:"etag"`
}

// backupRow is row kv<uid><version>. Row kv<uid> has the last version number
// that was given, so that none is used twice.
type backupRow struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int             `json:"count"`
	Changes   uint64          `json:"changes"` // the ETag
}

func backupsOf(uid intern.UID) storage.Key                 { return storage.K("kv").U32(uint32(uid)) }
func backupKey(uid intern.UID, version uint32) storage.Key { return backupsOf(uid).U32(version) }

func (b backupRow) etag() string { return strconv.FormatUint(b.Changes, 10) }

func (b backupRow) describe(version uint32) BackupVersion {
	return BackupVersion{Version: strconv.FormatUint(uint64(version), 10), Algorithm: b.Algorithm,
		AuthData: b.AuthData, Count: b.Count, ETag: b.etag()}
}

func errNoBackup() error { return httpx.NotFound("There is no such key backup") }

// CreateBackup makes a backup version, which is the current one from then on.
// spec: client-server API, "Server-side key backups"
func (s *Service) CreateBackup(ctx context.Context, u mxid.UserID, algorithm string, authData json.RawMessage) (version string, err error) {
	if err := checkBackup(algorithm, authData); err != nil {
		return "", err
	}
	uid, err := s.owner(ctx, u)
	if err != nil {
		return "", fmt.Errorf("create key backup: %w", err)
	}
	var n uint32
	err = s.do(ctx, func(tx *storage.Tx) error {
		last, err := tx.Get(backupsOf(uid))
		if err != nil && !isNotFound(err) {
			return err
		}
		if len(last) == 4 {
			n = storage.ReadU32(last, 0)
		}
		rows, err := tx.Scan(backupsOf(uid).Prefix(), false, maxBackups+2)
		if err != nil {
			return err
		}
		if len(rows) > maxBackups {
			return httpx.Forbidden("There are %d versions of the key backup; delete one first", maxBackups)
		}
		n++
		tx.Put(backupsOf(uid), storage.Key(nil).U32(n))
		return s.put(tx, s.ref(u, uid), backupKey(uid, n), backupRow{Algorithm: algorithm, AuthData: authData})
	})
	if err != nil {
		return "", fmt.Errorf("create key backup: %w", err)
	}
	return strconv.FormatUint(uint64(n), 10), nil
}

func checkBackup(algorithm string, authData json.RawMessage) error {
	if algorithm == "" || len(algorithm) > maxBackupAlgorithm {
		return httpx.InvalidParam("The algorithm of a key backup has 1 to %d bytes", maxBackupAlgorithm)
	}
	if err := jsonx.Check(authData, authDataLimits); err != nil {
		return httpx.BadJSON("auth_data is too large or not an object")
	}
	return nil
}

// current is the current version; M_NOT_FOUND.
func (s *Service) current(v view, uid intern.UID) (uint32, backupRow, error) {
	versions := storage.Range{Lo: backupKey(uid, 0), Hi: backupsOf(uid).Prefix().Hi}
	rows, err := v.scan(versions, true, 1)
	if err != nil {
		return 0, backupRow{}, err
	}
	if len(rows) == 0 {
		return 0, backupRow{}, errNoBackup()
	}
	var row backupRow
	err = s.unseal(rows[0].Key, rows[0].Value, &row)
	if isNotFound(err) {
		err = errNoBackup() // erased
	}
	return storage.ReadU32(rows[0].Key, len(backupsOf(uid))), row, err
}

// backup reads a version, "" for the current one; M_NOT_FOUND.
func (s *Service) backup(v view, uid intern.UID, version string) (uint32, backupRow, error) {
	if version == "" {
		return s.current(v, uid)
	}
	var row backupRow
	n, err := strconv.ParseUint(version, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != version {
		return 0, row, errNoBackup()
	}
	err = s.open(v.get, backupKey(uid, uint32(n)), &row)
	if isNotFound(err) {
		return 0, row, errNoBackup()
	}
	return uint32(n), row, err
}

// Backup describes a version, "" the current one; M_NOT_FOUND.
func (s *Service) Backup(ctx context.Context, u mxid.UserID, version string) (BackupVersion, error) {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return BackupVersion{}, fmt.Errorf("key backup: %w", err)
	}
	n, row, err := s.backup(s.now(ctx), uid, version)
	if err != nil {
		return BackupVersion{}, err
	}
	return row.describe(n), nil
}

// UpdateBackup replaces the auth_data of a version; the algorithm must be the
// same. M_NOT_FOUND, M_INVALID_PARAM.
func (s *Service) UpdateBackup(ctx context.Context, u mxid.UserID, version, algorithm string, authData json.RawMessage) error {
	if err := checkBackup(algorithm, authData); err != nil {
		return err
	}
	return s.changeBackup(ctx, u, version, func(tx *storage.Tx, uid intern.UID, n uint32, row *backupRow) error {
		if row.Algorithm != algorithm {
			return httpx.InvalidParam("The algorithm of a key backup can't be changed")
		}
		row.AuthData = authData
		return nil
	})
}

// changeBackup changes a version's row in a transaction.
func (s *Service) changeBackup(ctx context.Context, u mxid.UserID, version string, f func(tx *storage.Tx, uid intern.UID, n uint32, row *backupRow) error) error {
	uid, err := s.owner(ctx, u)
	if err != nil {
		return fmt.Errorf("change key backup: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		n, row, err := s.backup(within(tx), uid, version)
		if err != nil {
			return err
		}
		if err := f(tx, uid, n, &row); err != nil {
			return err
		}
		return s.put(tx, s.ref(u, uid), backupKey(uid, n), row)
	})
	if err != nil {
		return fmt.Errorf("change key backup: %w", err)
	}
	return nil
}

// DeleteBackup deletes a version and its keys; one that was deleted before is
// no error. M_NOT_FOUND.
func (s *Service) DeleteBackup(ctx context.Context, u mxid.UserID, version string) error {
	if version == "" {
		return errNoBackup()
	}
	uid, err := s.owner(ctx, u)
	if err != nil {
		return fmt.Errorf("delete key backup: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		n, _, err := s.backup(within(tx), uid, version)
		if isNoBackup(err) && s.hadBackup(tx, uid, version) {
			return nil
		}
		if err != nil {
			return err
		}
		tx.Delete(backupKey(uid, n))
		return s.owe(tx, uid, workRow{Backup: n})
	})
	if err != nil {
		return fmt.Errorf("delete key backup: %w", err)
	}
	return nil
}

func isNoBackup(err error) bool {
	var e *httpx.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// hadBackup says whether a version was ever given to the user.
func (s *Service) hadBackup(tx *storage.Tx, uid intern.UID, version string) bool {
	n, err := strconv.ParseUint(version, 10, 32)
	last, lastErr := tx.Get(backupsOf(uid))
	return err == nil && n > 0 && lastErr == nil && len(last) == 4 && uint32(n) <= storage.ReadU32(last, 0)
}

// errWrongVersion answers writing to a version that isn't the current one.
func errWrongVersion(current uint32) error {
	e := httpx.Err(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION", "This isn't the current version of the key backup")
	e.Extra = map[string]any{"current_version": strconv.FormatUint(uint64(current), 10)}
	return e
}

// currentOnly reads a version to write to.
func (s *Service) currentOnly(v view, uid intern.UID, version string) (uint32, backupRow, error) {
	n, row, err := s.current(v, uid)
	if err != nil {
		return 0, row, err
	}
	if strconv.FormatUint(uint64(n), 10) != version {
		return 0, row, errWrongVersion(n)
	}
	return n, row, nil
}
