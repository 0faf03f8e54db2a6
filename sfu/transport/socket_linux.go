package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const canShare = true // several sockets on one port, spread by the kernel

// sysTarget is a target's address as the kernel wants it.
type sysTarget struct {
	name unix.RawSockaddrInet6 // or RawSockaddrInet4
	size uint32
}

const (
	controlSize   = 96
	socketBuffers = 4 << 20
)

// socket is one UDP socket with its preallocated batches. Everything but wake
// belongs to its shard's goroutine, which waits in ppoll on a thread of its own:
// going to sleep and waking up through the runtime's poller costs more than
// forwarding a packet.
type socket struct {
	outbox
	file    *os.File
	fd      int // of file
	bound   netip.AddrPort
	waker   *os.File // an eventfd: written to by wake, readable to ppoll
	wakerFD int
	v6      bool // of family AF_INET6; IPv4 addresses are mapped
	pktinfo bool // several local addresses: remember which one was used

	in     [recvBatch]unix.Mmsghdr
	inIov  [recvBatch]unix.Iovec
	inName [recvBatch]unix.RawSockaddrInet6
	inCtl  [recvBatch][controlSize]byte
	inBuf  []byte

	out    [sendSlots]unix.Mmsghdr
	outIov [sendSlots]unix.Iovec
	outCtl [sendSlots][controlSize]byte
}

// openSocket binds one socket; share lets others bind the same port.
func openSocket(addr netip.AddrPort, share bool) (*socket, error) {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
		if addr.Addr().IsUnspecified() {
			network = "udp" // takes IPv4 as well
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if share {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		})
		return errors.Join(cerr, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen for packets: %w", err)
	}
	defer pc.Close()
	s := &socket{outbox: newOutbox(), inBuf: make([]byte, recvBatch*recvSlot), pktinfo: addr.Addr().IsUnspecified()}
	if err := s.take(pc.(*net.UDPConn)); err != nil {
		return nil, fmt.Errorf("prepare the packet socket: %w", err)
	}
	return s, nil
}

// take makes the socket of c its own, with a descriptor that the runtime's
// poller doesn't watch.
func (s *socket) take(c *net.UDPConn) error {
	// A small buffer only costs packets under load: errors don't matter.
	_ = c.SetReadBuffer(socketBuffers)
	_ = c.SetWriteBuffer(socketBuffers)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	err = raw.Control(func(fd uintptr) { s.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return err
	}
	// Files in blocking mode are left alone by the runtime's poller. Every call
	// says MSG_DONTWAIT.
	err = unix.SetNonblock(s.fd, false)
	s.file = os.NewFile(uintptr(s.fd), "packets")
	s.bound = c.LocalAddr().(*net.UDPAddr).AddrPort()
	if err == nil {
		s.wakerFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		s.file.Close()
		return err
	}
	s.waker = os.NewFile(uintptr(s.wakerFD), "waker")
	if err := s.prepare(); err != nil {
		s.close()
		return err
	}
	return nil
}

func (s *socket) prepare() error {
	family, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	s.v6 = family == unix.AF_INET6
	_, err = unix.GetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.gso = err == nil
	for i := range s.in {
		s.inIov[i].Base = &s.inBuf[i*recvSlot]
		s.inIov[i].SetLen(recvSlot)
		s.in[i].Hdr.Iov = &s.inIov[i]
		s.in[i].Hdr.SetIovlen(1)
		s.in[i].Hdr.Name = (*byte)(unsafe.Pointer(&s.inName[i]))
	}
	switch {
	case s.pktinfo && s.v6:
		return unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	case s.pktinfo:
		return unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return nil
}

func (s *socket) addr() netip.AddrPort { return s.bound }

func (s *socket) close() {
	s.file.Close()
	s.waker.Close()
}

// wake makes a blocked read return, or the next one. Safe for concurrent use,
// also after close.
func (s *socket) wake() { _, _ = s.waker.Write([]byte{7: 1}) }

// read fills the receive batch and returns its length. It waits at most so long
// for packets or wake, for ever when that is negative; 0 packets then means one
// of these.
func (s *socket) read(wait time.Duration) (int, error) {
	if wait != 0 {
		if ready, err := s.wait(wait); !ready {
			return 0, err
		}
	}
	for i := range s.in {
		h := &s.in[i].Hdr
		h.Namelen = unix.SizeofSockaddrInet6
		if s.pktinfo {
			h.Control = &s.inCtl[i][0]
			h.SetControllen(controlSize)
		}
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.in[0])), recvBatch, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, nil // nothing there, or an error of an earlier send, told by the kernel here
	}
	return int(n), nil
}

// wait reports whether there may be packets.
func (s *socket) wait(d time.Duration) (bool, error) {
	fds := [2]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wakerFD), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if d > 0 {
		t := unix.NsecToTimespec(int64(d))
		timeout = &t
	}
	_, err := unix.Ppoll(fds[:], timeout, nil)
	if err == unix.EINTR {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("wait for packets: %w", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(int(fds[1].Fd), count[:])
	}
	return fds[0].Revents != 0, nil
}

// sendTo sends one datagram by itself. Safe for concurrent use, also after close.
func (s *socket) sendTo(b []byte, to netip.AddrPort) error {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		if s.v6 {
			sendErr = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
			return
		}
		sendErr = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()})
	})
	return errors.Join(err, sendErr)
}

// steer lets the sockets that share a port take packets evenly, or leaves them
// all to the one that was opened first. It reports false where the system can't.
func (s *socket) steer(evenly bool) bool {
	if evenly {
		return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0) == nil
	}
	first := [1]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &first[0]}) == nil
}

