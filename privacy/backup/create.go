package backup

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"parley/keys/pgp"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk"
)

// Create adds a backup to a folder, which it makes if need be. full copies
// every file again. Without a recipient it is pgp.ErrNoRecipient.
func Create(ctx context.Context, dir string, src Source, to *pgp.Recipients, full bool, say Progress) (*Manifest, error) {
	if to == nil || to.Len() == 0 {
		return nil, pgp.ErrNoRecipient
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	if err := tidy(dir, all); err != nil {
		return nil, err
	}
	id, err := newID(src.Now())
	if err != nil {
		return nil, err
	}
	c := &creation{dir: dir, src: src, to: to, say: say,
		m: &Manifest{Format: format, ID: id, Server: src.Server, Made: src.Now().UTC().Truncate(1e9), Recipients: to.Fingerprints()}}
	if !full {
		if err := c.usable(all); err != nil {
			return nil, err
		}
	}
	if err := c.run(ctx); err != nil {
		c.dropAll()
		return nil, err
	}
	return c.m, nil
}

// creation is one Create.
type creation struct {
	dir   string
	src   Source
	to    *pgp.Recipients
	say   Progress
	m     *Manifest
	packs []*pack
	parts []*partWriter
	need  []blob.ID // files of the snapshot, in order
	gone  []blob.ID
	files []indexed // copied
}

// pack is an earlier pack of files that may be used.
type pack struct {
	id    string
	index index
	bytes int64 // of all in it
}

// usable finds the packs that are encrypted to the same keys.
func (c *creation) usable(all []*Manifest) error {
	if len(c.to.Fingerprints()) != c.to.Len() {
		return nil // a passphrase may be another one
	}
	for _, m := range all {
		if m.Files == nil || m.Index == nil || !slices.Equal(m.Recipients, c.m.Recipients) {
			continue
		}
		x, err := readIndex(c.dir, *m.Index)
		if err != nil {
			return fmt.Errorf("an earlier backup: %w; make a full one", err)
		}
		if st, err := os.Stat(filepath.Join(c.dir, m.Files.Name)); err != nil || st.Size() != m.Files.Bytes {
			return fmt.Errorf("%s of an earlier backup isn't whole; make a full one: %w", m.Files.Name, errors.Join(err, ErrDamaged))
		}
		p := &pack{id: m.ID, index: x}
		for i := range x.len() {
			p.bytes += x.at(i).size
		}
		c.packs = append(c.packs, p)
	}
	return nil
}

func (c *creation) run(ctx context.Context) error {
	rows, w, err := c.open("rows", rowsMagic)
	if err != nil {
		return err
	}
	out := &packWriter{w: w}
	n := counts{Server: c.src.Server}
	if err := c.writeRows(ctx, out, &n); err != nil {
		return fmt.Errorf("back up rows: %w", err)
	}
	if err := c.writeFiles(ctx); err != nil {
		return fmt.Errorf("back up files: %w", err)
	}
	// The keys come last: what is erased while the backup is being made isn't
	// in it.
	if err := c.writeRest(ctx, out, &n); err != nil {
		return fmt.Errorf("back up keys: %w", err)
	}
	n.Uses = c.m.Uses
	if err := errors.Join(out.end(n), w.Close()); err != nil {
		return err
	}
	if c.m.Rows, err = finish(rows); err != nil {
		return err
	}
	c.m.RowCount, c.m.FileCount, c.m.NewFiles = n.Rows, int64(len(c.need)-len(c.gone)), int64(len(c.files))
	return c.publish(ctx)
}

func finish(w *partWriter) (*Part, error) {
	p, err := w.finish()
	return &p, err
}

// open starts an encrypted part.
func (c *creation) open(kind, magic string) (*partWriter, io.WriteCloser, error) {
	p, err := createPart(c.dir, c.m.ID+"."+kind+".pgp")
	if err != nil {
		return nil, nil, err
	}
	c.parts = append(c.parts, p)
	sealed, err := pgp.Encrypt(p, c.to, pgp.Options{Now: c.src.Now})
	if err != nil {
		return p, nil, err
	}
	w := &buffered{bufio.NewWriterSize(sealed, 256<<10), sealed} // rows are small
	_, err = w.WriteString(magic)
	return p, w, err
}

type buffered struct {
	*bufio.Writer
	to io.Closer
}

func (b *buffered) Close() error { return errors.Join(b.Flush(), b.to.Close()) }

func (c *creation) dropAll() {
	for _, p := range c.parts {
		p.drop()
		_ = os.Remove(filepath.Join(p.dir, p.name))
	}
}

// sayEvery is how many rows or bytes pass between two reports.
const sayEvery = 1 << 14

// engineRows are the storage engine's own and mean nothing in another store.
const engineRows = "!c"

// writeRows writes the rows of one moment.
func (c *creation) writeRows(ctx context.Context, out *packWriter, n *counts) error {
	return c.src.KV.View(ctx, func(r storage.Reader) error {
		for p, err := range r.Scan(ctx, storage.Range{}, false, 0) {
			if err != nil {
				return err
			}
			if string(p.Key[:2]) == engineRows {
				continue
			}
			if err := out.record(recRow, p.Key, p.Value); err != nil {
				return err
			}
			if id, ok := bytes.CutPrefix(p.Key, blobFamily.Lo); ok && len(id) == len(blob.ID{}) {
				c.need = append(c.need, blob.ID(id))
			}
			if n.Rows++; n.Rows%sayEvery == 0 {
				c.say.say("rows", n.Rows, 0)
			}
		}
		c.say.say("rows", n.Rows, n.Rows)
		return nil
	})
}

// writeFiles copies the files that no usable pack has.
func (c *creation) writeFiles(ctx context.Context) error {
	fresh := c.fresh()
	if len(fresh) == 0 {
		return nil
	}
	part, w, err := c.open("files", filesMagic)
	if err != nil {
		return err
	}
	n := counts{Server: c.src.Server}
	buf := make([]byte, 1<<20)
	for i, id := range fresh {
		if err := ctx.Err(); err != nil {
			return err
		}
		size, err := c.copyFile(w, id, buf)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			c.gone = append(c.gone, id)
		case err != nil:
			return fmt.Errorf("file %s: %w", id, err)
		default:
			c.files = append(c.files, indexed{id, size})
			n.Blobs++
			n.Bytes += size
		}
		c.say.say("files", int64(i+1), int64(len(fresh)))
	}
	if err := errors.Join((&packWriter{w: w}).end(n), w.Close()); err != nil {
		return err
	}
	if c.m.Files, err = finish(part); err != nil {
		return err
	}
	return c.writeIndex()
}

