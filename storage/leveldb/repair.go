package leveldb

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	lstorage "github.com/syndtr/goleveldb/leveldb/storage"

	"parley/storage/disk"
)

// Report says what Repair did.
type Report struct {
	LastBatch uint64 // the last batch that stays, 0 if unknown
	SetAside  []string
}

// Repair takes a store whose journals are damaged back to the state before
// the first unreadable batch. What comes after it is set aside in files named
// DAMAGED-*, the journals as they were. Later batches are lost even where they
// are readable, because they build on the damaged one. Nothing else may have
// the store open. Damaged tables and manifests can't be repaired: restore a
// backup.
func Repair(dir string, o Options) (Report, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	lock, err := o.FS.Lock(filepath.Join(dir, "LOCK"))
	if err != nil {
		return Report{}, fmt.Errorf("leveldb: repair: %w", err)
	}
	defer lock.Close()
	in := &inspection{fs: o.FS, dir: dir}
	if _, err := newStore(o.FS, dir).GetMeta(); err != nil {
		return Report{}, fmt.Errorf("leveldb: repair: %w", in.unreadable(err))
	}
	if err := in.manifest(); err != nil {
		return Report{}, err
	}
	r, err := in.repairJournals()
	if err != nil {
		return r, fmt.Errorf("leveldb: repair: %w", err)
	}
	// What the guard claims is no longer true.
	err = o.FS.Remove(filepath.Join(dir, guardName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("leveldb: repair: %w", err)
	}
	return r, o.FS.SyncDir(dir)
}

// repairJournals finds where the chain breaks and cuts there.
func (in *inspection) repairJournals() (r Report, err error) {
	fds, err := newStore(in.fs, in.dir).List(lstorage.TypeJournal)
	if err != nil {
		return r, err
	}
	sort.Slice(fds, func(i, j int) bool { return fds[i].Num < fds[j].Num })
	var last chainLink
	broken := false
	for _, fd := range fds {
		if fd.Num < in.live {
			continue
		}
		b, err := in.read(fd)
		if err != nil {
			return r, err
		}
		keep := int64(0)
		if !broken {
			l := scanLog(b)
			for _, rec := range l.good {
				next, sum, ok := link(rec.data, last.sum)
				if !ok || (last.seq > 0 && (next.seq != last.seq+1 || next.sum != sum)) {
					break
				}
				last, keep = next, rec.end
			}
			broken = keep < int64(len(b)) && !trailing(b, keep)
		}
		if keep == int64(len(b)) {
			continue
		}
		aside := "DAMAGED-" + fileName(fd)
		if err := in.copy(b, aside); err != nil {
			return r, err
		}
		r.SetAside = append(r.SetAside, aside)
		if err := truncate(in.fs, in.path(fd), keep); err != nil {
			return r, err
		}
	}
	r.LastBatch = last.seq
	return r, nil
}

// trailing reports whether only block padding follows.
func trailing(b []byte, end int64) bool {
	left := int64(len(b)) - end
	return left < chunkHeader && end%blockSize+left == blockSize
}

func (in *inspection) copy(b []byte, name string) error {
	f, err := in.fs.OpenFile(filepath.Join(in.dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	n, err := f.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
