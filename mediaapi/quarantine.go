package mediaapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/storage"
)

// A file in quarantine is answered as if it weren't there, here and to other
// servers, and isn't fetched again. Its bytes stay until its time comes, for
// those who have to look into it, or until somebody deletes it. The row says
// nothing but the file's keyed hash, so that it can be there for files of other
// servers that this one has never had.

func quarantineRow(k key) storage.Key { return storage.K("mz").Bytes(k[:]) }

// ParseURI reads mxc://server/id.
func ParseURI(uri string) (mxid.ServerName, string, error) {
	rest, ok := strings.CutPrefix(uri, "mxc://")
	server, id, found := strings.Cut(rest, "/")
	if !ok || !found || !mxid.ValidServerName(server) || !validMediaID(id) {
		return "", "", httpx.InvalidParam("not a Matrix content URI: it must look like mxc://server/id")
	}
	return mxid.ServerName(server), id, nil
}

// quarantined reports whether a file must not be served.
func (s *Service) quarantined(ctx context.Context, k key) (bool, error) {
	_, err := s.cfg.KV.Get(ctx, quarantineRow(k))
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Quarantine hides files, or shows them again. It returns for how many of them
// that was new. Files that this server doesn't have count too.
func (s *Service) Quarantine(ctx context.Context, uris []string, hide bool) (changed int, err error) {
	keys := make([]key, len(uris))
	for i, uri := range uris {
		server, id, err := ParseURI(uri)
		if err != nil {
			return 0, err
		}
		keys[i] = s.key(server, id)
	}
	return s.quarantine(ctx, keys, hide)
}

// QuarantineUser hides every file that a local user has uploaded, or shows
// them again.
func (s *Service) QuarantineUser(ctx context.Context, uid uint32, hide bool) (changed int, err error) {
	rows := storage.K("mx").U32(uid).Prefix()
	for {
		keys, last, err := s.keysIn(ctx, rows, deleteSlice)
		if err != nil || len(keys) == 0 {
			return changed, err
		}
		n, err := s.quarantine(ctx, keys, hide)
		if changed += n; err != nil {
			return changed, err
		}
		rows.Lo = append(last, 0)
	}
}

func (s *Service) quarantine(ctx context.Context, keys []key, hide bool) (changed int, err error) {
	for len(keys) > 0 {
		slice := keys[:min(len(keys), deleteSlice)]
		keys = keys[len(slice):]
		n := 0
		err := s.cfg.Commit.Do(ctx, func(tx *storage.Tx) error {
			for _, k := range slice {
				there, err := tx.Has(quarantineRow(k))
				if err != nil {
					return err
				}
				if there == hide {
					continue
				}
				n++
				if hide {
					tx.Put(quarantineRow(k), nil)
				} else {
					tx.Delete(quarantineRow(k))
				}
			}
			return nil
		})
		if err != nil {
			return changed, err
		}
		changed += n
	}
	return changed, nil
}

// keysIn lists the files that rows of a user name, at most limit, and the last
// of the rows.
func (s *Service) keysIn(ctx context.Context, rows storage.Range, limit int) (keys []key, last []byte, err error) {
	for row, err := range s.cfg.KV.Scan(ctx, rows, false, limit) {
		if err != nil {
			return nil, nil, err
		}
		last = append(last[:0], row.Key...)
		if len(row.Key) == 2+4+1+16 {
			keys = append(keys, key(row.Key[7:]))
		}
	}
	return keys, last, nil
}

// URIsIn lists the files that an event names, at any depth.
func URIsIn(event []byte) (uris []string) {
	dec := json.NewDecoder(bytes.NewReader(event))
	for {
		tok, err := dec.Token()
		if err != nil {
			return uris
		}
		uri, ok := tok.(string)
		if !ok {
			continue
		}
		if server, id, err := ParseURI(uri); err == nil {
			uris = append(uris, "mxc://"+string(server)+"/"+id)
		}
	}
}
