package clientapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/user"
)

// maxDevicesAtOnce bounds delete_devices.
const maxDevicesAtOnce = 1000

type deviceAnswer struct {
	DeviceID    string `json:"device_id"`
	DisplayName string `json:"display_name,omitempty"`
}

func deviceOf(d user.Device) deviceAnswer {
	return deviceAnswer{DeviceID: string(d.ID), DisplayName: d.DisplayName}
}

// devices is GET /devices. There is no last_seen_ip or last_seen_ts, as the
// server doesn't keep them.
func (a *API) devices(r *request) (any, error) {
	ds, err := a.users.Devices(r.ctx, r.User)
	if err != nil {
		return nil, err
	}
	out := make([]deviceAnswer, len(ds))
	for i, d := range ds {
		out[i] = deviceOf(d)
	}
	return map[string]any{"devices": out}, nil
}

// device is GET /devices/{deviceId}.
func (a *API) device(r *request) (any, error) {
	d, err := a.users.Device(r.ctx, r.User, mxid.DeviceID(r.params["deviceId"]))
	if err != nil {
		return nil, err
	}
	return deviceOf(d), nil
}

// renameDevice is PUT /devices/{deviceId}.
func (a *API) renameDevice(r *request) (any, error) {
	var q struct {
		DisplayName *string `json:"display_name"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	id := mxid.DeviceID(r.params["deviceId"])
	if _, err := a.users.Device(r.ctx, r.User, id); err != nil {
		return nil, err
	}
	if q.DisplayName == nil {
		return nil, nil
	}
	if len(*q.DisplayName) > maxDisplayName {
		return nil, httpx.Err(http.StatusBadRequest, "M_TOO_LARGE", "The device name is too long")
	}
	return nil, a.users.RenameDevice(r.ctx, r.User, id, *q.DisplayName)
}

// deleteDevice is DELETE /devices/{deviceId}.
func (a *API) deleteDevice(r *request) (any, error) {
	var q struct {
		Auth json.RawMessage `json:"auth"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	return nil, a.removeDevices(r, q.Auth, []string{r.params["deviceId"]})
}

// deleteDevices is POST /delete_devices.
func (a *API) deleteDevices(r *request) (any, error) {
	var q struct {
		Devices []string        `json:"devices"`
		Auth    json.RawMessage `json:"auth"`
	}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if q.Devices == nil {
		return nil, httpx.MissingParam("devices is missing")
	}
	if len(q.Devices) > maxDevicesAtOnce {
		return nil, httpx.InvalidParam("Too many devices at once")
	}
	return nil, a.removeDevices(r, q.Auth, q.Devices)
}

// removeDevices asks for the password, for exactly these devices.
func (a *API) removeDevices(r *request, auth json.RawMessage, names []string) error {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	done, err := a.ownPassword(r, strings.Join(names, "\x00"), auth)
	if err != nil {
		return err
	}
	if err := a.users.RemoveDevices(r.ctx, r.User, deviceIDs(names)...); err != nil {
		return err
	}
	a.uia.end(done.id)
	return nil
}
