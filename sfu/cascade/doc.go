// Package cascade joins calls of several servers: each client is connected to
// its own server only, and the servers pass on to each other what their clients
// want to see and hear.
//
// There is one link for each pair of servers: one ICE, DTLS and SRTP connection
// (media.Trunk), over which the tracks of all calls go and, on a data channel,
// the messages about them. The two descriptions of the connection travel in one
// federation request signed by the homeserver and its answer, so that the
// certificates at both ends are vouched for by the servers' keys. The server
// with the smaller name dials; the other one asks it to.
//
// A call on a link is open once both servers said so, which they do only while
// one of their own clients takes part and the other server has a user in the
// room and is allowed there. Each then tells of its own clients and their
// tracks, never of guests: nothing goes from link to link. The receiving server
// says which layers its clients want; those go over the link as they came from
// the publisher, each at most once.
//
// A Service is an actor: all of its state belongs to its inbox. What concerns a
// call runs in the call's own actor (type call); the two talk by queueing
// functions. Nothing blocks either: requests to other servers and questions
// about rooms have short-lived goroutines, which Close waits for. All state is
// in memory only; what crosses a link names people by pseudonyms and never
// bears an address, a name or a device of a client. Logs name servers only.
package cascade
