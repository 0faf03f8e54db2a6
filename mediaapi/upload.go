package mediaapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/storage"
	"parley/user"
)

const (
	// announceFor is how long an announced upload may take to begin; the
	// default of the specification.
	announceFor = 24 * time.Hour
	// maxAnnounced bounds a user's announced uploads.
	maxAnnounced = 32
	// idleLimit ends transfers that have stopped moving.
	idleLimit = time.Minute
)

func (s *Service) errUploadTooLarge() error {
	return httpx.TooLarge("Files of more than %d bytes can't be uploaded", s.cfg.MaxUpload)
}

var errQuota = errors.New("mediaapi: quota reached")

func quotaReached() error {
	return httpx.Forbidden("Your files already take as much space as this server allows")
}

// upload is POST /upload.
func (s *Service) upload(c echo.Context, who user.Session) error {
	mediaID, err := s.newMediaID()
	if err != nil {
		return err
	}
	k := s.key(s.cfg.ServerName, mediaID)
	rec := &record{ID: mediaID}
	if err := s.receive(c, who, k, rec, func(*storage.Tx) error { return nil }); err != nil {
		s.discard(k)
		return err
	}
	answer := map[string]any{"content_uri": s.uri(mediaID)}
	s.tellEnd(answer, k, rec)
	return c.JSON(http.StatusOK, answer)
}

func (s *Service) uri(mediaID string) string {
	return "mxc://" + string(s.cfg.ServerName) + "/" + mediaID
}

// receive stores the request's body as the file k and fills in rec. check may
// refuse in the transaction that makes the file appear, and change rec.
func (s *Service) receive(c echo.Context, who user.Session, k key, rec *record, check func(*storage.Tx) error) error {
	r := c.Request()
	if r.ContentLength > s.cfg.MaxUpload {
		return s.errUploadTooLarge()
	}
	plan, quota, err := s.plan(r.Context(), uint32(who.UID))
	if err != nil {
		return err
	}
	asked, err := s.askedEnd(c, plan)
	if err != nil {
		return err
	}
	if err := s.checkQuota(r.Context(), uint32(who.UID), max(r.ContentLength, 0), quota); err != nil {
		return err
	}
	if !s.beginUpload(uint32(who.UID)) {
		return httpx.LimitExceeded(10 * time.Second)
	}
	defer s.endUpload(uint32(who.UID))

	body := &movingReader{r: r.Body, extend: readDeadline(c)}
	id, n, err := s.store(k, body, s.cfg.MaxUpload)
	if err != nil {
		return s.uploadError(err)
	}
	*rec = record{Ready: true, Local: true, Owner: uint32(who.UID), Type: contentType(r.Header.Get("Content-Type")),
		Name: fileName(c.QueryParam("filename")), Size: n, Blob: id, Legacy: s.cfg.Legacy, ID: rec.ID,
		Born: lastDay(s.cfg.Clock.Now()), Plan: plan, Asked: asked}
	// The body is there: a client that hangs up now doesn't undo the upload.
	err = s.cfg.Commit.Do(context.WithoutCancel(r.Context()), func(tx *storage.Tx) error {
		if err := check(tx); err != nil {
			return err
		}
		if err := s.charge(tx, rec.Owner, rec.charged(), quota); err != nil {
			return err
		}
		tx.Put(ownerRow(rec.Owner, k), nil)
		setTimers(tx, k, rec)
		return s.put(tx, k, rec)
	})
	if err != nil {
		s.drop(id)
		return s.uploadError(err)
	}
	s.cfg.Blobs.Settled(id)
	s.arrived(k)
	return nil
}

// uploadError says what went wrong in words for the client.
func (s *Service) uploadError(err error) error {
	var src sourceError
	switch {
	case errors.Is(err, errTooLarge):
		return s.errUploadTooLarge()
	case errors.Is(err, errQuota):
		return quotaReached()
	case errors.As(err, &src):
		return httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "The upload ended early")
	}
	return err
}

func (s *Service) beginUpload(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uploads[uid] >= maxUploads {
		return false
	}
	s.uploads[uid]++
	return true
}

func (s *Service) endUpload(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uploads[uid]--; s.uploads[uid] == 0 {
		delete(s.uploads, uid)
	}
}

// checkQuota refuses an upload before its body is read.
func (s *Service) checkQuota(ctx context.Context, uid uint32, size, quota int64) error {
	if quota == 0 {
		return nil
	}
	row, err := s.cfg.KV.Get(ctx, quotaRow(uid))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	used, err := decodeQuota(row)
	if err != nil {
		return err
	}
	if used+size+perFile > quota {
		return quotaReached()
	}
	return nil
}

// The quota row is a version byte and the bytes in use.
func decodeQuota(row []byte) (int64, error) {
	if row == nil {
		return 0, nil
	}
	if len(row) != 9 || row[0] != 1 {
		return 0, fmt.Errorf("quota row: %w", storage.ErrCorrupt)
	}
	return int64(storage.ReadU64(row, 1)), nil
}

