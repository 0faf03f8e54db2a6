package clientapi

import (
	"encoding/json"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/e2e"
)

// Limits of one request about a key backup.
const (
	maxBackupSessions = 20_000
	maxBackupVersion  = 64
	maxSessionID      = 255
)

type backupRequest struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   string          `json:"version"`
}

func (r *request) backupRequest() (q backupRequest, err error) {
	if err := r.decode(&q); err != nil {
		return q, err
	}
	if q.Algorithm == "" || len(q.AuthData) == 0 {
		return q, httpx.MissingParam("algorithm and auth_data are needed")
	}
	if !isObject(q.AuthData) || len(q.Algorithm) > 255 {
		return q, httpx.BadJSON("The backup description is malformed")
	}
	return q, nil
}

// createBackup is POST /room_keys/version.
func (a *API) createBackup(r *request) (any, error) {
	q, err := r.backupRequest()
	if err != nil {
		return nil, err
	}
	v, err := a.keys.CreateBackup(r.ctx, r.User, q.Algorithm, q.AuthData)
	if err != nil {
		return nil, err
	}
	return map[string]string{"version": v}, nil
}

// backup is GET /room_keys/version[/{version}].
func (a *API) backup(r *request) (any, error) {
	return a.keys.Backup(r.ctx, r.User, r.params["version"])
}

// updateBackup is PUT /room_keys/version/{version}.
func (a *API) updateBackup(r *request) (any, error) {
	q, err := r.backupRequest()
	if err != nil {
		return nil, err
	}
	v := r.params["version"]
	if q.Version != "" && q.Version != v {
		return nil, httpx.InvalidParam("The versions in path and body differ")
	}
	return nil, a.keys.UpdateBackup(r.ctx, r.User, v, q.Algorithm, q.AuthData)
}

// deleteBackup is DELETE /room_keys/version/{version}.
func (a *API) deleteBackup(r *request) (any, error) {
	return nil, a.keys.DeleteBackup(r.ctx, r.User, r.params["version"])
}

// backupTarget reads the version of the query, and room and session of the
// path, "" where the path has none.
func (r *request) backupTarget() (version string, id mxid.RoomID, session string, err error) {
	if version = r.query("version"); version == "" {
		return "", "", "", httpx.MissingParam("version is missing")
	}
	if _, ok := r.params["roomId"]; ok {
		if id, err = r.room(); err != nil {
			return "", "", "", err
		}
	}
	session = r.params["sessionId"]
	if len(version) > maxBackupVersion || len(session) > maxSessionID {
		return "", "", "", httpx.InvalidParam("version or session is too long")
	}
	return version, id, session, nil
}

type roomBackup struct {
	Sessions map[string]json.RawMessage `json:"sessions"`
}

// putSession is PUT /room_keys/keys/{roomId}/{sessionId}.
func (a *API) putSession(r *request) (any, error) {
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	return a.putSessions(r, map[string]roomBackup{
		r.params["roomId"]: {Sessions: map[string]json.RawMessage{r.params["sessionId"]: raw}},
	})
}

// putRoomSessions is PUT /room_keys/keys/{roomId}.
func (a *API) putRoomSessions(r *request) (any, error) {
	var q roomBackup
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Sessions == nil {
		return nil, httpx.MissingParam("sessions is missing")
	}
	return a.putSessions(r, map[string]roomBackup{r.params["roomId"]: q})
}

// putAllSessions is PUT /room_keys/keys.
func (a *API) putAllSessions(r *request) (any, error) {
	var q struct {
		Rooms map[string]roomBackup `json:"rooms"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Rooms == nil {
		return nil, httpx.MissingParam("rooms is missing")
	}
	return a.putSessions(r, q.Rooms)
}

func (a *API) putSessions(r *request, rooms map[string]roomBackup) (any, error) {
	version, _, _, err := r.backupTarget()
	if err != nil {
		return nil, err
	}
	all := make(e2e.Sessions, len(rooms))
	n := 0
	for name, b := range rooms {
		id, err := parseRoom(name)
		if err != nil {
			return nil, err
		}
		for s, raw := range b.Sessions {
			if n++; n > maxBackupSessions || len(s) > maxSessionID || s == "" {
				return nil, httpx.InvalidParam("Too many sessions, or an invalid session ID")
			}
			if err := checkSession(raw); err != nil {
				return nil, err
			}
		}
		all[id] = b.Sessions
	}
	count, etag, err := a.keys.PutSessions(r.ctx, r.User, version, all)
	return backupState(count, etag, err)
}

// checkSession checks the form of one backed-up key.
// spec: "KeyBackupData"
func checkSession(raw json.RawMessage) error {
	var s struct {
		First     *int64          `json:"first_message_index"`
		Forwarded *int64          `json:"forwarded_count"`
		Verified  *bool           `json:"is_verified"`
		Data      json.RawMessage `json:"session_data"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return httpx.BadJSON("A session of the backup is malformed")
	}
	if s.First == nil || s.Forwarded == nil || s.Verified == nil || !isObject(s.Data) {
		return httpx.MissingParam("A session of the backup is incomplete")
	}
	return nil
}

func backupState(count int, etag string, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return map[string]any{"count": count, "etag": etag}, nil
}

// loadSessions reads what the path asks for.
func (a *API) loadSessions(r *request) (e2e.Sessions, mxid.RoomID, string, error) {
	version, id, session, err := r.backupTarget()
	if err != nil {
		return nil, "", "", err
	}
	all, err := a.keys.GetSessions(r.ctx, r.User, version, id, session)
	return all, id, session, err
}

// session is GET /room_keys/keys/{roomId}/{sessionId}.
func (a *API) session(r *request) (any, error) {
	all, id, session, err := a.loadSessions(r)
	if err != nil {
		return nil, err
	}
	raw, ok := all[id][session]
	if !ok {
		return nil, httpx.NotFound("There is no such key in the backup")
	}
	return raw, nil
}

// roomSessions is GET /room_keys/keys/{roomId}.
func (a *API) roomSessions(r *request) (any, error) {
	all, id, _, err := a.loadSessions(r)
	if err != nil {
		return nil, err
	}
	return backupOf(all[id]), nil
}

func backupOf(sessions map[string]json.RawMessage) roomBackup {
	if sessions == nil {
		sessions = map[string]json.RawMessage{}
	}
	return roomBackup{Sessions: sessions}
}

// allSessions is GET /room_keys/keys.
func (a *API) allSessions(r *request) (any, error) {
	all, _, _, err := a.loadSessions(r)
	if err != nil {
		return nil, err
	}
	rooms := make(map[string]roomBackup, len(all))
	for id, sessions := range all {
		rooms[string(id)] = backupOf(sessions)
	}
	return map[string]any{"rooms": rooms}, nil
}

// deleteSessions is DELETE /room_keys/keys[/{roomId}[/{sessionId}]].
func (a *API) deleteSessions(r *request) (any, error) {
	version, id, session, err := r.backupTarget()
	if err != nil {
		return nil, err
	}
	count, etag, err := a.keys.DeleteSessions(r.ctx, r.User, version, id, session)
	return backupState(count, etag, err)
}
