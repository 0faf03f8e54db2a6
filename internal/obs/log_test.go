package obs

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"

	"parley/internal/mxid"
)

func TestLoggerNamesNobody(t *testing.T) {
	var buf bytes.Buffer
	log := NewLogger(&buf, slog.LevelDebug)
	canaries := []string{"alice", "secretroom", "127.77.1.9", "2001:db8::77", "syt_abcdefghijklmnopqrstuvwxyz0123456789ABCDEF",
		"RoWzYnTqkNbVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVV"[:43]}
	log.Info("user @alice:example.org joined !secretroom:example.org",
		"user", mxid.UserID("@alice:example.org"),
		"raw", "@alice:example.org",
		"err", errors.New("dial tcp 127.77.1.9:8448: refused for [2001:db8::77]:443"),
		"addr", &net.TCPAddr{IP: net.ParseIP("127.77.1.9")},
		"tok", Secret("syt_abcdefghijklmnopqrstuvwxyz0123456789ABCDEF"),
		"raw_tok", "Bearer syt_abcdefghijklmnopqrstuvwxyz0123456789ABCDEF",
		"event", "$"+canaries[5],
		slog.Group("g", "u", mxid.UserID("@alice:example.org")))
	log.With("who", "@alice:example.org").WithGroup("x").Warn("hm")
	for _, c := range canaries {
		if strings.Contains(buf.String(), c) {
			t.Errorf("log line has %q:\n%s", c, buf.String())
		}
	}
}

func TestLoggerKeepsWhatOperatorsNeed(t *testing.T) {
	var buf bytes.Buffer
	NewLogger(&buf, slog.LevelInfo).Info("transaction failed", "server", "matrix.example.org:8448", "code", "M_FORBIDDEN", "ms", 12, "type", "m.room.member")
	for _, want := range []string{"matrix.example.org:8448", "M_FORBIDDEN", "ms=12", "m.room.member"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("missing %q in %s", want, buf.String())
		}
	}
}
