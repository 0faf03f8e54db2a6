package signal

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	"parley/sfu"
)

// Fields of DataPacket, and of the UserPacket in it, that the server reads or
// writes. All others pass as they are.
const (
	packetUser         = 2
	packetIdentity     = 4
	packetDestinations = 5
	packetSequence     = 16
	packetSID          = 17

	userSID              = 1
	userDestinationSIDs  = 3
	userIdentity         = 5
	userDestinationNames = 6
)

// maxDestinations bounds the recipients that a packet may name.
const maxDestinations = 1_000

var errPacket = errors.New("signal: bad data packet")

// Packets reads and writes the packets of data channels.
type Packets struct{}

// Stamp puts the true sender into a DataPacket and says where it goes.
func (Packets) Stamp(msg []byte, identity, sid string) (sfu.DataPacket, error) {
	d := sfu.DataPacket{Msg: make([]byte, 0, len(msg)+len(identity)+len(sid)+8)}
	err := fields(msg, func(num protowire.Number, raw, value []byte, n uint64) error {
		switch num {
		case packetIdentity, packetSID:
			return nil
		case packetDestinations:
			d.Identities = append(d.Identities, string(value))
		case packetSequence:
			d.Sequence = uint32(n)
		case packetUser:
			user, err := stampUser(&d, value, identity, sid)
			if err != nil {
				return err
			}
			d.Msg = protowire.AppendTag(d.Msg, packetUser, protowire.BytesType)
			d.Msg = protowire.AppendBytes(d.Msg, user)
			return nil
		}
		d.Msg = append(d.Msg, raw...)
		return nil
	})
	if err != nil || len(d.Identities)+len(d.SIDs) > maxDestinations {
		return sfu.DataPacket{}, errPacket
	}
	d.Msg = appendString(d.Msg, packetIdentity, identity)
	d.Msg = appendString(d.Msg, packetSID, sid)
	return d, nil
}

// stampUser does the same in the packet of an application.
func stampUser(d *sfu.DataPacket, msg []byte, identity, sid string) ([]byte, error) {
	out := make([]byte, 0, len(msg)+len(identity)+len(sid)+8)
	err := fields(msg, func(num protowire.Number, raw, value []byte, _ uint64) error {
		switch num {
		case userSID, userIdentity:
			return nil
		case userDestinationSIDs:
			d.SIDs = append(d.SIDs, string(value))
		case userDestinationNames:
			d.Identities = append(d.Identities, string(value))
		}
		out = append(out, raw...)
		return nil
	})
	out = appendString(out, userSID, sid)
	return appendString(out, userIdentity, identity), err
}

// fields calls f for each field of a message: its bytes with the tag, and its
// value as bytes or as a number.
func fields(msg []byte, f func(num protowire.Number, raw, value []byte, n uint64) error) error {
	for len(msg) > 0 {
		num, typ, tag := protowire.ConsumeTag(msg)
		if tag < 0 {
			return errPacket
		}
		size := protowire.ConsumeFieldValue(num, typ, msg[tag:])
		if size < 0 {
			return errPacket
		}
		var value []byte
		var n uint64
		switch typ {
		case protowire.BytesType:
			value, _ = protowire.ConsumeBytes(msg[tag:])
		case protowire.VarintType:
			n, _ = protowire.ConsumeVarint(msg[tag:])
		}
		if err := f(num, msg[:tag+size], value, n); err != nil {
			return err
		}
		msg = msg[tag+size:]
	}
	return nil
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}
