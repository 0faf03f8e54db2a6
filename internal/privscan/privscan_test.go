package privscan

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"parley/keys/vault"
	"parley/privacy/datamap"
	"parley/storage"
	"parley/storage/leveldb"
)

func planted() *Set {
	s := &Set{}
	s.Plant("message", "canary message text", datamap.Events)
	s.Plant("address", "127.77.1.9")
	s.Plant("token", base64.RawURLEncoding.EncodeToString([]byte("thirty-two random bytes of token")))
	return s
}

// Row CO13. The scan finds what was planted, in any form: it can fail.
func TestEveryFormIsFound(t *testing.T) {
	const v = "canary message text"
	sum := sha256.Sum256([]byte(v))
	for name, b := range map[string]string{
		"plain":         "xx canary message text yy",
		"shouted":       "xx CANARY MESSAGE TEXT yy",
		"hexadecimal":   "zz" + hex.EncodeToString([]byte(v)),
		"base64":        base64.StdEncoding.EncodeToString([]byte(v)),
		"base64 at 1":   base64.StdEncoding.EncodeToString([]byte("1" + v + "x")),
		"base64 at 2":   base64.URLEncoding.EncodeToString([]byte("12" + v + "xyz")),
		"in an URL":     "/path?q=" + url.QueryEscape(v),
		"hash":          string(sum[:]),
		"hash in hex":   hex.EncodeToString(sum[:]),
		"backwards":     "txet egassem yranac",
		"address":       "from 127.77.1.9:4000",
		"address as v6": "\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x4d\x01\x09",
		"decoded token": "--thirty-two random bytes of token--",
	} {
		if hits := planted().Bytes("probe", []byte(b)); len(hits) != 1 {
			t.Errorf("%s: %v", name, hits)
		}
	}
	if hits := planted().Bytes("probe", []byte("canary message tex and 127.77.1.8")); len(hits) != 0 {
		t.Errorf("found what isn't there: %v", hits)
	}
}

func TestRows(t *testing.T) {
	dir := t.TempDir()
	v := vault.OpenMemory()
	kv, err := leveldb.Open(dir, leveldb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put := func(family string, prefix, plain string, ref vault.Ref) {
		t.Helper()
		key := storage.K(family).U32(7)
		value := []byte(plain)
		if ref != (vault.Ref{}) {
			sealed, err := v.Seal(ref, key, []byte(plain))
			if err != nil {
				t.Fatal(err)
			}
			value = append([]byte(prefix), sealed...)
		}
		if err := kv.Commit(t.Context(), &storage.Batch{Puts: []storage.Pair{{Key: key, Value: value}}, Sync: true}); err != nil {
			t.Fatal(err)
		}
	}
	put("mi", "12345678", "canary message text", vault.Room(1, 1)) // may be there
	put("pf", "", "127.77.1.9", vault.User(1))                     // may not
	put("nc", "", "canary message text", vault.Ref{})              // in the clear
	put("us", "", "canary message text", vault.User(2))            // declared, but not of that kind
	put("qq", "", "nothing special", vault.Ref{})                  // not declared
	rows, err := planted().Rows(t.Context(), kv, v)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range rows.Hits {
		got = append(got, h.Where+": "+h.Canary)
	}
	want := []string{"row nc: message", "row pf, opened: address", "row qq: a family that isn't declared", "row us, opened: message"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	if rows.Opened["mi"] != 1 {
		t.Errorf("opened %v", rows.Opened)
	}
	// Deleted rows are still in the files, sealed ones as long as their key is.
	if err := kv.Commit(t.Context(), &storage.Batch{Dels: [][]byte{storage.K("pf").U32(7), storage.K("us").U32(7)}, Sync: true}); err != nil {
		t.Fatal(err)
	}
	if err := v.Destroy(vault.User(2)); err != nil {
		t.Fatal(err)
	}
	if err := kv.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := planted().Old(dir, v)
	if err != nil {
		t.Fatal(err)
	}
	found := fmt.Sprint(old.Hits)
	if !strings.Contains(found, "old row pf, opened has address") || strings.Contains(found, "old row us, opened") || old.Dead["us"] == 0 {
		t.Errorf("%v, %v", old.Hits, old.Dead)
	}
	// The same in tables.
	if kv, err = leveldb.Open(dir, leveldb.Options{}); err == nil {
		err = kv.CompactRange(t.Context(), storage.Range{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Close(); err != nil {
		t.Fatal(err)
	}
	if old, err = planted().Old(dir, v); err != nil || old.Opened["mi"] == 0 {
		t.Errorf("%+v, %v", old, err)
	}
}

// An event has two sealed parts, and one of them another inside.
func TestEventParts(t *testing.T) {
	v, key := vault.OpenMemory(), storage.K("ej").U32(1).U32(2)
	seal := func(ref vault.Ref, row []byte, plain string) []byte {
		t.Helper()
		b, err := v.Seal(ref, row, []byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	author := seal(vault.Author(7), append(bytes.Clone(key), 'a'), "the content")
	content := seal(vault.RoomPart(1, 1, 1, 0), append(bytes.Clone(key), 'c'), "\x01\x01"+string(author))
	skeleton := seal(vault.Room(1, 0), key, "the skeleton")
	row := append(binary.AppendUvarint([]byte{2}, uint64(len(skeleton))), skeleton...)
	plain, dead := Open(v, key, append(row, content...))
	if !bytes.Contains(plain, []byte("the skeleton")) || !bytes.Contains(plain, []byte("the content")) || dead {
		t.Errorf("%q %v", plain, dead)
	}
	if err := v.Destroy(vault.Author(7)); err != nil {
		t.Fatal(err)
	}
	if plain, _ = Open(v, key, append(row, content...)); bytes.Contains(plain, []byte("the content")) {
		t.Errorf("opened without the author's key: %q", plain)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a": "nothing", "canary message text": "x", "b": "canary message text"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hits, files, err := planted().Files(dir)
	if err != nil || files != 3 || len(hits) != 2 {
		t.Errorf("%v in %d files, %v", hits, files, err)
	}
	if odd, err := Undeclared(dir); err != nil || len(odd) != 3 {
		t.Errorf("%v, %v", odd, err)
	}
}

// Row ON6.
func TestLogPatterns(t *testing.T) {
	for _, line := range []string{
		"msg=x user=@alice:example.org", "room=!abcdefghijklmnopqrst", "from 192.0.2.7", "2001:db8:1:2:3:4:5:6", "mail a.b@example.org",
		"event $0123456789012345678901234567890123456789abc", "GET /_matrix/client/v3/rooms/%21abc", "agent Mozilla/5.0", "access_token=abc", "mxc://a/b",
		"key 0123456789012345678901234567890123456789abc", "#room:example.org",
	} {
		if len(Log([]byte(line))) == 0 {
			t.Errorf("%q passes", line)
		}
	}
	for _, line := range []string{
		`time=2026-05-01T12:00:00.000Z level=WARN msg="send failed" server=matrix.example.org err="dial tcp: connection refused" tries=3`,
		"listening on 127.0.0.1:8008", "took 12.5ms of 1024 rows",
	} {
		if hits := Log([]byte(line), "127.0.0.1:8008"); len(hits) > 0 {
			t.Errorf("%q: %v", line, hits)
		}
	}
}
