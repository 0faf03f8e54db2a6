package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"parley/storage/blob"
)

// Forever is how a lifetime without an end is written.
const Forever = "forever"

// Limits of a lifetime. Less than an hour is a slip that would cost people
// their messages; 100 years is as good as for ever.
const (
	day         = 24 * time.Hour
	minLifetime = time.Hour
	maxLifetime = 100 * 365 * day
)

var errLifetime = errors.New(`must be a lifetime from "1h" to "100y" such as "30d", "12w" or "1y", or "forever"`)

// ParseLifetime reads "12h", "30d", "12w", "1y" (365 days); "forever" is 0.
func ParseLifetime(s string) (time.Duration, error) {
	if s == Forever {
		return 0, nil
	}
	if s == "" {
		return 0, errLifetime
	}
	unit, ok := map[byte]time.Duration{'h': time.Hour, 'd': day, 'w': 7 * day, 'y': 365 * day}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil || n > uint64(maxLifetime/unit) || time.Duration(n)*unit < minLifetime {
		return 0, errLifetime
	}
	return time.Duration(n) * unit, nil
}

// FormatLifetime writes a lifetime as ParseLifetime reads it; parts of an hour
// are dropped.
func FormatLifetime(d time.Duration) string {
	switch {
	case d == 0:
		return Forever
	case d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
}

func lifetime(f func(*Config) *time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, _ := v.(string)
		d, err := ParseLifetime(s)
		if err != nil {
			return err
		}
		*f(c) = d
		return nil
	}
}

// Limits of plans.
const (
	maxPlans    = 100
	maxPlanName = 32
)

// parsePlan reads "free=30d,1GB"; lifetime and quota may each be left out.
func parsePlan(s string) (Plan, error) {
	name, rest, ok := strings.Cut(s, "=")
	p := Plan{Name: strings.TrimSpace(name)}
	if !ok || !validPlanName(p.Name) {
		return p, fmt.Errorf(`%q is not a plan such as "free=30d,1GB"; names have a-z, 0-9, - and _`, s)
	}
	parts := strings.Split(rest, ",")
	if len(parts) > 2 {
		return p, fmt.Errorf("plan %q: a lifetime and a quota at most", p.Name)
	}
	for i, part := range parts {
		part = strings.TrimSpace(part)
		d, err := ParseLifetime(part)
		if err == nil && i == 0 {
			p.Lifetime = d
			continue
		}
		n, sizeErr := ParseSize(part)
		if sizeErr != nil || n == 0 || i == 0 && len(parts) == 2 {
			return p, fmt.Errorf("plan %q: %q: %w", p.Name, part, errLifetime)
		}
		p.Quota = n
	}
	return p, nil
}

func validPlanName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return s != "" && len(s) <= maxPlanName
}

func plans(f func(*Config) *[]Plan) func(*Config, value) error {
	return func(c *Config, v value) error {
		items, err := list(v)
		if err != nil {
			return err
		}
		if len(items) > maxPlans {
			return fmt.Errorf("has more than %d plans", maxPlans)
		}
		seen := map[string]bool{}
		var out []Plan
		for _, it := range items {
			p, err := parsePlan(it)
			if err != nil {
				return err
			}
			if seen[p.Name] {
				return fmt.Errorf("plan %q is there twice", p.Name)
			}
			seen[p.Name] = true
			out = append(out, p)
		}
		*f(c) = out
		return nil
	}
}

// s3URL checks the form of the address of an S3 service; storage/blob reads it.
func s3URL(f func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) error {
		s, ok := v.(string)
		if !ok {
			return errors.New(`must be a URL such as "s3://KEY:SECRET@host/bucket", or empty`)
		}
		if s != "" {
			if _, err := blob.ParseS3(s); err != nil { // never shows the secret
				return err
			}
		}
		*f(c) = s
		return nil
	}
}
