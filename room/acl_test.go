package room

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestServerACL(t *testing.T) {
	for _, c := range []struct {
		acl   string
		yes   string
		no    string
		notes string
	}{
		{`{"allow":["*"]}`, "a.example A.Example:8448 1.2.3.4 [::1]:8448 [::1]", "", "literals are allowed by default"},
		{`{"allow":["*"],"allow_ip_literals":false}`, "a.example 1.2.3.example", "1.2.3.4 1.2.3.4:80 [::1] [::1]:8448", "no literals"},
		{`{"allow":["*"],"deny":["*.Evil.example","evil.example"]}`, "good.example notevil.example", "evil.example EVIL.example:1 a.b.evil.example", "deny wins, case is ignored"},
		{`{"allow":["a?.example","b.example"]}`, "ab.example b.example", "a.example abb.example b.example.org xb.example", "question mark"},
		{`{"deny":["x"]}`, "", "a.example", "no allow list"},
		{`{}`, "", "a.example", "empty"},
		{`{"allow":"*"}`, "", "a.example", "wrong type"},
		{`{"allow":[1,null,"*"],"deny":[{}],"allow_ip_literals":"no"}`, "a.example 1.2.3.4", "", "wrong entries are ignored"},
	} {
		acl := compileACL([]byte(c.acl))
		for _, s := range strings.Fields(c.yes) {
			if !acl.allows(s) {
				t.Errorf("%s: %s is refused", c.notes, s)
			}
		}
		for _, s := range strings.Fields(c.no) {
			if acl.allows(s) {
				t.Errorf("%s: %s is let in", c.notes, s)
			}
		}
	}
}

// Pathological patterns and long lists come to an end; BenchmarkServerACL says
// how soon.
func TestServerACLOfPathologicalPatterns(t *testing.T) {
	acl := pathologicalACL()
	if acl.allows("host99999.example") || !acl.allows(strings.Repeat("a", 200)+".example") {
		t.Fatal("wrong verdict")
	}
}

func pathologicalACL() *serverACL {
	deny := []string{strings.Repeat("*a", 100) + "b"}
	for i := range 100_000 {
		deny = append(deny, fmt.Sprintf("host%d.example", i))
	}
	js, _ := json.Marshal(map[string]any{"allow": []string{"*"}, "deny": deny})
	return compileACL(js)
}

func BenchmarkServerACL(b *testing.B) {
	acl := pathologicalACL()
	for b.Loop() {
		acl.allows(strings.Repeat("a", 200) + ".example")
	}
}

func FuzzGlobMatch(f *testing.F) {
	f.Add("a*b?", "axxbc")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if globMatch(pattern, s) && !strings.ContainsAny(pattern, "*?") && pattern != s {
			t.Error("matched something else")
		}
	})
}
