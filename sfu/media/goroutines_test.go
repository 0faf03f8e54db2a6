package media

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/pion/webrtc/v4"
)

// clientsEnv makes the test's binary a process of clients.
const clientsEnv = "PARLEY_TEST_MEDIA_CLIENTS"

func TestMain(m *testing.M) {
	if os.Getenv(clientsEnv) != "" {
		clients()
		return
	}
	os.Exit(m.Run())
}

// clients makes an offer for each line on standard input that is an empty
// string, and takes the others as answers to the last offer.
func clients() {
	out := json.NewEncoder(os.Stdout)
	var pc *webrtc.PeerConnection
	for in := json.NewDecoder(bufio.NewReader(os.Stdin)); ; {
		var answer string
		if in.Decode(&answer) != nil {
			return
		}
		if answer == "" {
			sdp, err := "", error(nil)
			if pc, sdp, err = someOffer(); err != nil {
				panic(err)
			}
			_ = out.Encode(sdp)
		} else if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
			panic(err)
		}
	}
}

// someOffer is that of a client with sound and data channels.
func someOffer() (*webrtc.PeerConnection, string, error) {
	pc, err := newPC()
	if err != nil {
		return nil, "", err
	}
	if _, err = pc.AddTransceiverFromKind(webrtc.RTPCodecTypeAudio, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
		return nil, "", err
	}
	for _, label := range []string{"_reliable", "_lossy"} {
		dc, err := pc.CreateDataChannel(label, nil)
		if err != nil {
			return nil, "", err
		}
		dc.OnOpen(func() { _ = dc.SendText("open") })
	}
	o, err := pc.CreateOffer(nil)
	if err != nil {
		return nil, "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(o); err != nil {
		return nil, "", err
	}
	<-gathered
	return pc, pc.LocalDescription().SDP, nil
}

// TestGoroutines counts what a participant with media and data channels costs,
// and that nothing is left of a room. The clients are another process.
func TestGoroutines(t *testing.T) {
	b := newTestbed(t)
	b.settle()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clientsEnv+"=1")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	in, out := json.NewEncoder(stdin), json.NewDecoder(bufio.NewReader(stdout))
	before := runtime.NumGoroutine()
	const n = 10
	open := make(chan string, 100)
	for range n {
		p, err := b.room.NewPeer(PeerConfig{SID: "PA_x", Events: PeerEvents{Data: func(label string, _ []byte) { open <- label }}})
		must(t, err)
		must(t, in.Encode(""))
		var offer string
		must(t, out.Decode(&offer))
		a, err := p.Answer(offer)
		must(t, err)
		must(t, in.Encode(a.SDP))
	}
	for range 2 * n {
		next(t, "a data channel", open, nil)
	}
	// Three are those of an SCTP association.
	until(t, "the handshakes have ended", func() bool { return runtime.NumGoroutine()-before <= 3*n })
	t.Logf("%d goroutines for %d participants", runtime.NumGoroutine()-before, n)
	b.room.Close()
	until(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
