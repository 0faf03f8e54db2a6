package node_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"parley/admin"
	"parley/internal/clock"
	"parley/internal/config"
	"parley/internal/node"
	"parley/keys/pgp"
	"parley/privacy/backup"
)

// order asks a running server for a backup, as the command does.
func order(t *testing.T, s *server, dir string) *pgp.Identities {
	t.Helper()
	p, err := pgp.Generate("offline", "", pgp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := admin.Dial(filepath.Join(s.dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var m backup.Manifest
	if err := cl.Work(t.Context(), "backup", node.BackupOrder{Dir: dir, Recipients: string(p.Public)}, &m, nil); err != nil || m.RowCount == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := cl.Work(t.Context(), "backup", node.BackupOrder{Dir: filepath.Join(s.dir, "x"), Recipients: string(p.Public)}, &m, nil); err == nil {
		t.Error("a backup inside of the data folder")
	}
	if err := cl.Work(t.Context(), "backup", node.BackupOrder{Dir: dir}, &m, nil); err == nil {
		t.Error("a backup that nobody can open")
	}
	with := &pgp.Identities{}
	if err := with.AddKeys(p.Private, ""); err != nil {
		t.Fatal(err)
	}
	return with
}

type timeline struct {
	Next  string         `json:"next_batch"`
	OTK   map[string]int `json:"device_one_time_keys_count"`
	Rooms struct {
		Join map[string]struct {
			Timeline struct {
				Events []struct{ Content struct{ Body string } }
			}
		}
	}
}

func (s *timeline) bodies() (out []string) {
	for _, r := range s.Rooms.Join {
		for _, ev := range r.Timeline.Events {
			if ev.Content.Body != "" {
				out = append(out, ev.Content.Body)
			}
		}
	}
	return out
}

// Row CO18. A server that was lost goes on from its backup: sessions, rooms and
// files are there, one-time keys are not, sync tokens from after the backup
// miss nothing that comes, and a failed restore changes nothing.
func TestRestore(t *testing.T) {
	dir, backups := filepath.Join(t.TempDir(), "data"), t.TempDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := startAt(t, dir, clock.Real{})
	a := newActivity(t, s)
	a.accounts()
	a.rooms()
	a.talk()
	a.keys()
	a.files()
	signing := s.Signer().KeyID()
	var before timeline
	a.alice.use("GET", c3+"/sync?timeout=0", nil, &before)
	if before.OTK["signed_curve25519"] != 1 {
		t.Errorf("one-time keys before: %v", before.OTK)
	}
	with := order(t, s, backups)
	for i := range 5 { // what the backup doesn't have
		a.alice.say("PUT", a.room+"/send/m.room.message/lost"+strconv.Itoa(i), object{"msgtype": "m.text", "body": "lost"})
	}
	var lost timeline
	a.alice.use("GET", c3+"/sync?timeout=0&since="+before.Next, nil, &lost)

	c, err := config.Parse(`server_name = "canary.example"`)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir = dir
	try := func(o node.RestoreOrder) error {
		o.Dir, o.LogTo = backups, s.log
		_, _, err := node.Restore(t.Context(), c, o, nil)
		return err
	}
	if err := try(node.RestoreOrder{With: with, Replace: true}); err == nil {
		t.Fatal("restored under a running server")
	}
	stop(t, s)
	if err := try(node.RestoreOrder{With: with}); err == nil {
		t.Error("restored over data")
	}
	if err := try(node.RestoreOrder{With: &pgp.Identities{}, Replace: true}); !errors.Is(err, pgp.ErrWrongKey) {
		t.Errorf("restored without a key: %v", err)
	}
	checkDamagedRestore(t, backups, dir, func() error { return try(node.RestoreOrder{With: with, Replace: true}) })
	if err := try(node.RestoreOrder{With: with, Replace: true}); err != nil {
		t.Fatal(err)
	}

	s = startAt(t, dir, clock.Real{})
	defer stop(t, s)
	a.s = s
	if s.Signer().KeyID() != signing {
		t.Error("the signing key is another one")
	}
	a.alice.say("PUT", a.room+"/send/m.room.message/new", object{"msgtype": "m.text", "body": "from after the restore"})
	var after timeline
	a.alice.use("GET", c3+"/sync?timeout=0&since="+lost.Next, nil, &after)
	if got := after.bodies(); len(got) != 1 || got[0] != "from after the restore" {
		t.Errorf("with a token from after the backup: %q", got)
	}
	var all timeline
	a.alice.use("GET", c3+"/sync?timeout=0", nil, &all)
	if all.OTK["signed_curve25519"] != 0 {
		t.Errorf("a one-time key that may have been used is offered: %v", all.OTK)
	}
	a.bob.use("GET", a.room+"/messages?dir=b&limit=100", nil, nil)
}

// checkDamagedRestore cuts the backup: the restore fails and nothing changes.
func checkDamagedRestore(t *testing.T, backups, dir string, restore func() error) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(backups, "*.rows.pgp"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v %v", paths, err)
	}
	whole, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, "mark")
	if err := errors.Join(os.WriteFile(paths[0], whole[:len(whole)-50], 0o600), os.WriteFile(mark, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := restore(); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("a cut backup: %v", err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the data folder was touched: %v", err)
	}
	if left, err := filepath.Glob(dir + ".*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if err := errors.Join(os.WriteFile(paths[0], whole, 0o600), os.Remove(mark)); err != nil {
		t.Fatal(err)
	}
}

// Row CO18. Files in an S3 service are in the backup, and go to one on restore.
func TestBackupOfS3(t *testing.T) {
	_, urls := s3Service(t, "before", "after")
	dir, backups := filepath.Join(t.TempDir(), "data"), t.TempDir()
	s := startWithMedia(t, dir, urls[0])
	alice := signUp(t, s, "alice")
	content := strings.Repeat("secretcontent ", 300_000)
	uri := alice.upload(content)
	with := backupOf(t, s, backups)
	stop(t, s)
	c, err := config.Parse(`server_name = "canary.example"`)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.MediaS3 = dir, urls[1]
	if _, _, err := node.Restore(t.Context(), c, node.RestoreOrder{Dir: backups, With: with, Replace: true, LogTo: s.log}, nil); err != nil {
		t.Fatal(err)
	}
	s = startWithMedia(t, dir, urls[1])
	defer stop(t, s)
	alice.s = s
	if status, got := alice.download(uri); status != 200 || got != content {
		t.Errorf("%d, %d bytes", status, len(got))
	}
}
