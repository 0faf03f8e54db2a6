package simdisk

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// sector is what a disk writes at once.
const sector = 512

// PowerCut ends this disk and returns what is found on it afterwards. Names
// and bytes that were synced are there; of the rest, anything may be.
func (d *Disk) PowerCut() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	after := New(d.rng.Uint64())
	strict := d.rng.IntN(2) == 0 // no name survives that wasn't synced
	inodes := map[*inode]*inode{}
	survivor := func(in *inode) *inode {
		if inodes[in] == nil {
			data := in.survive(d.rng)
			inodes[in] = &inode{data: data, durable: append([]byte(nil), data...)}
			after.used += int64(len(data))
		}
		inodes[in].links++
		return inodes[in]
	}
	for _, p := range slices.Sorted(maps.Keys(d.dirs)) {
		dir := d.dirs[p]
		nd := &directory{names: map[string]*inode{}, durable: map[string]*inode{}}
		for _, name := range union(dir.names, dir.durable) {
			in := dir.durable[name]
			if now := dir.names[name]; now != in && !strict && d.rng.IntN(2) == 0 {
				in = now
			}
			if in != nil {
				nd.names[name] = survivor(in)
				nd.durable[name] = nd.names[name]
			}
		}
		after.dirs[p] = nd
	}
	return after
}

// union is sorted, so that the seed decides everything.
func union(a, b map[string]*inode) []string {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return slices.Sorted(maps.Keys(u))
}

// survive is what a power cut leaves of a file: the durable bytes, and of each
// sector written since, the old bytes, the new ones, or (where nothing durable
// was) garbage.
func (in *inode) survive(rng *rand.Rand) []byte {
	out := append([]byte(nil), in.durable...)
	unsynced := append(append([]extent(nil), in.doomed...), in.dirty...)
	if len(unsynced) == 0 {
		return out
	}
	mode := rng.IntN(4)
	if mode == 0 {
		return out // nothing arrived
	}
	size := len(in.data)
	if mode != 1 && size > len(in.durable) {
		size = len(in.durable) + rng.IntN(size-len(in.durable)+1)
	}
	if size > len(out) {
		out = append(out, make([]byte, size-len(out))...)
	} else if mode == 1 {
		out = out[:size] // a truncation arrived
	}
	for _, e := range unsynced {
		for at := e.from - e.from%sector; at < e.to; at += sector {
			lo, hi := max(at, e.from), min(at+sector, e.to, len(out), len(in.data))
			if lo >= hi {
				continue
			}
			switch {
			case mode <= 2 || rng.IntN(3) == 0: // arrived
				copy(out[lo:hi], in.data[lo:hi])
			case lo >= len(in.durable) && rng.IntN(2) == 0: // garbage
				for i := lo; i < hi; i++ {
					out[i] = byte(rng.Uint32())
				}
			}
		}
	}
	return out
}
