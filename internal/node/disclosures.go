package node

import (
	"path/filepath"

	"parley/internal/config"
)

// disclosuresFile is the ledger of disclosures, below the data folder.
const disclosuresFile = "disclosures"

func disclosures(c *config.Config) string { return filepath.Join(c.DataDir, disclosuresFile) }
