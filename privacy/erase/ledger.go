package erase

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"parley/internal/httpx"
)

// passOver is nil for what a room refuses for good.
func passOver(err error) error {
	var hx *httpx.Error
	if errors.As(err, &hx) && hx.Status < 500 && hx.Status != http.StatusTooManyRequests {
		return nil
	}
	return err
}

// Ledger is what was ever erased here, as fingerprints of keys: 16 bytes each.
func (s *Service) Ledger(context.Context) ([]byte, error) { return s.cfg.Vault.Erased() }

// ApplyLedger erases again what a ledger says was erased: after a backup has
// been restored that is older. It may be called before Start, and again.
func (s *Service) ApplyLedger(ctx context.Context, ledger []byte) error {
	refs, err := s.cfg.Vault.EraseAgain(ledger)
	if err != nil {
		return fmt.Errorf("erase again: %w", err)
	}
	for _, ref := range refs {
		if rid, whole := ref.WholeRoom(); whole {
			if err := s.cfg.Rooms.PurgeAgain(ctx, rid); err != nil {
				return fmt.Errorf("erase again: %w", err)
			}
		}
	}
	if err := s.cfg.Users.EraseAgain(ctx); err != nil {
		return fmt.Errorf("erase again: %w", err)
	}
	return nil
}
