package fedclient

import (
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"

	"parley/internal/mxid"
)

// Media is a file from another server. Body ends with ErrTooLarge after the
// limit that was asked for, and with another error when the connection broke
// before the end. It must be closed.
type Media struct {
	ContentType        string // as the server says; "" unknown
	ContentDisposition string
	Body               io.ReadCloser
}

const (
	// mediaWait is how long the server may wait for a file that is still
	// being uploaded; the default of the specification.
	mediaWait = "20000"
	// maxMediaMeta is what surrounds the file in a multipart answer.
	maxMediaMeta = 128 << 10
)

// ThumbnailSize says which thumbnail to fetch.
type ThumbnailSize struct {
	Width, Height int
	Crop          bool
	Animated      bool
}

// DownloadMedia fetches a file of at most maxBytes. Servers that only have
// the endpoint without authentication are asked there.
// spec: server-server API, "GET media/download"
func (c *Client) DownloadMedia(ctx context.Context, to mxid.ServerName, mediaID string, maxBytes int64) (*Media, error) {
	query := url.Values{"timeout_ms": {mediaWait}}
	m, err := c.mediaV1(ctx, to, path(federationV1+"/media/download", mediaID), query, maxBytes)
	if !noEndpoint(err) {
		return m, err
	}
	return c.mediaV3(ctx, to, path("/_matrix/media/v3/download", string(to), mediaID), query, maxBytes)
}

// DownloadThumbnail fetches a thumbnail of at most maxBytes.
// spec: server-server API, "GET media/thumbnail"
func (c *Client) DownloadThumbnail(ctx context.Context, to mxid.ServerName, mediaID string, size ThumbnailSize, maxBytes int64) (*Media, error) {
	method := "scale"
	if size.Crop {
		method = "crop"
	}
	query := url.Values{
		"timeout_ms": {mediaWait}, "width": {strconv.Itoa(size.Width)}, "height": {strconv.Itoa(size.Height)},
		"method": {method}, "animated": {strconv.FormatBool(size.Animated)},
	}
	m, err := c.mediaV1(ctx, to, path(federationV1+"/media/thumbnail", mediaID), query, maxBytes)
	if !noEndpoint(err) {
		return m, err
	}
	return c.mediaV3(ctx, to, path("/_matrix/media/v3/thumbnail", string(to), mediaID), query, maxBytes)
}

// noEndpoint tells a server without an endpoint from one without the file. An
// answer without a Matrix error comes from something that isn't the endpoint.
func noEndpoint(err error) bool {
	var re *RemoteError
	if !errors.As(err, &re) {
		return false
	}
	missing := re.Status == http.StatusNotFound || re.Status == http.StatusMethodNotAllowed || re.Status == http.StatusBadRequest
	noMatrix := re.Code == "M_UNKNOWN" && (re.Status != http.StatusBadRequest || re.Message == "")
	return missing && (re.Code == "M_UNRECOGNIZED" || noMatrix)
}

// mediaV3 fetches from the endpoint that all servers had before 2024. It must
// not send us elsewhere or ask others on our behalf.
func (c *Client) mediaV3(ctx context.Context, to mxid.ServerName, p string, query url.Values, maxBytes int64) (*Media, error) {
	query.Set("allow_remote", "false")
	query.Set("allow_redirect", "false")
	q := get(p, query, maxBytes, longTime)
	q.unsigned = true
	a, err := c.send(ctx, to, q)
	if err != nil {
		return nil, err
	}
	return &Media{a.header.Get("Content-Type"), a.header.Get("Content-Disposition"), a.body}, nil
}

// mediaV1 fetches a multipart answer: metadata, then the file or where it is.
func (c *Client) mediaV1(ctx context.Context, to mxid.ServerName, p string, query url.Values, maxBytes int64) (*Media, error) {
	a, err := c.send(ctx, to, get(p, query, maxBytes+maxMediaMeta, longTime))
	if err != nil {
		return nil, err
	}
	part, err := filePart(a)
	if err != nil {
		return nil, errors.Join(&BadAnswerError{to, err}, a.body.Close())
	}
	if at := part.Header.Get("Location"); at != "" {
		_ = a.body.Close() // the rest of the answer doesn't matter
		return c.mediaAt(ctx, to, at, maxBytes)
	}
	body := &limitedBody{r: partBody{part, a.body}, left: maxBytes, done: func() {}}
	return &Media{part.Header.Get("Content-Type"), part.Header.Get("Content-Disposition"), body}, nil
}

// filePart skips the metadata and returns the second part.
func filePart(a *answer) (*multipart.Part, error) {
	typ, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || typ != "multipart/mixed" || params["boundary"] == "" {
		return nil, errors.New("not multipart/mixed")
	}
	r := multipart.NewReader(a.body, params["boundary"])
	meta, err := r.NextRawPart()
	if err != nil {
		return nil, err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(meta, maxMediaMeta/2)); err != nil || n == maxMediaMeta/2 {
		return nil, errors.New("metadata too large")
	}
	return r.NextRawPart()
}

// partBody reads a part and closes the answer that it is in.
type partBody struct {
	*multipart.Part
	answer io.Closer
}

func (p partBody) Close() error { return p.answer.Close() }

// mediaAt fetches from a URL that the server named: https only, dialled
// through the guard like everything, without our name or signature.
func (c *Client) mediaAt(ctx context.Context, to mxid.ServerName, at string, maxBytes int64) (*Media, error) {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, &BadAnswerError{to, errors.New("the Location isn't an https URL")}
	}
	ctx, cancel := context.WithTimeout(ctx, longTime)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel()
		return nil, &BadAnswerError{to, errors.New("the Location isn't an https URL")}
	}
	req.Header.Set("User-Agent", userAgent)
	res, err := c.web.Do(req)
	if err != nil {
		cancel()
		return nil, &UnreachableError{to, withoutURL(err)}
	}
	body := &limitedBody{r: res.Body, left: maxBytes, done: cancel}
	if res.StatusCode != http.StatusOK {
		_ = body.Close()
		return nil, &RemoteError{Server: to, Status: res.StatusCode, Code: "M_UNKNOWN"}
	}
	return &Media{res.Header.Get("Content-Type"), res.Header.Get("Content-Disposition"), body}, nil
}
