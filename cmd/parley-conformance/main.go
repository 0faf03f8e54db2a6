// Command parley-conformance runs one parley server the way conformance suites
// such as Matrix Complement need it: open registration, a shared secret, no
// rate limits, cheap password hashes, any network reachable, and a certificate
// made at start from the suite's authority. Never run it for people.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"parley/internal/config"
	"parley/internal/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "parley-conformance:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	name, data, clientAddr, federationAddr, caCert, caKey, level, cpuProfile string
}

func flags() settings {
	var s settings
	flag.StringVar(&s.name, "server-name", os.Getenv("SERVER_NAME"), "server `name`")
	flag.StringVar(&s.data, "data", "data", "data `folder`")
	flag.StringVar(&s.clientAddr, "client-addr", ":8008", "plain HTTP `address`")
	flag.StringVar(&s.federationAddr, "federation-addr", ":8448", "HTTPS `address`")
	flag.StringVar(&s.caCert, "ca-cert", "/complement/ca/ca.crt", "authority to trust and to issue from (PEM `file`)")
	flag.StringVar(&s.caKey, "ca-key", "/complement/ca/ca.key", "key of the authority (PEM `file`)")
	flag.StringVar(&s.level, "log-level", "warn", "debug, info, warn or error")
	flag.StringVar(&s.cpuProfile, "cpu-profile", "", "write a CPU profile to this `file`")
	flag.String("appservices", "", "`folder` of application service registrations; accepted, not used yet")
	flag.Parse()
	return s
}

func run(ctx context.Context) error {
	s := flags()
	c, err := s.config()
	if err != nil {
		return err
	}
	if s.cpuProfile != "" {
		f, err := os.Create(s.cpuProfile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ca, err := node.ReadAuthority(s.caCert, s.caKey)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.data, 0o750); err != nil {
		return err
	}
	if err := ca.Issue(s.data, s.name); err != nil {
		return err
	}
	node.TuneRuntime()
	n, err := node.New(ctx, node.Options{Config: c, LogTo: os.Stderr})
	if err != nil {
		return err
	}
	err = n.Start()
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-n.Failed():
		}
	}
	// The suites stop a server with a grace time of ten seconds.
	closeCtx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	return errors.Join(err, n.Close(closeCtx))
}

// publicURL is the plain HTTP listener under the server's name.
func (s settings) publicURL() string {
	host, _, err := net.SplitHostPort(s.name)
	if err != nil {
		host = s.name // without a port
	}
	_, port, _ := net.SplitHostPort(s.clientAddr) // listening tells of errors
	return "http://" + net.JoinHostPort(host, port)
}

func (s settings) config() (*config.Config, error) {
	c, err := config.Parse(fmt.Sprintf("server_name = %q", s.name))
	if err != nil {
		return nil, err
	}
	c.DataDir = s.data
	c.ListenClient, c.ListenHTTPS, c.ListenMetrics = s.clientAddr, s.federationAddr, ""
	c.CallsUDP = netip.MustParseAddrPort("127.0.0.1:0")
	c.TLSCert, c.TLSKey = filepath.Join(s.data, "tls.crt"), filepath.Join(s.data, "tls.key")
	c.TrustedCAs = []string{s.caCert}
	c.PublicURL = s.publicURL()
	c.RegistrationOpen, c.RegistrationToken, c.RegistrationSecret = true, true, "complement"
	c.PasswordMemory = 64 << 10
	c.FederationAllow = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	c.FederatedDeviceNames, c.PublicProfiles, c.MediaLegacy, c.RateLimits = true, true, true, false
	c.LogLevel = s.level
	// Suites put the creator into the power levels of rooms of the default
	// version, which version 12 forbids; they ask for 12 where they mean it.
	c.DefaultRoomVersion = "11"
	return c, nil
}
