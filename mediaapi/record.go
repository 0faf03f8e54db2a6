package mediaapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/blob"
)

// key stands for a file in rows and in the vault: a keyed hash of the server
// and the media ID.
type key [16]byte

func (s *Service) key(server mxid.ServerName, mediaID string) key {
	return s.cfg.Vault.Hash("media", string(server), mediaID)
}

func (k key) ref() vault.Ref   { return vault.Media(k) }
func (k key) row() storage.Key { return storage.K("mm").Bytes(k[:]) }
func blobRow(id blob.ID) storage.Key {
	return storage.K("mb").Bytes(id[:])
}

// A user's rows: files that are there, and uploads that were announced.
const (
	ownedKind     = 0
	announcedKind = 1
)

func ownerRow(uid uint32, k key) storage.Key {
	return storage.K("mx").U32(uid).U8(ownedKind).Bytes(k[:])
}
func announcedRow(uid uint32, k key) storage.Key {
	return storage.K("mx").U32(uid).U8(announcedKind).Bytes(k[:])
}
func announcedRows(uid uint32) storage.Range {
	return storage.K("mx").U32(uid).U8(announcedKind).Prefix()
}

// decodeAnnounced reads a row of the announced uploads.
func decodeAnnounced(row storage.Pair) (k key, expires int64, ok bool) {
	if len(row.Key) != 2+4+1+16 || len(row.Value) != 8 {
		return key{}, 0, false
	}
	copy(k[:], row.Key[7:])
	return k, int64(storage.ReadU64(row.Value, 0)), true
}

func quotaRow(uid uint32) storage.Key        { return storage.K("mq").U32(uid) }
func cacheRow(day uint32, k key) storage.Key { return storage.K("mc").U32(day).Bytes(k[:]) }

// record is what is known about a file.
type record struct {
	Ready bool `json:"ready,omitempty"` // false: announced, not uploaded yet
	Local bool `json:"local,omitempty"`
	// Owner is the user who uploaded it, for local files.
	Owner  uint32  `json:"owner,omitempty"`
	Type   string  `json:"type,omitempty"`
	Name   string  `json:"name,omitempty"`
	Size   int64   `json:"size,omitempty"` // of the plaintext
	Blob   blob.ID `json:"blob,omitzero"`
	Legacy bool    `json:"legacy,omitempty"` // may be had without a token
	// ID is the media ID, of local files.
	ID string `json:"id,omitempty"`
	// Born is the day with whose beginning, at midnight UTC, the file is taken
	// to have come: the one after it did. In days since 1970.
	Born uint32 `json:"born,omitempty"`
	// Plan is the plan of the owner that the file is kept by.
	Plan string `json:"plan,omitempty"`
	// Asked is the end that the upload has asked for, in Unix milliseconds.
	Asked int64 `json:"asked,omitempty"`
	// Expires is when an announced upload can no longer be made, in Unix
	// milliseconds.
	Expires int64 `json:"expires,omitempty"`
	// Day is when a copy of another server's file was last used, in days since
	// 1970.
	Day    uint32  `json:"day,omitempty"`
	Thumbs []thumb `json:"thumbs,omitempty"`
}

// thumb is a thumbnail that has been made.
type thumb struct {
	variant
	Type string  `json:"type"`
	Size int64   `json:"size"`
	Blob blob.ID `json:"blob"`
}

// charged is what the file counts for its owner.
func (r *record) charged() int64 { return r.Size + perFile }

// bytes is what the file and its thumbnails take.
func (r *record) bytes() int64 {
	n := r.Size + perFile
	for _, t := range r.Thumbs {
		n += t.Size + perFile
	}
	return n
}

func (r *record) blobs() []blob.ID {
	var ids []blob.ID
	if r.Ready {
		ids = append(ids, r.Blob)
	}
	for _, t := range r.Thumbs {
		ids = append(ids, t.Blob)
	}
	return ids
}

// seal encrypts a record for its row.
func (s *Service) seal(k key, r *record) ([]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return s.cfg.Vault.Seal(k.ref(), k.row(), plain)
}

