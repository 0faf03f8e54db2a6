package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"parley/storage"
)

// Paper is a store that forgets nothing: it keeps every row that was ever put, as
// the files of a database and their copies do. It can stop writing for good, as
// if the process had died. Safe for concurrent use.
type Paper struct {
	storage.KV
	mu      sync.Mutex
	ever    []storage.Pair
	limited bool
	left    int // commits until it stops, when limited
}

// StopAfter lets so many more commits through, all if it is negative.
func (p *Paper) StopAfter(commits int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limited, p.left = commits >= 0, commits
}

// Each calls f with every row that was ever put.
func (p *Paper) Each(f func(row storage.Pair)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range p.ever {
		f(row)
	}
}

// Commit implements storage.KV; storage.ErrUnavailable after it has stopped.
func (p *Paper) Commit(ctx context.Context, b *storage.Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limited && p.left == 0 {
		return fmt.Errorf("stopped: %w", storage.ErrUnavailable)
	}
	p.left--
	for _, row := range b.Puts {
		p.ever = append(p.ever, storage.Pair{Key: bytes.Clone(row.Key), Value: bytes.Clone(row.Value)})
	}
	return p.KV.Commit(ctx, b)
}
