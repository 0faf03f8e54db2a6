package vault

import (
	"errors"
	"math/rand/v2"
	"testing"
)

var errPower = errors.New("power cut")

// world is a vault under test and what it has promised.
type world struct {
	t       *testing.T
	fs      *MemFS
	r       *rand.Rand
	v       *Vault
	sealed  map[Ref][][]byte // acknowledged
	gone    [][]byte         // of keys whose destruction was acknowledged
	unsure  map[Ref]bool     // destruction was under way in a power cut
	nextUID uint32
}

// TestPowerCuts cuts the power at random operations of random work and
// checks that no acknowledged value is lost and no destroyed one comes back.
func TestPowerCuts(t *testing.T) {
	for seed := range uint64(300) {
		w := &world{t: t, fs: NewMemFS(), r: rand.New(rand.NewPCG(seed, 1)), sealed: map[Ref][][]byte{}, unsure: map[Ref]bool{}}
		for range 4 {
			w.life()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

// life works until the power is cut.
func (w *world) life() {
	left := w.r.IntN(150)
	w.fs.Fail = func(op, _ string) error {
		switch op {
		case "read", "list", "stat", "open":
			return nil
		}
		if left--; left < 0 {
			return errPower
		}
		return nil
	}
	var err error
	if w.v, err = Open(Options{Dir: "/v", RootFile: "/elsewhere/root", FS: w.fs}); err == nil {
		w.v.segment = 8
		for err == nil {
			err = w.step()
		}
	}
	if !errors.Is(err, errPower) {
		w.t.Errorf("not a power cut: %v", err)
	}
	w.fs.Fail = nil
	w.fs.Crash(w.r)
	if w.v, err = Open(Options{Dir: "/v", RootFile: "/elsewhere/root", FS: w.fs}); err != nil {
		w.t.Errorf("open after power cut: %v", err)
		return
	}
	w.check()
}

func (w *world) step() error {
	switch w.r.IntN(12) {
	case 0:
		return w.destroy()
	case 1:
		return w.v.RotateRoot(nil)
	default:
		ref := Room(w.r.Uint32N(20), 0)
		if w.r.IntN(3) == 0 {
			w.nextUID++
			ref = User(w.nextUID)
		}
		b, err := w.v.Seal(ref, []byte("r"), []byte("x"))
		if err == nil && !w.unsure[ref] {
			w.sealed[ref] = append(w.sealed[ref], b)
		}
		return err
	}
}

func (w *world) destroy() error {
	for ref, values := range w.sealed {
		w.unsure[ref] = true
		if err := w.v.Destroy(ref); err != nil {
			return err
		}
		w.gone = append(w.gone, values...)
		delete(w.sealed, ref)
		if ref.kind != kindUser {
			delete(w.unsure, ref)
		}
		return nil
	}
	return nil
}

func (w *world) check() {
	for ref, values := range w.sealed {
		for _, b := range values {
			_, err := w.v.Unseal([]byte("r"), b)
			if w.unsure[ref] && errors.Is(err, ErrDestroyed) {
				continue
			}
			if err != nil {
				w.t.Errorf("acknowledged value: %v", err)
			}
		}
		if w.unsure[ref] {
			delete(w.sealed, ref)
			if ref.kind != kindUser {
				delete(w.unsure, ref)
			}
		}
	}
	for _, b := range w.gone {
		if _, err := w.v.Unseal([]byte("r"), b); !errors.Is(err, ErrDestroyed) {
			w.t.Errorf("destroyed value: %v", err)
		}
	}
}
