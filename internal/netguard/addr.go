package netguard

import "net/netip"

// denied4 is what of IPv4 isn't the public internet.
// IANA IPv4 Special-Purpose Address Registry (RFC 6890) and multicast.
func denied4() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8",       // this network; connects to the machine itself
		"10.0.0.0/8",      // private
		"100.64.0.0/10",   // carrier-grade NAT, also used inside clouds
		"127.0.0.0/8",     // loopback
		"169.254.0.0/16",  // link-local, metadata services of clouds
		"172.16.0.0/12",   // private
		"192.0.0.0/24",    // IETF protocol assignments
		"192.0.2.0/24",    // documentation
		"192.88.99.0/24",  // 6to4 relays
		"192.168.0.0/16",  // private
		"198.18.0.0/15",   // benchmarking
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"224.0.0.0/4",     // multicast
		"240.0.0.0/4",     // reserved, broadcast
	)
}

// denied6 is what of 2000::/3 isn't the public internet; the rest of IPv6 is
// denied as a whole.
// IANA IPv6 Special-Purpose Address Registry.
func denied6() []netip.Prefix {
	return prefixes(
		"2001::/23",     // IETF protocol assignments: Teredo, ORCHID, benchmarking
		"2001:db8::/32", // documentation
		"3fff::/20",     // documentation
	)
}

func prefixes(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")
	global6   = netip.MustParsePrefix("2000::/3")
	not4      = denied4()
	not6      = denied6()
)

// public says whether an unmapped address is one of the public internet, not
// looking at IPv4 addresses in it.
func public(a netip.Addr) bool {
	if a.Is4() {
		return !contains(not4, a)
	}
	if nat64.Contains(a) {
		return true
	}
	return global6.Contains(a) && !contains(not6, a)
}

// embedded is the IPv4 address that packets to an IPv6 address end at: NAT64
// (RFC 6052), 6to4 (RFC 3056) and ISATAP (RFC 5214).
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return netip.Addr{}, false
}
