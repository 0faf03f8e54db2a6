package user

import (
	"encoding/json"
	"strings"
	"testing"

	"parley/internal/mxid"
)

func testPusher(app, key string) Pusher {
	return Pusher{Kind: "http", AppID: app, Pushkey: key, AppName: "App", DeviceName: "Phone", Lang: "en",
		Data: json.RawMessage(`{"url": "https://push.example.org/_matrix/push/v1/notify"}`)}
}

func TestPushersEndWithTheirDevice(t *testing.T) {
	s := newFixture(t)
	u := s.register(t, "alice")
	for _, d := range []mxid.DeviceID{"A", "B"} {
		if _, err := s.Login(ctx, u, d, "", false); err != nil {
			t.Fatal(err)
		}
		if err := s.SetPusher(ctx, u, d, testPusher("app", "key-"+string(d))); err != nil {
			t.Fatal(err)
		}
	}
	// Setting it again changes it and doesn't add one.
	changed := testPusher("app", "key-B")
	changed.Lang = "de"
	if err := s.SetPusher(ctx, u, "B", changed); err != nil {
		t.Fatal(err)
	}
	if ps, err := s.Pushers(ctx, u); err != nil || len(ps) != 2 {
		t.Fatalf("pushers: %d, %v", len(ps), err)
	}
	if err := s.RemoveDevices(ctx, u, "A"); err != nil {
		t.Fatal(err)
	}
	ps, err := s.Pushers(ctx, u)
	if err != nil || len(ps) != 1 || ps[0].Pushkey != "key-B" || ps[0].Lang != "de" {
		t.Fatalf("after removing device A: %d pushers, %v", len(ps), err)
	}
	if err := s.DeletePusher(ctx, u, "app", "key-B"); err != nil {
		t.Fatal(err)
	}
	if ps, err := s.Pushers(ctx, u); err != nil || len(ps) != 0 {
		t.Fatalf("after deleting: %d pushers, %v", len(ps), err)
	}
}

func TestPusherLimits(t *testing.T) {
	s := newFixture(t)
	u := s.register(t, "alice")
	for name, p := range map[string]Pusher{
		"no app":    testPusher("", "k"),
		"no key":    testPusher("a", ""),
		"long app":  testPusher(strings.Repeat("a", maxAppID+1), "k"),
		"long key":  testPusher("a", strings.Repeat("k", maxPushkey+1)),
		"long data": func() Pusher { p := testPusher("a", "k"); p.Lang = strings.Repeat("x", maxPusherBytes); return p }(),
	} {
		if err := s.SetPusher(ctx, u, "A", p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if ps, err := s.Pushers(ctx, u); err != nil || len(ps) != 0 {
		t.Fatalf("refused pushers were kept: %d, %v", len(ps), err)
	}
}

func TestReportsAreBoundedAndGoWithTheirAuthor(t *testing.T) {
	s := newFixture(t)
	alice, bob := s.register(t, "alice"), s.register(t, "bob")
	for i := 0; i < maxReports+5; i++ {
		if err := s.AddReport(ctx, Report{By: alice, Room: "!r:x", Reason: strings.Repeat("x", maxReportReason+1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddReport(ctx, Report{By: bob, User: alice}); err != nil {
		t.Fatal(err)
	}
	rs, err := s.Reports(ctx)
	if err != nil || len(rs) != maxReports || rs[0].By != bob || len(rs[1].Reason) != maxReportReason {
		t.Fatalf("%d reports, %v", len(rs), err)
	}
	if err := s.Deactivate(ctx, alice); err != nil {
		t.Fatal(err)
	}
	if rs, err := s.Reports(ctx); err != nil || len(rs) != 1 || rs[0].By != bob {
		t.Fatalf("after the author left: %d reports, %v", len(rs), err)
	}
}
