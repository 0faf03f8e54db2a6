package turn

import (
	"net/netip"
	"slices"

	"parley/internal/netguard"
)

// Endpoint is one address of the SFU: the one that clients know, and the one at
// which it is reached from this machine.
type Endpoint struct{ Public, Local netip.AddrPort }

// lowestPort that a relay sends to: below are services that answer strangers
// with more than they were sent (DNS, NTP, SNMP), and no media.
const lowestPort = 1024

// policy is where relays may send to.
type policy struct {
	guard  *netguard.Guard
	sfu    []Endpoint
	relays []netip.Addr // addresses of the relays themselves
}

func newPolicy(c Config) policy {
	p := policy{sfu: c.SFU, relays: c.Addresses}
	deny := slices.Clone(c.Deny)
	for _, a := range c.Addresses {
		deny = append(deny, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, e := range c.SFU {
		deny = append(deny, netip.PrefixFrom(e.Public.Addr(), e.Public.Addr().BitLen()))
	}
	p.guard = netguard.New(netguard.Options{Deny: deny, Allow: c.Allow})
	return p
}

// endpoint finds the SFU's address that clients know as a.
func (p policy) endpoint(a netip.AddrPort) (Endpoint, bool) {
	for _, e := range p.sfu {
		if e.Public == a {
			return e, true
		}
	}
	return Endpoint{}, false
}

func (p policy) isSFU(a netip.Addr) bool {
	return slices.ContainsFunc(p.sfu, func(e Endpoint) bool { return e.Public.Addr() == a })
}

// public reports whether a relay may send to an address because it is of the
// public internet and not ours.
func (p policy) public(a netip.AddrPort) bool {
	return a.Port() >= lowestPort && p.guard.Check(a.Addr()) == nil
}

// permits reports whether a permission for an IP could lead anywhere. What it
// lets through is looked at again with the port.
func (p policy) permits(reach Reach, a netip.Addr) bool {
	a = a.Unmap()
	if p.isSFU(a) {
		return true
	}
	return reach == Peers && (slices.Contains(p.relays, a) || p.guard.Check(a) == nil)
}
