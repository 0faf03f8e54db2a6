package e2e

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"parley/internal/httpx"
	"parley/internal/jsonx"
	"parley/internal/mxid"
	"parley/keys/vault"
	"parley/storage"
	"parley/storage/intern"
)

// Limits of to-device messages.
const (
	maxQueued        = 10_000   // messages waiting for one device; the oldest go first
	maxMessageBytes  = 64 << 10 // content of one, as of an event
	maxMessages      = 4000     // deliveries of one request or EDU
	maxDeliveryBytes = 5 << 20  // of one request or EDU; a transaction takes 8 MiB
	maxEDUBytes      = 256 << 10
	maxEventType     = 255
	maxTransactions  = 1024 // remembered per user
	maxMessageIDs    = 4096 // remembered per server
	defaultToDevice  = 100  // spec: "100 messages is recommended as a reasonable limit"
)

// allDevices stands for every device of a user.
const allDevices = mxid.DeviceID("*")

// toDeviceEvent is a message as the client gets it.
type toDeviceEvent struct {
	Content json.RawMessage `json:"content"`
	Sender  mxid.UserID     `json:"sender"`
	Type    string          `json:"type"`
}

// toDeviceEDU is the content of m.direct_to_device.
// spec: server-server API, "m.direct_to_device"
type toDeviceEDU struct {
	Sender    mxid.UserID                                       `json:"sender"`
	Type      string                                            `json:"type"`
	MessageID string                                            `json:"message_id"`
	Messages  map[mxid.UserID]map[mxid.DeviceID]json.RawMessage `json:"messages"`
}

// delivery is one message for one local device.
type delivery struct {
	owned
	event json.RawMessage
}

// queueState is row td<uid><device>: how many messages wait, and the position
// from which on they are the device's. What stands before was left by a
// device of the same name that has been removed.
type queueState struct {
	count uint32
	from  uint64
	day   uint32 // of the oldest message, which the queue's timer has; 0: it has none
}

func (q queueState) encode() []byte {
	return storage.Key(nil).U32(q.count).U64(q.from).U32(q.day)
}

func readQueue(get get, o owned) (q queueState, found bool, err error) {
	value, err := get(o.key("td"))
	if isNotFound(err) {
		return q, false, nil
	}
	if err != nil {
		return q, false, err
	}
	if len(value) != 16 {
		return q, false, fmt.Errorf("%w: row of family td", storage.ErrCorrupt)
	}
	return queueState{storage.ReadU32(value, 0), storage.ReadU64(value, 4), storage.ReadU32(value, 12)}, true, nil
}

// maxQueues bounds the queue states in memory, of some 100 bytes each.
const maxQueues = 1 << 16

// queueOf is the state of a device's queue, all zero if it never had a message.
// It is mostly known from memory: every sync asks for it.
func (s *Service) queueOf(ctx context.Context, o owned) (queueState, error) {
	q, known, gen := s.queues.get(o.id())
	if known {
		return q, nil
	}
	q, _, err := readQueue(s.reader(ctx), o)
	if err == nil {
		s.queues.put(o.id(), q, gen)
	}
	return q, err
}

// queueChanged makes queueOf read again once the transaction is durable.
func (s *Service) queueChanged(tx *storage.Tx, o owned) {
	tx.OnCommit(func() { s.queues.drop(o.id()) })
}

// messages is the range of positions from <= position <= to.
func (o owned) messages(from, to uint64) storage.Range {
	return storage.Range{Lo: o.key("td").U64(from), Hi: append(o.key("td").U64(to), 0)}
}