func (s *Service) unseal(k key, row []byte) (*record, error) {
	plain, err := s.cfg.Vault.Unseal(k.row(), row)
	if errors.Is(err, vault.ErrDestroyed) {
		return nil, storage.ErrNotFound // erased, though the row is still there
	}
	if err != nil {
		return nil, fmt.Errorf("open file record: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(plain, r); err != nil {
		return nil, fmt.Errorf("file record: %w", storage.ErrCorrupt)
	}
	return r, nil
}

// load reads a record; storage.ErrNotFound, also when the file's time is over
// and it isn't a picture in use.
func (s *Service) load(ctx context.Context, k key) (*record, error) {
	row, err := s.cfg.KV.Get(ctx, k.row())
	if err != nil {
		return nil, err
	}
	rec, err := s.unseal(k, row)
	if err != nil || !s.over(k, rec) {
		return rec, err
	}
	worn, err := s.isWorn(ctx, rec)
	if err == nil && !worn {
		err = storage.ErrNotFound
	}
	return rec, err
}

// loadTx reads a record in a transaction.
func (s *Service) loadTx(tx *storage.Tx, k key) (*record, error) {
	row, err := tx.Get(k.row())
	if err != nil {
		return nil, err
	}
	return s.unseal(k, row)
}

// put writes a record and the rows of its blobs in a transaction.
func (s *Service) put(tx *storage.Tx, k key, r *record) error {
	sealed, err := s.seal(k, r)
	if err != nil {
		return err
	}
	tx.Put(k.row(), sealed)
	for _, id := range r.blobs() {
		tx.Put(blobRow(id), k[:])
	}
	return nil
}

// newMediaID makes 256 random bits in URL-safe base64.
func (s *Service) newMediaID() (string, error) {
	b := make([]byte, 32)
	if _, err := io.ReadFull(s.cfg.Rand, b); err != nil {
		return "", fmt.Errorf("random media ID: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// maxMediaID bounds media IDs of other servers.
const maxMediaID = 255

// validMediaID checks the characters that the specification allows.
// spec: "Content Repository", "Security considerations"
func validMediaID(id string) bool {
	if id == "" || len(id) > maxMediaID {
		return false
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// day is a time in days since 1970.
func day(t time.Time) uint32 { return uint32(t.Unix() / (24 * 60 * 60)) }

// content is an open file or thumbnail. Close it.
type content struct {
	*io.SectionReader
	file *blob.File
}

func (c *content) Close() error { return c.file.Close() }

// open opens a blob for reading its plaintext, of size bytes and padding.
func (s *Service) open(k key, id blob.ID, size int64) (*content, error) {
	f, err := s.cfg.Blobs.Open(id)
	if err != nil {
		return nil, err
	}
	r, err := s.cfg.Vault.OpenStream(k.ref(), f, f.Bytes)
	if errors.Is(err, vault.ErrDestroyed) {
		err = storage.ErrNotFound
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open file: %w", err)
	}
	if r.Size() < size {
		f.Close()
		return nil, fmt.Errorf("open file: size: %w", storage.ErrCorrupt)
	}
	return &content{io.NewSectionReader(r, 0, size), f}, nil
}

// errTooLarge means that a source had more bytes than allowed.
var errTooLarge = errors.New("mediaapi: too large")

// sourceError is an error of reading what is to be stored.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

type source struct{ r io.Reader }

func (s source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = sourceError{err}
	}
	return n, err
}

// store encrypts at most limit bytes of src into a new blob. It belongs to
// nothing until a row names it: then call Blobs.Settled, else Blobs.Remove.
func (s *Service) store(k key, src io.Reader, limit int64) (id blob.ID, n int64, err error) {
	w, err := s.cfg.Blobs.Create()
	if err != nil {
		return blob.ID{}, 0, err
	}
	defer w.Abort()
	sealed, err := s.cfg.Vault.SealStream(k.ref(), w)
	if err != nil {
		return blob.ID{}, 0, err
	}
	n, err = io.Copy(sealed, io.LimitReader(source{src}, limit+1))
	switch {
	case err != nil:
		return blob.ID{}, 0, err
	case n > limit:
		return blob.ID{}, 0, errTooLarge
	}
	if _, err := io.CopyN(sealed, zeros{}, padded(n)-n); err != nil {
		return blob.ID{}, 0, err
	}
	if err := sealed.Close(); err != nil {
		return blob.ID{}, 0, err
	}
	id, err = w.Commit()
	return id, n, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// leastSize makes the smallest files fill a block of a disk once sealed.
const leastSize = 4096 - 41

// padded is the size of the class of sizes that n falls into: the five bits
// after the first stay, so that at most 6 % are added to a small file and 3 %
// to a large one, and a listing of blobs tells little of what they are.
func padded(n int64) int64 {
	if n <= leastSize {
		return leastSize
	}
	step := int64(1) << max(bits.Len64(uint64(n))-6, 0)
	return (n + step - 1) / step * step
}
