package clientapi

import "parley/internal/httpx"

// turnServer is GET /voip/turnServer: an empty object while the server has no
// TURN service.
func (a *API) turnServer(*request) (any, error) { return nil, nil }

// thirdPartyProtocols is GET /thirdparty/protocols: there are no bridges.
func (a *API) thirdPartyProtocols(*request) (any, error) { return nil, nil }

// noThirdParty answers every question about third-party networks.
func (a *API) noThirdParty(*request) (any, error) {
	return nil, httpx.NotFound("There are no third-party networks")
}
