package keys

import (
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
)

func BenchmarkBuildEvent(b *testing.B) {
	s := newSigner(b, "a.example")
	v := gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersionV11)
	proto := gomatrixserverlib.ProtoEvent{
		SenderID: "@user:a.example", RoomID: "!room:a.example", Type: "m.room.message", Depth: 1000,
		Content:    []byte(`{"body":"Hello, this is a message of a usual length, with some words.","msgtype":"m.text"}`),
		PrevEvents: []string{"$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
		AuthEvents: []string{"$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "$baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "$caaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
	}
	b.ReportAllocs()
	for b.Loop() {
		p := proto
		if _, err := s.BuildEvent(v.NewEventBuilderFromProtoEvent(&p), gomatrixserverlib.RoomVersionV11, 123456); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignJSON(b *testing.B) {
	s := newSigner(b, "a.example")
	in := []byte(`{"content":{"body":"Hello, this is a message of a usual length"},"sender":"@user:a.example","type":"m.room.message"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.SignJSON(in); err != nil {
			b.Fatal(err)
		}
	}
}
