package node

import (
	"os"
	"runtime"
	"runtime/debug"
)

// gcPercent trades processor time for memory: most of a homeserver's memory is
// connections that wait, and what Go keeps for garbage comes on top of that.
// With 10,000 waiting clients, 20 instead of Go's 100 saves a fifth of the
// memory; a server that sends as fast as it can pays with a fifth more
// processor time for an event (docs/performance.md).
const gcPercent = 20

// minProcs is how many threads run Go code at a time, at least. The loop of calls
// waits for packets in the kernel and holds one meanwhile, until the runtime's
// monitor sees it, up to 10 ms later: with a single one, everybody else would
// wait so long while a call goes on.
const minProcs = 2

// TuneRuntime sets how the process uses memory and processors, unless the
// environment variables GOGC and GOMAXPROCS say something else. It is for main
// functions.
func TuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
}
