package signal_test

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"parley/internal/clock"
	"parley/sfu"
	"parley/sfu/media"
	"parley/sfu/signal"
)

// TestTokenDecodesAsPlainBase64: Element Call gives the payload to atob.
func TestTokenDecodesAsPlainBase64(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_700_000_000, 0))
	tokens := signal.NewTokens(nil, clk)
	for _, identity := range []string{"@a:b", "~~~~~~", "??????", ">>>>>>", "ÿÿÿþþ", "日本語", "😀😀😀", "a\x7f\x7f\x7f", "\\\"<&>\u2028", "@x:example.org:DEV~ICE?"} {
		for pad := range 3 { // every alignment
			g := sfu.Grant{Room: strings.Repeat("r", pad+1), Identity: identity, Name: identity, Metadata: identity, CanPublish: true,
				Sources: []media.Source{media.SourceMicrophone, media.SourceScreenShareAudio}, Attributes: map[string]string{identity: identity}, Expires: clk.Now().Add(time.Minute)}
			token, err := tokens.Mint(g)
			if err != nil {
				t.Fatal(err)
			}
			payload := strings.Split(token, ".")[1]
			if strings.ContainsAny(payload, "-_") {
				t.Errorf("%q: %s", identity, payload)
			}
			raw, err := base64.RawStdEncoding.DecodeString(payload)
			var c struct {
				Sub   string
				Video struct{ Room string }
			}
			if err != nil || json.Unmarshal(raw, &c) != nil || c.Sub != identity || c.Video.Room != g.Room {
				t.Errorf("%q: %s %v", identity, raw, err)
			}
			back, err := tokens.Parse(token)
			g.Serial = back.Serial
			if err != nil || !reflect.DeepEqual(back, g) {
				t.Errorf("%+v\n%+v %v", back, g, err)
			}
		}
	}
}

func TestTokensAreChecked(t *testing.T) {
	clk := clock.NewFake(time.Unix(1_700_000_000, 0))
	tokens, others := signal.NewTokens(nil, clk), signal.NewTokens(nil, clk)
	g := sfu.Grant{Room: "r", Identity: "i", Expires: clk.Now().Add(24 * time.Hour)}
	good, err := tokens.Mint(g)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := others.Mint(g)
	unsigned, _ := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"iss": "parley", "sub": "i", "exp": clk.Now().Unix() + 60}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	for name, token := range map[string]string{"foreign": foreign, "unsigned": unsigned, "cut": good[:len(good)-2], "empty": "", "huge": strings.Repeat("x", 1<<20)} {
		if _, err := tokens.Parse(token); err == nil {
			t.Errorf("%s token is taken", name)
		}
	}
	if _, err := tokens.Parse(good); err != nil {
		t.Error(err)
	}
	tokens.Revoke("r", "i")
	if _, err := tokens.Parse(good); err == nil {
		t.Error("revoked token is taken")
	}
	fresh, _ := tokens.Mint(g)
	if _, err := tokens.Parse(fresh); err != nil {
		t.Error("a token minted after the revocation is refused")
	}
	clk.Advance(61 * time.Minute)
	if _, err := tokens.Parse(fresh); err == nil {
		t.Error("no token lives longer than an hour")
	}
	if _, err := tokens.Mint(sfu.Grant{Room: "r"}); err == nil {
		t.Error("a token without identity")
	}
}
