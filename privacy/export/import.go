package export

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"parley/internal/clock"
	"parley/internal/mxid"
)

// ErrArchive means that a file isn't an archive, or not as it was written.
var ErrArchive = errors.New("not a whole archive")

// Target is an account to import to, through the client API of its server,
// which may be any Matrix server.
type Target struct {
	URL   string // of the server, without a path
	Token string
	User  mxid.UserID
	HTTP  *http.Client
	Clock clock.Clock
}

// Imported counts what was imported.
type Imported struct {
	Profile, AccountData, Sessions, Files, Rooms int
}

const (
	maxLine       = 8 << 20 // of what is read into memory whole
	sessionsAtOne = 250     // in one request
	maxTries      = 20
)

// importer is an import under way.
type importer struct {
	Target
	ctx     context.Context
	about   about
	media   map[string]mediaLine // by path
	moved   map[string]string    // old address to new
	room    mxid.RoomID          // the archive's
	version string               // of the key backup
	out     Imported
}

// Import reads an archive twice, through open: once to see that it is whole,
// and once to import it. Profile, account data, key backup and files become the
// account's; the events of rooms, which nobody can put back into their rooms,
// become files in a room of their own.
func Import(ctx context.Context, open func() (io.Reader, error), t Target) (*Imported, error) {
	im := &importer{Target: t, ctx: ctx, media: map[string]mediaLine{}, moved: map[string]string{}}
	r, err := open()
	if err != nil {
		return nil, err
	}
	if err := im.check(r); err != nil {
		return nil, err
	}
	if r, err = open(); err != nil {
		return nil, err
	}
	if err := eachFile(r, im.file); err != nil {
		return nil, err
	}
	return &im.out, im.account()
}

// eachFile calls f for every file of an archive.
func eachFile(r io.Reader, f func(name string, size int64, body io.Reader) error) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			// What follows must be the proper end of the encryption.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		if h.Typeflag != tar.TypeReg || path.Clean(h.Name) != h.Name || strings.HasPrefix(h.Name, "..") {
			return fmt.Errorf("%w: a file has a strange name", ErrArchive)
		}
		if err := f(h.Name, h.Size, in); err != nil {
			return err
		}
	}
}

