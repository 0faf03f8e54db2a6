// Command load puts a bounded load on any Matrix homeserver and reports what
// it does: events per second, send latency, send-to-sync latency, and, for a
// server on the same machine, its CPU time, memory and disk.
//
//	go run ./test/load -url http://localhost:8008 -secret S -pid 123 send
//	go run ./test/load -url … idle      many long-polls that wait
//	go run ./test/load -url … initial   first sync of a user in many rooms
//	go run ./test/load -url … rtp       calls: RTP through the server's SFU
//	go run ./test/load cascade          calls across servers, simulated
//
// Mode rtp speaks the LiveKit client protocol, so it measures any server of
// it: -url http://… is a homeserver that admits to calls, -url ws://… a server
// whose -key and -key-secret are known; -alternate measures a second one in
// turn with the first.
//
// It needs accounts: by a shared secret (-secret), a registration token
// (-token), or open registration.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"time"
)

// options are the flags.
type options struct {
	url, secret, token string
	senders, rooms     int
	receivers          int
	rate               float64
	duration           time.Duration
	pid                int
	dir                string
	pollers            int
	members            int
	asJSON             bool
	encrypted          bool
	printToken         bool
	rtp                rtpOptions
	sim                simOptions
}

func main() {
	var o options
	flag.StringVar(&o.url, "url", "http://localhost:8008", "base `URL` of the client API")
	flag.StringVar(&o.secret, "secret", "", "shared secret for /_synapse/admin/v1/register")
	flag.StringVar(&o.token, "token", "", "registration token")
	flag.IntVar(&o.senders, "senders", 64, "clients that send")
	flag.IntVar(&o.rooms, "rooms", 16, "rooms they send to")
	flag.IntVar(&o.receivers, "receivers", 16, "clients that sync")
	flag.Float64Var(&o.rate, "rate", 0, "events per second of all senders together; 0: as fast as answers come")
	flag.DurationVar(&o.duration, "duration", 20*time.Second, "how long to send (at most 10m)")
	flag.IntVar(&o.pid, "pid", 0, "process of the server, for CPU and memory")
	flag.StringVar(&o.dir, "dir", "", "data `folder` of the server, for disk use")
	flag.IntVar(&o.pollers, "pollers", 10000, "idle: waiting long-polls")
	flag.IntVar(&o.members, "members", 1, "initial: further members of each room")
	flag.BoolVar(&o.asJSON, "json", false, "print one JSON object")
	flag.BoolVar(&o.encrypted, "encrypted", false, "send m.room.encrypted events of a usual size")
	flag.BoolVar(&o.printToken, "print-token", false, "initial: print the access token of the user in all rooms, to sync again after a restart")
	flag.StringVar(&o.rtp.calls, "calls", "1x20,10x10,1x100audio,1x200", "rtp: calls to measure (also 1x20layers)")
	flag.IntVar(&o.rtp.passes, "passes", 3, "rtp: passes of each call")
	flag.StringVar(&o.rtp.key, "key", "devkey", "rtp: API key of a LiveKit server")
	flag.StringVar(&o.rtp.secret, "key-secret", "secret", "rtp: secret of that key")
	flag.StringVar(&o.rtp.alternate, "alternate", "", "rtp: `URL` of a second server, measured in turn")
	flag.IntVar(&o.rtp.alternatePID, "alternate-pid", 0, "rtp: process of the second server")
	flag.StringVar(&o.sim.sizes, "sizes", "3x10,10x10,20x10,50x10", "cascade: calls to simulate, servers x users of each")
	flag.IntVar(&o.sim.view, "view", 10, "cascade: pictures that a user sees, the first of them big")
	flag.IntVar(&o.sim.mics, "mics", 10, "cascade: microphones that are on")
	flag.BoolVar(&o.sim.own, "own-view", false, "cascade: everybody looks at others, instead of all at the same few")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Usage: load [flags] send | idle | initial | rtp | cascade")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, mode string) error {
	if err := o.check(); err != nil {
		return err
	}
	var report any
	var err error
	switch mode {
	case "send":
		report, err = runSend(ctx, o)
	case "idle":
		report, err = runIdle(ctx, o)
	case "initial":
		report, err = runInitial(ctx, o)
	case "rtp":
		report, err = runRTP(ctx, o)
	case "cascade":
		report, err = runCascade(ctx, o)
	default:
		return fmt.Errorf("say send, idle, initial, rtp or cascade, not %q", mode)
	}
	if err != nil {
		return err
	}
	if o.asJSON {
		return json.NewEncoder(os.Stdout).Encode(report)
	}
	fmt.Print(report)
	return nil
}

// check keeps the load bounded and on this machine.
func (o options) check() error {
	for _, address := range []string{o.url, o.rtp.alternate} {
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		if h := u.Hostname(); address != "" && h != "localhost" && h != "127.0.0.1" && h != "::1" {
			return fmt.Errorf("%s is not on this machine; loading other people's servers is not what this is for", h)
		}
	}
	if o.duration > 10*time.Minute || o.senders > 10_000 || o.rooms > 100_000 || o.receivers > 10_000 || o.pollers > 20_000 || o.rooms < 1 || o.rtp.passes < 1 || o.rtp.passes > 100 {
		return fmt.Errorf("a figure is out of range")
	}
	return nil
}
