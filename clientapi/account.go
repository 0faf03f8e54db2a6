package clientapi

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/room"
)

// whoami is GET /account/whoami.
func (a *API) whoami(r *request) (any, error) {
	return map[string]any{"user_id": string(r.User), "device_id": string(r.Device), "is_guest": r.Guest}, nil
}

// changePassword is POST /account/password. Without a session there is no way
// to prove whose account it is, as the server knows no e-mail addresses.
func (a *API) changePassword(r *request) (any, error) {
	q := struct {
		NewPassword   string          `json:"new_password"`
		LogoutDevices *bool           `json:"logout_devices"`
		Auth          json.RawMessage `json:"auth"`
	}{}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.NewPassword != "" {
		if err := a.checkPassword(q.NewPassword); err != nil {
			return nil, err
		}
	}
	done, err := a.ownPassword(r, "", q.Auth)
	if err != nil {
		return nil, err
	}
	if q.NewPassword == "" {
		return nil, httpx.MissingParam("new_password is missing")
	}
	logout := q.LogoutDevices == nil || *q.LogoutDevices
	if err := a.users.SetPassword(r.ctx, r.User, q.NewPassword, logout, r.Device); err != nil {
		return nil, err
	}
	a.uia.end(done.id)
	return nil, nil
}

// deactivate is POST /account/deactivate. The user leaves every room first,
// so that other servers hear of it; it goes on when the client doesn't wait.
func (a *API) deactivate(r *request) (any, error) {
	var q struct {
		Auth  json.RawMessage `json:"auth"`
		Erase bool            `json:"erase"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	done, err := a.ownPassword(r, "", q.Auth)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), leaveAllTime)
	defer cancel()
	answer := map[string]any{"id_server_unbind_result": "no-support"}
	if q.Erase {
		if answer[erasureMember], err = a.outOfReach(ctx, r.User); err != nil {
			return nil, err
		}
		a.leaveOwnRooms(ctx, r.User)
		err = a.users.Erase(ctx, r.User)
	} else {
		a.leaveAll(ctx, r.User, nil)
		err = a.users.Deactivate(ctx, r.User)
	}
	if err != nil {
		return nil, err
	}
	a.uia.end(done.id)
	return answer, nil
}

// erasureMember has, in the answer to an erasure, what this server can't do.
const erasureMember = "org.parley.erasure"

// outOfReach says which other servers have copies of what a user sent: they are
// asked to redact them, which they may or may not do. In rooms that the user
// has left, nobody can be asked any more.
func (a *API) outOfReach(ctx context.Context, u mxid.UserID) (any, error) {
	rooms, err := a.rooms.UserRooms(ctx, u)
	if err != nil {
		return nil, err
	}
	asked, notAsked := map[string]bool{}, map[string]bool{}
	left := 0
	for _, ur := range rooms {
		servers, err := a.rooms.Servers(ctx, ur.RID)
		if err != nil {
			return nil, err
		}
		if ur.Membership != room.Join && len(servers) > 0 {
			left++
		}
		for _, s := range servers {
			if ur.Membership == room.Join {
				asked[string(s)] = true
			} else {
				notAsked[string(s)] = true
			}
		}
	}
	return map[string]any{
		"here":          "Everything is gone: your keys are destroyed.",
		"asked_servers": sortedKeys(asked), "unasked_servers": sortedKeys(notAsked), "unasked_rooms": left,
		"elsewhere": "Other servers, and the devices of people you wrote to, keep their own copies. Servers that are in your rooms are asked to redact what you sent; whether they do is up to them. In rooms that you had left before, nobody can be asked.",
	}, nil
}

func sortedKeys(m map[string]bool) []string {
	return append([]string{}, slices.Sorted(maps.Keys(m))...)
}

// thirdPartyIDs is GET /account/3pid: this server keeps none.
func (a *API) thirdPartyIDs(*request) (any, error) {
	return map[string]any{"threepids": []any{}}, nil
}

// noThirdPartyID refuses to add an e-mail address or phone number.
func (a *API) noThirdPartyID(r *request) (any, error) {
	if _, err := r.object(); err != nil {
		return nil, err
	}
	return nil, httpx.Err(http.StatusBadRequest, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "This server keeps no e-mail addresses or phone numbers")
}

// unknownThirdPartyID answers a password reset: no address is known.
func (a *API) unknownThirdPartyID(r *request) (any, error) {
	if _, err := r.object(); err != nil {
		return nil, err
	}
	return nil, httpx.Err(http.StatusBadRequest, "M_THREEPID_NOT_FOUND", "This server keeps no e-mail addresses or phone numbers")
}

// unbindThirdPartyID answers that there was nothing to remove.
func (a *API) unbindThirdPartyID(r *request) (any, error) {
	var q struct {
		Medium  string `json:"medium"`
		Address string `json:"address"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Medium == "" || q.Address == "" {
		return nil, httpx.MissingParam("medium and address are needed")
	}
	return map[string]string{"id_server_unbind_result": "no-support"}, nil
}

// openIDToken is POST /user/{userId}/openid/request_token.
func (a *API) openIDToken(r *request) (any, error) {
	if err := r.self(); err != nil {
		return nil, err
	}
	var q struct{} // reserved for later
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	token, life, err := a.users.NewOpenIDToken(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"access_token": token, "token_type": "Bearer",
		"matrix_server_name": string(a.cfg.ServerName), "expires_in": int64(life.Seconds()),
	}, nil
}

func mustString(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string always encodes
	return b
}

func deviceIDs(names []string) []mxid.DeviceID {
	out := make([]mxid.DeviceID, len(names))
	for i, n := range names {
		out[i] = mxid.DeviceID(n)
	}
	return out
}