// fresh lists the files to copy and notes which packs have the others. A pack
// of which less than half is still needed isn't used any more.
func (c *creation) fresh() []blob.ID {
	live := make([]int64, len(c.packs))
	where := func(id blob.ID) (int, int64) {
		for i, p := range c.packs {
			if p == nil {
				continue
			}
			if size, ok := p.index.size(id); ok {
				return i, size
			}
		}
		return -1, 0
	}
	for _, id := range c.need {
		if i, size := where(id); i >= 0 {
			live[i] += size
		}
	}
	for i, p := range c.packs {
		if live[i] < p.bytes/2 {
			c.packs[i] = nil
		}
	}
	used := make([]bool, len(c.packs))
	var out []blob.ID
	for _, id := range c.need {
		if i, _ := where(id); i >= 0 {
			used[i] = true
		} else {
			out = append(out, id)
		}
	}
	for i, p := range c.packs {
		if used[i] {
			c.m.Uses = append(c.m.Uses, p.id)
		}
	}
	return out
}

// size finds a file in a pack.
func (x index) size(id blob.ID) (int64, bool) {
	lo, hi := 0, x.len()
	for lo < hi {
		mid := (lo + hi) / 2
		at := x.at(mid)
		switch bytes.Compare(at.id[:], id[:]) {
		case 0:
			return at.size, true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

func (c *creation) copyFile(w io.Writer, id blob.ID, buf []byte) (int64, error) {
	f, err := c.src.Blobs.Open(id)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := append([]byte{recBlob}, id[:]...)
	head = binary.BigEndian.AppendUint64(head, uint64(f.Bytes))
	if _, err := w.Write(head); err != nil {
		return 0, err
	}
	content := struct{ io.Reader }{io.NewSectionReader(f, 0, f.Bytes)} // CopyBuffer then uses buf
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, content, buf)
	if err == nil && n != f.Bytes {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *creation) writeIndex() error {
	p, err := createPart(c.dir, c.m.ID+".index")
	if err != nil {
		return err
	}
	c.parts = append(c.parts, p)
	if _, err := p.Write(encodeIndex(c.files)); err != nil {
		return err
	}
	c.m.Index, err = finish(p)
	return err
}

// writeRest writes what isn't rows: data keys, the ledger, small files.
func (c *creation) writeRest(ctx context.Context, out *packWriter, n *counts) error {
	for _, id := range c.gone {
		if err := out.record(recGone, id[:]); err != nil {
			return err
		}
		n.Gone++
	}
	for name, path := range c.src.Files {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = out.record(recFile, []byte(name), b)
		}
		if err != nil {
			return err
		}
	}
	ledger, err := c.ledger(ctx)
	if err == nil && ledger != nil {
		err = out.record(recLedger, ledger)
	}
	if err != nil {
		return err
	}
	err = c.src.Vault.Export(func(record []byte) error {
		n.Keys++
		return out.record(recKey, record)
	})
	c.say.say("keys", n.Keys, n.Keys)
	return err
}

func (c *creation) ledger(ctx context.Context) ([]byte, error) {
	if c.src.Ledger == nil {
		return nil, nil
	}
	return c.src.Ledger(ctx)
}

// publish writes the manifest: from then on the backup exists.
func (c *creation) publish(ctx context.Context) error {
	ledger, err := c.ledger(ctx)
	if err != nil {
		return err
	}
	if ledger != nil {
		if err := writeSummed(filepath.Join(c.dir, erasedFile), ledger); err != nil {
			return err
		}
	}
	if err := (disk.OS{}).SyncDir(c.dir); err != nil {
		return err
	}
	return writeManifest(c.dir, c.m)
}

func writeManifest(dir string, m *Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeSummed(filepath.Join(dir, m.ID+".json"), append(b, '\n'))
}
