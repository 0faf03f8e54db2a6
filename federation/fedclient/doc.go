// Package fedclient talks to other servers: it finds them, connects to the
// address that was checked, verifies their certificate, signs requests, and
// reads answers only up to what the endpoint may need.
//
// It implements what other packages declare that they need of other servers
// (room.Remote, e2e.Remote, keys.Fetcher, sender.Transport). Signatures and
// hashes of events in answers are not checked here; that they are well-formed
// JSON of bounded size is.
//
// It keeps nothing on disk. Its goroutines are those of net/http and of
// discovery, and end with Close or with the time limit of the request.
//
// spec: server-server API
package fedclient
