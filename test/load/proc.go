package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// usage is what a server process has used so far.
type usage struct {
	cpuSeconds float64
	rssBytes   int64
	diskBytes  int64
}

// measure reads /proc and the data folder; zeros where not asked for.
func measure(pid int, dir string) (u usage, err error) {
	if pid != 0 {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, err
		}
		// The command name may have spaces; the numbers follow its ")".
		f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		utime, _ := strconv.ParseFloat(f[11], 64)
		stime, _ := strconv.ParseFloat(f[12], 64)
		rss, _ := strconv.ParseInt(f[21], 10, 64)
		u.cpuSeconds = (utime + stime) / 100 // USER_HZ is 100 on Linux
		u.rssBytes = rss * int64(os.Getpagesize())
	}
	if dir != "" {
		err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // files come and go while a store compacts
			}
			if info, err := d.Info(); err == nil {
				u.diskBytes += info.Size()
			}
			return nil
		})
	}
	return u, err
}
