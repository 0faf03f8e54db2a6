// Package privscan looks for what people wrote, who they are and where they
// were, in everything that a server leaves behind: rows, sealed and opened, old
// rows in files of the database, files and their names, logs, metrics, backups.
//
// A test plants canaries, unmistakable values, through the server's own API,
// and says for each in which kinds of places it may be: those of the data map
// (privacy/datamap), once opened with all keys. Everywhere else, in any usual
// encoding and as a plain hash, it is a hit.
//
// It is for tests; the server doesn't import it.
package privscan

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"parley/privacy/datamap"
)

// minLength keeps canaries from being found by chance.
const minLength = 8

// Hit is a canary where it must not be.
type Hit struct {
	Where    string // a place for people: "row ej, opened", "file store/000003.log"
	Canary   string // its name
	Encoding string
}

func (h Hit) String() string { return fmt.Sprintf("%s has %s (%s)", h.Where, h.Canary, h.Encoding) }

type canary struct {
	name     string
	may      []datamap.Kind
	patterns []pattern
}

type pattern struct {
	encoding string
	bytes    []byte // in lower case
}

// Set is a set of canaries. Plant first, then look; looking is safe for
// concurrent use.
type Set struct{ canaries []canary }

// Plant adds a canary. may are the kinds of data that it belongs to; with none
// it must not be anywhere. It panics on one that is too short to be told from
// chance, which is a mistake of the test.
func (s *Set) Plant(name, value string, may ...datamap.Kind) {
	if len(value) < minLength {
		panic(fmt.Sprintf("privscan: the canary %s is too short: %q", name, value))
	}
	s.canaries = append(s.canaries, canary{name: name, may: may, patterns: patterns(value)})
}

// Len is the number of canaries.
func (s *Set) Len() int { return len(s.canaries) }

// patterns are the forms in which a value may be found.
func patterns(value string) []pattern {
	raw := []byte(value)
	forms := map[string][]byte{"plain": raw, "hexadecimal": []byte(hex.EncodeToString(raw)), "reversed": reversed(raw)}
	if esc := url.QueryEscape(value); esc != value {
		forms["percent-encoded"] = []byte(esc)
	}
	if esc, err := json.Marshal(value); err == nil && string(esc[1:len(esc)-1]) != value {
		forms["in JSON"] = esc[1 : len(esc)-1]
	}
	for shift := range 3 {
		forms[fmt.Sprintf("base64 at offset %d", shift)] = inBase64(raw, shift, base64.RawStdEncoding)
		forms[fmt.Sprintf("base64url at offset %d", shift)] = inBase64(raw, shift, base64.RawURLEncoding)
	}
	s256, s1, m5 := sha256.Sum256(raw), sha1.Sum(raw), md5.Sum(raw)
	for name, sum := range map[string][]byte{"SHA-256": s256[:], "SHA-1": s1[:], "MD5": m5[:]} {
		forms[name] = sum
		forms[name+" in hexadecimal"] = []byte(hex.EncodeToString(sum))
		forms[name+" in base64"] = []byte(base64.RawStdEncoding.EncodeToString(sum))
	}
	if ip, err := netip.ParseAddr(value); err == nil {
		mapped := ip.As16()
		forms["as bytes"] = mapped[4:]
	}
	// What is itself an encoding (a token) may be kept decoded.
	if b, err := base64.RawURLEncoding.DecodeString(value); err == nil && len(b) >= minLength {
		forms["decoded"] = b
	}
	var out []pattern
	for name, b := range forms {
		if low := bytes.ToLower(b); len(low) >= minLength && !has(out, low) {
			out = append(out, pattern{name, low})
		}
	}
	return out
}

func has(ps []pattern, b []byte) bool {
	return slices.ContainsFunc(ps, func(p pattern) bool { return bytes.Equal(p.bytes, b) })
}

func reversed(b []byte) []byte {
	out := bytes.Clone(b)
	slices.Reverse(out)
	return out
}

// inBase64 is how raw looks in the middle of something encoded, when shift
// bytes of its first group belong to what comes before.
func inBase64(raw []byte, shift int, enc *base64.Encoding) []byte {
	s := enc.EncodeToString(append(make([]byte, shift), raw...))
	first := []int{0, 2, 3}[shift] // characters that depend on what comes before
	last := len(s)
	if (shift+len(raw))%3 != 0 {
		last-- // the last character depends on what comes after
	}
	return []byte(s[first:last])
}

