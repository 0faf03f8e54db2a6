package mediaapi

import (
	"context"

	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// UserKeys are the keys of all files that a local user has uploaded or
// announced. Once they are destroyed, DeleteUser only tidies up.
func (s *Service) UserKeys(ctx context.Context, uid intern.UID) ([]vault.Ref, error) {
	var refs []vault.Ref
	for row, err := range s.cfg.KV.Scan(ctx, storage.K("mx").U32(uint32(uid)).Prefix(), false, 0) {
		if err != nil {
			return nil, err
		}
		if len(row.Key) == 2+4+1+16 {
			refs = append(refs, key(row.Key[7:]).ref())
		}
	}
	return refs, nil
}
