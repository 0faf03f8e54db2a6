package node_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryRowFamilyIsInTheDataMap finds the row families in the code: none
// may be missing in docs/privacy.md.
func TestEveryRowFamilyIsInTheDataMap(t *testing.T) {
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "privacy.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, cell := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(string(doc), -1) {
		for _, f := range strings.Fields(cell[1]) {
			named[f] = true
		}
	}
	key := regexp.MustCompile(`\bK\("([a-zA-Z]{2})"\)`)
	found := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "test" || d.Name() == "storagetest" || d.Name() == ".git"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		src, err := os.ReadFile(path)
		for _, m := range key.FindAllStringSubmatch(string(src), -1) {
			found++
			if !named[m[1]] {
				t.Errorf("%s keeps rows %s, which docs/privacy.md doesn't name", path, m[1])
			}
		}
		return err
	})
	if err != nil || found < 40 {
		t.Errorf("%d families found: %v", found, err)
	}
}
