package node

import (
	"context"

	"parley/internal/config"
	"parley/privacy/backup"
)

// erased is the ledger of what was erased, for backups.
func (n *Node) erased(context.Context) ([]byte, error) { return nil, nil }

// applyErased erases again, in a restored data folder, what was erased after
// the backup was made.
func applyErased(context.Context, *config.Config, RestoreOrder, *backup.Restored) error { return nil }
