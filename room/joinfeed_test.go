package room

import (
	"testing"

	"parley/internal/mxid"
)

// TestJoinFeedTellsOnce: joins that come while a user waits are told of
// together, one that comes while they are told of is told of again.
func TestJoinFeedTellsOnce(t *testing.T) {
	var s Service
	f := newJoinFeed()
	told, begun, goOn := map[mxid.UserID]int{}, make(chan mxid.UserID), make(chan struct{})
	f.tell = func(u mxid.UserID) {
		told[u]++ // one goroutine at a time
		begun <- u
		<-goOn
	}
	f.add(&s, alice)
	<-begun
	for range 100 {
		f.add(&s, bob)
		f.add(&s, alice)
	}
	for range 2 {
		goOn <- struct{}{}
		<-begun
	}
	goOn <- struct{}{}
	f.inbox.Close()
	if told[alice] != 2 || told[bob] != 1 {
		t.Errorf("told %v", []int{told[alice], told[bob]})
	}
}
