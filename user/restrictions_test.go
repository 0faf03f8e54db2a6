package user

import (
	"encoding/json"
	"testing"

	"parley/internal/mxid"
)

func TestLockAndSuspend(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	tokens, err := f.Login(ctx, alice, "A", "", true)
	must(t, err)
	told := 0
	f.OnLocked(func(u mxid.UserID) {
		if u != alice {
			t.Error("told of somebody else")
		}
		told++
	})
	must(t, f.SetLocked(ctx, alice, true))
	s, err := f.Authenticate(ctx, tokens.Access)
	must(t, err)
	if !s.Locked || s.Suspended {
		t.Errorf("session of a locked account: %+v", s)
	}
	_, err = f.Login(ctx, alice, "B", "", false)
	wantCode(t, err, "M_USER_LOCKED")
	_, err = f.Refresh(ctx, tokens.Refresh)
	wantCode(t, err, "M_USER_LOCKED")
	must(t, f.SetLocked(ctx, alice, false))
	if told != 1 {
		t.Errorf("told %d times of one locked account", told)
	}
	must(t, f.SetSuspended(ctx, alice, true))
	if s, err := f.Authenticate(ctx, tokens.Access); err != nil || s.Locked || !s.Suspended {
		t.Errorf("session of a suspended account: %+v, %v", s, err)
	}
	fresh, err := f.Refresh(ctx, tokens.Refresh)
	must(t, err)
	f.reopen(t)
	if s, err := f.Authenticate(ctx, fresh.Access); err != nil || !s.Suspended {
		t.Errorf("after reopening: %+v, %v", s, err)
	}
	if a, err := f.Account(ctx, alice); err != nil || !a.Suspended || a.Locked {
		t.Errorf("account %+v, %v", a, err)
	}
	must(t, f.Deactivate(ctx, alice))
	wantCode(t, f.SetLocked(ctx, alice, true), "M_USER_DEACTIVATED")
}

func TestBlocksInvites(t *testing.T) {
	f := newFixture(t)
	alice := f.register(t, "alice")
	for content, want := range map[string]bool{
		`{}`: false, `{"default_action":"block"}`: true, `{"default_action":"allow"}`: false, `{"default_action":5}`: false,
	} {
		must(t, f.SetAccountData(ctx, alice, "", "m.invite_permission_config", json.RawMessage(content)))
		if got, err := f.BlocksInvites(ctx, alice); err != nil || got != want {
			t.Errorf("%s: %v, %v", content, got, err)
		}
	}
}
