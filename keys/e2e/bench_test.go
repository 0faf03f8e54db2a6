package e2e

import "testing"

// What every incremental sync asks for, with nothing new.
func BenchmarkIdleSync(b *testing.B) {
	n := newNetwork(b, hereName)
	f := n.servers[hereName]
	alice := f.user("alice", phone)
	_, err := f.Upload(ctx, alice, phone, UploadRequest{DeviceKeys: signedDevice(alice, phone), OneTimeKeys: manyKeys(50), FallbackKeys: otks(alice, phone, "F")})
	must(b, err)
	uid, head := f.uidOf(alice), f.commit.Head()
	b.Run("Counts", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, err := f.Counts(ctx, alice, phone)
			must(b, err)
		}
	})
	b.Run("ToDevice", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, err := f.ToDevice(ctx, uid, phone, head, head, 100)
			must(b, err)
		}
	})
	b.Run("AckToDevice", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, f.AckToDevice(ctx, uid, phone, head))
		}
	})
	b.Run("Changes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := f.Changes(ctx, alice, head, head+1)
			must(b, err)
		}
	})
}
