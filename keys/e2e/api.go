// Package e2e owns what clients need for end-to-end encryption and the server
// can't read: device keys, one-time and fallback keys, cross-signing keys and
// signatures, key backups, to-device messages, and the news of who changed
// their devices, here and on other servers.
//
// spec: client-server API, "End-to-End Encryption", "Send-to-Device
// messaging"; server-server API, "Device Management", "End-to-End Encryption",
// "Send-to-device messaging"
package e2e

import (
	"context"
	"encoding/json"
	"log/slog"

	"parley/internal/clock"
	"parley/internal/mxid"
	"parley/internal/notify"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Remote asks other servers. federation/fedclient has it.
type Remote interface {
	QueryKeys(ctx context.Context, to mxid.ServerName, devices map[mxid.UserID][]mxid.DeviceID) (QueryResult, error)
	ClaimKeys(ctx context.Context, to mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error)
	UserDevices(ctx context.Context, to mxid.ServerName, user mxid.UserID) (RemoteDevices, error)
}

// Neighbours says who shares rooms. room.Service has it.
type Neighbours interface {
	SharesRoom(ctx context.Context, a, b mxid.UserID) (bool, error)
	LocalPeers(ctx context.Context, user mxid.UserID) ([]mxid.UserID, error)
	ServersSharing(ctx context.Context, user mxid.UserID) ([]mxid.ServerName, error)
}

// Outbox queues durable EDUs in the transaction of the change that they tell
// of. federation/sender has it. Each EDU is delivered once, in order.
type Outbox interface {
	QueueEDU(tx *storage.Tx, to []mxid.ServerName, typ string, content json.RawMessage) error
}

// Devices names the devices of local users. user.Service has it.
type Devices interface {
	DeviceNames(ctx context.Context, u mxid.UserID) (map[mxid.DeviceID]string, error)
}

// Config is what a Service stands on.
type Config struct {
	ServerName mxid.ServerName
	KV         storage.KV
	Commit     *storage.Committer
	Intern     *intern.Table
	Vault      *vault.Vault
	Clock      clock.Clock
	Hub        *notify.Hub
	Remote     Remote
	Neighbours Neighbours
	Outbox     Outbox
	Devices    Devices
	Log        *slog.Logger
	// DeviceNamesFederated tells other servers the names of devices.
	DeviceNamesFederated bool
}

// Service is the key server. Safe for concurrent use.
type Service struct{ cfg Config }

// New opens the keys of a store.
func New(cfg Config) (*Service, error) { panic("unimplemented") }

// RemoveDevices forgets the devices' keys and queues inside the transaction
// that removes them, and tells everyone. For user.OnDevicesRemoved.
func (s *Service) RemoveDevices(tx *storage.Tx, user mxid.UserID, uid intern.UID, ds []mxid.DeviceID) error {
	panic("unimplemented")
}

// UploadRequest is POST /keys/upload.
type UploadRequest struct {
	DeviceKeys   json.RawMessage            `json:"device_keys"`
	OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
	FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
}

// Upload stores keys; a one-time key ID that exists with another value is
// M_INVALID_PARAM. It returns the one-time key counts.
func (s *Service) Upload(ctx context.Context, u mxid.UserID, d mxid.DeviceID, r UploadRequest) (map[string]int, error) {
	panic("unimplemented")
}

// QueryResult is the answer of POST /keys/query, client and federation.
type QueryResult struct {
	DeviceKeys  map[mxid.UserID]map[mxid.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys  map[mxid.UserID]json.RawMessage                   `json:"master_keys,omitempty"`
	SelfSigning map[mxid.UserID]json.RawMessage                   `json:"self_signing_keys,omitempty"`
	UserSigning map[mxid.UserID]json.RawMessage                   `json:"user_signing_keys,omitempty"`
	Failures    map[mxid.ServerName]json.RawMessage               `json:"failures,omitempty"`
}

// Query answers a local user, asking other servers where the cache is stale.
func (s *Service) Query(ctx context.Context, asker mxid.UserID, req map[mxid.UserID][]mxid.DeviceID) (QueryResult, error) {
	panic("unimplemented")
}

// QueryFederation answers another server about local users.
func (s *Service) QueryFederation(ctx context.Context, origin mxid.ServerName, req map[mxid.UserID][]mxid.DeviceID) (QueryResult, error) {
	panic("unimplemented")
}

// Claim takes one key per device; no key is ever given out twice.
func (s *Service) Claim(ctx context.Context, req map[mxid.UserID]map[mxid.DeviceID]string) (keys map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, failures map[mxid.ServerName]json.RawMessage, err error) {
	panic("unimplemented")
}

// ClaimFederation takes keys of local users for another server.
func (s *Service) ClaimFederation(ctx context.Context, origin mxid.ServerName, req map[mxid.UserID]map[mxid.DeviceID]string) (map[mxid.UserID]map[mxid.DeviceID]map[string]json.RawMessage, error) {
	panic("unimplemented")
}

// Counts are the one-time keys left and the unused fallback algorithms.
func (s *Service) Counts(ctx context.Context, u mxid.UserID, d mxid.DeviceID) (otk map[string]int, unusedFallback []string, err error) {
	panic("unimplemented")
}

// SigningUpload is POST /keys/device_signing/upload.
type SigningUpload struct {
	Master      json.RawMessage `json:"master_key"`
	SelfSigning json.RawMessage `json:"self_signing_key"`
	UserSigning json.RawMessage `json:"user_signing_key"`
}

// HasMasterKey says whether uploading another one needs authentication;
// SameKeys whether the upload changes nothing (then it doesn't, MSC3967).
func (s *Service) HasMasterKey(ctx context.Context, u mxid.UserID) (bool, error) {
	panic("unimplemented")
}
func (s *Service) SameKeys(ctx context.Context, u mxid.UserID, r SigningUpload) (bool, error) {
	panic("unimplemented")
}
func (s *Service) UploadSigning(ctx context.Context, u mxid.UserID, r SigningUpload) error {
	panic("unimplemented")
}

// UploadSignatures stores what verifies and returns failures per key.
func (s *Service) UploadSignatures(ctx context.Context, u mxid.UserID, sigs map[mxid.UserID]map[string]json.RawMessage) (failures map[mxid.UserID]map[string]json.RawMessage, err error) {
	panic("unimplemented")
}

// Changes lists the users sharing a room with u whose devices changed in
// (from, to], u included. (Who left is worked out by the sync package.)
func (s *Service) Changes(ctx context.Context, u mxid.UserID, from, to uint64) ([]mxid.UserID, error) {
	panic("unimplemented")
}

// ---- to-device ----

// SendToDevice delivers to local devices ("*": all) and queues for others.
// The same txnKey (device + txn ID) delivers once.
func (s *Service) SendToDevice(ctx context.Context, sender mxid.UserID, txnKey, typ string, msgs map[mxid.UserID]map[mxid.DeviceID]json.RawMessage) error {
	panic("unimplemented")
}

// ToDevice lists a device's messages with since < position <= upTo, oldest
// first, at most limit; next is the position of the last one.
func (s *Service) ToDevice(ctx context.Context, uid intern.UID, d mxid.DeviceID, since, upTo uint64, limit int) (events []json.RawMessage, next uint64, err error) {
	panic("unimplemented")
}

// AckToDevice drops messages with positions <= upTo, which the client has.
func (s *Service) AckToDevice(ctx context.Context, uid intern.UID, d mxid.DeviceID, upTo uint64) error {
	panic("unimplemented")
}

// ---- federation in ----

// ReceiveToDevice, ReceiveDeviceList and ReceiveSigningKey take EDUs; users
// that aren't of the origin are refused.
func (s *Service) ReceiveToDevice(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	panic("unimplemented")
}
func (s *Service) ReceiveDeviceList(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	panic("unimplemented")
}
func (s *Service) ReceiveSigningKey(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	panic("unimplemented")
}

// RemoteDevices is GET /_matrix/federation/v1/user/devices/{userId}.
type RemoteDevices struct {
	UserID      mxid.UserID       `json:"user_id"`
	StreamID    int64             `json:"stream_id"`
	Devices     []json.RawMessage `json:"devices"`
	MasterKey   json.RawMessage   `json:"master_key,omitempty"`
	SelfSigning json.RawMessage   `json:"self_signing_key,omitempty"`
}

// DevicesFederation answers that request for a local user.
func (s *Service) DevicesFederation(ctx context.Context, origin mxid.ServerName, u mxid.UserID) (RemoteDevices, error) {
	panic("unimplemented")
}

// StartedSharing is called when two servers come to share a room by a join
// (either way), so that device lists are fetched or sent afresh.
func (s *Service) StartedSharing(ctx context.Context, user mxid.UserID) error { panic("unimplemented") }

// ---- key backup ----

// BackupVersion is a backup's public description.
type BackupVersion struct {
	Version   string          `json:"version"`
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int             `json:"count"`
	ETag      string          `json:"etag"`
}

// Sessions is room -> session -> key data.
type Sessions map[mxid.RoomID]map[string]json.RawMessage

func (s *Service) CreateBackup(ctx context.Context, u mxid.UserID, algorithm string, authData json.RawMessage) (version string, err error) {
	panic("unimplemented")
}

// Backup describes a version, "" the current one; M_NOT_FOUND.
func (s *Service) Backup(ctx context.Context, u mxid.UserID, version string) (BackupVersion, error) {
	panic("unimplemented")
}
func (s *Service) UpdateBackup(ctx context.Context, u mxid.UserID, version, algorithm string, authData json.RawMessage) error {
	panic("unimplemented")
}
func (s *Service) DeleteBackup(ctx context.Context, u mxid.UserID, version string) error {
	panic("unimplemented")
}

// PutSessions keeps, per session, the better key (is_verified, then
// first_message_index, then forwarded_count). M_WRONG_ROOM_KEYS_VERSION.
func (s *Service) PutSessions(ctx context.Context, u mxid.UserID, version string, keys Sessions) (count int, etag string, err error) {
	panic("unimplemented")
}

// GetSessions takes "" for all rooms, "" for all sessions of a room.
func (s *Service) GetSessions(ctx context.Context, u mxid.UserID, version string, room mxid.RoomID, session string) (Sessions, error) {
	panic("unimplemented")
}
func (s *Service) DeleteSessions(ctx context.Context, u mxid.UserID, version string, room mxid.RoomID, session string) (count int, etag string, err error) {
	panic("unimplemented")
}
