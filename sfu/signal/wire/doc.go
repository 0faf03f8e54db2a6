// Package wire has the messages of the signalling protocol, generated from
// wire.proto.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative wire.proto
