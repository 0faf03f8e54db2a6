package netns

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"parley/internal/await"
	"parley/internal/config"
	"parley/internal/node"
)

const (
	httpsPort = 8448
	mediaPort = 7881
)

// server is a parley server in a namespace.
type server struct {
	ns, dir string
	addr    netip.Addr
	process *exec.Cmd
	log     string
}

func (s *server) name() string { return netip.AddrPortFrom(s.addr, httpsPort).String() }
func (s *server) url() string  { return "https://" + s.name() }

// client is a user of a server, in a namespace of its own.
type client struct {
	t        *testing.T
	home     *server
	addr     netip.Addr
	user     string
	token    string
	device   string
	identity string
	in       io.Writer
	out      *bufio.Scanner
}

// do has the client do something.
func (c *client) do(o order) answer {
	c.t.Helper()
	b, _ := json.Marshal(o)
	if _, err := c.in.Write(append(b, '\n')); err != nil || !c.out.Scan() {
		c.t.Fatalf("a client is gone: %v", err)
	}
	var a answer
	if err := json.Unmarshal(c.out.Bytes(), &a); err != nil || a.Err != "" {
		c.t.Fatalf("%s %s: %v %s", o.Do, o.URL, err, a.Err)
	}
	return a
}

type obj = map[string]any

// ask is a request that must be answered with 200.
func (c *client) ask(method, path string, body any) obj {
	c.t.Helper()
	raw, _ := json.Marshal(body)
	if body == nil {
		raw = nil
	}
	a := c.do(order{Do: "ask", Method: method, URL: c.home.url() + path, Token: c.token, Body: raw})
	var out obj
	if a.Status != 200 || json.Unmarshal(a.Body, &out) != nil {
		c.t.Fatalf("%s %s: %d %s", method, path, a.Status, a.Body)
	}
	return out
}

// world is three servers with a user each, all in one room.
type world struct {
	*network
	servers []*server
	clients []*client
	room    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{network: newNetwork(t)}
	dir := t.TempDir()
	bin := program(t, dir)
	ca, err := node.OpenAuthority(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s := &server{addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(1 + i)}), dir: filepath.Join(dir, strconv.Itoa(i))}
		s.ns = w.add(fmt.Sprintf("s%d", i), s.addr)
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := ca.Issue(s.dir, s.addr.String()); err != nil {
			t.Fatal(err)
		}
		w.servers = append(w.servers, s)
		s.start(t, bin, filepath.Join(dir, "ca", "ca.crt"))
	}
	for i, s := range w.servers {
		c := &client{t: t, home: s, addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(11 + i)})}
		c.start(w.add(fmt.Sprintf("c%d", i), c.addr), filepath.Join(dir, "ca", "ca.crt"))
		w.clients = append(w.clients, c)
	}
	return w
}

// program is the server's program: PARLEY_BIN, or built now.
func program(t *testing.T, dir string) string {
	t.Helper()
	if bin := os.Getenv("PARLEY_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(dir, "parley")
	if out, err := exec.Command("go", "build", "-o", bin, "parley/cmd/parley").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

func (s *server) start(t *testing.T, bin, ca string) {
	t.Helper()
	quote := strconv.Quote
	file := filepath.Join(s.dir, "parley.toml")
	text := config.Write(map[string]string{
		"server_name": quote(s.name()), "listen.client": `""`, "listen.https": quote(s.name()), "listen.metrics": `""`,
		"calls.udp": quote(fmt.Sprintf("%s:%d", s.addr, mediaPort)), "calls.cascade": "true",
		"tls.certificate": `"tls.crt"`, "tls.key": `"tls.key"`, "tls.trusted_authorities": "[" + quote(ca) + "]",
		"wellknown.client_url": quote(s.url()), "wellknown.server": quote(s.name()), "registration.open": "true",
		"federation.allow_networks": `["10.77.0.0/24"]`, "limits.rate_limits": "false", "log.level": `"debug"`,
	})
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.log = filepath.Join(s.dir, "log")
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.process = inside(s.ns, bin, "serve", "--config", file)
	s.process.Stdout, s.process.Stderr = log, log
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.process.Process.Signal(os.Interrupt)
		_ = s.process.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(s.log)
			t.Logf("%s:\n%s", s.name(), b[max(0, len(b)-4000):])
		}
	})
}

// start starts the client's process, and makes its account once the server
// answers.
func (c *client) start(ns, ca string) {
	c.t.Helper()
	p := inside(ns, os.Args[0])
	p.Env = append(os.Environ(), clientVar+"="+ca)
	p.Stderr = os.Stderr
	in, err := p.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = in.Close(); _ = p.Wait() })
	c.in, c.out = in, bufio.NewScanner(out)
	c.out.Buffer(nil, 4<<20)
	await.Until(c.t, "a server answers", func() bool {
		b, _ := os.ReadFile(c.home.log)
		return bytes.Contains(b, []byte("https://"+c.home.name()))
	})
	me := c.ask("POST", "/_matrix/client/v3/register", obj{"username": "wonderland", "password": "correct horse battery", "device_id": "LOOKINGGLASS",
		"initial_device_display_name": "White Rabbit", "auth": obj{"type": "m.login.dummy"}})
	c.user, c.token, c.device = me["user_id"].(string), me["access_token"].(string), me["device_id"].(string)
}

