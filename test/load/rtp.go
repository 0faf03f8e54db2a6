package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// rtpOptions are the flags of mode rtp.
type rtpOptions struct {
	calls        string
	passes       int
	key, secret  string
	alternate    string
	alternatePID int
}

// target is a server that is measured.
type target struct {
	name  string
	pid   int
	admit func(ctx context.Context, n int) ([]admission, error)
}

// figures of one pass.
type figures struct {
	PPS, Mbit, LossPercent, P50, P90, P99, CPUMicros, RSSMB, JoinSeconds float64
	Packets, Lost, Repairs                                               int64
}

// rtpReport has all passes by call and server.
type rtpReport struct {
	Seconds float64
	Passes  map[string]map[string][]figures
	calls   []callPlan
	targets []string
}

// runRTP measures calls on one server, or on two in turn.
func runRTP(ctx context.Context, o options) (any, error) {
	plans, err := o.rtp.plans()
	if err != nil {
		return nil, err
	}
	most := 0
	for _, p := range plans {
		most = max(most, p.senders+p.listeners)
	}
	targets := []target{}
	first, err := newTarget(ctx, o, o.url, o.pid, most)
	if err != nil {
		return nil, err
	}
	targets = append(targets, first)
	if o.rtp.alternate != "" {
		second, err := newTarget(ctx, o, o.rtp.alternate, o.rtp.alternatePID, most)
		if err != nil {
			return nil, err
		}
		targets = append(targets, second)
	}
	id, err := newIdentity()
	if err != nil {
		return nil, err
	}
	report := &rtpReport{Seconds: o.duration.Seconds(), Passes: map[string]map[string][]figures{}, calls: plans}
	for _, t := range targets {
		report.targets = append(report.targets, t.name)
	}
	for _, plan := range plans {
		report.Passes[plan.Name] = map[string][]figures{}
		for pass := range o.rtp.passes {
			for _, t := range targets {
				f, err := measureCall(ctx, o, id, plan, t)
				if err != nil {
					return nil, fmt.Errorf("%s on %s: %w", plan.Name, t.name, err)
				}
				fmt.Fprintf(os.Stderr, "%s pass %d %s: %s\n", plan.Name, pass+1, t.name, f)
				report.Passes[plan.Name][t.name] = append(report.Passes[plan.Name][t.name], f)
			}
		}
	}
	return report, nil
}

func (o rtpOptions) plans() (plans []callPlan, err error) {
	for name := range strings.SplitSeq(o.calls, ",") {
		i := slices.IndexFunc(callPlans, func(p callPlan) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("no call %q", name)
		}
		plans = append(plans, callPlans[i])
	}
	return plans, nil
}

// newTarget knows a server by its URL: ws for one of the LiveKit protocol
// whose key is given, http for a homeserver that lets its users in.
func newTarget(ctx context.Context, o options, address string, pid, participants int) (target, error) {
	u, err := url.Parse(address)
	if err != nil {
		return target{}, err
	}
	name := u.Host
	if pid != 0 {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			name = strings.TrimSpace(string(comm)) + " " + u.Port()
		}
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		return target{name: name, pid: pid, admit: func(_ context.Context, n int) ([]admission, error) {
			return keyAdmissions(address, o.rtp.key, o.rtp.secret, n)
		}}, nil
	}
	o.url = address
	all, err := newPeople(ctx, o, participants)
	return target{name: name, pid: pid, admit: all.admit}, err
}

// keyAdmissions makes tokens for a new room of a LiveKit server.
func keyAdmissions(address, key, secret string, n int) ([]admission, error) {
	room, list := rand.Text(), make([]admission, n)
	for i := range list {
		claims, err := json.Marshal(map[string]any{
			"iss": key, "sub": fmt.Sprintf("load-%d", i), "exp": time.Now().Add(time.Hour).Unix(),
			"video": map[string]any{"roomJoin": true, "room": room},
		})
		if err != nil {
			return nil, err
		}
		enc := base64.RawURLEncoding
		text := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(text))
		list[i] = admission{url: address, token: text + "." + enc.EncodeToString(mac.Sum(nil))}
	}
	return list, nil
}

// people are Matrix users, one for each participant.
type people []*client

func newPeople(ctx context.Context, o options, n int) (people, error) {
	all := make(people, n)
	h := newHTTP(16)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range all {
		g.Go(func() (err error) { all[i], err = register(ctx, o, h, "call", i); return err })
	}
	return all, g.Wait()
}

// admit makes a room of n people and asks the server for the tokens of its call.
func (all people) admit(ctx context.Context, n int) ([]admission, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var room struct {
		ID string `json:"room_id"`
	}
	if err := all[0].call(ctx, "POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &room); err != nil {
		return nil, err
	}
	list := make([]admission, n)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range list {
		g.Go(func() (err error) { list[i], err = all[i].admission(ctx, room.ID); return err })
	}
	return list, g.Wait()
}