// received is packet i of the last batch; nil when it was cut off.
func (s *socket) received(i int, from *source) []byte {
	m := &s.in[i]
	if m.Hdr.Flags&unix.MSG_TRUNC != 0 {
		return nil
	}
	if s.v6 {
		from.from.ip = s.inName[i].Addr
	} else {
		from.from.ip = [16]byte{10: 0xff, 11: 0xff}
		copy(from.from.ip[12:], (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.inName[i])).Addr[:])
	}
	port := (*[2]byte)(unsafe.Pointer(&s.inName[i].Port))
	from.from.port = uint16(port[0])<<8 | uint16(port[1])
	if s.pktinfo {
		from.local = s.localOf(i)
	}
	return s.inBuf[i*recvSlot:][:m.Len:recvSlot]
}

// localOf reads our address from the control message of packet i.
func (s *socket) localOf(i int) (ip [16]byte) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&s.inCtl[i]))
	data := unsafe.Pointer(&s.inCtl[i][unix.CmsgLen(0)])
	switch {
	case int(s.in[i].Hdr.Controllen) < unix.CmsgLen(unix.SizeofInet4Pktinfo):
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO:
		ip = (*unix.Inet6Pktinfo)(data).Addr
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO:
		ip[10], ip[11] = 0xff, 0xff
		copy(ip[12:], (*unix.Inet4Pktinfo)(data).Addr[:])
	}
	return ip
}

// aim prepares t for sending.
func (s *socket) aim(t *target) {
	port := [2]byte{byte(t.to.port >> 8), byte(t.to.port)}
	if s.v6 {
		t.sys.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: t.to.ip}
		t.sys.size = unix.SizeofSockaddrInet6
		return
	}
	sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&t.sys.name))
	*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: [4]byte(t.to.ip[12:])}
	t.sys.size = unix.SizeofSockaddrInet4
}

// flush sends the batch and returns how many packets could not be sent.
func (s *socket) flush() (lost int) {
	for first := 0; first < s.count; {
		n := s.assemble(first)
		sent, errno := s.send(n)
		first += sent
		if sent == n {
			break
		}
		m := &s.msgs[first]
		switch {
		case m.count > 1 && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE):
			// The device or the path can't do it: never again.
			s.gso = false
			lost += s.sendSingly(m)
		case errno == unix.EAGAIN && s.writable():
			continue
		case errno == unix.EAGAIN:
			for ; first < s.count; first++ {
				lost += int(s.msgs[first].count)
			}
			continue
		default:
			lost += int(m.count)
		}
		first++
	}
	s.reset()
	return lost
}

// assemble fills the headers for the messages from first on.
func (s *socket) assemble(first int) int {
	iov := 0
	for i, m := range s.msgs[first:s.count] {
		h := &s.out[i].Hdr
		h.Iov = &s.outIov[iov]
		h.SetIovlen(int(m.count))
		for p := m.head; p >= 0; p = s.next[p] {
			s.outIov[iov].Base = &s.buf[int(p)*sendSlot]
			s.outIov[iov].SetLen(int(s.size[p]))
			iov++
		}
		seg := 0
		if m.count > 1 {
			seg = int(m.seg)
		}
		s.address(h, &s.outCtl[i], m.to, seg)
	}
	return s.count - first
}

// address sets the destination, source and segment size of a message.
func (s *socket) address(h *unix.Msghdr, ctl *[controlSize]byte, t *target, seg int) {
	h.Name = (*byte)(unsafe.Pointer(&t.sys.name))
	h.Namelen = t.sys.size
	used := 0
	if t.local != ([16]byte{}) {
		used = s.sourceControl(ctl, t)
	}
	if seg > 0 {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[used]))
		c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
		*(*uint16)(unsafe.Pointer(&ctl[used+unix.CmsgLen(0)])) = uint16(seg)
		used += unix.CmsgSpace(2)
	}
	h.Control = nil
	if used > 0 {
		h.Control = &ctl[0]
	}
	h.SetControllen(used)
}

func (s *socket) sourceControl(ctl *[controlSize]byte, t *target) int {
	c := (*unix.Cmsghdr)(unsafe.Pointer(ctl))
	data := unsafe.Pointer(&ctl[unix.CmsgLen(0)])
	if s.v6 {
		c.Level, c.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
		c.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		*(*unix.Inet6Pktinfo)(data) = unix.Inet6Pktinfo{Addr: t.local}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	c.Level, c.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	*(*unix.Inet4Pktinfo)(data) = unix.Inet4Pktinfo{Spec_dst: [4]byte(t.local[12:])}
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}

// send hands n assembled messages to the kernel. When not all went out, errno
// says why the first that is left did not.
func (s *socket) send(n int) (sent int, errno unix.Errno) {
	for sent < n {
		k, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.out[sent])), uintptr(n-sent), unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return sent, e
		}
		sent += int(k)
	}
	return sent, 0
}

// sendSingly sends the segments of a run as datagrams of their own.
func (s *socket) sendSingly(m *message) (lost int) {
	for p := m.head; p >= 0; p = s.next[p] {
		h := &s.out[0].Hdr
		s.outIov[0].Base = &s.buf[int(p)*sendSlot]
		s.outIov[0].SetLen(int(s.size[p]))
		h.Iov = &s.outIov[0]
		h.SetIovlen(1)
		s.address(h, &s.outCtl[0], m.to, 0)
		if sent, _ := s.send(1); sent == 0 {
			lost++
		}
	}
	return lost
}

// writable waits a moment for room in the send buffer.
func (s *socket) writable() bool {
	p := [1]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(p[:], 1)
	return n == 1 && err == nil
}
