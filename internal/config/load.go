package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a configuration file; the written one has about 6 KB.
const maxFile = 1 << 20

// Load reads and checks a file. Relative paths in it are relative to it. The
// error names the file, the line and the fix.
func Load(path string) (*Config, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w\nMake a configuration with: parley quickstart NAME", err)
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("%s: larger than 1 MB, that can't be a configuration", path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.resolvePaths(filepath.Dir(path))
	return c, nil
}

// Parse checks the text of a configuration file.
func Parse(src string) (*Config, error) {
	var tree map[string]any
	if _, err := toml.Decode(src, &tree); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return nil, fmt.Errorf("line %d: %s", pe.Position.Line, pe.Message)
		}
		return nil, err
	}
	c := defaults()
	found := map[string]any{}
	flatten("", tree, found)
	keys := Keys()
	for _, name := range sortedKeys(found) {
		k, ok := lookup(keys, name)
		if advice := removed(name); !ok && advice != "" {
			return nil, fmt.Errorf("%s%s doesn't exist any more: %s", lineOf(src, name), name, advice)
		}
		if !ok {
			return nil, fmt.Errorf("%sunknown key %q; did you mean %q?", lineOf(src, name), name, nearest(keys, name))
		}
		if err := k.set(c, found[name]); err != nil {
			return nil, fmt.Errorf("%s%s: %w", lineOf(src, name), name, err)
		}
	}
	return c, c.check()
}

// removed says what to write instead of a key that existed once.
func removed(name string) string {
	switch name {
	case "calls.enabled":
		return `remove the line; to turn calls off write calls.udp = "off"`
	case "storage.engine":
		return "remove the line; PostgreSQL is used if storage.dsn is set, the embedded store if it isn't"
	}
	return ""
}

func defaults() *Config {
	c := &Config{}
	for _, k := range Keys() {
		if k.Name == "server_name" {
			continue
		}
		var tree map[string]any
		if _, err := toml.Decode("v = "+k.Default, &tree); err != nil {
			panic("config: default of " + k.Name + ": " + err.Error())
		}
		if err := k.set(c, tree["v"]); err != nil {
			panic("config: default of " + k.Name + ": " + err.Error())
		}
	}
	return c
}

func (c *Config) check() error {
	switch {
	case c.ServerName == "":
		return errors.New(`server_name is missing; add a line such as: server_name = "example.org"`)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("tls.certificate and tls.key belong together; set both or neither")
	case c.ListenClient == "" && c.ListenHTTPS == "":
		return errors.New("listen.client and listen.https are both off; nobody could connect")
	}
	return nil
}

func (c *Config) resolvePaths(dir string) {
	for _, p := range []*string{&c.DataDir, &c.TLSCert, &c.TLSKey, &c.RootKeyFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	for i, p := range c.TrustedCAs {
		if !filepath.IsAbs(p) {
			c.TrustedCAs[i] = filepath.Join(dir, p)
		}
	}
}

func flatten(prefix string, tree map[string]any, out map[string]any) {
	for k, v := range tree {
		if sub, ok := v.(map[string]any); ok {
			flatten(prefix+k+".", sub, out)
			continue
		}
		out[prefix+k] = v
	}
}

func sortedKeys(m map[string]any) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}

func lookup(keys []Key, name string) (Key, bool) {
	for _, k := range keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

func nearest(keys []Key, name string) string {
	best, bestDist := "", 1<<30
	for _, k := range keys {
		d := distance(k.Name, name)
		if i := strings.IndexByte(k.Name, '.'); i >= 0 {
			// A right key in the wrong section is a likely mistake.
			d = min(d, distance(k.Name[i+1:], name)+1, distance(k.Name[i+1:], name[strings.IndexByte(name, '.')+1:])+1)
		}
		if d < bestDist {
			best, bestDist = k.Name, d
		}
	}
	return best
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j]+cost, prev[j+1]+1, cur[j]+1)
		}
		prev = cur
	}
	return prev[len(b)]
}

// lineOf finds the line of a key for an error message, "" if it can't.
func lineOf(src, name string) string {
	section, key := "", name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		section, key = name[:i], name[i+1:]
	}
	current := ""
	for i, line := range strings.Split(src, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			current = strings.Trim(line, "[] \t")
			continue
		}
		left, _, ok := strings.Cut(line, "=")
		left = strings.TrimSpace(left)
		if ok && (current == section && left == key || current == "" && left == name) {
			return fmt.Sprintf("line %d: ", i+1)
		}
	}
	return ""
}

// Write gives the text of a configuration file: every key with its
// documentation, those of set with that value (in TOML), the others commented
// out at their default.
func Write(set map[string]string) string {
	var b strings.Builder
	b.WriteString("# parley's configuration. Lines that are commented out show the defaults.\n")
	section := ""
	for _, k := range Keys() {
		name := k.Name
		if i := strings.IndexByte(name, '.'); i >= 0 {
			if name[:i] != section {
				section = name[:i]
				fmt.Fprintf(&b, "\n[%s]\n", section)
			}
			name = name[i+1:]
		}
		unit := ""
		if k.Unit != "" {
			unit = " (" + k.Unit + ")"
		}
		fmt.Fprintf(&b, "\n# %s%s\n", k.Doc, unit)
		if v, ok := set[k.Name]; ok {
			fmt.Fprintf(&b, "%s = %s\n", name, v)
		} else {
			fmt.Fprintf(&b, "#%s = %s\n", name, k.Default)
		}
	}
	return b.String()
}
