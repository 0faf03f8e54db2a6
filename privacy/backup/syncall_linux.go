package backup

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// SyncAll returns when everything on the file system of dir is durable.
func SyncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
