package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"parley/internal/mxid"
)

// value is what the TOML parser found under a key.
type value = any

func setServerName(c *Config, v value) error {
	s, ok := v.(string)
	if !ok || !mxid.ValidServerName(s) {
		return errors.New(`must be a host name such as "example.org", with ":port" only for tests`)
	}
	c.ServerName = mxid.ServerName(strings.ToLower(s))
	return nil
}

func text(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, ok := v.(string)
		if !ok {
			return errors.New("must be a text in quotes")
		}
		*f(c) = s
		return nil
	}
}

func oneOf(f func(*Config) *string, allowed ...string) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, ok := v.(string)
		if !ok || !slices.Contains(allowed, s) {
			return fmt.Errorf("must be one of %q", allowed)
		}
		*f(c) = s
		return nil
	}
}

func boolean(f func(*Config) *bool) func(*Config, value) error {
	return func(c *Config, v value) error {
		b, ok := v.(bool)
		if !ok {
			return errors.New("must be true or false")
		}
		*f(c) = b
		return nil
	}
}

func number(f func(*Config) *int, lo, hi int64) func(*Config, value) error {
	return func(c *Config, v value) error {
		n, ok := v.(int64)
		if !ok || n < lo || n > hi {
			return fmt.Errorf("must be a number from %d to %d", lo, hi)
		}
		*f(c) = int(n)
		return nil
	}
}

func duration(f func(*Config) *time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, _ := v.(string)
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return errors.New(`must be a duration such as "90s", "15m" or "1h"`)
		}
		*f(c) = d
		return nil
	}
}

// ParseSize reads "500", "10KB", "100MB", "2GB"; the units are powers of 1024.
func ParseSize(s string) (int64, error) {
	unit := int64(1)
	for i, u := range []string{"KB", "MB", "GB", "TB"} {
		if strings.HasSuffix(s, u) {
			s, unit = strings.TrimSuffix(s, u), 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, errors.New(`must be a size such as "500KB", "100MB" or "2GB"`)
	}
	return n * unit, nil
}

func size(f func(*Config) *int64) func(*Config, value) error {
	return func(c *Config, v value) error {
		n, err := ParseSize(fmt.Sprint(v))
		if err != nil {
			return err
		}
		*f(c) = n
		return nil
	}
}

func list(v value) ([]string, error) {
	items, ok := v.([]any)
	if !ok {
		return nil, errors.New(`must be a list such as ["one", "two"]`)
	}
	var out []string
	for _, it := range items {
		s, ok := it.(string)
		if !ok {
			return nil, errors.New("must be a list of texts in quotes")
		}
		out = append(out, s)
	}
	return out, nil
}

func texts(f func(*Config) *[]string) func(*Config, value) error {
	return func(c *Config, v value) (err error) {
		*f(c), err = list(v)
		return err
	}
}

func prefixes(f func(*Config) *[]netip.Prefix) func(*Config, value) error {
	return func(c *Config, v value) error {
		items, err := list(v)
		if err != nil {
			return err
		}
		var out []netip.Prefix
		for _, it := range items {
			p, err := netip.ParsePrefix(it)
			if err != nil {
				return fmt.Errorf(`%q is not a network such as "10.0.0.0/8"`, it)
			}
			out = append(out, p)
		}
		*f(c) = out
		return nil
	}
}

func names(f func(*Config) *[]mxid.ServerName) func(*Config, value) error {
	return func(c *Config, v value) error {
		items, err := list(v)
		if err != nil {
			return err
		}
		var out []mxid.ServerName
		for _, it := range items {
			if !mxid.ValidServerName(it) {
				return fmt.Errorf("%q is not a server name", it)
			}
			out = append(out, mxid.ServerName(it))
		}
		*f(c) = out
		return nil
	}
}

// hostPort takes "host:port", nothing, or one of the words.
func hostPort(f func(*Config) *string, words ...string) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, ok := v.(string)
		host, port, err := net.SplitHostPort(s)
		n, _ := strconv.ParseUint(port, 10, 16)
		if !ok || s != "" && !slices.Contains(words, s) && (err != nil || host == "" || n == 0) {
			return fmt.Errorf(`must be a host and port such as "turn.example.org:443", empty, or one of %q`, words)
		}
		*f(c) = s
		return nil
	}
}

// packets reads where packets are taken: "host:port", ":port" for all
// addresses of the machine, or "off".
func packets(f func(*Config) *netip.AddrPort) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, _ := v.(string)
		if s == "off" {
			*f(c) = netip.AddrPort{}
			return nil
		}
		if strings.HasPrefix(s, ":") {
			s = "[::]" + s
		}
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return errors.New(`must be ":port", an IP address with a port such as "192.0.2.1:7881", or "off"`)
		}
		*f(c) = a
		return nil
	}
}

func addresses(f func(*Config) *[]netip.Addr) func(*Config, value) error {
	return func(c *Config, v value) error {
		items, err := list(v)
		if err != nil {
			return err
		}
		var out []netip.Addr
		for _, it := range items {
			a, err := netip.ParseAddr(it)
			if err != nil {
				return fmt.Errorf("%q is not an IP address", it)
			}
			out = append(out, a)
		}
		*f(c) = out
		return nil
	}
}
