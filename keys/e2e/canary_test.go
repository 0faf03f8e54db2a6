package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"parley/internal/await"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/leveldb"
)

// Nothing that names or quotes a person is on disk: no device, message, key,
// room or session, neither in the files nor in the rows.
func TestNothingPersonalOnDisk(t *testing.T) {
	n := newNetwork(t, hereName, thereName)
	here, there := n.servers[hereName], n.servers[thereName]
	dir := t.TempDir()
	here.useDisk(dir)
	alice, bob := here.user("canaryalice", "CANARYPHONE"), there.user("canarybob", "CANARYTHERE")
	n.join("room", alice, bob)
	ia, ib := newIdentity(alice, ""), newIdentity(bob, "")
	here.publish(alice, "CANARYPHONE")
	there.publish(bob, "CANARYTHERE")
	must(t, here.UploadSigning(ctx, alice, ia.upload()))
	must(t, there.UploadSigning(ctx, bob, ib.upload()))
	n.pump()
	here.wantSees(alice, bob, "CANARYTHERE")
	here.signs(alice, bob, ib.master.pub, sign(crossSigningKey(bob, "master", ib.master), alice, "ed25519:"+ia.users.pub, ia.users))
	_, err := here.Upload(ctx, alice, "CANARYPHONE", UploadRequest{OneTimeKeys: otks(alice, "CANARYPHONE", "CANARYKEY"), FallbackKeys: otks(alice, "CANARYPHONE", "CANARYFALL")})
	must(t, err)
	must(t, here.SendToDevice(ctx, alice, "canary transaction", "org.canary.type", messages{alice: {"*": text("canary message")}}))
	version, err := here.CreateBackup(ctx, alice, backupAlgorithm, json.RawMessage(`{"x":"canary auth"}`))
	must(t, err)
	_, _, err = here.PutSessions(ctx, alice, version, Sessions{"!canaryroom:x": {"canarysession": session(0, 0, true, "canary data")}})
	must(t, err)
	here.remove(alice, "CANARYPHONE")
	await.Until(t, "swept", here.settled)
	must(t, here.markStale(ctx, bob, here.uidOf(bob)))
	await.Until(t, "fetched", here.settled)

	canaries := []string{"canaryalice", "canarybob", "CANARYPHONE", "CANARYTHERE", "CANARYKEY", "CANARYFALL", "canary transaction",
		"org.canary.type", "canary message", "canary auth", "!canaryroom", "canarysession", "canary data",
		ia.master.pub, ia.users.pub, ib.master.pub, deviceKey(alice, "CANARYPHONE").pub, newKey("CANARYKEY").pub, "m.megolm"}
	for row, err := range here.kv.Scan(ctx, storage.Range{}, false, 0) {
		must(t, err)
		for _, c := range canaries {
			if bytes.Contains(row.Key, []byte(c)) || bytes.Contains(row.Value, []byte(c)) {
				t.Errorf("row of family %.2s has %s", row.Key, c)
			}
		}
	}
	must(t, here.kv.CompactRange(ctx, storage.Range{}))
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, c := range canaries {
			if bytes.Contains(data, []byte(c)) {
				t.Errorf("file %s has %s", filepath.Base(path), c)
			}
		}
		return err
	}))
}

// useDisk moves a server, before its first use, to a directory.
func (f *fixture) useDisk(dir string) {
	t := f.n.t
	t.Helper()
	f.Service.Close()
	must(t, f.commit.Close())
	must(t, f.kv.Close())
	f.commit = nil
	kv, err := leveldb.Open(filepath.Join(dir, "db"), leveldb.Options{})
	must(t, err)
	f.kv = kv
	t.Cleanup(func() { _ = kv.Close() })
	f.vault, err = vault.Open(vault.Options{Dir: filepath.Join(dir, "vault")})
	must(t, err)
	f.reopen()
}

// A user whose data key is destroyed has nothing left here, and others can go
// on as if the account had never had keys.
func TestErasedUser(t *testing.T) {
	n := newNetwork(t, hereName)
	f := n.servers[hereName]
	alice, bob := f.user("alice", phone), f.user("bob", phone)
	n.join("room", alice, bob)
	id := newIdentity(alice, "")
	_, err := f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: signedDevice(alice, phone), OneTimeKeys: otks(alice, phone, "A"), FallbackKeys: otks(alice, phone, "F")})
	must(t, err)
	must(t, f.UploadSigning(ctx, alice, id.upload()))
	must(t, f.SendToDevice(ctx, bob, "1", "m.x", messages{alice: {"*": text("x")}}))
	_, err = f.CreateBackup(ctx, alice, backupAlgorithm, authData)
	must(t, err)
	f.publish(bob, phone)
	must(t, f.UploadSigning(ctx, bob, newIdentity(bob, "").upload()))
	theirs := newIdentity(bob, "").master
	f.signs(alice, bob, theirs.pub, sign(crossSigningKey(bob, "master", theirs), alice, "ed25519:"+id.users.pub, id.users))

	must(t, f.vault.Destroy(vault.User(uint32(f.uidOf(alice)))))
	f.wantSees(bob, alice)
	f.wantSees(bob, bob, phone)
	if got := f.claim(alice, phone); got != "" {
		t.Errorf("claimed %s", got)
	}
	must(t, f.SendToDevice(ctx, bob, "2", "m.x", messages{alice: {"*": text("x")}, bob: {"*": text("own")}}))
	f.wantInbox(bob, phone, "own")
	f.wantInbox(alice, phone)
	_, err = f.Backup(ctx, alice, "")
	wantCode(t, err, "M_NOT_FOUND")
	_, _, err = f.Counts(ctx, alice, phone)
	must(t, err)
	f.remove(alice, phone)
	await.Until(t, "swept", f.settled)
	must(t, f.ForgetUser(ctx, alice, f.uidOf(alice), false))
	for _, family := range []string{"dk", "cs", "ot", "oc", "of", "td", "kv"} {
		rows, err := f.now(ctx).scan(storage.K(family).U32(uint32(f.uidOf(alice))).Prefix(), false, 0)
		must(t, err)
		if len(rows) != 0 {
			t.Errorf("%d rows of family %s", len(rows), family)
		}
	}
	f.wantSees(bob, bob, phone)
	_, err = f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: signedDevice(alice, phone)})
	if !errors.Is(err, vault.ErrDestroyed) {
		t.Error(err)
	}
}
