package backup

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"parley/storage"
	"parley/storage/blob"
)

// Inside of OpenPGP a pack is a line that names it and records: a type byte,
// then parts, each with its length as a uvarint before it.
const (
	rowsMagic  = "parley backup rows 1\n"
	filesMagic = "parley backup files 1\n"

	recRow    = 'R' // key, value
	recKey    = 'K' // a record of vault.Export
	recLedger = 'L' // the ledger
	recFile   = 'F' // name, content
	recGone   = 'G' // ID of a file that was deleted while the backup was made
	recBlob   = 'B' // ID, size as 8 bytes, then that many bytes
	recEnd    = 'E' // counts, as JSON
)

// counts end a pack, so that nothing can be missing without being noticed.
type counts struct {
	Server string   `json:"server,omitempty"`
	Rows   int64    `json:"rows,omitempty"`
	Keys   int64    `json:"keys,omitempty"`
	Blobs  int64    `json:"blobs,omitempty"`
	Gone   int64    `json:"gone,omitempty"`
	Bytes  int64    `json:"bytes,omitempty"`
	Uses   []string `json:"uses,omitempty"`
}

// packWriter writes records.
type packWriter struct {
	w   io.Writer
	buf []byte
}

func (p *packWriter) record(typ byte, parts ...[]byte) error {
	p.buf = append(p.buf[:0], typ)
	for _, part := range parts {
		p.buf = binary.AppendUvarint(p.buf, uint64(len(part)))
		p.buf = append(p.buf, part...)
	}
	_, err := p.w.Write(p.buf)
	return err
}

func (p *packWriter) end(c counts) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return p.record(recEnd, b)
}

// packReader reads them. Every error but those of the disk is ErrDamaged.
type packReader struct {
	r   *bufio.Reader
	buf [2][]byte
}

func newPackReader(r io.Reader, magic string) (*packReader, error) {
	p := &packReader{r: bufio.NewReaderSize(r, 256<<10)}
	got := make([]byte, len(magic))
	if _, err := io.ReadFull(p.r, got); err != nil {
		return nil, cut(err)
	}
	if string(got) != magic {
		return nil, fmt.Errorf("not %q: %w", magic[:len(magic)-1], ErrDamaged)
	}
	return p, nil
}

// cut says that an end that comes too early is damage.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ends too early: %w", ErrDamaged)
	}
	return err
}

func (p *packReader) next() (byte, error) {
	b, err := p.r.ReadByte()
	if err != nil {
		return 0, cut(err)
	}
	return b, nil
}

// part reads a part of at most limit bytes into buffer i, which the next call
// for i reuses.
func (p *packReader) part(i, limit int) ([]byte, error) {
	n, err := binary.ReadUvarint(p.r)
	if err != nil {
		return nil, cut(err)
	}
	if n > uint64(limit) {
		return nil, fmt.Errorf("a part of %d bytes: %w", n, ErrDamaged)
	}
	if uint64(cap(p.buf[i])) < n {
		p.buf[i] = make([]byte, n)
	}
	b := p.buf[i][:n]
	if _, err := io.ReadFull(p.r, b); err != nil {
		return nil, cut(err)
	}
	return b, nil
}

// ended reads the counts and requires the end after them.
func (p *packReader) ended() (c counts, err error) {
	b, err := p.part(0, maxManifest)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("counts: %w", ErrDamaged)
	}
	switch _, err := p.r.ReadByte(); {
	case errors.Is(err, io.EOF):
		return c, nil
	case err == nil:
		return c, fmt.Errorf("it goes on after its end: %w", ErrDamaged)
	default:
		return c, err
	}
}

// rowsPack is told what a pack of rows has. Slices are valid during the call.
type rowsPack struct {
	row    func(key, value []byte) error
	key    func(record []byte) error
	ledger func(b []byte) error
	file   func(name string, content []byte) error
	gone   func(id blob.ID) error
}

// read reads a whole pack of rows and checks the counts.
func (h rowsPack) read(r io.Reader) (counts, error) {
	var n counts
	p, err := newPackReader(r, rowsMagic)
	if err != nil {
		return n, err
	}
	for {
		typ, err := p.next()
		if err != nil {
			return n, err
		}
		if typ == recEnd {
			end, err := p.ended()
			if err == nil && (end.Rows != n.Rows || end.Keys != n.Keys || end.Gone != n.Gone) {
				err = fmt.Errorf("%d rows and %d keys instead of %d and %d: %w", n.Rows, n.Keys, end.Rows, end.Keys, ErrDamaged)
			}
			return end, err
		}
		if err := h.one(p, typ, &n); err != nil {
			return n, err
		}
	}
}

func (h rowsPack) one(p *packReader, typ byte, n *counts) error {
	limit := maxVaultItem
	switch typ {
	case recRow, recFile, recGone:
		limit = storage.MaxKeyBytes
	case recLedger:
		limit = maxLedger
	case recKey:
	default:
		return fmt.Errorf("record of type %q: %w", typ, ErrDamaged)
	}
	a, err := p.part(0, limit)
	if err != nil {
		return err
	}
	switch typ {
	case recKey:
		n.Keys++
		return h.key(a)
	case recLedger:
		return h.ledger(a)
	case recGone:
		n.Gone++
		if len(a) != len(blob.ID{}) {
			return fmt.Errorf("a file's name: %w", ErrDamaged)
		}
		return h.gone(blob.ID(a))
	}
	if limit = maxSmallFile; typ == recRow {
		limit = storage.MaxValueBytes
	}
	b, err := p.part(1, limit)
	switch {
	case err != nil:
		return err
	case typ == recRow:
		n.Rows++
		return h.row(a, b)
	}
	return h.file(string(a), b)
}

// readFiles reads a whole pack of files. f reads the content from r, or
// leaves it.
func readFiles(r io.Reader, f func(id blob.ID, size int64, r io.Reader) error) (counts, error) {
	var n counts
	p, err := newPackReader(r, filesMagic)
	if err != nil {
		return n, err
	}
	for {
		typ, err := p.next()
		switch {
		case err != nil:
			return n, err
		case typ == recEnd:
			end, err := p.ended()
			if err == nil && (end.Blobs != n.Blobs || end.Bytes != n.Bytes) {
				err = fmt.Errorf("%d files instead of %d: %w", n.Blobs, end.Blobs, ErrDamaged)
			}
			return end, err
		case typ != recBlob:
			return n, fmt.Errorf("record of type %q: %w", typ, ErrDamaged)
		}
		size, err := p.blob(f)
		if err != nil {
			return n, err
		}
		n.Blobs++
		n.Bytes += size
	}
}

func (p *packReader) blob(f func(id blob.ID, size int64, r io.Reader) error) (int64, error) {
	var head [24]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return 0, cut(err)
	}
	size := int64(binary.BigEndian.Uint64(head[16:]))
	if size < 0 {
		return 0, fmt.Errorf("a file's size: %w", ErrDamaged)
	}
	content := &io.LimitedReader{R: p.r, N: size}
	if err := f(blob.ID(head[:16]), size, content); err != nil {
		return 0, cut(err)
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return 0, cut(err)
	}
	if content.N > 0 {
		return 0, cut(io.ErrUnexpectedEOF)
	}
	return size, nil
}
