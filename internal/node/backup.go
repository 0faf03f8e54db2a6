package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"parley/admin"
	"parley/internal/clock"
	"parley/internal/config"
	"parley/keys/pgp"
	"parley/keys/vault"
	"parley/privacy/backup"
	"parley/storage"
	"parley/storage/blob"
	"parley/storage/disk"
	"parley/storage/leveldb"
)

// BackupOrder asks for a backup.
type BackupOrder struct {
	Dir        string `json:"dir"`        // absolute
	Recipients string `json:"recipients"` // public keys, armored
	Full       bool   `json:"full,omitempty"`
}

// Backup adds a backup to a folder while the server runs.
func (n *Node) Backup(ctx context.Context, o BackupOrder, say backup.Progress) (*backup.Manifest, error) {
	if err := outside(n.cfg.DataDir, o.Dir); err != nil {
		return nil, err
	}
	to := &pgp.Recipients{}
	if o.Recipients != "" {
		if err := to.AddKeys([]byte(o.Recipients), pgp.Options{Now: n.clk.Now}); err != nil {
			return nil, err
		}
	}
	return backup.Create(ctx, o.Dir, backup.Source{Server: string(n.cfg.ServerName), KV: n.kv, Vault: n.vault, Blobs: n.blobs,
		Ledger: n.erased, Now: n.clk.Now}, to, o.Full, say)
}

// works are what the control socket offers besides admin.Control.
func (n *Node) works() map[string]admin.Work {
	return map[string]admin.Work{
		"backup": func(ctx context.Context, request json.RawMessage, say func(string, int64, int64)) (any, error) {
			var o BackupOrder
			if err := json.Unmarshal(request, &o); err != nil {
				return nil, err
			}
			return n.Backup(ctx, o, say)
		},
		"disclose": func(ctx context.Context, request json.RawMessage, _ func(string, int64, int64)) (any, error) {
			var o DiscloseOrder
			if err := json.Unmarshal(request, &o); err != nil {
				return nil, err
			}
			return n.Disclose(ctx, o)
		},
		"disclosures": func(ctx context.Context, _ json.RawMessage, _ func(string, int64, int64)) (any, error) {
			return n.disclosures.Ledger(ctx)
		},
	}
}

// outside refuses a folder for backups that would be lost with the data.
func outside(data, dir string) error {
	abs, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(abs, dir); err == nil && !strings.HasPrefix(rel, "..") {
		return fmt.Errorf("%s is inside of the data folder, with which it would be lost", dir)
	}
	return nil
}

// restoring ends the name of a folder that is being restored to.
const restoring = ".restoring"

// RestoreOrder says what to restore, and where from.
type RestoreOrder struct {
	Dir     string // of backups
	ID      string // "": the newest
	With    *pgp.Identities
	Replace bool   // move a data folder that exists aside
	Erased  []byte // a ledger of erasures that is newer than the backup's; may be nil
	Clock   clock.Clock
	LogTo   io.Writer
}

// Restore puts a backup in the place of a configuration's data. It writes to a
// folder beside the data folder, applies what is known of later erasures there,
// and gives it its name as the last step: a run that fails or is killed changes
// nothing. A PostgreSQL database, which has no name to change, must be empty,
// and gets its first row after the whole backup has been read and found good.
// The folder that was there before is returned, "" if there was none.
func Restore(ctx context.Context, c *config.Config, o RestoreOrder, say backup.Progress) (r *backup.Restored, before string, err error) {
	if o.Clock == nil {
		o.Clock = clock.Real{}
	}
	if cl, err := admin.Dial(ControlSocket(c)); err == nil {
		_ = cl
		return nil, "", errors.New("the server runs; stop it first")
	}
	data := filepath.Clean(c.DataDir)
	occupied, err := hasFiles(data)
	if err != nil {
		return nil, "", err
	}
	if occupied && !o.Replace {
		return nil, "", fmt.Errorf("%s has data already; with --replace it is moved aside", data)
	}
	next := *c
	next.DataDir = data + restoring
	if err := errors.Join(os.RemoveAll(next.DataDir), os.MkdirAll(next.DataDir, 0o700)); err != nil {
		return nil, "", err
	}
	if r, err = restoreTo(ctx, &next, o, say); err == nil {
		err = applyErased(ctx, &next, o, r)
	}
	if err == nil {
		err = backup.SyncAll(next.DataDir)
	}
	if err == nil && occupied {
		before = data + ".before-" + o.Clock.Now().UTC().Format("20060102T150405Z")
		err = os.Rename(data, before)
	}
	if err == nil {
		err = errors.Join(removeEmpty(data), os.Rename(next.DataDir, data), disk.OS{}.SyncDir(filepath.Dir(data)))
	} else {
		err = errors.Join(err, os.RemoveAll(next.DataDir))
	}
	return r, before, err
}

func hasFiles(dir string) (bool, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return len(names) > 0, err
}

// removeEmpty removes an empty folder, so that another can take its name.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// restoreTo fills the places of a configuration.
func restoreTo(ctx context.Context, c *config.Config, o RestoreOrder, say backup.Progress) (*backup.Restored, error) {
	kv, err := emptyStore(ctx, c, o, say)
	if err != nil {
		return nil, err
	}
	blobs, err := restoredBlobs(ctx, c, o)
	if err != nil {
		return nil, errors.Join(err, kv.Close())
	}
	r, err := backup.Restore(ctx, o.Dir, o.ID, o.With, backup.Target{KV: kv, Blobs: blobs,
		Vault: vault.Options{Dir: filepath.Join(c.DataDir, "vault"), RootFile: c.RootKeyFile}, Dir: c.DataDir}, say)
	if err != nil && c.StorageDSN != "" {
		err = fmt.Errorf("%w; the database has a part of the backup: empty it before you try again", err)
	}
	return r, errors.Join(err, kv.Close())
}

// emptyStore opens the store to restore to. For a database, the backup is read
// to its end first.
func emptyStore(ctx context.Context, c *config.Config, o RestoreOrder, say backup.Progress) (storage.KV, error) {
	if c.StorageDSN == "" {
		return leveldb.Open(StoreDir(c), leveldb.Options{CacheBytes: 8 << 20})
	}
	if _, err := backup.Verify(ctx, o.Dir, o.ID, o.With, say); err != nil {
		return nil, err
	}
	return openEngine(c)
}

func restoredBlobs(ctx context.Context, c *config.Config, o RestoreOrder) (*blob.Store, error) {
	if c.MediaS3 == "" {
		return blob.Open(filepath.Join(c.DataDir, "media"), blob.Options{FS: backup.Unsynced(disk.OS{})})
	}
	at, err := blob.ParseS3(c.MediaS3)
	if err != nil {
		return nil, err
	}
	return blob.OpenS3(ctx, at, blob.S3Options{Clock: o.Clock})
}
