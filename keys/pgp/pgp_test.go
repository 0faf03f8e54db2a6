package pgp

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func pair(t *testing.T, passphrase string, o Options) Pair {
	t.Helper()
	p, err := Generate("backup of example", passphrase, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func to(t *testing.T, keys ...Pair) *Recipients {
	t.Helper()
	r := &Recipients{}
	for _, k := range keys {
		if err := r.AddKeys(k.Public, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func with(t *testing.T, k Pair, passphrase string) *Identities {
	t.Helper()
	i := &Identities{}
	if err := i.AddKeys(k.Private, passphrase); err != nil {
		t.Fatal(err)
	}
	return i
}

func seal(t *testing.T, r *Recipients, o Options, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := Encrypt(&b, r, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(sealed []byte, i *Identities) ([]byte, error) {
	r, err := Decrypt(bytes.NewReader(sealed), i)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestRoundTrip(t *testing.T) {
	plain := make([]byte, 3<<20+17)
	if _, err := rand.Read(plain); err != nil {
		t.Fatal(err)
	}
	modern, old, locked := pair(t, "", Options{}), pair(t, "", Options{Compat: true}), pair(t, "open sesame", Options{})
	if !to(t, modern, locked).AEAD() || to(t, modern, old).AEAD() {
		t.Error("AEAD is for those who announce it")
	}
	words := &Recipients{}
	if err := words.AddPassphrase("correct horse battery"); err != nil {
		t.Fatal(err)
	}
	known := &Identities{}
	known.AddPassphrase("not this one, sorry")
	known.AddPassphrase("correct horse battery")
	for name, c := range map[string]struct {
		r *Recipients
		o Options
		i *Identities
	}{
		"key":                 {to(t, modern), Options{}, with(t, modern, "")},
		"old key":             {to(t, old), Options{}, with(t, old, "")},
		"locked key":          {to(t, locked), Options{}, with(t, locked, "open sesame")},
		"one of several keys": {to(t, old, locked, modern), Options{}, with(t, modern, "")},
		"passphrase":          {words, Options{}, known},
		"old passphrase":      {words, Options{Compat: true}, known},
	} {
		sealed := seal(t, c.r, c.o, plain)
		if got, err := open(sealed, c.i); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := open(sealed, &Identities{}); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%s without a key: %v", name, err)
		}
		if _, err := open(sealed, with(t, pair(t, "", Options{}), "")); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%s with another key: %v", name, err)
		}
	}
}

// Row CO18. Any change and any cut is an error, at the end at the latest.
func TestDamage(t *testing.T) {
	k, old := pair(t, "", Options{}), pair(t, "", Options{Compat: true})
	plain := bytes.Repeat([]byte("a line of a backup\n"), 40_000)
	for name, k := range map[string]Pair{"aead": k, "old": old} {
		i := with(t, k, "")
		sealed := seal(t, to(t, k), Options{}, plain)
		for at := 0; at < len(sealed); at += 4093 {
			bad := bytes.Clone(sealed)
			bad[at] ^= 4
			if got, err := open(bad, i); err == nil && !bytes.Equal(got, plain) {
				t.Errorf("%s: a bit at %d of %d changed the text without an error", name, at, len(sealed))
			} else if err == nil && at > 400 {
				t.Errorf("%s: a flipped bit at %d of %d isn't noticed", name, at, len(sealed))
			}
		}
		for _, cut := range []int{0, 1, 50, 300, len(sealed) / 2, len(sealed) - 70_000, len(sealed) - 17, len(sealed) - 1} {
			if _, err := open(sealed[:cut], i); err == nil {
				t.Errorf("%s: cut at %d of %d isn't noticed", name, cut, len(sealed))
			}
		}
	}
}

// brokenDisk fails after some bytes.
type brokenDisk struct{ r io.Reader }

var errDisk = errors.New("the disk is on fire")

func (b brokenDisk) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		return n, errDisk
	}
	return n, err
}

func TestDiskErrorsAreNotDamage(t *testing.T) {
	k := pair(t, "", Options{})
	sealed := seal(t, to(t, k), Options{}, make([]byte, 1<<20))
	for _, cut := range []int{10, len(sealed) / 2} {
		r, err := Decrypt(brokenDisk{bytes.NewReader(sealed[:cut])}, with(t, k, ""))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !errors.Is(err, errDisk) || errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	k := pair(t, "", Options{})
	if _, err := Encrypt(io.Discard, &Recipients{}, Options{}); !errors.Is(err, ErrNoRecipient) {
		t.Errorf("no recipient: %v", err)
	}
	later := Options{Now: func() time.Time { return time.Now().Add(-48 * time.Hour) }}
	for name, err := range map[string]error{
		"private key as recipient":  (&Recipients{}).AddKeys(k.Private, Options{}),
		"a key from the future":     (&Recipients{}).AddKeys(k.Public, later),
		"public key to open with":   (&Identities{}).AddKeys(k.Public, ""),
		"garbage":                   (&Recipients{}).AddKeys([]byte("no key at all"), Options{}),
		"nothing":                   (&Recipients{}).AddKeys(nil, Options{}),
		"armored garbage":           (&Recipients{}).AddKeys([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"), Options{}),
		"short passphrase":          (&Recipients{}).AddPassphrase("short"),
		"locked without passphrase": (&Identities{}).AddKeys(pair(t, "open sesame", Options{}).Private, ""),
		"locked, wrong passphrase":  (&Identities{}).AddKeys(pair(t, "open sesame", Options{}).Private, "open rice"),
	} {
		if !errors.Is(err, ErrBadKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Recipients{}).AddKeyFile(filepath.Join(t.TempDir(), "none.asc"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	both := &Recipients{}
	if err := both.AddKeys(append(bytes.Clone(k.Public), pair(t, "", Options{}).Public...), Options{}); err != nil || both.Len() != 2 {
		t.Errorf("two keys in a file: %d, %v", both.Len(), err)
	}
}

func TestUnencryptedIsRefused(t *testing.T) {
	literal := []byte{0xcb, 0x0b, 'b', 0, 0, 0, 0, 0, 'p', 'l', 'a', 'i', 'n'}
	if got, err := open(literal, &Identities{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFlatMemory writes and reads much more than is ever in memory.
func TestFlatMemory(t *testing.T) {
	k := pair(t, "", Options{})
	runtime.GC()
	r, w := io.Pipe()
	go func() {
		e, err := Encrypt(w, to(t, k), Options{})
		if err == nil {
			_, err = io.CopyN(e, zeros{}, 256<<20)
		}
		if err == nil {
			err = e.Close()
		}
		w.CloseWithError(err)
	}()
	d, err := Decrypt(r, with(t, k, ""))
	if err != nil {
		t.Fatal(err)
	}
	var got int64
	var peak uint64
	for err == nil {
		var n int64
		n, err = io.CopyN(io.Discard, d, 16<<20)
		got += n
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
	}
	if !errors.Is(err, io.EOF) || got != 256<<20 {
		t.Fatalf("%d bytes, %v", got, err)
	}
	if peak > 64<<20 {
		t.Errorf("%d MiB of heap", peak>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestGnuPG lets another implementation open what we write.
// Row OS18.
func TestGnuPG(t *testing.T) {
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		t.Skip("gpg isn't installed")
	}
	home := t.TempDir()
	run := func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command(gpg, append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, errs.Bytes())
		}
		return out.Bytes()
	}
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() })
	run(nil, "--passphrase", "", "--quick-generate-key", "someone <someone@example.org>", "ed25519", "sign", "never")
	fpr := bytes.Split(run(nil, "--list-keys", "--with-colons"), []byte("fpr:::::::::"))[1]
	fpr = bytes.SplitN(fpr, []byte(":"), 2)[0]
	run(nil, "--passphrase", "", "--quick-add-key", string(fpr), "cv25519", "encr", "never")
	theirs := &Recipients{}
	if err := theirs.AddKeys(run(nil, "--export", "--armor"), Options{}); err != nil {
		t.Fatal(err)
	}
	plain := bytes.Repeat([]byte("readable elsewhere\n"), 10_000)
	if got := run(seal(t, theirs, Options{}, plain), "--decrypt"); !bytes.Equal(got, plain) {
		t.Errorf("gpg reads %d bytes", len(got))
	}
	words := &Recipients{}
	if err := words.AddPassphrase("correct horse battery"); err != nil {
		t.Fatal(err)
	}
	if got := run(seal(t, words, Options{Compat: true}, plain), "--passphrase", "correct horse battery", "--decrypt"); !bytes.Equal(got, plain) {
		t.Errorf("gpg reads %d bytes with a passphrase", len(got))
	}
	ours := pair(t, "", Options{Compat: true})
	run(ours.Private, "--import")
	if got := run(seal(t, to(t, ours), Options{}, plain), "--decrypt"); !bytes.Equal(got, plain) {
		t.Errorf("gpg reads %d bytes with our key", len(got))
	}
}

func FuzzKeys(f *testing.F) {
	p, err := Generate("x", "", Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.Public)
	f.Add(p.Private)
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &Recipients{}
		if err := r.AddKeys(b, Options{}); err == nil && r.Len() == 0 {
			t.Error("no key and no error")
		}
	})
}
