package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"parley/internal/config"
	"parley/privacy/backup"
)

// erased is the ledger of erasures, for backups.
func (n *Node) erased(ctx context.Context) ([]byte, error) { return n.erasures.Ledger(ctx) }

// applyErased erases again, in a restored data folder, what was erased after
// the backup was made: by all that is known of it, from the backup itself, its
// folder, the data folder that is replaced, and what the operator gives.
func applyErased(ctx context.Context, c *config.Config, o RestoreOrder, r *backup.Restored) error {
	beside, err := backup.Ledger(o.Dir)
	if err != nil {
		return err
	}
	replaced, err := os.ReadFile(filepath.Join(strings.TrimSuffix(c.DataDir, restoring), "vault", "erased"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var ledger []byte
	for _, l := range [][]byte{r.Ledger, beside, replaced, o.Erased} {
		ledger = append(ledger, l[:len(l)/16*16]...)
	}
	n, err := New(ctx, Options{Config: c, Clock: o.Clock, LogTo: o.LogTo, Offline: true})
	if err != nil {
		return err
	}
	return errors.Join(n.erasures.ApplyLedger(ctx, ledger), n.Close(ctx))
}
