package mediaapi

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
)

// Waiting for a file that isn't there yet. The default is the specification's,
// the maximum the longest that a proxy usually lets a request take.
const (
	defaultWait = 20 * time.Second
	maxWait     = time.Minute
)

// asker is on whose behalf a file is asked for.
type asker struct {
	uid uint32
	// remote allows fetching from other servers.
	remote bool
	// legacy is a request without a token: only files that were stored while
	// that was allowed exist for it.
	legacy bool
}

// pathParam is a decoded part of the path. The router hands out the encoded
// form when the path has unusual encodings.
func pathParam(c echo.Context, name string) (string, error) {
	p := c.Param(name)
	if c.Request().URL.RawPath == "" {
		return p, nil
	}
	p, err := url.PathUnescape(p)
	if err != nil {
		return "", httpx.InvalidParam("Badly encoded path")
	}
	return p, nil
}

// mediaParams reads the server name and media ID of the path.
func mediaParams(c echo.Context) (mxid.ServerName, string, error) {
	server, err := pathParam(c, "serverName")
	if err != nil {
		return "", "", err
	}
	id, err := pathParam(c, "mediaId")
	if err != nil {
		return "", "", err
	}
	if !mxid.ValidServerName(server) || !validMediaID(id) {
		return "", "", unknownID()
	}
	return mxid.ServerName(server), id, nil
}

// waitParam is timeout_ms, bounded.
func waitParam(c echo.Context) (time.Duration, error) {
	v := c.QueryParam("timeout_ms")
	if v == "" {
		return defaultWait, nil
	}
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil || ms < 0 {
		return 0, httpx.InvalidParam("timeout_ms must be a number of milliseconds")
	}
	return min(time.Duration(min(ms, maxWait.Milliseconds()))*time.Millisecond, maxWait), nil
}

// found is a file that a request uses; release it. Until then it isn't removed
// to make room.
type found struct {
	key
	*record
	release func()
}

// find loads the record of the file that the path names, fetching it from its
// server or waiting for its upload if need be.
func (s *Service) find(c echo.Context, who asker) (*found, error) {
	server, mediaID, err := mediaParams(c)
	if err != nil {
		return nil, err
	}
	return s.findFile(c, server, mediaID, who)
}

func (s *Service) findFile(c echo.Context, server mxid.ServerName, mediaID string, who asker) (*found, error) {
	wait, err := waitParam(c)
	if err != nil {
		return nil, err
	}
	k := s.key(server, mediaID)
	release := s.pin(k)
	rec, err := s.obtain(c.Request().Context(), server, mediaID, k, who, wait)
	if err == nil && who.legacy && !rec.Legacy {
		err = unknownID()
	}
	if err != nil {
		release()
		return nil, err
	}
	return &found{k, rec, release}, nil
}

func (s *Service) obtain(ctx context.Context, server mxid.ServerName, mediaID string, k key, who asker, wait time.Duration) (*record, error) {
	hidden, err := s.quarantined(ctx, k)
	if err != nil {
		return nil, err
	}
	if hidden {
		return nil, unknownID()
	}
	rec, err := s.load(ctx, k)
	switch {
	case errors.Is(err, storage.ErrNotFound) && server != s.cfg.ServerName && who.remote:
		return s.fetch(ctx, server, mediaID, k, who.uid)
	case err != nil:
		return nil, err
	case !rec.Ready:
		return s.await(ctx, k, rec, wait)
	case !rec.Local:
		s.touch(ctx, k, rec)
	}
	return rec, nil
}

// pin keeps a file from being removed to make room while it is in use.
func (s *Service) pin(k key) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[k]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins[k]--; s.pins[k] == 0 {
			delete(s.pins, k)
		}
	}
}

func (s *Service) pinned(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins[k] > 0
}

func notYetUploaded() error {
	return httpx.Err(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "The file has not been uploaded yet")
}

// await waits for an announced upload.
func (s *Service) await(ctx context.Context, k key, rec *record, wait time.Duration) (*record, error) {
	if s.cfg.Clock.Now().UnixMilli() >= rec.Expires {
		return nil, unknownID()
	}
	there, leave := s.awaitArrival(k)
	defer leave()
	limited, cancel := s.timeout(ctx, wait)
	defer cancel()
	// It may have arrived between the first look and the registration.
	for {
		rec, err := s.load(ctx, k)
		if err != nil || rec.Ready {
			return rec, err
		}
		select {
		case <-there:
			there = nil
		case <-limited.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, notYetUploaded()
		}
	}
}

// download is GET /download.
func (s *Service) download(c echo.Context, who asker) error {
	f, err := s.find(c, who)
	if err != nil {
		return err
	}
	defer f.release()
	name := f.Name
	if c.Param("fileName") != "" {
		if name, err = pathParam(c, "fileName"); err != nil {
			return err
		}
		name = fileName(name)
	}
	body, err := s.open(f.key, f.Blob, f.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	serve(c, body, f.Type, disposition(f.Type, name), f.key, "")
	return nil
}

// serve writes a file, or the range of it that was asked for, or that the
// client has it already. variant tells thumbnails of a file apart.
func serve(c echo.Context, body *content, typ, disposition string, k key, variant string) {
	h := c.Response().Header()
	safetyHeaders(h)
	h.Set("Content-Type", typ)
	h.Set("Content-Disposition", disposition)
	// A media ID always means the same bytes. Only the client itself may keep
	// them: a shared cache doesn't ask for a token.
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	h.Set("ETag", `"`+base64.RawURLEncoding.EncodeToString(k[:])+variant+`"`)
	moving := &movingReadSeeker{movingReader{r: body, extend: writeDeadline(c)}, body}
	http.ServeContent(&bulkWriter{c.Response(), min(bulkSize, body.Size()+1)}, c.Request(), "", time.Time{}, moving)
}

// bulkSize is what is sent at once: four frames of an encrypted file.
const bulkSize = 4 * vault.FramePlain

// bulkWriter sends large pieces.
type bulkWriter struct {
	http.ResponseWriter
	piece int64 // bytes
}

// ReadFrom implements io.ReaderFrom, which io.Copy uses.
func (w *bulkWriter) ReadFrom(r io.Reader) (int64, error) {
	// Nothing in between may think of something cleverer.
	return io.CopyBuffer(struct{ io.Writer }{w.ResponseWriter}, struct{ io.Reader }{r}, make([]byte, w.piece))
}

// movingReader moves a deadline of the connection on with every read, so that
// a transfer may take long but not stand still.
type movingReader struct {
	r      io.Reader
	extend func()
}

func (m *movingReader) Read(p []byte) (int, error) {
	m.extend()
	return m.r.Read(p)
}

type movingReadSeeker struct {
	movingReader
	io.Seeker
}

// The deadlines of a connection are the one place for the machine's clock.
func readDeadline(c echo.Context) func() {
	rc := http.NewResponseController(c.Response().Writer)
	return func() { _ = rc.SetReadDeadline(time.Now().Add(idleLimit)) }
}

func writeDeadline(c echo.Context) func() {
	rc := http.NewResponseController(c.Response().Writer)
	return func() { _ = rc.SetWriteDeadline(time.Now().Add(idleLimit)) }
}

// answerError gives errors of the store and the vault their meaning.
func answerError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, vault.ErrDestroyed):
		return unknownID()
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrClosed):
		return httpx.Unavailable()
	}
	return err
}