// admission joins the room and asks to be let into its call.
func (c *client) admission(ctx context.Context, room string) (a admission, err error) {
	if err := c.call(ctx, "POST", "/_matrix/client/v3/join/"+url.PathEscape(room), map[string]any{}, nil); err != nil {
		return a, fmt.Errorf("joining the room: %w", err)
	}
	var openID json.RawMessage
	path := "/_matrix/client/v3/user/" + url.PathEscape(c.user) + "/openid/request_token"
	if err := c.call(ctx, "POST", path, map[string]any{}, &openID); err != nil {
		return a, fmt.Errorf("asking for an OpenID token: %w", err)
	}
	var out struct{ URL, JWT string }
	err = c.call(ctx, "POST", "/livekit/jwt/sfu/get", map[string]any{"room": room, "openid_token": openID, "device_id": c.device}, &out)
	return admission{url: out.URL, token: out.JWT}, err
}

// measureCall holds one call and measures it for the duration.
func measureCall(ctx context.Context, o options, id *identity, plan callPlan, t target) (f figures, err error) {
	admissions, err := t.admit(ctx, plan.senders+plan.listeners)
	if err != nil {
		return f, err
	}
	all, took, err := startCall(ctx, id, plan, admissions)
	if err != nil {
		return f, err
	}
	defer func() { endCall(all); rest(ctx, time.Second) }()
	rest(ctx, 3*time.Second)
	for _, p := range all {
		p.recv.start()
	}
	before, err := measure(t.pid, "")
	if err != nil {
		return f, err
	}
	began := time.Now()
	rest(ctx, o.duration)
	seconds := time.Since(began).Seconds()
	after, err := measure(t.pid, "")
	if err != nil {
		return f, err
	}
	var sum result
	for _, p := range all {
		r := p.recv.finish()
		sum.bytes += r.bytes
		sum.expected += r.expected
		sum.got += r.got
		sum.repaired += r.repaired
		sum.nacked += r.nacked
		sum.latency = append(sum.latency, r.latency...)
	}
	f.JoinSeconds = took.Seconds()
	f.fill(sum, seconds, before, after)
	return f, ctx.Err()
}

func (f *figures) fill(sum result, seconds float64, before, after usage) {
	f.Packets, f.Lost, f.Repairs = sum.got, max(sum.expected-sum.got, 0), sum.repaired
	f.PPS = float64(sum.got) / seconds
	f.Mbit = float64(sum.bytes) * 8 / seconds / 1e6
	if sum.expected > 0 {
		f.LossPercent = 100 * float64(f.Lost) / float64(sum.expected)
	}
	if sum.got > 0 {
		f.CPUMicros = (after.cpuSeconds - before.cpuSeconds) * 1e6 / float64(sum.got)
	}
	f.RSSMB = float64(after.rssBytes) / 1e6
	slices.Sort(sum.latency)
	at := func(q float64) float64 {
		if len(sum.latency) == 0 {
			return 0
		}
		return float64(sum.latency[int(q*float64(len(sum.latency)-1))]) / 1000
	}
	f.P50, f.P90, f.P99 = at(0.5), at(0.9), at(0.99)
}

// rest waits, or until the run is interrupted.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (f figures) String() string {
	return fmt.Sprintf("%.0f packets/s, %.1f Mb/s, loss %.3f %%, p50 %.2f p90 %.2f p99 %.2f ms, %.2f µs CPU a packet, RSS %.0f MB, joined in %.2f s, %d repairs",
		f.PPS, f.Mbit, f.LossPercent, f.P50, f.P90, f.P99, f.CPUMicros, f.RSSMB, f.JoinSeconds, f.Repairs)
}

// median of one figure of the passes.
func median(passes []figures, pick func(figures) float64) float64 {
	list := make([]float64, len(passes))
	for i, f := range passes {
		list[i] = pick(f)
	}
	slices.Sort(list)
	if len(list) == 0 {
		return 0
	}
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// String is a table of the medians in Markdown, with the second server's CPU
// as a multiple of the first one's.
func (r *rtpReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians of passes of %.0f s; CPU is utime+stime of the server's process by packets that arrived.\n\n", r.Seconds)
	b.WriteString("| call | server | packets/s | Mb/s | loss % | p50 ms | p90 ms | p99 ms | CPU µs/packet | RSS MB | all joined, s |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, plan := range r.calls {
		var cpu []float64
		for _, t := range r.targets {
			m := func(pick func(figures) float64) float64 { return median(r.Passes[plan.Name][t], pick) }
			cpu = append(cpu, m(func(f figures) float64 { return f.CPUMicros }))
			fmt.Fprintf(&b, "| %s | %s | %.0f | %.1f | %.3f | %.2f | %.2f | %.2f | %.2f | %.0f | %.2f |\n", plan.Name, t,
				m(func(f figures) float64 { return f.PPS }), m(func(f figures) float64 { return f.Mbit }),
				m(func(f figures) float64 { return f.LossPercent }), m(func(f figures) float64 { return f.P50 }),
				m(func(f figures) float64 { return f.P90 }), m(func(f figures) float64 { return f.P99 }), cpu[len(cpu)-1],
				m(func(f figures) float64 { return f.RSSMB }), m(func(f figures) float64 { return f.JoinSeconds }))
		}
		if len(cpu) == 2 && cpu[0] > 0 {
			fmt.Fprintf(&b, "| %s | CPU of the second / of the first | | | | | | | %.2f | | |\n", plan.Name, cpu[1]/cpu[0])
		}
	}
	b.WriteString("\n")
	for _, plan := range r.calls {
		fmt.Fprintf(&b, "- %s: %s\n", plan.Name, plan.description)
	}
	return b.String()
}
