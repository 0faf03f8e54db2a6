// Package mxid has the typed identifiers of the Matrix specification.
//
// Every identifier that says something about a person or a room is a type of
// its own, never a bare string across packages. Printing one with fmt or slog
// gives a placeholder, so that a log line can't name a person by accident;
// string(id) gives the identifier itself and is what code uses to build keys,
// URLs and JSON.
//
// spec: appendices, "Identifier Grammar"
package mxid

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
)

// Limits of identifiers in bytes, including sigil and server name.
// spec: appendices, "Common Identifier Format"
const MaxLen = 255

// ErrInvalid is returned for anything that doesn't follow the grammar.
var ErrInvalid = errors.New("mxid: invalid identifier")

type (
	// UserID is "@localpart:server".
	UserID string
	// RoomID is "!opaque:server", or "!hash" from room version 12 on.
	RoomID string
	// RoomAlias is "#name:server".
	RoomAlias string
	// EventID is "$hash" (room version 3 and later) or "$opaque:server".
	EventID string
	// DeviceID is an opaque client device name.
	DeviceID string
	// ServerName is a host name or address literal with an optional port.
	// It isn't personal: operators may see it in logs.
	ServerName string
)

func redact(f fmt.State, what string) { _, _ = f.Write([]byte(what)) }

// Format prints a placeholder.
func (UserID) Format(f fmt.State, _ rune)    { redact(f, "[user]") }
func (RoomID) Format(f fmt.State, _ rune)    { redact(f, "[room]") }
func (RoomAlias) Format(f fmt.State, _ rune) { redact(f, "[alias]") }
func (EventID) Format(f fmt.State, _ rune)   { redact(f, "[event]") }
func (DeviceID) Format(f fmt.State, _ rune)  { redact(f, "[device]") }

// LogValue gives slog a placeholder.
func (UserID) LogValue() slog.Value    { return slog.StringValue("[user]") }
func (RoomID) LogValue() slog.Value    { return slog.StringValue("[room]") }
func (RoomAlias) LogValue() slog.Value { return slog.StringValue("[alias]") }
func (EventID) LogValue() slog.Value   { return slog.StringValue("[event]") }
func (DeviceID) LogValue() slog.Value  { return slog.StringValue("[device]") }

// Localpart is the part between "@" and the first ":".
func (u UserID) Localpart() string { l, _, _ := split(string(u), '@'); return l }

// Server is the part after the first ":".
func (u UserID) Server() ServerName { _, s, _ := split(string(u), '@'); return s }

// Server is the server part, or "" for a room ID of version 12 and later.
func (r RoomID) Server() ServerName { _, s, _ := split(string(r), '!'); return s }

// Server is the part after the first ":".
func (a RoomAlias) Server() ServerName { _, s, _ := split(string(a), '#'); return s }

// Localpart is the part between "#" and the first ":".
func (a RoomAlias) Localpart() string { l, _, _ := split(string(a), '#'); return l }

// NewUserID joins a localpart and a server name without checking them.
func NewUserID(localpart string, server ServerName) UserID {
	return UserID("@" + localpart + ":" + string(server))
}

func split(s string, sigil byte) (local string, server ServerName, ok bool) {
	if len(s) < 1 || s[0] != sigil {
		return "", "", false
	}
	l, sv, found := strings.Cut(s[1:], ":")
	return l, ServerName(sv), found
}

// ParseUserID accepts current and historical user IDs.
// Historical ones may have any characters but NUL and ":" in the localpart,
// as servers still meet them over federation.
// spec: appendices, "User Identifiers", "Historical User IDs"
func ParseUserID(s string) (UserID, error) {
	l, sv, ok := split(s, '@')
	if !ok || len(s) > MaxLen || !ValidServerName(string(sv)) || strings.ContainsRune(l, 0) {
		return "", fmt.Errorf("%w: user ID", ErrInvalid)
	}
	return UserID(s), nil
}

// ValidLocalpart says whether a new local account may have this localpart.
// spec: appendices, "User Identifiers": a-z 0-9 . _ = - / +
func ValidLocalpart(l string) bool {
	if l == "" {
		return false
	}
	for i := 0; i < len(l); i++ {
		c := l[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._=-/+", c) >= 0) {
			return false
		}
	}
	return true
}

// ParseRoomID accepts both "!opaque:server" and the server-less form.
func ParseRoomID(s string) (RoomID, error) {
	if len(s) < 2 || len(s) > MaxLen || s[0] != '!' || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%w: room ID", ErrInvalid)
	}
	if _, sv, found := split(s, '!'); found && !ValidServerName(string(sv)) {
		return "", fmt.Errorf("%w: room ID", ErrInvalid)
	}
	return RoomID(s), nil
}

// ParseRoomAlias checks "#name:server".
func ParseRoomAlias(s string) (RoomAlias, error) {
	l, sv, ok := split(s, '#')
	if !ok || l == "" || len(s) > MaxLen || !ValidServerName(string(sv)) || strings.ContainsRune(l, 0) {
		return "", fmt.Errorf("%w: room alias", ErrInvalid)
	}
	return RoomAlias(s), nil
}

// ParseEventID checks the sigil and length only; what follows depends on the
// room version.
func ParseEventID(s string) (EventID, error) {
	if len(s) < 2 || len(s) > MaxLen || s[0] != '$' {
		return "", fmt.Errorf("%w: event ID", ErrInvalid)
	}
	return EventID(s), nil
}

// Hash gives the 32 bytes that an event ID of room version 3 and later
// encodes, and for older IDs the SHA-256 of the whole ID, so that every event
// has a fixed-width key.
func (e EventID) Hash() [32]byte {
	var h [32]byte
	if len(e) == 44 {
		s := strings.NewReplacer("+", "-", "/", "_").Replace(string(e[1:]))
		if n, err := base64.RawURLEncoding.Decode(h[:], []byte(s)); err == nil && n == 32 {
			return h
		}
	}
	return sha256.Sum256([]byte(e))
}

// ValidServerName checks host, IPv4 or bracketed IPv6, and optional port.
// spec: appendices, "Server Name"
func ValidServerName(s string) bool {
	if s == "" || len(s) > 230 {
		return false
	}
	host := s
	if s[0] == '[' {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return false
		}
		if a, err := netip.ParseAddr(s[1:end]); err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
		return validPort(s[end+1:])
	}
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host = s[:i]
		if !validPort(s[i:]) {
			return false
		}
	}
	if host == "" || host[0] == '.' {
		return false
	}
	for i := 0; i < len(host); i++ {
		c := host[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

func validPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) < 2 || len(s) > 6 {
		return false
	}
	p, err := strconv.ParseUint(s[1:], 10, 16)
	return err == nil && p > 0
}
