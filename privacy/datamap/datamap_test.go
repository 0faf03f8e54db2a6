package datamap

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"parley/storage"
	"parley/storage/leveldb"
)

var update = flag.Bool("update", false, "rewrite the generated parts of docs/privacy.md")

// section is one generated part of docs/privacy.md.
func section(name, body string) (begin, whole string) {
	begin = "<!-- generated: " + name + " -->"
	return begin, begin + "\n" + body + "<!-- end -->"
}

// Row OM2. Row CO1. The documentation is what the code declares.
func TestDocumentationIsCurrent(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "privacy.md")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for name, body := range map[string]string{"data map": Markdown(), "promises": promiseTable(t)} {
		begin, whole := section(name, body)
		i := strings.Index(doc, begin)
		if i < 0 {
			t.Fatalf("docs/privacy.md has no line %q", begin)
		}
		j := strings.Index(doc[i:], "<!-- end -->")
		if j < 0 {
			t.Fatalf("docs/privacy.md: %q has no end", begin)
		}
		doc = doc[:i] + whole + doc[i+j+len("<!-- end -->"):]
	}
	if *update {
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if doc != string(raw) {
		t.Error("docs/privacy.md isn't what the code says; run: go test ./privacy/datamap -update")
	}
}

// promiseTable lists the tests that name a row of the table of promises.
func promiseTable(t *testing.T) string {
	proofs := proofs(t)
	var b strings.Builder
	b.WriteString("| row | promise | tests |\n|---|---|---|\n")
	for _, p := range promises() {
		if tests := proofs[p[0]]; len(tests) > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", p[0], p[1], strings.Join(tests, ", "))
		}
		delete(proofs, p[0])
	}
	for id := range proofs {
		t.Errorf("a test proves row %s, which promises.go doesn't name", id)
	}
	return b.String()
}

var (
	rowComment = regexp.MustCompile(`//.*\bRows? ((?:(?:OM|ON|JI|OS|CO)\d+)(?:(?:, | and )(?:OM|ON|JI|OS|CO)\d+)*)\b`)
	rowID      = regexp.MustCompile(`(?:OM|ON|JI|OS|CO)\d+`)
	testFunc   = regexp.MustCompile(`^func (Test\w+)\(`)
	jsTest     = regexp.MustCompile(`^\s*(?:test|it)\(['"]([^'"]+)['"]`)
)

// proofs maps row IDs to the tests that name them in the comment before, or in
// the body.
func proofs(t *testing.T) map[string][]string {
	out := map[string][]string{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".test.js"):
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		proofsOf(string(src), filepath.ToSlash(rel), out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for id := range out {
		sort.Strings(out[id])
	}
	return out
}

func proofsOf(src, dir string, out map[string][]string) {
	var waiting []string // rows whose test comes
	current := ""
	add := func(id, test string) {
		proof := "`" + dir + "` " + test
		for _, have := range out[id] {
			if have == proof {
				return
			}
		}
		out[id] = append(out[id], proof)
	}
	for _, line := range strings.Split(src, "\n") {
		name := testFunc.FindStringSubmatch(line)
		if name == nil {
			name = jsTest.FindStringSubmatch(line)
		}
		if name != nil {
			current = name[1]
			for _, id := range waiting {
				add(id, current)
			}
			waiting = nil
		}
		if line == "}" {
			current = ""
		}
		if m := rowComment.FindStringSubmatch(line); m != nil {
			for _, id := range rowID.FindAllString(line, -1) {
				if current != "" {
					add(id, current)
				} else {
					waiting = append(waiting, id)
				}
			}
		}
	}
}

func TestProofsOf(t *testing.T) {
	got := map[string][]string{}
	src := "// ROW OM2. What it does.\n// ROW CO1.\nfunc TestA(t *testing.T) {\n}\n\n// ROW OM9, of nothing.\nfunc help() {}\n" +
		"func TestB(t *testing.T) {\n\t// ROWs OS1 and OS2.\n}\n"
	proofsOf(strings.ReplaceAll(src, "ROW", "Row"), "x", got)
	want := map[string][]string{"OM2": {"`x` TestA"}, "CO1": {"`x` TestA"}, "OM9": {"`x` TestB"}, "OS1": {"`x` TestB"}, "OS2": {"`x` TestB"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v", got)
	}
}

// Row OM2. No family of rows in the code is missing.
func TestEveryFamilyInTheCodeIsDeclared(t *testing.T) {
	root := filepath.Join("..", "..")
	key := regexp.MustCompile(`\bK\("([a-zA-Z]{2})"\)`)
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
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
			found[m[1]] = true
			if _, ok := Family(m[1]); !ok {
				t.Errorf("%s keeps rows %s, which privacy/datamap doesn't declare", path, m[1])
			}
		}
		return err
	})
	if err != nil || len(found) < 40 {
		t.Errorf("%d families found: %v", len(found), err)
	}
}

func TestEntriesAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range Entries() {
		if e.What == "" || e.Sealed == "" || e.Lifetime == "" || e.Readers == "" || len(e.Families)+len(e.Files) == 0 {
			t.Errorf("entry %q isn't whole", e.What)
		}
		for _, f := range append(append([]string{}, e.Families...), e.Files...) {
			if seen[f] {
				t.Errorf("%s is declared twice", f)
			}
			seen[f] = true
		}
		for _, f := range e.Families {
			if len(f) != 2 {
				t.Errorf("family %q", f)
			}
		}
		if strings.Contains(e.What+e.Lifetime+e.Readers, "|") {
			t.Errorf("entry %q breaks the table", e.What)
		}
	}
}

// Row OM2. A store with an undeclared family is refused, and only then.
func TestCheck(t *testing.T) {
	kv, err := leveldb.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	put := func(keys ...string) {
		t.Helper()
		b := &storage.Batch{}
		for _, k := range keys {
			b.Puts = append(b.Puts, storage.Pair{Key: []byte(k)})
		}
		if err := kv.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(t.Context(), kv); err != nil {
		t.Errorf("an empty store: %v", err)
	}
	put("ej\x00\x01", "ej\xff\xff", "us\x01", "zz\xff")
	for i := range 3000 {
		put(fmt.Sprintf("tl%09d", i))
	}
	got, err := Families(t.Context(), kv)
	if want := "[!c ej tl us zz]"; err != nil || fmt.Sprint(got) != want && fmt.Sprint(got) != "[ej tl us zz]" {
		t.Errorf("families %v, %v", got, err)
	}
	put("qq\x00", "Q")
	var undeclared *ErrUndeclared
	if err := Check(t.Context(), kv); !errors.As(err, &undeclared) || !strings.Contains(err.Error(), `"qq"`) || !strings.Contains(err.Error(), `"Q"`) {
		t.Errorf("undeclared families: %v", err)
	}
}

func TestFiles(t *testing.T) {
	for name, want := range map[string]bool{"media/ab/cdef": true, "vault/keys.12": true, "store/000012.ldb": true, "secret.txt": false, "media/x": false} {
		if _, ok := File(name); ok != want {
			t.Errorf("%s: %v", name, ok)
		}
	}
}
