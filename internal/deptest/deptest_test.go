// Package deptest holds the architecture: imports point down.
package deptest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// layers gives each package of the binary its layer; a package may import
// those of its own layer (Go refuses cycles) and below. docs/architecture.md
// shows the same as a picture.
var layers = map[string]int{
	"internal/mxid": 0, "internal/obs": 0, "internal/clock": 0, "internal/actor": 0,
	"internal/httpx": 0, "internal/jsonx": 0, "internal/await": 0, "internal/netguard": 0,

	"keys": 1, "keys/vault": 1, "keys/pgp": 1, "storage": 1, "storage/leveldb": 1, "storage/postgres": 1,
	"storage/blob": 1, "storage/intern": 1, "storage/disk": 0, "storage/disk/simdisk": 0, "storage/storagetest": 1,
	"privacy/datamap": 1, "privacy/disclose": 4, "privacy/erase": 4, "privacy/export": 4, "privacy/backup": 3, "internal/privscan": 2, "privacy/timers": 1, "internal/notify": 1, "internal/config": 1, "internal/portmux": 1,

	"sfu/forward": 2, "sfu/transport": 2, "sfu/sdp": 2, "sfu/media": 3, "sfu/signal": 4, "sfu/sfutest": 3, "sfu/signal/wire": 4, "sfu/turn": 4, "sfu/cascade": 4, "clientapi/rtc": 4,

	"user": 2, "keys/e2e": 2, "federation/fedclient": 2,

	"room": 3, "sfu": 3, "room/stateres": 3, "clientapi/filter": 4, "room/eventform": 3, "room/authrules": 3, "room/statetree": 3, "user/push": 3,

	"clientapi": 4, "clientapi/sync": 4, "federation": 4, "federation/sender": 4, "mediaapi": 4,

	"internal/node": 6, "internal/testnet": 6, "cmd/parley": 6, "cmd/parley-conformance": 6, "admin": 5, "web": 5,
	"internal/deptest": 6,
}

// bans are single arrows that the layers would allow, with the reason.
var bans = map[string]map[string]string{
	"storage":        {"parley/keys": "the store holds ciphertext and knows no keys"},
	"room":           {"parley/federation/fedclient": "room declares what it needs of other servers (room.Remote)"},
	"keys/e2e":       {"parley/user": "the user package calls e2e through a hook"},
	"clientapi/sync": {"parley/clientapi": "sync is mounted by clientapi"},
}

type pkg struct {
	ImportPath  string
	Imports     []string
	TestImports []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "parley/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, "parley/")
		if strings.HasPrefix(name, "test/") {
			continue // programs that only use the binary or the packages
		}
		from, ok := layers[name]
		if !ok {
			t.Errorf("package %s has no layer; give it one here and in docs/architecture.md", name)
			continue
		}
		for _, imp := range p.Imports {
			if why, banned := bans[name][imp]; banned {
				t.Errorf("%s imports %s: %s", name, imp, why)
			}
			short, ours := strings.CutPrefix(imp, "parley/")
			if to, known := layers[short]; ours && known && to > from {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down", name, from, short, to)
			}
		}
	}
}

// TestNobodySkipsTheSeams holds the rule that clocks, dialling and the log are
// injected.
func TestNobodySkipsTheSeams(t *testing.T) {
	forbidden := map[string][]string{
		"log":                        {},
		"github.com/sirupsen/logrus": {},
		"math/rand":                  {},
	}
	for _, p := range list(t) {
		for _, imp := range p.Imports {
			if _, bad := forbidden[imp]; bad && !strings.HasPrefix(p.ImportPath, "parley/test/") {
				t.Errorf("%s imports %s", p.ImportPath, imp)
			}
		}
	}
}