// Bytes looks for every canary, whatever it may be elsewhere.
func (s *Set) Bytes(where string, b []byte) []Hit {
	return s.look(where, b, func(*canary) bool { return true })
}

// Opened looks in what was opened with a key in a place that may hold kinds of
// data.
func (s *Set) Opened(where string, b []byte, holds []datamap.Kind) []Hit {
	return s.look(where, b, func(c *canary) bool {
		return !slices.ContainsFunc(c.may, func(k datamap.Kind) bool { return slices.Contains(holds, k) })
	})
}

func (s *Set) look(where string, b []byte, for_ func(*canary) bool) []Hit {
	var hits []Hit
	low := bytes.ToLower(b)
	for i := range s.canaries {
		c := &s.canaries[i]
		if !for_(c) {
			continue
		}
		for _, p := range c.patterns {
			if bytes.Contains(low, p.bytes) || bytes.Contains(b, p.bytes) {
				hits = append(hits, Hit{where, c.name, p.encoding})
				break
			}
		}
	}
	return hits
}

// maxFile is the size of the pieces in which files are read, and overlap what
// is read twice, so that nothing is missed between them.
const (
	maxFile = 64 << 20
	overlap = 4096
)

// Files looks in every byte and every name below a folder. It returns how many
// files there were: a scan of none proves nothing.
func (s *Set) Files(dir string) (hits []Hit, files int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		hits = append(hits, s.Bytes("the name "+rel, []byte(rel))...)
		if !d.Type().IsRegular() {
			return nil
		}
		files++
		more, err := s.file("file "+rel, path)
		hits = append(hits, more...)
		return err
	})
	return hits, files, err
}

func (s *Set) file(where, path string) ([]Hit, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var hits []Hit
	for at := int64(0); at < st.Size(); at += maxFile - overlap {
		b := make([]byte, min(maxFile, st.Size()-at))
		if _, err := f.ReadAt(b, at); err != nil {
			return hits, err
		}
		hits = append(hits, s.Bytes(where, b)...)
	}
	return hits, nil
}

// Undeclared lists the files below a data folder that the data map doesn't
// name.
func Undeclared(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if _, ok := datamap.File(filepath.ToSlash(rel)); !ok {
			out = append(out, rel)
		}
		return err
	})
	return out, err
}

// Log patterns that tell of people, whoever they are.
var logPatterns = map[string]string{
	"a user ID":        `@[a-z0-9._=/+-]+:[a-z0-9.-]+\.[a-z]`,
	"a room ID":        `![A-Za-z0-9_-]{18,}`,
	"an event ID":      `\$[A-Za-z0-9_/+-]{43}`,
	"an alias":         `#[A-Za-z0-9._-]+:[a-z0-9.-]+\.[a-z]`,
	"an IPv4 address":  `\b(?:\d{1,3}\.){3}\d{1,3}\b`,
	"an IPv6 address":  `\b(?:[0-9a-f]{1,4}:){4,}[0-9a-f]{1,4}\b`,
	"an e-mail":        `[A-Za-z0-9._+-]+@[A-Za-z0-9-]+\.[A-Za-z]{2,}`,
	"a token":          `(?:syt|mat|mct|mcr)_[A-Za-z0-9_-]{8,}|access_token|[Bb]earer `,
	"an mxc address":   `mxc://`,
	"43 random":        `\b[A-Za-z0-9_-]{43}\b`,
	"a browser":        `Mozilla/|AppleWebKit|Chrome/`,
	"a request's path": `/_matrix/[a-z]+/[a-z0-9]+/\S*(?:%21|%40|%24|!|@|\$)`,
}

// Log looks for what identifies people in general, planted or not. Addresses
// that the server itself listens on may be given.
func Log(b []byte, own ...string) []Hit {
	text := string(b)
	for _, o := range own {
		text = strings.ReplaceAll(text, o, "[own]")
	}
	var hits []Hit
	for name, re := range compiled {
		if m := re.FindString(text); m != "" {
			hits = append(hits, Hit{"the log", name, m})
		}
	}
	return hits
}
