package room

import (
	"math/rand/v2"
	"sync"

	"parley/keys/vault"
	"parley/storage/intern"
)

// waitKeys are the keys of events that wait for others. Rows of events that
// have taken their place live on in files of the database, so a key is destroyed
// when the last event under it waits no more. Safe for concurrent use.
type waitKeys struct {
	v *vault.Vault

	mu   sync.Mutex
	now  map[intern.RID]vault.Ref // for the next event of a room
	uses map[vault.Ref]int
}

// waitWeek stands in the week's place: these keys have no time.
const waitWeek = 1<<32 - 1

func newWaitKeys(v *vault.Vault) *waitKeys {
	return &waitKeys{v: v, now: map[intern.RID]vault.Ref{}, uses: map[vault.Ref]int{}}
}

// take gives the key for an event that is going to wait; release it.
func (k *waitKeys) take(rid intern.RID) vault.Ref {
	k.mu.Lock()
	defer k.mu.Unlock()
	ref, ok := k.now[rid]
	if !ok {
		ref = vault.RoomPart(uint32(rid), waitWeek, rand.Uint32(), 0)
		k.now[rid] = ref
	}
	k.uses[ref]++
	return ref
}

// keep takes the key that has sealed a row of before a restart.
func (k *waitKeys) keep(row []byte) vault.Ref {
	num, _ := vault.Number(row)
	ref, ok := k.v.RefOf(num)
	if !ok {
		return ref
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.uses[ref]++
	return ref
}

// destroyUnused destroys keys whose last event took its place right before the
// end of the former process. Call it when all rows have been read.
func (k *waitKeys) destroyUnused() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.v.Destroy(k.v.Which(func(r vault.Ref) bool { return r.Week() == waitWeek && k.uses[r] == 0 })...)
}

// release says that an event under a key waits no more. The last one destroys
// it.
func (k *waitKeys) release(rid intern.RID, ref vault.Ref) error {
	k.mu.Lock()
	k.uses[ref]--
	last := k.uses[ref] <= 0
	if last {
		delete(k.uses, ref)
		if k.now[rid] == ref {
			delete(k.now, rid) // the next event gets another one
		}
	}
	k.mu.Unlock()
	if !last || ref == (vault.Ref{}) {
		return nil
	}
	return k.v.Destroy(ref)
}
