package mediaapi

import (
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"

	"github.com/labstack/echo/v4"
)

// localFile finds a file of this server for another one.
func (s *Service) localFile(c echo.Context) (*found, error) {
	mediaID, err := pathParam(c, "mediaId")
	if err != nil {
		return nil, err
	}
	if !validMediaID(mediaID) {
		return nil, unknownID()
	}
	return s.findFile(c, s.cfg.ServerName, mediaID, asker{})
}

// federationDownload is GET /_matrix/federation/v1/media/download.
func (s *Service) federationDownload(c echo.Context) error {
	f, err := s.localFile(c)
	if err != nil {
		return err
	}
	defer f.release()
	body, err := s.open(f.key, f.Blob, f.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	return answerParts(c, body, f.Type, disposition(f.Type, f.Name))
}

// federationThumbnail is GET /_matrix/federation/v1/media/thumbnail.
func (s *Service) federationThumbnail(c echo.Context) error {
	v, err := variantParam(c)
	if err != nil {
		return err
	}
	f, err := s.localFile(c)
	if err != nil {
		return err
	}
	defer f.release()
	t, body, err := s.thumb(c.Request().Context(), f.key, f.record, v)
	if err != nil {
		return err
	}
	defer body.Close()
	return answerParts(c, body, t.Type, disposition(t.Type, "thumbnail."+t.Type[len("image/"):]))
}

// answerParts writes the two parts that other servers expect: an empty object,
// and the file.
func answerParts(c echo.Context, body *content, typ, disposition string) error {
	w := multipart.NewWriter(c.Response())
	h := c.Response().Header()
	safetyHeaders(h)
	h.Set("Content-Type", "multipart/mixed; boundary="+w.Boundary())
	c.Response().WriteHeader(http.StatusOK)
	if err := writeParts(w, &movingReader{r: body, extend: writeDeadline(c)}, typ, disposition); err != nil {
		// Break off, so that the other server doesn't take half a file for a
		// whole one.
		panic(http.ErrAbortHandler)
	}
	return nil
}

func writeParts(w *multipart.Writer, body io.Reader, typ, disposition string) error {
	meta, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(meta, "{}"); err != nil {
		return err
	}
	part, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {typ}, "Content-Disposition": {disposition}})
	if err != nil {
		return err
	}
	if _, err := io.Copy(part, body); err != nil {
		return err
	}
	return w.Close()
}