// call lets everybody into the call, by their own server alone, and waits until
// all hear all.
func (w *world) call() {
	t := w.t
	t.Helper()
	first := w.clients[0]
	w.room = first.ask("POST", "/_matrix/client/v3/createRoom", obj{"preset": "public_chat"})["room_id"].(string)
	for _, c := range w.clients[1:] {
		c.ask("POST", "/_matrix/client/v3/join/"+w.room+"?server_name="+first.home.name(), obj{})
	}
	for _, c := range w.clients {
		c.ask("PUT", "/_matrix/client/v3/rooms/"+w.room+"/state/org.matrix.msc3401.call.member/_"+c.user+"_"+c.device+"_m.call",
			obj{"application": "m.call", "device_id": c.device})
	}
	var ids []string
	for i, c := range w.clients {
		got := c.ask("POST", "/_matrix/client/v1/rtc/livekit/get_token", obj{"server_name": c.home.name(), "room_id": w.room, "slot_id": "m.call#ROOM",
			"member": obj{"id": "member" + strconv.Itoa(i), "claimed_user_id": c.user, "claimed_device_id": c.device}})
		c.identity = subject(t, got["jwt"].(string))
		ids = append(ids, c.identity)
		c.do(order{Do: "join", URL: c.home.url(), Token: got["jwt"].(string), From: c.addr})
	}
	all, _ := json.Marshal(ids)
	for i, c := range w.clients {
		await.Until(t, "everybody is heard", func() bool {
			heard := c.do(order{Do: "heard", Body: all}).Heard
			for k, id := range ids {
				if k != i && heard[id] < 100 {
					return false
				}
			}
			return true
		})
	}
}

// TestPackets: in a call of users of three servers, no packet of a client goes
// to another server, though it could; and nothing that another server gets,
// keeps in memory, logs or answers has a client's address.
func TestPackets(t *testing.T) {
	w := newWorld(t)
	w.call()
	for i, c := range w.clients {
		for k, s := range w.servers {
			switch n := len(w.between(c.addr, s.addr)); {
			case i != k && n > 0:
				t.Errorf("%d frames went between client %d and server %d", n, i, k)
			case i == k && n < 100:
				t.Errorf("only %d frames went between client %d and its own server", n, i)
			}
			if k > i {
				media := 0
				for _, f := range w.between(w.servers[i].addr, s.addr) {
					if f.udp && f.from.Port() == mediaPort && f.to.Port() == mediaPort {
						media++
					}
					for _, secret := range []string{c.addr.String(), c.user, "wonderland", "LOOKINGGLASS", "White Rabbit", w.room} {
						if bytes.Contains(f.payload, []byte(secret)) {
							t.Errorf("%q goes between servers", secret)
						}
					}
				}
				if media < 100 {
					t.Errorf("only %d frames of media went between servers %d and %d", media, i, k)
				}
			}
		}
		for k := range w.clients {
			if n := len(w.between(c.addr, w.clients[k].addr)); k > i && n > 0 {
				t.Errorf("%d frames went between clients", n)
			}
		}
	}
	for i, s := range w.servers {
		memory := s.memory(t)
		log, err := os.ReadFile(s.log)
		if err != nil {
			t.Fatal(err)
		}
		state := w.clients[i].do(order{Do: "ask", Method: "GET", URL: s.url() + "/_matrix/client/v3/sync?full_state=true", Token: w.clients[i].token}).Body
		for k, c := range w.clients {
			known := holds(memory, c.addr)
			if i == k && !known {
				t.Errorf("server %d doesn't know its own client's address: the look into its memory finds nothing", i)
			}
			if i != k && known {
				t.Errorf("server %d has the address of client %d in memory", i, k)
			}
			if bytes.Contains(log, []byte(c.addr.String())) {
				t.Errorf("server %d has logged the address of client %d", i, k)
			}
			if bytes.Contains(state, []byte(c.addr.String())) {
				t.Errorf("server %d tells the address of client %d", i, k)
			}
		}
	}
	// It could have gone there.
	far := w.clients[0].do(order{Do: "ask", Method: "GET", URL: w.servers[1].url() + "/_matrix/client/versions"})
	await.Until(t, "a frame to another server", func() bool { return len(w.between(w.clients[0].addr, w.servers[1].addr)) > 0 })
	if far.Status != 200 {
		t.Errorf("a client can't reach another server: %d", far.Status)
	}
}

// holds reports whether memory has an address: as text, as net.IP or as
// netip.Addr.
func holds(memory []byte, a netip.Addr) bool {
	long := a.As16()
	short := long[8:]
	for _, form := range [][]byte{[]byte(a.String() + ":"), short, binary.NativeEndian.AppendUint64(nil, binary.BigEndian.Uint64(short))} {
		if bytes.Contains(memory, form) {
			return true
		}
	}
	return false
}

// memory is what a server has in memory that it may write to.
func (s *server) memory(t *testing.T) (out []byte) {
	t.Helper()
	pid := s.process.Process.Pid
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || !strings.HasPrefix(perms, "rw") || strings.Contains(line, "[v") {
			continue
		}
		for at := from; at < to; at += 1 << 20 {
			b := make([]byte, min(1<<20, to-at))
			if n, _ := mem.ReadAt(b, at); n > 0 && bytes.ContainsFunc(b[:n], func(r rune) bool { return r != 0 }) {
				out = append(out, b[:n]...)
			}
		}
	}
	return out
}

// subject is whom a token is for.
func subject(t *testing.T, jwt string) string {
	t.Helper()
	parts := strings.Split(jwt, ".")
	var claims struct {
		Subject string `json:"sub"`
	}
	if len(parts) == 3 {
		if raw, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
			_ = json.Unmarshal(raw, &claims)
		}
	}
	if claims.Subject == "" {
		t.Fatalf("the token %q is for nobody", jwt)
	}
	return claims.Subject
}