// check compares all files with the manifest, and keeps what is needed first.
func (im *importer) check(r io.Reader) error {
	var m Manifest
	seen := map[string]Entry{}
	err := eachFile(r, func(name string, size int64, body io.Reader) error {
		sum := sha256.New()
		var keep bytes.Buffer
		wanted := name == manifestName || name == aboutName || strings.HasPrefix(name, "media.jsonl.")
		if wanted {
			body = io.TeeReader(io.LimitReader(body, 64<<20), &keep)
		}
		n, err := io.Copy(sum, body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		seen[name] = Entry{Name: name, Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}
		switch {
		case name == manifestName:
			err = json.Unmarshal(keep.Bytes(), &m)
		case name == aboutName:
			err = json.Unmarshal(keep.Bytes(), &im.about)
		case wanted:
			err = im.addMedia(keep.Bytes())
		}
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrArchive, name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if m.Version != 1 || im.about.Data == nil {
		return fmt.Errorf("%w: no manifest of a version that is known here", ErrArchive)
	}
	delete(seen, manifestName)
	for _, f := range m.Files {
		if seen[f.Name] != f {
			return fmt.Errorf("%w: %s isn't what the manifest says", ErrArchive, f.Name)
		}
		delete(seen, f.Name)
	}
	if len(seen) > 0 {
		return fmt.Errorf("%w: files that the manifest doesn't have", ErrArchive)
	}
	return nil
}

func (im *importer) addMedia(lines []byte) error {
	for line := range bytes.Lines(lines) {
		var l mediaLine
		if err := json.Unmarshal(line, &l); err != nil {
			return err
		}
		im.media[l.Path] = l
	}
	return nil
}

// file imports one file of the archive.
func (im *importer) file(name string, size int64, body io.Reader) error {
	dir, _, _ := strings.Cut(name, "/")
	switch dir {
	case "key_backup":
		return im.sessions(body)
	case "media":
		l := im.media[name]
		uri, err := im.upload(l.Name, l.Type, size, body)
		if err != nil {
			return fmt.Errorf("upload a file: %w", err)
		}
		im.moved[l.URI] = uri
		im.out.Files++
	case "rooms":
		return im.events(name, size, body)
	}
	return nil
}

// sessions imports a part of the key backup.
func (im *importer) sessions(body io.Reader) error {
	var p backupPart
	if err := json.NewDecoder(body).Decode(&p); err != nil {
		return fmt.Errorf("%w: key backup: %w", ErrArchive, err)
	}
	if im.version == "" {
		var v struct {
			Version string `json:"version"`
		}
		if err := im.call("POST", "/_matrix/client/v3/room_keys/version", map[string]any{"algorithm": p.Algorithm, "auth_data": p.AuthData}, &v); err != nil {
			return fmt.Errorf("make a key backup: %w", err)
		}
		im.version = v.Version
	}
	for room, sessions := range p.Rooms {
		part := map[string]json.RawMessage{}
		flush := func() error {
			if len(part) == 0 {
				return nil
			}
			err := im.call("PUT", "/_matrix/client/v3/room_keys/keys?version="+url.QueryEscape(im.version),
				map[string]any{"rooms": map[string]any{string(room): map[string]any{"sessions": part}}}, nil)
			im.out.Sessions += len(part)
			part = map[string]json.RawMessage{}
			if err != nil {
				return fmt.Errorf("import the key backup: %w", err)
			}
			return nil
		}
		for id, s := range sessions {
			if part[id] = s; len(part) >= sessionsAtOne {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// events puts a part of a room's events into the room of the archive.
func (im *importer) events(name string, size int64, body io.Reader) error {
	if im.room == "" {
		var r struct {
			ID mxid.RoomID `json:"room_id"`
		}
		title := "Archive of " + string(im.about.Data.UserID)
		err := im.call("POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "private_chat", "name": title,
			"topic": "What was said in rooms, as files, one JSON event in each line."}, &r)
		if err != nil {
			return fmt.Errorf("make a room for the archive: %w", err)
		}
		im.room = r.ID
	}
	label := strings.ReplaceAll(name, "/", "-")
	uri, err := im.upload(label, "application/x-ndjson", size, body)
	if err != nil {
		return fmt.Errorf("upload events: %w", err)
	}
	im.out.Rooms++
	return im.call("PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(string(im.room))+"/send/m.room.message/"+url.PathEscape(label),
		map[string]any{"msgtype": "m.file", "body": label, "filename": label, "url": uri,
			"info": map[string]any{"mimetype": "application/x-ndjson", "size": size}}, nil)
}

// account imports the profile and the account data that belongs to no room.
func (im *importer) account() error {
	me := "/_matrix/client/v3/profile/" + url.PathEscape(string(im.User)) + "/"
	for field, value := range im.about.Data.Profile {
		var uri string
		if field == "avatar_url" && json.Unmarshal(value, &uri) == nil && im.moved[uri] != "" {
			value, _ = json.Marshal(im.moved[uri]) // a string always encodes
		}
		if err := im.call("PUT", me+url.PathEscape(field), map[string]json.RawMessage{field: value}, nil); err != nil {
			return fmt.Errorf("set the profile: %w", err)
		}
		im.out.Profile++
	}
	for _, d := range im.about.Data.AccountData {
		if d.Room != "" || d.Type == "m.push_rules" || d.Type == "m.fully_read" {
			continue // about rooms of there, or set in another way
		}
		err := im.call("PUT", "/_matrix/client/v3/user/"+url.PathEscape(string(im.User))+"/account_data/"+url.PathEscape(d.Type), d.Content, nil)
		if err != nil {
			return fmt.Errorf("set account data: %w", err)
		}
		im.out.AccountData++
	}
	return nil
}

// upload sends a file and returns its address.
func (im *importer) upload(name, typ string, size int64, body io.Reader) (string, error) {
	spool, err := os.CreateTemp("", "parley-import-*")
	if err != nil {
		return "", err
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil { // it has no name any more, and goes with the process
		return "", err
	}
	if _, err := io.CopyN(spool, body, size); err != nil {
		return "", fmt.Errorf("%w: %w", ErrArchive, err)
	}
	if typ == "" {
		typ = "application/octet-stream"
	}
	var answer struct {
		URI string `json:"content_uri"`
	}
	err = im.try(&answer, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(im.ctx, "POST", im.URL+"/_matrix/media/v3/upload?filename="+url.QueryEscape(name), io.NewSectionReader(spool, 0, size))
		if err == nil {
			req.ContentLength = size
			req.Header.Set("Content-Type", typ)
		}
		return req, err
	})
	return answer.URI, err
}

// call makes a request with a JSON body.
func (im *importer) call(method, path string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return im.try(answer, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(im.ctx, method, im.URL+path, bytes.NewReader(raw))
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
		}
		return req, err
	})
}

// try sends a request, again when the server asks to wait.
func (im *importer) try(answer any, request func() (*http.Request, error)) error {
	for tries := 0; ; tries++ {
		req, err := request()
		if err != nil {
			return err
		}
		wait, err := im.once(req, answer)
		if wait == 0 || tries == maxTries {
			return err
		}
		if err := im.Clock.Sleep(im.ctx, wait); err != nil {
			return err
		}
	}
}

// once sends a request; wait says after how long to send it again.
func (im *importer) once(req *http.Request, answer any) (wait time.Duration, err error) {
	if im.Token != "" {
		req.Header.Set("Authorization", "Bearer "+im.Token)
	}
	res, err := im.HTTP.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxLine))
	if err != nil {
		return 0, err
	}
	if res.StatusCode == http.StatusOK {
		if answer == nil {
			return 0, nil
		}
		return 0, json.Unmarshal(raw, answer)
	}
	var refused struct {
		Code  string `json:"errcode"`
		Error string `json:"error"`
		Wait  int64  `json:"retry_after_ms"`
	}
	_ = json.Unmarshal(raw, &refused) // an answer of another kind has a status at least
	err = fmt.Errorf("the server answers %d %s: %s", res.StatusCode, refused.Code, refused.Error)
	if res.StatusCode == http.StatusTooManyRequests {
		return min(max(time.Duration(refused.Wait)*time.Millisecond, time.Second), time.Minute), err
	}
	return 0, err
}

// Login logs in to the target and sets its token and user.
func (t *Target) Login(ctx context.Context, name, password string) error {
	im := &importer{Target: *t, ctx: ctx}
	var answer struct {
		Token string      `json:"access_token"`
		User  mxid.UserID `json:"user_id"`
	}
	err := im.call("POST", "/_matrix/client/v3/login", map[string]any{"type": "m.login.password", "password": password,
		"identifier": map[string]string{"type": "m.id.user", "user": name}, "initial_device_display_name": "Import"}, &answer)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	t.Token, t.User = answer.Token, answer.User
	return nil
}

// Logout ends the session that Login made.
func (t *Target) Logout(ctx context.Context) error {
	im := &importer{Target: *t, ctx: ctx}
	return im.call("POST", "/_matrix/client/v3/logout", struct{}{}, nil)
}
