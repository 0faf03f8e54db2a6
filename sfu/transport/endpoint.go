package transport

import "net/netip"

// endpoint is an address and port as a small comparable value; IPv4 stands in
// its mapped form. It has no String method: addresses of people are not
// printed.
type endpoint struct {
	ip   [16]byte
	port uint16
}

func endpointOf(a netip.AddrPort) endpoint {
	return endpoint{ip: a.Addr().As16(), port: a.Port()}
}

func (e endpoint) is4() bool {
	return e.ip[10] == 0xff && e.ip[11] == 0xff && [10]byte(e.ip[:10]) == [10]byte{}
}

func (e endpoint) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.ip).Unmap(), e.port)
}
