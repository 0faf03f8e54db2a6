package fedclient

import (
	"context"
	"errors"
	"net/http"

	"parley/internal/mxid"
)

// cascadePath is where servers answer that join their calls over links.
const cascadePath = "/_matrix/federation/unstable/org.parley.cascade/v1"

// CascadeLink offers a link for calls to another server and reads its answer
// into answer. absent says that the server doesn't know of such links.
func (c *Client) CascadeLink(ctx context.Context, to mxid.ServerName, offer, answer any) (absent bool, err error) {
	return c.cascade(ctx, to, "/link", offer, answer)
}

// CascadeWake asks another server to offer a link.
func (c *Client) CascadeWake(ctx context.Context, to mxid.ServerName, wake any) (absent bool, err error) {
	return c.cascade(ctx, to, "/wake", wake, &struct{}{})
}

// CascadeToken asks the server of a user to let them into a call there: the URL
// of its SFU and a token. body has the request and the user's OpenID token.
func (c *Client) CascadeToken(ctx context.Context, to mxid.ServerName, body any) (url, jwt string, err error) {
	var out struct {
		URL string `json:"url"`
		JWT string `json:"jwt"`
	}
	absent, err := c.cascade(ctx, to, "/token", body, &out)
	if err == nil && (absent || out.URL == "" || out.JWT == "") {
		err = &BadAnswerError{to, errors.New("url or jwt is missing")}
	}
	return out.URL, out.JWT, err
}

func (c *Client) cascade(ctx context.Context, to mxid.ServerName, what string, body, answer any) (absent bool, err error) {
	q, err := withBody(http.MethodPost, path(cascadePath+what), body, smallAnswer, shortTime)
	if err != nil {
		return false, err
	}
	err = c.ask(ctx, to, q, answer)
	if e := (*RemoteError)(nil); errors.As(err, &e) && noEndpoint(err) {
		return true, nil
	}
	return false, err
}
