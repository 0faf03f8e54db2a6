package sdp

import (
	"fmt"
	"strings"
	"testing"
)

// large is the offer of a client in a call of many: n times sound and video.
func large(tb testing.TB, n int) string {
	tb.Helper()
	raw := string(mustRead(tb, "testdata/chrome_join.sdp"))
	parts := strings.Split(raw, "\nm=")
	var b strings.Builder
	mids := make([]string, 2*n+1)
	for i := range mids {
		mids[i] = fmt.Sprint(i)
	}
	b.WriteString(strings.Replace(parts[0], "BUNDLE 0 1 2", "BUNDLE "+strings.Join(mids, " "), 1))
	for i := range 2 * n {
		b.WriteString("\nm=" + strings.Replace(parts[1+i%2], fmt.Sprintf("a=mid:%d\n", i%2), "a=mid:"+mids[i]+"\n", 1))
	}
	b.WriteString("\nm=" + strings.Replace(parts[3], "a=mid:2\n", "a=mid:"+mids[2*n]+"\n", 1))
	return b.String()
}

// BenchmarkAnswer is a renegotiation in a call of 100 with camera and sound.
func BenchmarkAnswer(b *testing.B) {
	raw := large(b, 100)
	s := testSession()
	for i := range 100 {
		s.Add(mic(fmt.Sprint(i)))
		s.Add(cam(fmt.Sprint(i), "VP8"))
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		d, err := Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if res, err := s.Answer(d, testLocal, takeAll); err != nil || len(res.Sent) != 200 {
			b.Fatal(err)
		}
	}
}
