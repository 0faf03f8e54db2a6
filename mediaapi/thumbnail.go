package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"parley/internal/httpx"
	"parley/storage"
)

const (
	// thumbLimit bounds the making of one thumbnail, the wait for its turn
	// included.
	thumbLimit = 30 * time.Second
	// maxThumbs bounds the thumbnails that are kept of one file.
	maxThumbs = 24
	// maxThumbBytes bounds one: a noisy PNG of the largest size.
	maxThumbBytes = 16 << 20
)

// thumbSteps are the widths and heights of thumbnails. A wish is rounded up to
// the next one, so that a file has few of them. Those of the specification are
// among them; the largest fills a screen.
var thumbSteps = []int{32, 48, 64, 96, 128, 192, 240, 320, 480, 600, 640, 800, 1280, 1920}

// variant is a kind of thumbnail. Width and height are what it should cover.
type variant struct {
	W    int  `json:"w"`
	H    int  `json:"h"`
	Crop bool `json:"crop,omitempty"`
	// Moving: may move, if the picture does.
	Moving bool `json:"moving,omitempty"`
}

// name tells the variants of a file apart in ETags and flights.
func (v variant) name() string {
	name := fmt.Sprintf("-%dx%d", v.W, v.H)
	if v.Crop {
		name += "c"
	}
	if v.Moving {
		name += "m"
	}
	return name
}

func cannotThumbnail() error {
	return httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "Cannot generate thumbnails for the requested content")
}

// variantParam reads width, height, method and animated.
func variantParam(c echo.Context) (v variant, err error) {
	if v.W, err = stepParam(c, "width"); err != nil {
		return v, err
	}
	if v.H, err = stepParam(c, "height"); err != nil {
		return v, err
	}
	switch c.QueryParam("method") {
	case "", "scale":
	case "crop":
		v.Crop = true
	default:
		return v, httpx.InvalidParam("method must be crop or scale")
	}
	switch c.QueryParam("animated") {
	case "", "false":
	case "true":
		v.Moving = true
	default:
		return v, httpx.InvalidParam("animated must be true or false")
	}
	return v, nil
}

func stepParam(c echo.Context, name string) (int, error) {
	q := c.QueryParam(name)
	if q == "" {
		return 0, httpx.MissingParam("%s is missing", name)
	}
	n, err := strconv.Atoi(q)
	if err != nil || n < 1 {
		return 0, httpx.Err(http.StatusBadRequest, "M_UNKNOWN", "%s must be a positive number", name)
	}
	for _, step := range thumbSteps {
		if n <= step {
			return step, nil
		}
	}
	return thumbSteps[len(thumbSteps)-1], nil
}

// thumbnail is GET /thumbnail.
func (s *Service) thumbnail(c echo.Context, who asker) error {
	v, err := variantParam(c)
	if err != nil {
		return err
	}
	f, err := s.find(c, who)
	if err != nil {
		return err
	}
	defer f.release()
	t, body, err := s.thumb(c.Request().Context(), f.key, f.record, v)
	if err != nil {
		return err
	}
	defer body.Close()
	serve(c, body, t.Type, disposition(t.Type, "thumbnail."+t.Type[len("image/"):]), f.key, v.name())
	return nil
}

// thumb opens a thumbnail, making it if need be. The file itself stands in for
// thumbnails that would have to be larger.
func (s *Service) thumb(ctx context.Context, k key, rec *record, v variant) (thumb, *content, error) {
	for range 3 { // the second look may find the thumbnails forgotten
		for _, t := range rec.Thumbs {
			if t.variant == v {
				body, err := s.open(k, t.Blob, t.Size)
				return t, body, err
			}
		}
		err := s.once(ctx, "thumb "+string(k[:])+v.name(), thumbLimit, func(ctx context.Context) error {
			return s.makeThumb(ctx, k, v)
		})
		if errors.Is(err, errOriginal) {
			body, err := s.open(k, rec.Blob, rec.Size)
			return thumb{variant: v, Type: rec.Type, Blob: rec.Blob}, body, err
		}
		if err != nil {
			return thumb{}, nil, thumbError(err, rec)
		}
		if rec, err = s.load(ctx, k); err != nil {
			return thumb{}, nil, err
		}
	}
	return thumb{}, nil, errors.New("mediaapi: the thumbnail has gone")
}

// errOriginal means that the file itself is the best thumbnail.
var errOriginal = errors.New("mediaapi: use the file itself")

func thumbError(err error, rec *record) error {
	switch {
	case errors.Is(err, errNotAnImage):
		return cannotThumbnail()
	case errors.Is(err, errTooLarge) && rec.Local:
		return httpx.TooLarge("The picture is too large to make a thumbnail of")
	case errors.Is(err, errTooLarge):
		return httpx.Err(http.StatusBadGateway, "M_TOO_LARGE", "The picture is too large to make a thumbnail of")
	case errors.Is(err, context.DeadlineExceeded):
		return httpx.LimitExceeded(10 * time.Second)
	}
	return err
}

// makeThumb makes and stores a thumbnail.
func (s *Service) makeThumb(ctx context.Context, k key, v variant) error {
	rec, err := s.load(ctx, k)
	if err != nil {
		return err
	}
	for _, t := range rec.Thumbs {
		if t.variant == v {
			return nil
		}
	}
	if len(rec.Thumbs) >= maxThumbs {
		return s.forgetThumbs(ctx, k)
	}
	if !strings.HasPrefix(rec.Type, "image/") {
		// Encrypted files, above all: nobody looks into them.
		return errNotAnImage
	}
	body, err := s.open(k, rec.Blob, rec.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	img, err := s.shrink(ctx, body, v, rec.Type)
	if err != nil {
		return err
	}
	id, n, err := s.store(k, bytes.NewReader(img.data), maxThumbBytes)
	if err != nil {
		return err
	}
	err = s.addThumb(ctx, k, thumb{variant: v, Type: img.typ, Size: n, Blob: id})
	if err != nil {
		s.drop(id)
		return err
	}
	s.cfg.Blobs.Settled(id)
	s.evictSoon()
	return nil
}

// addThumb adds a thumbnail to a file's record.
func (s *Service) addThumb(ctx context.Context, k key, t thumb) error {
	return s.change(ctx, k, func(rec *record) { rec.Thumbs = append(rec.Thumbs, t) })
}

// forgetThumbs drops a file's thumbnails when it has too many: somebody asks
// for every size. They are made again when needed.
func (s *Service) forgetThumbs(ctx context.Context, k key) error {
	var gone []thumb
	err := s.change(ctx, k, func(rec *record) { gone, rec.Thumbs = rec.Thumbs, nil })
	if err != nil {
		return err
	}
	for _, t := range gone {
		s.drop(t.Blob)
	}
	return nil
}

// change rewrites a file's record and counts what it takes.
func (s *Service) change(ctx context.Context, k key, f func(rec *record)) error {
	return s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
		rec, err := s.loadTx(tx, k)
		if err != nil {
			return err
		}
		for _, id := range rec.blobs() {
			tx.Delete(blobRow(id))
		}
		before := rec.bytes()
		f(rec)
		if !rec.Local {
			tx.Put(cacheRow(rec.Day, k), storage.Key{}.U64(uint64(rec.bytes())))
			tx.OnCommit(func() { s.addCached(rec.bytes() - before) })
		}
		return s.put(tx, k, rec)
	})
}