// charge adds to what a user's files take; errQuota if that is more than a
// quota (0: none).
func (s *Service) charge(tx *storage.Tx, uid uint32, bytes, quota int64) error {
	row, err := tx.Get(quotaRow(uid))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	used, err := decodeQuota(row)
	if err != nil {
		return err
	}
	used = max(used+bytes, 0)
	if bytes > 0 && quota > 0 && used > quota {
		return errQuota
	}
	tx.Put(quotaRow(uid), storage.Key{1}.U64(uint64(used)))
	return nil
}

// create is POST /create: it announces an upload.
func (s *Service) create(c echo.Context, who user.Session) error {
	mediaID, err := s.newMediaID()
	if err != nil {
		return err
	}
	now := s.cfg.Clock.Now()
	k := s.key(s.cfg.ServerName, mediaID)
	plan, _, err := s.plan(c.Request().Context(), uint32(who.UID))
	if err != nil {
		return err
	}
	asked, err := s.askedEnd(c, plan)
	if err != nil {
		return err
	}
	rec := &record{Local: true, Owner: uint32(who.UID), ID: mediaID, Expires: shorter(now.Add(announceFor).UnixMilli(), asked), Asked: asked}
	err = s.cfg.Commit.Do(c.Request().Context(), func(tx *storage.Tx) error {
		if err := s.countAnnounced(tx, rec.Owner, now); err != nil {
			return err
		}
		tx.Put(announcedRow(rec.Owner, k), storage.Key{}.U64(uint64(rec.Expires)))
		return s.put(tx, k, rec)
	})
	if err != nil {
		return err
	}
	answer := map[string]any{"content_uri": s.uri(mediaID), "unused_expires_at": rec.Expires}
	s.tellEnd(answer, k, &record{Ready: true, Local: true, Born: lastDay(now), Plan: plan, Asked: asked})
	return c.JSON(http.StatusOK, answer)
}

// countAnnounced refuses one announced upload too many and drops expired ones.
func (s *Service) countAnnounced(tx *storage.Tx, uid uint32, now time.Time) error {
	rows, err := tx.Scan(announcedRows(uid), false, maxAnnounced+1)
	if err != nil {
		return err
	}
	open := 0
	for _, row := range rows {
		k, expires, ok := decodeAnnounced(row)
		if !ok {
			return fmt.Errorf("announced upload: %w", storage.ErrCorrupt)
		}
		if now.UnixMilli() >= expires {
			tx.Delete(row.Key)
			tx.Delete(k.row())
			continue
		}
		open++
	}
	if open >= maxAnnounced {
		return httpx.LimitExceeded(time.Hour)
	}
	return nil
}

// uploadTo is PUT /upload/{serverName}/{mediaId}: the upload that was
// announced.
func (s *Service) uploadTo(c echo.Context, who user.Session) error {
	server, mediaID, err := mediaParams(c)
	if err != nil {
		return err
	}
	if server != s.cfg.ServerName {
		return unknownID()
	}
	k := s.key(server, mediaID)
	rec, err := s.load(c.Request().Context(), k)
	if err != nil {
		return err
	}
	if err := s.mayUpload(rec, who); err != nil {
		return err
	}
	filled := &record{ID: mediaID}
	err = s.receive(c, who, k, filled, func(tx *storage.Tx) error {
		now, err := s.loadTx(tx, k)
		if err != nil {
			return err
		}
		if err := s.mayUpload(now, who); err != nil {
			return err
		}
		tx.Delete(announcedRow(now.Owner, k))
		filled.Asked = shorter(filled.Asked, now.Asked)
		return nil
	})
	if err != nil {
		return err
	}
	answer := map[string]any{}
	s.tellEnd(answer, k, filled)
	return c.JSON(http.StatusOK, answer)
}

func unknownID() error { return httpx.NotFound("Unknown media ID") }

func (s *Service) mayUpload(rec *record, who user.Session) error {
	switch {
	case rec.Owner != uint32(who.UID) || !rec.Local:
		return httpx.Forbidden("Somebody else has announced this upload")
	case rec.Ready:
		return httpx.Err(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "The file has been uploaded already")
	case s.cfg.Clock.Now().UnixMilli() >= rec.Expires:
		return unknownID()
	}
	return nil
}

// arrival is what downloads wait for.
type arrival struct {
	there   chan struct{} // closed when the announced upload is
	waiters int
}

// arrived wakes the downloads that wait for an announced upload.
func (s *Service) arrived(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.arrivals[k]; a != nil {
		close(a.there)
		delete(s.arrivals, k)
	}
}

// awaitArrival registers a wait; call leave when it ends.
func (s *Service) awaitArrival(k key) (there <-chan struct{}, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.arrivals[k]
	if a == nil {
		a = &arrival{there: make(chan struct{})}
		s.arrivals[k] = a
	}
	a.waiters++
	return a.there, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.waiters--; a.waiters == 0 && s.arrivals[k] == a {
			delete(s.arrivals, k)
		}
	}
}
