package netns

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"parley/test/caller"
)

// The clients are processes of this test, each in its namespace, that do what
// they are told: a line of JSON for each order, and one for each answer.

const clientVar = "PARLEY_NETNS_CLIENT" // PEM file of the authority to trust

type order struct {
	Do     string // "ask" or "join", "heard"
	Method string
	URL    string
	Token  string
	Body   json.RawMessage
	From   netip.Addr
}

type answer struct {
	Status int
	Body   json.RawMessage
	Heard  map[string]int
	Err    string
}

func TestMain(m *testing.M) {
	if ca := os.Getenv(clientVar); ca != "" {
		obey(ca)
		return
	}
	os.Exit(m.Run())
}

// obey is the client's process.
func obey(ca string) {
	pem, err := os.ReadFile(ca)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		fmt.Fprintln(os.Stderr, "no authority", err)
		os.Exit(1)
	}
	web := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	var call *caller.Caller
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o order
		var a answer
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			a.Err = err.Error()
		}
		switch o.Do {
		case "ask":
			a = ask(web, o)
		case "join":
			signalling := &http.Client{Transport: web.Transport}
			if call, err = caller.Join(context.Background(), caller.Options{HTTP: signalling, Base: o.URL, Token: o.Token, Address: o.From, Speaks: true}); err != nil {
				a.Err = err.Error()
			}
		case "heard":
			a.Heard = map[string]int{}
			var of []string
			_ = json.Unmarshal(o.Body, &of)
			for _, id := range of {
				a.Heard[id] = call.Heard(id)
			}
		}
		_ = out.Encode(a)
	}
}

func ask(web *http.Client, o order) (a answer) {
	req, err := http.NewRequest(o.Method, o.URL, bytes.NewReader(o.Body))
	if err != nil {
		return answer{Err: err.Error()}
	}
	if o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+o.Token)
	}
	res, err := web.Do(req)
	if err != nil {
		return answer{Err: err.Error()}
	}
	defer res.Body.Close()
	a.Status = res.StatusCode
	if a.Body, err = io.ReadAll(res.Body); err != nil {
		a.Err = err.Error()
	}
	return a
}
