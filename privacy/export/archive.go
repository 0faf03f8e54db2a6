package export

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"parley/internal/mxid"
	"parley/keys/e2e"
	"parley/mediaapi"
	"parley/privacy/datamap"
	"parley/room"
	"parley/storage"
	"parley/storage/intern"
)

// The archive is a tar file of
//
//	about.json                    what Data and Flows say
//	rows.jsonl.<n>                every row kept on the user, opened
//	key_backup/<n>.json           sessions of the key backup, room by room, as the client has encrypted them
//	media/<n>                     files; media.jsonl has name, type and address of each
//	rooms/<n>/events.jsonl.<m>    the events of a room that the user may see, oldest first
//	manifest.json                 last: name, size and SHA-256 of each file before it
//
// Long lists come in pieces of about partBytes, so that memory stays flat.
const (
	partBytes  = 1 << 20
	pageEvents = 100 // that are in memory at a time
)

// Manifest is the last file of an archive.
type Manifest struct {
	Version int         `json:"version"`
	Server  string      `json:"server"`
	UserID  mxid.UserID `json:"user_id"`
	Day     string      `json:"day"`
	Files   []Entry     `json:"files"`
}

// Entry is a file of an archive.
type Entry struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

const (
	manifestName = "manifest.json"
	aboutName    = "about.json"
)

// about is about.json.
type about struct {
	Data  *Data  `json:"data"`
	Flows *Flows `json:"flows"`
}

// writer writes the files of an archive and keeps the manifest.
type writer struct {
	tar      *tar.Writer
	manifest Manifest
	at       time.Time // of all files, a day
}

