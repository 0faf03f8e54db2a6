// Package netns has tests with a network of their own: each server and each
// client has its own namespace and address, all on one bridge, so that
// everybody could reach everybody, and every frame is kept for a look. They
// need Linux, the right to make namespaces (root), and the command ip.
package netns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// network is some namespaces on a bridge.
type network struct {
	t    *testing.T
	name string // of the namespace of the bridge, and first part of the others'

	mu     sync.Mutex
	frames []frame
}

// frame is what is of interest of an IPv4 packet.
type frame struct {
	from, to netip.AddrPort
	udp      bool
	payload  []byte
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("this test makes network namespaces, which root only may")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("this test needs the command ip (Debian package iproute2)")
	}
	n := &network{t: t, name: fmt.Sprintf("parley%d", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", n.name).CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.name).Run() })
	n.ip("-n", n.name, "link", "add", "br0", "type", "bridge")
	n.ip("-n", n.name, "link", "set", "br0", "up")
	n.capture()
	return n
}

// add makes a namespace with an address.
func (n *network) add(host string, addr netip.Addr) (ns string) {
	n.t.Helper()
	ns = n.name + host
	n.ip("netns", "add", ns)
	n.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	n.ip("-n", n.name, "link", "add", "name", "v"+host, "type", "veth", "peer", "name", "eth0", "netns", ns)
	n.ip("-n", n.name, "link", "set", "v"+host, "master", "br0", "up")
	n.ip("-n", ns, "addr", "add", addr.String()+"/24", "dev", "eth0")
	n.ip("-n", ns, "link", "set", "eth0", "up")
	n.ip("-n", ns, "link", "set", "lo", "up")
	return ns
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// inside is a command that runs in a namespace.
func inside(ns string, name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
}

// capture keeps all frames that go over the bridge until the test ends.
func (n *network) capture() {
	n.t.Helper()
	opened := make(chan int, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		opened <- n.packetSocket()
	}()
	fd := <-opened
	if fd < 0 {
		n.t.Fatal("no packet socket in the namespace of the bridge")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			size, _, err := unix.Recvfrom(fd, b, 0)
			if err == unix.EINTR || err == unix.EAGAIN {
				if n.ended() {
					return
				}
				continue
			}
			if err != nil {
				return
			}
			if f, ok := parse(b[:size]); ok {
				n.mu.Lock()
				n.frames = append(n.frames, f)
				n.mu.Unlock()
			}
		}
	}()
	n.t.Cleanup(func() {
		n.mu.Lock()
		n.t = nil
		n.mu.Unlock()
		<-done
		_ = unix.Close(fd)
	})
}

func (n *network) ended() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.t == nil
}

// packetSocket makes a socket that gets all frames of the bridge's namespace.
func (n *network) packetSocket() int {
	ns, err := os.Open("/var/run/netns/" + n.name)
	if err != nil {
		return -1
	}
	defer ns.Close()
	if unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) != nil {
		return -1
	}
	all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	if err != nil {
		return -1
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	return fd
}

// parse reads an Ethernet frame with TCP or UDP over IPv4.
func parse(b []byte) (f frame, ok bool) {
	if len(b) < 34 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP {
		return f, false
	}
	ip := b[14:]
	head, size := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if size < head+8 || len(ip) < head+8 || ip[9] != unix.IPPROTO_UDP && ip[9] != unix.IPPROTO_TCP {
		return f, false
	}
	f.udp = ip[9] == unix.IPPROTO_UDP
	body := ip[head:min(size, len(ip))]
	f.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(body))
	f.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(body[2:]))
	f.payload = bytes.Clone(body[8:])
	return f, true
}

// between are the frames from one address to another, and back.
func (n *network) between(a, b netip.Addr) (out []frame) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.frames {
		if f.from.Addr() == a && f.to.Addr() == b || f.from.Addr() == b && f.to.Addr() == a {
			out = append(out, f)
		}
	}
	return out
}