// SendToDevice delivers to local devices ("*": all) and queues for others.
// The same txnKey (device + txn ID) delivers once.
// spec: client-server API, "Send-to-Device messaging"
func (s *Service) SendToDevice(ctx context.Context, sender mxid.UserID, txnKey, typ string, msgs map[mxid.UserID]map[mxid.DeviceID]json.RawMessage) error {
	if err := checkMessages(typ, msgs); err != nil {
		return err
	}
	uid, err := s.owner(ctx, sender)
	if err != nil {
		return fmt.Errorf("send to devices: %w", err)
	}
	local, remote := map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{}, map[mxid.ServerName]map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{}
	for u, devices := range msgs {
		if s.local(u) {
			local[u] = devices
			continue
		}
		if _, err := mxid.ParseUserID(string(u)); err != nil {
			return httpx.InvalidParam("A user ID is not valid")
		}
		if remote[u.Server()] == nil {
			remote[u.Server()] = map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{}
		}
		remote[u.Server()][u] = devices
	}
	deliveries, err := s.deliveries(ctx, sender, typ, local)
	if err != nil {
		return fmt.Errorf("send to devices: %w", err)
	}
	edus := splitEDUs(sender, typ, remote)
	err = s.do(ctx, func(tx *storage.Tx) error {
		ring := storage.K("xt").U32(uint32(uid))
		if before, err := seen(tx, ring, s.hash16("to-device transaction", txnKey), maxTransactions); err != nil || before {
			return err
		}
		for _, e := range edus {
			if err := s.queue(tx, []mxid.ServerName{e.server}, "m.direct_to_device", e.edu); err != nil {
				return err
			}
		}
		return s.deliver(tx, deliveries)
	})
	if err != nil {
		return fmt.Errorf("send to devices: %w", err)
	}
	s.wakeFor(deliveries)
	return nil
}

// checkMessages checks the limits of a request or EDU.
func checkMessages(typ string, msgs map[mxid.UserID]map[mxid.DeviceID]json.RawMessage) error {
	if typ == "" || len(typ) > maxEventType {
		return httpx.InvalidParam("Event types have 1 to %d bytes", maxEventType)
	}
	n, size := 0, 0
	for _, devices := range msgs {
		for d, content := range devices {
			n++
			size += len(content)
			if len(content) > maxMessageBytes {
				return httpx.TooLarge("Messages to devices have at most %d bytes", maxMessageBytes)
			}
			if len(d) > mxid.MaxLen {
				return httpx.InvalidParam("A device ID is not valid")
			}
			if err := jsonx.Check(content, jsonx.Limits{MaxDepth: 64, MaxKeys: 8192, Object: true}); err != nil {
				return httpx.BadJSON("A message is not a JSON object")
			}
		}
	}
	if n > maxMessages || size > maxDeliveryBytes {
		return httpx.TooLarge("At most %d messages and %d bytes can be sent at once", maxMessages, maxDeliveryBytes)
	}
	return nil
}

// deliveries finds the local devices that messages are for. Devices that
// don't exist get none.
func (s *Service) deliveries(ctx context.Context, sender mxid.UserID, typ string, msgs map[mxid.UserID]map[mxid.DeviceID]json.RawMessage) ([]delivery, error) {
	var out []delivery
	size := 0
	for _, u := range sortedKeys(msgs) {
		uid, err := s.owner(ctx, u)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := s.cfg.Devices.DeviceNames(ctx, u)
		if err != nil {
			return nil, fmt.Errorf("device names: %w", err)
		}
		for _, d := range sortedKeys(names) {
			content, ok := msgs[u][d]
			if !ok {
				if content, ok = msgs[u][allDevices]; !ok {
					continue
				}
			}
			event, err := json.Marshal(toDeviceEvent{content, sender, typ})
			if err != nil {
				return nil, err
			}
			size += len(event)
			out = append(out, delivery{s.owned(u, uid, d), event})
		}
	}
	if len(out) > maxMessages || size > maxDeliveryBytes+maxMessages*maxEventType {
		return nil, httpx.TooLarge("The messages are for too many devices at once")
	}
	return out, nil
}