func (w *writer) put(name string, size int64, body io.Reader) error {
	err := w.tar.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o600, ModTime: w.at, Format: tar.FormatPAX})
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(w.tar, sum), body, size); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	w.manifest.Files = append(w.manifest.Files, Entry{Name: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

func (w *writer) json(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return w.bytes(name, b)
}

func (w *writer) bytes(name string, b []byte) error {
	return w.put(name, int64(len(b)), &sliceReader{b})
}

type sliceReader struct{ b []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// parts collects lines and writes them in pieces.
type parts struct {
	w    *writer
	name string
	n    int
	buf  []byte
}

func (p *parts) line(b []byte) error {
	p.buf = append(append(p.buf, b...), '\n')
	if len(p.buf) < partBytes {
		return nil
	}
	return p.flush()
}

func (p *parts) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	p.n++
	err := p.w.bytes(fmt.Sprintf("%s.%d", p.name, p.n), p.buf)
	p.buf = p.buf[:0]
	return err
}

// Write writes the archive of a user.
func (s *Service) Write(ctx context.Context, to io.Writer, u mxid.UserID, uid intern.UID) error {
	day := s.cfg.Clock.Now().UTC().Truncate(24 * time.Hour)
	w := &writer{tar: tar.NewWriter(to), at: day,
		manifest: Manifest{Version: 1, Server: string(s.cfg.ServerName), UserID: u, Day: day.Format(time.DateOnly)}}
	for _, step := range []func(context.Context, *writer, mxid.UserID, intern.UID) error{s.writeAbout, s.writeRows, s.writeBackup, s.writeFiles, s.writeRooms} {
		if err := step(ctx, w, u, uid); err != nil {
			return err
		}
	}
	if err := w.json(manifestName, w.manifest); err != nil {
		return err
	}
	return w.tar.Close()
}

func (s *Service) writeAbout(ctx context.Context, w *writer, u mxid.UserID, uid intern.UID) error {
	data, err := s.Data(ctx, u, uid)
	if err != nil {
		return err
	}
	flows, err := s.Flows(ctx, u)
	if err != nil {
		return err
	}
	return w.json(aboutName, about{Data: data, Flows: flows})
}

// rowLine is a line of rows.jsonl.
type rowLine struct {
	Family string          `json:"family"`
	What   string          `json:"what"`
	Key    string          `json:"key"` // hex: numbers and keyed hashes
	JSON   json.RawMessage `json:"json,omitempty"`
	Text   string          `json:"text,omitempty"`  // what isn't JSON, but text
	Bytes  []byte          `json:"bytes,omitempty"` // what is neither
}

func (s *Service) writeRows(ctx context.Context, w *writer, _ mxid.UserID, uid intern.UID) error {
	lines := &parts{w: w, name: "rows.jsonl"}
	err := s.eachRow(ctx, uid, func(row storage.Pair) error {
		e, _ := datamap.Family(string(row.Key[:2]))
		l := rowLine{Family: string(row.Key[:2]), What: e.What, Key: hex.EncodeToString(row.Key[2:])}
		switch plain := s.open(row); {
		case plain == nil:
			l.Bytes = row.Value
		case json.Valid(plain):
			l.JSON = plain
		case utf8.Valid(plain):
			l.Text = string(plain)
		default:
			l.Bytes = plain
		}
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		return lines.line(b)
	})
	if err != nil {
		return fmt.Errorf("archive: rows: %w", err)
	}
	return lines.flush()
}

// backupPart is a file of key_backup.
type backupPart struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Rooms     e2e.Sessions    `json:"rooms"`
}

func (s *Service) writeBackup(ctx context.Context, w *writer, u mxid.UserID, _ intern.UID) error {
	b, err := s.cfg.Keys.Backup(ctx, u, "")
	if err != nil {
		return passOver(err)
	}
	rooms, err := s.cfg.Rooms.UserRooms(ctx, u)
	if err != nil {
		return err
	}
	n := 0
	for _, r := range rooms {
		sessions, err := s.cfg.Keys.GetSessions(ctx, u, b.Version, r.Room, "")
		if passOver(err) != nil {
			return err
		}
		if len(sessions) == 0 {
			continue
		}
		n++
		if err := w.json(fmt.Sprintf("key_backup/%d.json", n), backupPart{Algorithm: b.Algorithm, AuthData: b.AuthData, Rooms: sessions}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) writeFiles(ctx context.Context, w *writer, _ mxid.UserID, uid intern.UID) error {
	lines := &parts{w: w, name: "media.jsonl"}
	n := 0
	err := s.cfg.Media.Files(ctx, uint32(uid), func(f mediaapi.File) error {
		f, body, err := s.cfg.Media.OpenFile(ctx, uint32(uid), f.URI)
		if err != nil {
			return passOver(err)
		}
		defer body.Close()
		n++
		name := fmt.Sprintf("media/%d", n)
		if err := w.put(name, f.Size, body); err != nil {
			return err
		}
		b, err := json.Marshal(mediaLine{Path: name, File: describeFile(f)})
		if err != nil {
			return err
		}
		return lines.line(b)
	})
	if err != nil {
		return fmt.Errorf("archive: files: %w", err)
	}
	return lines.flush()
}

// mediaLine is a line of media.jsonl.
type mediaLine struct {
	Path string `json:"path"`
	File
}

func (s *Service) writeRooms(ctx context.Context, w *writer, u mxid.UserID, _ intern.UID) error {
	rooms, err := s.cfg.Rooms.UserRooms(ctx, u)
	if err != nil {
		return err
	}
	for i, r := range rooms {
		if err := s.writeRoom(ctx, w, u, r, fmt.Sprintf("rooms/%d/events.jsonl", i+1)); err != nil {
			return fmt.Errorf("archive: events: %w", err)
		}
	}
	return nil
}

// writeRoom writes what the user may see of a room. What only other servers
// have isn't asked for.
func (s *Service) writeRoom(ctx context.Context, w *writer, u mxid.UserID, r room.UserRoom, name string) error {
	lines := &parts{w: w, name: name}
	for at := room.Ord(0); ; {
		page, err := s.cfg.Rooms.Messages(ctx, room.MessagesParams{Room: r.Room, User: u, From: at, Limit: pageEvents})
		if err != nil {
			return passOver(err) // an invite, or a room that was forgotten
		}
		out, err := s.cfg.Rooms.FormatAll(ctx, r.RID, page.Events, room.FormatOptions{Viewer: u, StateList: true})
		if err != nil {
			return err
		}
		for _, ev := range out {
			if err := lines.line(ev); err != nil {
				return err
			}
		}
		if !page.More || page.End == at {
			return lines.flush()
		}
		at = page.End
	}
}
