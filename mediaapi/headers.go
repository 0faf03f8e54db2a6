package mediaapi

import (
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"parley/internal/httpx"
)

// Limits of what is kept of a file's name and type.
const (
	maxName = 512
	maxType = 255
)

const octetStream = "application/octet-stream"

// inlineTypes may be shown by a browser. Anything else is a download.
// spec: "Serving inline content"
var inlineTypes = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true,
	"application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true,
	"audio/wave": true, "audio/wav": true, "audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// contentType normalises a type that somebody gave. What isn't one becomes
// application/octet-stream.
func contentType(s string) string {
	typ, params, err := mime.ParseMediaType(s)
	if err != nil || len(s) > maxType || !strings.Contains(typ, "/") {
		return octetStream
	}
	if full := mime.FormatMediaType(typ, params); full != "" {
		return full
	}
	return octetStream
}

// fileName bounds a name that somebody gave, at a character's end.
func fileName(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for len(s) > maxName {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// dispositionName reads the file name of a Content-Disposition header.
func dispositionName(h string) string {
	_, params, err := mime.ParseMediaType(h)
	if err != nil {
		return ""
	}
	return fileName(params["filename"])
}

// disposition is the Content-Disposition of a file. Only the type without
// parameters decides: it is what a browser goes by.
func disposition(typ, name string) string {
	kind := "attachment"
	base, _, err := mime.ParseMediaType(typ)
	if err == nil && inlineTypes[base] {
		kind = "inline"
	}
	if name == "" {
		return kind
	}
	if full := mime.FormatMediaType(kind, map[string]string{"filename": name}); full != "" {
		return full
	}
	return kind
}

// foreignUses are what browsers say they want something for when a page would
// be governed by it: a program, a style, a plug-in. No client uses files that
// way, and a page that trusts this server's address shouldn't be talked into
// it. Frames are refused by safetyHeaders.
// spec: Fetch Metadata, "Sec-Fetch-Dest"
var foreignUses = map[string]bool{
	"script": true, "worker": true, "sharedworker": true, "serviceworker": true, "audioworklet": true, "paintworklet": true,
	"xslt": true, "style": true, "manifest": true, "object": true, "embed": true, "report": true, "webidentity": true,
}

func checkUse(r *http.Request) error {
	if foreignUses[r.Header.Get("Sec-Fetch-Dest")] {
		return httpx.Forbidden("Files can't be parts of pages")
	}
	return nil
}

// contentPolicy keeps a document that is opened from the repository from
// running anything. spec: "Content Repository"
const contentPolicy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"

// safetyHeaders go on everything that people have uploaded.
func safetyHeaders(h http.Header) {
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY") // for browsers without the policy
	h.Set("Referrer-Policy", "no-referrer")
}