// deliver puts messages into the queues of their devices.
func (s *Service) deliver(tx *storage.Tx, all []delivery) error {
	for _, d := range all {
		err := s.deliverOne(tx, d)
		if errors.Is(err, vault.ErrDestroyed) {
			continue // the account has just been deactivated
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) deliverOne(tx *storage.Tx, d delivery) error {
	q, found, err := readQueue(tx.Get, d.owned)
	if err != nil {
		return err
	}
	pos := tx.NextPos()
	if !found {
		q.from = pos
	}
	if q.count >= maxQueued {
		rows, err := tx.Scan(d.messages(q.from, pos), false, 1)
		if err != nil {
			return err
		}
		for _, row := range rows {
			tx.Delete(row.Key)
			q.count--
		}
	}
	key := d.key("td").U64(pos)
	today := dayOf(s.cfg.Clock.Now())
	sealed, err := s.sealMessage(d.owned, key, today, d.event)
	if err != nil {
		return err
	}
	q.count++
	if q.day == 0 {
		q.setDay(tx, d.owned, today)
	}
	tx.Put(key, sealed)
	tx.Put(d.key("td"), q.encode())
	s.queueChanged(tx, d.owned)
	return nil
}

func (s *Service) wakeFor(all []delivery) {
	uids := make([]uint32, 0, len(all))
	for _, d := range all {
		uids = append(uids, uint32(d.uid))
	}
	slices.Sort(uids)
	s.wake(slices.Compact(uids)...)
}

// serverEDU is an EDU for one server.
type serverEDU struct {
	server mxid.ServerName
	edu    toDeviceEDU
}

// splitEDUs makes EDUs of bounded size, each with an ID of its own.
func splitEDUs(sender mxid.UserID, typ string, remote map[mxid.ServerName]map[mxid.UserID]map[mxid.DeviceID]json.RawMessage) []serverEDU {
	var out []serverEDU
	for _, server := range sortedKeys(remote) {
		size := maxEDUBytes + 1 // begin with a new one
		for _, u := range sortedKeys(remote[server]) {
			for _, d := range sortedKeys(remote[server][u]) {
				content := remote[server][u][d]
				if size += len(content) + len(u) + len(d) + 16; size > maxEDUBytes {
					out = append(out, serverEDU{server, toDeviceEDU{sender, typ, messageID(), map[mxid.UserID]map[mxid.DeviceID]json.RawMessage{}}})
					size = len(content)
				}
				to := out[len(out)-1].edu.Messages
				if to[u] == nil {
					to[u] = map[mxid.DeviceID]json.RawMessage{}
				}
				to[u][d] = content
			}
		}
	}
	return out
}

// messageID is random. spec: "maximum length 32 codepoints"
func messageID() string {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// ReceiveToDevice takes m.direct_to_device. *httpx.Error: the EDU is wrong;
// another error: it couldn't be stored and may be sent again.
func (s *Service) ReceiveToDevice(ctx context.Context, origin mxid.ServerName, content json.RawMessage) error {
	var edu toDeviceEDU
	if err := decodeEDU(content, &edu); err != nil {
		return err
	}
	if err := s.ofOrigin(origin, edu.Sender); err != nil {
		return err
	}
	if edu.MessageID == "" || len(edu.MessageID) > 4*32 {
		return httpx.InvalidParam("The EDU's message_id is not valid")
	}
	if err := checkMessages(edu.Type, edu.Messages); err != nil {
		return err
	}
	for u := range edu.Messages {
		if !s.local(u) {
			delete(edu.Messages, u)
		}
	}
	deliveries, err := s.deliveries(ctx, edu.Sender, edu.Type, edu.Messages)
	if err != nil {
		return fmt.Errorf("take a to-device message: %w", err)
	}
	sid, err := s.cfg.Intern.Server(ctx, origin)
	if err != nil {
		return fmt.Errorf("take a to-device message: %w", err)
	}
	err = s.do(ctx, func(tx *storage.Tx) error {
		ring := storage.K("xd").U32(uint32(sid))
		id := s.hash16("to-device message", string(edu.Sender), edu.MessageID)
		if before, err := seen(tx, ring, id, maxMessageIDs); err != nil || before {
			return err
		}
		return s.deliver(tx, deliveries)
	})
	if err != nil {
		return fmt.Errorf("take a to-device message: %w", err)
	}
	s.wakeFor(deliveries)
	return nil
}

// deviceOf is a local device by its user's number, as sync knows it.
func (s *Service) deviceOf(ctx context.Context, uid intern.UID, d mxid.DeviceID) (owned, error) {
	u, err := s.cfg.Intern.UserID(ctx, uid)
	if err != nil {
		return owned{}, err
	}
	return s.owned(u, uid, d), nil
}

// ToDevice lists a device's messages with since < position <= upTo, oldest
// first, at most limit; next is the position of the last one.
func (s *Service) ToDevice(ctx context.Context, uid intern.UID, d mxid.DeviceID, since, upTo uint64, limit int) (events []json.RawMessage, next uint64, err error) {
	if limit <= 0 {
		limit = defaultToDevice
	}
	o, err := s.deviceOf(ctx, uid, d)
	if err != nil {
		return nil, 0, fmt.Errorf("to-device messages: %w", err)
	}
	q, err := s.queueOf(ctx, o)
	if err != nil || q.count == 0 {
		return nil, since, err
	}
	next = since
	for row, err := range s.cfg.KV.Scan(ctx, o.messages(max(since+1, q.from), upTo), false, limit) {
		if err != nil {
			return nil, 0, fmt.Errorf("to-device messages: %w", err)
		}
		next = storage.ReadU64(row.Key, len(row.Key)-8)
		_, event, err := s.openMessage(row)
		if errors.Is(err, vault.ErrDestroyed) {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("to-device messages: %w", err)
		}
		events = append(events, event)
	}
	return events, next, nil
}

// AckToDevice drops messages with positions <= upTo, which the client has.
func (s *Service) AckToDevice(ctx context.Context, uid intern.UID, d mxid.DeviceID, upTo uint64) error {
	o, err := s.deviceOf(ctx, uid, d)
	if err != nil {
		return fmt.Errorf("acknowledge to-device messages: %w", err)
	}
	q, err := s.queueOf(ctx, o)
	if err != nil || q.count == 0 {
		return err
	}
	first, err := s.now(ctx).scan(o.messages(q.from, upTo), false, 1)
	if err != nil || len(first) == 0 {
		return err
	}
	for more := true; more; {
		err := s.do(ctx, func(tx *storage.Tx) (err error) {
			more, err = s.ack(tx, o, upTo)
			return err
		})
		if err != nil {
			return fmt.Errorf("acknowledge to-device messages: %w", err)
		}
	}
	return nil
}

func (s *Service) ack(tx *storage.Tx, o owned, upTo uint64) (more bool, err error) {
	q, found, err := readQueue(tx.Get, o)
	if err != nil || !found {
		return false, err
	}
	rows, err := tx.Scan(o.messages(q.from, upTo), false, deleteSlice)
	if err != nil {
		return false, err
	}
	for _, row := range rows {
		tx.Delete(row.Key)
	}
	if q.count -= min(q.count, uint32(len(rows))); q.count == 0 {
		q.setDay(tx, o, 0)
	}
	tx.Put(o.key("td"), q.encode())
	s.queueChanged(tx, o)
	return len(rows) == deleteSlice, nil
}

// sweepMessages deletes a slice of what a removed device of this name left.
func (s *Service) sweepMessages(tx *storage.Tx, o owned) (more bool, err error) {
	q, found, err := readQueue(tx.Get, o)
	if err != nil {
		return false, err
	}
	r := storage.Range{Lo: o.key("td").U64(0), Hi: o.key("td").Prefix().Hi}
	if found {
		r.Hi = o.key("td").U64(q.from)
	}
	return deleteSome(tx, r)
}
