package fedclient

import (
	"context"
	"errors"
	"net/http"

	"parley/internal/mxid"
)

// CallToken asks another server to let a local user into a call on its SFU, and
// returns the URL of that and a token. Servers of before MSC4195 is final answer
// under its unstable prefix.
// spec: MSC4195, "Acquiring a token for the SFU"
func (c *Client) CallToken(ctx context.Context, to mxid.ServerName, body any) (url, jwt string, err error) {
	url, jwt, err = c.callToken(ctx, to, federationV1, body)
	if noEndpoint(err) {
		return c.callToken(ctx, to, "/_matrix/federation/unstable/io.element.msc4195", body)
	}
	return url, jwt, err
}

func (c *Client) callToken(ctx context.Context, to mxid.ServerName, base string, body any) (url, jwt string, err error) {
	q, err := withBody(http.MethodPost, path(base+"/rtc/livekit/get_token"), body, smallAnswer, shortTime)
	if err != nil {
		return "", "", err
	}
	var out struct {
		URL string `json:"url"`
		JWT string `json:"jwt"`
	}
	if err := c.ask(ctx, to, q, &out); err != nil {
		return "", "", err
	}
	if out.URL == "" || out.JWT == "" {
		return "", "", &BadAnswerError{to, errors.New("url or jwt is missing")}
	}
	return out.URL, out.JWT, nil
}
