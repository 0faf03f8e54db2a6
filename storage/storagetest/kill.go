package storagetest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"sync"

	"parley/storage"
)

// killLoad is the load of the process that is killed.
func killLoad() Workload { return Workload{Writers: 8, MaxValue: 20_000} }

// A message of the child: what it is about to do or has done.
const (
	childOpens = 1
	childReady = 2
	childAcked = 3
)

const messageBytes = 13

// RunChild is the process that Kill kills: it opens the store, checks it and
// works until it dies, and tells out about every acknowledged transaction.
func RunChild(out io.Writer, open func() (storage.KV, error)) error {
	var mu sync.Mutex
	tell := func(kind byte, w, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		m := storage.Key{kind}.U32(uint32(w)).U64(n)
		_, _ = out.Write(m) // the reader may be gone already
	}
	tell(childOpens, 0, 0)
	kv, err := open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	load := killLoad()
	done, err := load.Check(ctx, kv, make(Progress, load.Writers))
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	c, err := storage.NewCommitter(kv)
	if err != nil {
		return fmt.Errorf("committer: %w", err)
	}
	tell(childReady, 0, 0)
	return load.Run(ctx, c, done, func(w, n uint64) { tell(childAcked, w, n) })
}

// Kill starts processes that run RunChild on the same store, kills each
// (SIGKILL) after a random number of acknowledged transactions or while it
// opens, and checks the store. child makes the command of such a process, and
// open opens the store when it has died.
func Kill(seed uint64, cycles int, child func() *exec.Cmd, open func() (storage.KV, error)) (Result, error) {
	rng := rand.New(rand.NewPCG(seed, 6))
	load := killLoad()
	acked := make(Progress, load.Writers)
	var res Result
	for res.Crashes < cycles {
		most := rng.IntN(400)
		if rng.IntN(5) == 0 {
			most = -1 // while it opens
		}
		n, err := killOne(child(), most, acked)
		res.Acked += n
		if err != nil {
			return res, fmt.Errorf("cycle %d: %w", res.Crashes, err)
		}
		res.Crashes++
		// Not after every kill: the next child then meets what this one left.
		if rng.IntN(3) > 0 && res.Crashes < cycles {
			continue
		}
		if err := checkKilled(load, acked, open); err != nil {
			return res, fmt.Errorf("after cycle %d: %w", res.Crashes, err)
		}
	}
	return res, nil
}

// killOne lets a child acknowledge some transactions and kills it.
func killOne(cmd *exec.Cmd, most int, acked Progress) (count int, err error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	in := bufio.NewReader(out)
	killed := false
	kill := func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
		}
	}
	for {
		var m [messageBytes]byte
		if _, err := io.ReadFull(in, m[:]); err != nil {
			break // it is dead
		}
		switch m[0] {
		case childOpens:
			if most < 0 {
				kill()
			}
		case childReady:
			if most == 0 {
				kill()
			}
		case childAcked:
			w, n := binary.BigEndian.Uint32(m[1:]), binary.BigEndian.Uint64(m[5:])
			acked[w] = max(acked[w], n)
			if count++; count >= most {
				kill()
			}
		}
	}
	err = cmd.Wait()
	if !killed {
		return count, fmt.Errorf("the process ended by itself: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return count, nil
}

func checkKilled(load Workload, acked Progress, open func() (storage.KV, error)) error {
	kv, err := open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer kv.Close()
	done, err := load.Check(ctx, kv, acked)
	if err != nil {
		return err
	}
	copy(acked, done)
	return nil
}
