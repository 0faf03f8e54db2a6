package room

import (
	"context"
	"net/netip"
	"strings"
	"sync"

	"github.com/tidwall/gjson"

	"parley/internal/mxid"
	"parley/storage/intern"
)

// aclCache keeps compiled server ACLs. They are few and looked at by every
// request of another server. Safe for concurrent use.
type aclCache struct {
	mu sync.Mutex
	m  map[intern.RID]compiledACL
}

type compiledACL struct {
	n   Num // the event that it was compiled from
	acl *serverACL
}

const maxCachedACLs = 1024

func (c *aclCache) get(rid intern.RID, ev *Event) *serverACL {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.m[rid]; ok && have.n == ev.Num {
		return have.acl
	}
	acl := compileACL(ev.Content())
	if c.m == nil || len(c.m) >= maxCachedACLs {
		c.m = map[intern.RID]compiledACL{}
	}
	c.m[rid] = compiledACL{ev.Num, acl}
	return acl
}

// ServerAllowed applies the room's m.room.server_acl; rooms that this server
// doesn't know allow everybody.
func (s *Service) ServerAllowed(ctx context.Context, room mxid.RoomID, server mxid.ServerName) (bool, error) {
	rid, ok, err := s.cfg.Intern.LookupRoom(ctx, room)
	if err != nil || !ok {
		return true, err
	}
	h, sn, err := s.snapshotOf(ctx, rid)
	if err != nil {
		return false, err
	}
	return s.serverAllowed(ctx, h, sn, server)
}

func (s *Service) serverAllowed(ctx context.Context, h *hot, sn *snapshot, server mxid.ServerName) (bool, error) {
	if !sn.exists() {
		return true, nil
	}
	ev, err := s.stateEvent(ctx, h, sn.sum.root, typeServerACL, "")
	if err != nil || ev == nil {
		return err == nil, err
	}
	return s.acls.get(h.rid, ev).allows(string(server)), nil
}

// serverACL is an m.room.server_acl event, ready to match.
// spec: client-server API, "Server Access Control Lists (ACLs) for rooms"
type serverACL struct {
	literals    bool // addresses may stand in for names
	allow, deny globs
}

// compileACL reads the content of an ACL event. What isn't of the right type
// counts as absent, which allows nobody.
func compileACL(content []byte) *serverACL {
	c := gjson.ParseBytes(content)
	a := &serverACL{literals: c.Get("allow_ip_literals").Type != gjson.False}
	a.allow.add(c.Get("allow"))
	a.deny.add(c.Get("deny"))
	return a
}

// allows judges a server name. The port doesn't count, nor does the case.
func (a *serverACL) allows(server string) bool {
	host := strings.ToLower(hostOf(server))
	if !a.literals && isLiteral(host) {
		return false
	}
	return !a.deny.match(host) && a.allow.match(host)
}

// hostOf strips the port of a server name.
func hostOf(server string) string {
	if strings.HasPrefix(server, "[") {
		if end := strings.IndexByte(server, ']'); end > 0 {
			return server[:end+1]
		}
		return server
	}
	host, _, _ := strings.Cut(server, ":")
	return host
}

func isLiteral(host string) bool {
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

// globs are patterns with "*" for any characters and "?" for one. Those
// without either are looked up, so that long lists of names cost nothing.
type globs struct {
	plain    map[string]bool
	patterns []string
}

func (g *globs) add(list gjson.Result) {
	if !list.IsArray() {
		return
	}
	g.plain = map[string]bool{}
	for _, p := range list.Array() {
		if p.Type != gjson.String {
			continue
		}
		pattern := strings.ToLower(p.Str)
		if strings.ContainsAny(pattern, "*?") {
			g.patterns = append(g.patterns, pattern)
		} else {
			g.plain[pattern] = true
		}
	}
}

func (g *globs) match(s string) bool {
	if g.plain[s] {
		return true
	}
	for _, p := range g.patterns {
		if globMatch(p, s) {
			return true
		}
	}
	return false
}

// globMatch matches in time proportional to len(pattern)*len(s) at worst: it
// only ever goes back to the last "*". Both are ASCII in practice; "?" stands
// for one byte otherwise.
func globMatch(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
