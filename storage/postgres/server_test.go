package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is a PostgreSQL of its own for the tests of this package.
type server struct {
	bin, dir string
	cred     *syscall.SysProcAttr // as whom it runs
	cmd      *exec.Cmd
}

var errAbsent = errors.New("no PostgreSQL server found in /usr/lib/postgresql/*/bin (Debian package postgresql)")

// newServer makes a database cluster in dir and starts it. It listens on a
// socket in dir only.
func newServer(dir string) (*server, error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return nil, errAbsent
	}
	sort.Strings(bins)
	s := &server{bin: bins[len(bins)-1], dir: dir}
	if os.Getuid() == 0 {
		// PostgreSQL refuses to run as root.
		if err := s.runAs("postgres"); err != nil {
			return nil, err
		}
	}
	out, err := s.command("initdb", "-D", s.data(), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.start()
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) runAs(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("%w: running as root, and %w", errAbsent, err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	s.cred = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return os.Chown(s.dir, uid, gid)
}

func (s *server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.SysProcAttr, cmd.Dir = s.cred, s.dir
	return cmd
}

// start waits until the server answers.
func (s *server) start() error {
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off",
		"-c", "max_connections=200", "-c", "shared_buffers=64MB", "-c", "log_min_messages=fatal")
	if err := s.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Minute)
	for {
		err := s.command("pg_isready", "-q", "-h", s.dir).Run()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// stop ends the server: SIGINT politely, SIGQUIT as a crash.
func (s *server) stop(sig os.Signal) {
	_ = s.cmd.Process.Signal(sig)
	_ = s.cmd.Wait()
}

func (s *server) dsn() string {
	return fmt.Sprintf("host=%s user=postgres dbname=postgres", s.dir)
}

var shared struct {
	once sync.Once
	s    *server
	err  error
	n    atomic.Int32
}

// testServer is the server that tests share, each with a schema of its own.
func testServer(t *testing.T) (s *server, schema string) {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "parley-pg-")
		if err != nil {
			shared.err = err
			return
		}
		shared.s, shared.err = newServer(dir)
	})
	// The test command installs PostgreSQL and says so: then its absence is a
	// failure, not a reason to skip.
	if errors.Is(shared.err, errAbsent) && os.Getenv("PARLEY_TEST_POSTGRES") == "" {
		t.Skip(shared.err)
	}
	must(t, shared.err)
	return shared.s, fmt.Sprintf("test%d", shared.n.Add(1))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.s != nil {
		shared.s.stop(os.Interrupt)
		_ = os.RemoveAll(shared.s.dir)
	}
	os.Exit(code)
}

func openTest(t *testing.T) *Engine {
	t.Helper()
	s, schema := testServer(t)
	e, err := Open(ctx, s.dsn(), Options{Schema: schema})
	must(t, err)
	return e
}

// proxy passes connections on to a server's socket and can break them.
type proxy struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	// cut is asked for every piece of data from a client; it says whether to
	// pass it on and whether to break the connection then.
	cut func(data []byte) (pass, breakOff bool)
}

func newProxy(t *testing.T, s *server) *proxy {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	must(t, err)
	p := &proxy{l: l, to: filepath.Join(s.dir, ".s.PGSQL.5432"), conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() { l.Close(); p.breakAll() })
	go p.accept()
	return p
}

func (p *proxy) dsn() string {
	return fmt.Sprintf("host=%s user=postgres dbname=postgres", filepath.Dir(p.l.Addr().String()))
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		go p.serve(c)
	}
}

func (p *proxy) serve(c net.Conn) {
	s, err := net.Dial("unix", p.to)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.conns[c], p.conns[s] = struct{}{}, struct{}{}
	p.mu.Unlock()
	defer func() {
		c.Close()
		s.Close()
		p.mu.Lock()
		delete(p.conns, c)
		delete(p.conns, s)
		p.mu.Unlock()
	}()
	go func() { _, _ = io.Copy(c, s); c.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		pass, breakOff := true, false
		p.mu.Lock()
		if p.cut != nil {
			pass, breakOff = p.cut(buf[:n])
		}
		p.mu.Unlock()
		if breakOff && pass {
			// The answer must not reach the client.
			c.Close()
		}
		if pass {
			if _, err := s.Write(buf[:n]); err != nil {
				return
			}
		}
		if breakOff {
			return
		}
	}
}

func (p *proxy) setCut(f func(data []byte) (pass, breakOff bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = f
}

func (p *proxy) breakAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func exec1(t *testing.T, s *server, sql string, args ...any) {
	t.Helper()
	c, err := pgx.Connect(ctx, s.dsn())
	must(t, err)
	defer c.Close(ctx)
	_, err = c.Exec(ctx, sql, args...)
	must(t, err)
}
