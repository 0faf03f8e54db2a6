package cascade

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pion/rtp"

	"parley/internal/await"
	"parley/sfu"
	"parley/sfu/media"
)

// secrets is what of a client must not cross a link: who it is, and everything
// that its descriptions of itself say about it.
func (c *client) secrets(t *testing.T, more ...string) []string {
	t.Helper()
	sdp := c.pc.LocalDescription().SDP
	out := append([]string{"a=", "m=audio", "candidate", "minptime", c.who}, more...)
	for _, pattern := range []string{`cname:(\S+)`, `ice-ufrag:(\S+)`, `ice-pwd:(\S+)`, `msid:(\S+)`, `msid:\S+ (\S+)`, `fingerprint:sha-256 (\S+)`,
		`candidate:\S+ 1 udp \S+ (\S+ \S+)`, `candidate:\S+ 1 udp \S+ (\S+)`, `o=- (\d+)`} {
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(sdp, -1)
		if len(found) == 0 {
			t.Errorf("the description has no %s", pattern)
		}
		for _, f := range found {
			out = append(out, f[1])
		}
	}
	return out
}

// TestNothingOfClientsCrosses: what another server gets, decrypted, has
// pseudonyms that are new for each join, and neither names, users, devices,
// labels, addresses nor descriptions of clients.
func TestNothingOfClientsCrosses(t *testing.T) {
	w := newWorld(t, "a")
	s := w.spy("spy")
	identity := "@wonderland:a:LOOKINGGLASS"
	join := func() *client {
		return w.server("a").joinWith("liddell", sfu.Grant{Room: theCall, Identity: identity, Name: "Alice Pleasance", Metadata: "her metadata", CanPublish: true,
			CanSubscribe: true, CanPublishData: true, CanUpdateMetadata: true, Attributes: map[string]string{"raised": "her hand"}},
			sfu.Join{AutoSubscribe: true, Attributes: map[string]string{"more": "of her"}})
	}
	var secrets []string
	for range 2 {
		alice := join()
		alice.publish(media.SourceMicrophone)
		alice.publish(media.SourceCamera, "q", "h", "f")
		_, before := s.told()
		await.Until(t, "media", func() bool { _, now := s.told(); return len(now) > len(before)+200 })
		await.Until(t, "a message to arrive", func() bool {
			_ = alice.data.Send(userPacket("hello"))
			text, _ := s.told()
			return strings.Contains(text, `"k":"data"`)
		})
		secrets = append(secrets, alice.secrets(t, "wonderland", "LOOKINGGLASS", "Pleasance", "her metadata", "raised", "her hand", "of her")...)
		alice.close()
		await.Until(t, "the end", func() bool { return w.server("a").empty() })
	}
	text, packets := s.told()
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("%q was told", secret)
		}
		for _, p := range packets {
			if len(secret) > 3 && bytes.Contains(p, []byte(secret)) {
				t.Errorf("%q is in a packet", secret)
				break
			}
		}
	}
	pids := map[string]bool{}
	for _, m := range regexp.MustCompile(`"p":1,"id":"([^"]+)"|"p":\d+,"id":"([^"]+)"`).FindAllStringSubmatch(text, -1) {
		pids[m[1]+m[2]] = true
	}
	if len(pids) != 2 {
		t.Errorf("two joins have the pseudonyms %v", pids)
	}
	checkPackets(t, packets)
}

// checkPackets looks at the headers of what a server sends to another.
func checkPackets(t *testing.T, packets [][]byte) {
	t.Helper()
	for _, b := range packets {
		if b[1] >= 192 && b[1] <= 223 {
			continue // RTCP
		}
		var p rtp.Packet
		if err := p.Unmarshal(b); err != nil {
			t.Error(err)
			continue
		}
		if len(p.CSRC) > 0 {
			t.Error("a packet names contributing sources")
		}
		for _, id := range p.GetExtensionIDs() {
			if !slices.Contains([]uint8{1, 2, 3}, id) { // those of links
				t.Errorf("a packet has the extension %d", id)
			}
		}
	}
}

// TestClearBytes: who listens between two servers sees nothing of it, either.
func TestClearBytes(t *testing.T) {
	w := newWorld(t, "a", "b")
	x := w.between("a", "b")
	x.keep.Store(true)
	alice, bob := w.server("a").joinAs("liddell", "@wonderland:a:LOOKINGGLASS"), w.server("b").join("bob")
	w.mu.Lock()
	w.legacy["a"] = []string{"@wonderland:a:LOOKINGGLASS"}
	w.mu.Unlock()
	alice.publish(media.SourceMicrophone)
	bob.receives("@wonderland:a:LOOKINGGLASS", media.SourceMicrophone, 50)
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.seen) < 50 {
		t.Fatalf("%d packets were seen", len(x.seen))
	}
	extended := 0
	for _, p := range x.seen {
		if len(p) < 20 || p[0] != 0x90 || p[1]&0x7f != 111 {
			continue // not sound with header extensions
		}
		extended++
		if p[12] != 0xc0 || p[13] != 0xde {
			t.Fatalf("header extensions in clear: %x", p[12:20])
		}
	}
	if extended < 20 {
		t.Errorf("only %d packets have extensions", extended)
	}
	for _, secret := range alice.secrets(t, "wonderland", "LOOKINGGLASS", theCall, pid("bob"), "some sound") {
		for _, p := range x.seen {
			if len(secret) > 3 && bytes.Contains(p, []byte(secret)) {
				t.Errorf("%q is in a packet", secret)
				break
			}
		}
	}
}
