package mediaapi

import (
	"context"
	"errors"
	"io"
	"time"

	"parley/storage"
)

// File is what is known about a file of a local user.
type File struct {
	URI         string
	Name, Type  string
	Size        int64
	Ends        time.Time // zero: never
	Quarantined bool
}

// Usage is how many bytes a user's files take, and may take (0: no limit).
func (s *Service) Usage(ctx context.Context, uid uint32) (used, quota int64, err error) {
	row, err := s.cfg.KV.Get(ctx, quotaRow(uid))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return 0, 0, err
	}
	if used, err = decodeQuota(row); err != nil {
		return 0, 0, err
	}
	_, quota, err = s.plan(ctx, uid)
	return used, quota, err
}

// Files calls f for every file of a local user, in no particular order. An
// error of f ends it.
func (s *Service) Files(ctx context.Context, uid uint32, f func(File) error) error {
	rows := storage.K("mx").U32(uid).U8(ownedKind).Prefix()
	for {
		keys, last, err := s.keysIn(ctx, rows, replanSlice)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, k := range keys {
			rec, err := s.load(ctx, k)
			if errors.Is(err, storage.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			file, err := s.file(ctx, k, rec)
			if err != nil {
				return err
			}
			if err := f(file); err != nil {
				return err
			}
		}
		rows.Lo = append(last, 0)
	}
}

func (s *Service) file(ctx context.Context, k key, rec *record) (File, error) {
	ends, _, _ := s.ends(k, rec)
	hidden, err := s.quarantined(ctx, k)
	return File{URI: s.uri(rec.ID), Name: rec.Name, Type: rec.Type, Size: rec.Size, Ends: ends, Quarantined: hidden}, err
}

// OpenFile opens a file of a local user for that user; storage.ErrNotFound if
// it is somebody else's. Close the reader.
func (s *Service) OpenFile(ctx context.Context, uid uint32, uri string) (File, io.ReadCloser, error) {
	server, id, err := ParseURI(uri)
	if err != nil {
		return File{}, nil, err
	}
	k := s.key(server, id)
	rec, err := s.load(ctx, k)
	if err == nil && (!rec.Local || !rec.Ready || rec.Owner != uid) {
		err = storage.ErrNotFound
	}
	if err != nil {
		return File{}, nil, err
	}
	file, err := s.file(ctx, k, rec)
	if err != nil {
		return File{}, nil, err
	}
	body, err := s.open(k, rec.Blob, rec.Size)
	if err != nil {
		return File{}, nil, err
	}
	return file, body, nil
}
