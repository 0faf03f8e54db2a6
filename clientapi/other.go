package clientapi

import "parley/internal/httpx"

// TURNServer is where a client's one-to-one calls find a relay.
// spec: client-server API, "GET /voip/turnServer"
type TURNServer struct {
	URIs     []string `json:"uris"`
	Username string   `json:"username"`
	Password string   `json:"password"`
	TTL      int64    `json:"ttl"` // seconds
}

// turnServer is GET /voip/turnServer: an empty object when the server has no
// TURN service.
func (a *API) turnServer(r *request) (any, error) {
	if a.cfg.TURN == nil {
		return nil, nil
	}
	return a.cfg.TURN(r.User, r.Device), nil
}

// thirdPartyProtocols is GET /thirdparty/protocols: there are no bridges.
func (a *API) thirdPartyProtocols(*request) (any, error) { return nil, nil }

// noThirdParty answers every question about third-party networks.
func (a *API) noThirdParty(*request) (any, error) {
	return nil, httpx.NotFound("There are no third-party networks")
}
