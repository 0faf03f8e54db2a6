package node

import (
	"os"
	"runtime/debug"
)

// gcPercent trades processor time for memory: most of a homeserver's memory is
// connections that wait, and what Go keeps for garbage comes on top of that.
// With 10,000 waiting clients, 20 instead of Go's 100 saves a fifth of the
// memory; a server that sends as fast as it can pays with a fifth more
// processor time for an event (docs/performance.md).
const gcPercent = 20

// SpareMemory sets how much garbage the process keeps, unless the environment
// variable GOGC says something else. It is for main functions.
func SpareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
