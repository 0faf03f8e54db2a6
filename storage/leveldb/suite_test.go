package leveldb

import (
	"testing"

	"parley/storage"
	"parley/storage/storagetest"
)

func TestSuiteInMemory(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.KV {
		e, err := OpenMemory()
		must(t, err)
		return e
	})
}

func TestSuiteOnDisk(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) storage.KV {
		e, err := Open(t.TempDir(), Options{})
		must(t, err)
		return e
	})
}
