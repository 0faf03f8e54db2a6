package node

import (
	"os"
	"runtime/debug"
)

// gcPercent trades processor time for memory: most of a homeserver's memory is
// connections that wait, and what Go keeps for garbage comes on top of that.
// 30 instead of Go's 100 saves 60 MB of 430 with 10,000 waiting clients, at a
// cost that a loaded server doesn't show (docs/performance.md).
const gcPercent = 30

// SpareMemory sets how much garbage the process keeps, unless the environment
// variable GOGC says something else. It is for main functions.
func SpareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
