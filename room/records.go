package room

import (
	"encoding/binary"
	"errors"
	"fmt"

	"parley/internal/mxid"
	"parley/room/statetree"
	"parley/storage"
	"parley/storage/intern"
)

// This file has the rows of the core: their keys, and how their values are
// encoded. Every value starts with a version byte. All integers in keys are
// big-endian; "n" is a room-local event number.
//
//	ei <event hash 32><rid>                 n
//	ej <rid><n>                             sealed: skeleton and content of the event (body.go)
//	em <rid><n>                             meta
//	ep <rid><prev n><n>                     - (children)
//	xb <rid><missing hash 32><n>            missing prev event and who refers to it; its ID in versions 1 and 2
//	tl <rid><ord>                           n
//	tt <rid><origin ts><n>                  -
//	rc <rid>                                summary
//	mr <rid><membership><remote><uid>       n
//	mu <uid><rid>                           membership, flags, ord, n
//	mh <rid><sid>                           joined members
//	mi <uid><rid>                           sealed: stripped state
//	tx <uid><hash 16>                       rid, n, day
//	re <rid><parent n><rel kind><n>         sender, type
//	rw <rid><target hash 32><n>             kind (relation or redaction) whose target isn't here yet
//	th <rid><^latest ord><root n>           -
//	tH <rid><root n>                        thread summary

// keyEventID has the room in it, since room versions 1 and 2 have event IDs
// that anybody can choose: another room's event must not take the place of one.
func keyEventID(h [32]byte, r intern.RID) storage.Key {
	return storage.K("ei").Bytes(h[:]).U32(uint32(r))
}
func keyJSON(r intern.RID, n Num) storage.Key {
	return storage.K("ej").U32(uint32(r)).U32(uint32(n))
}
func keyMeta(r intern.RID, n Num) storage.Key {
	return storage.K("em").U32(uint32(r)).U32(uint32(n))
}
func keyChild(r intern.RID, prev, n Num) storage.Key {
	return storage.K("ep").U32(uint32(r)).U32(uint32(prev)).U32(uint32(n))
}
func keyChildren(r intern.RID, prev Num) storage.Key {
	return storage.K("ep").U32(uint32(r)).U32(uint32(prev))
}
func keyMissing(r intern.RID, h [32]byte) storage.Key {
	return storage.K("xb").U32(uint32(r)).Bytes(h[:])
}
func keyTimeline(r intern.RID, o Ord) storage.Key {
	return storage.K("tl").U32(uint32(r)).U64(uint64(o))
}
func keyTime(r intern.RID, ts int64, n Num) storage.Key {
	return storage.K("tt").U32(uint32(r)).U64(uint64(ts)).U32(uint32(n))
}
func keyRoom(r intern.RID) storage.Key { return storage.K("rc").U32(uint32(r)) }
func keyMember(r intern.RID, m Membership, remote bool, u intern.UID) storage.Key {
	return keyMembers(r, m).U8(b2u(remote)).U32(uint32(u))
}
func keyMembers(r intern.RID, m Membership) storage.Key {
	return storage.K("mr").U32(uint32(r)).U8(uint8(m))
}
func keyUserRoom(u intern.UID, r intern.RID) storage.Key {
	return storage.K("mu").U32(uint32(u)).U32(uint32(r))
}
func keyServer(r intern.RID, s intern.SID) storage.Key {
	return storage.K("mh").U32(uint32(r)).U32(uint32(s))
}
func keyStripped(u intern.UID, r intern.RID) storage.Key {
	return storage.K("mi").U32(uint32(u)).U32(uint32(r))
}
func keyTxn(u intern.UID, h [16]byte) storage.Key {
	return storage.K("tx").U32(uint32(u)).Bytes(h[:])
}
func keyRelations(r intern.RID, parent Num) storage.Key {
	return storage.K("re").U32(uint32(r)).U32(uint32(parent))
}
func keyWaiting(r intern.RID, target [32]byte) storage.Key {
	return storage.K("rw").U32(uint32(r)).Bytes(target[:])
}
func keyThreadOrder(r intern.RID, latest Ord, root Num) storage.Key {
	return storage.K("th").U32(uint32(r)).U64(^uint64(latest)).U32(uint32(root))
}
func keyThread(r intern.RID, root Num) storage.Key {
	return storage.K("tH").U32(uint32(r)).U32(uint32(root))
}

func b2u(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// errCodec is the cause of every failure to decode a row.
var errCodec = errors.New("malformed row")

func corrupt(what string) error { return fmt.Errorf("%w: %s: %w", storage.ErrCorrupt, what, errCodec) }

// encoder and decoder are the two ends of a row value: unsigned varints and
// fixed-width fields. A decoder that ran out of bytes stays failed.
type encoder struct{ b []byte }

func newEncoder(version byte) *encoder { return &encoder{b: append(make([]byte, 0, 128), version)} }

func (e *encoder) uv(v uint64)  { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) raw(b []byte) { e.b = append(e.b, b...) }
func (e *encoder) root(r statetree.Root) {
	e.uv(r.Node)
	e.b = binary.BigEndian.AppendUint64(e.b, r.Hash)
}
func (e *encoder) nums(ns []Num) {
	e.uv(uint64(len(ns)))
	for _, n := range ns {
		e.uv(uint64(n))
	}
}

type decoder struct {
	b    []byte
	fail bool
}

// newDecoder checks the version byte.
func newDecoder(b []byte, version byte) *decoder {
	if len(b) == 0 || b[0] != version {
		return &decoder{fail: true}
	}
	return &decoder{b: b[1:]}
}

func (d *decoder) uv() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) raw(n int) []byte {
	if len(d.b) < n {
		d.fail, d.b = true, nil
		return make([]byte, n)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) root() (r statetree.Root) {
	r.Node = d.uv()
	r.Hash = binary.BigEndian.Uint64(d.raw(8))
	return r
}

func (d *decoder) nums() []Num {
	n := d.uv()
	if n > uint64(len(d.b)) { // each takes a byte or more
		d.fail = true
		return nil
	}
	ns := make([]Num, n)
	for i := range ns {
		ns[i] = Num(d.uv())
	}
	return ns
}

func (d *decoder) err(what string) error {
	if d.fail {
		return corrupt(what)
	}
	return nil
}

// meta is what is known of an event beside its JSON.
type meta struct {
	flags      Flags
	state      bool // has a state key
	sender     intern.UID
	kid        intern.KID // (type, state key); of a message (type, messageKey)
	depth      int64
	ts         int64
	ord        Ord
	hash       [32]byte // mxid.EventID.Hash of its ID
	prev, auth []Num    // those that are stored; of version 12 on auth includes the create event
	redactedBy Num
	// before is the state before the event, after the state after it (equal
	// unless it is an accepted state event), current the room's state once
	// the event had arrived (differs from after only while the graph is
	// forked). All zero for outliers.
	before, after, current statetree.Root
}

// messageKey stands in the state key's place of events without one, when
// their type is numbered. A real state key can't collide with it: meta.state
// tells the two apart, and only state events enter a state tree.
const messageKey = "\x00"

const (
	metaVersion    = 1
	metaState      = 1 << 16 // beside Flags in the first field
	metaHasAfter   = 1 << 17
	metaHasCurrent = 1 << 18
)

func (m *meta) encode() []byte {
	e := newEncoder(metaVersion)
	bits := uint64(m.flags)
	if m.state {
		bits |= metaState
	}
	if m.after != m.before {
		bits |= metaHasAfter
	}
	if m.current != m.after {
		bits |= metaHasCurrent
	}
	e.uv(bits)
	e.uv(uint64(m.sender))
	e.uv(uint64(m.kid))
	e.uv(uint64(m.depth))
	e.uv(uint64(m.ts))
	e.b = binary.BigEndian.AppendUint64(e.b, uint64(m.ord))
	e.raw(m.hash[:])
	e.nums(m.prev)
	e.nums(m.auth)
	e.uv(uint64(m.redactedBy))
	e.root(m.before)
	if bits&metaHasAfter != 0 {
		e.root(m.after)
	}
	if bits&metaHasCurrent != 0 {
		e.root(m.current)
	}
	return e.b
}

func decodeMeta(b []byte) (meta, error) {
	d := newDecoder(b, metaVersion)
	bits := d.uv()
	m := meta{flags: Flags(bits), state: bits&metaState != 0}
	m.sender, m.kid = intern.UID(d.uv()), intern.KID(d.uv())
	m.depth, m.ts = int64(d.uv()), int64(d.uv())
	m.ord = Ord(binary.BigEndian.Uint64(d.raw(8)))
	copy(m.hash[:], d.raw(32))
	m.prev, m.auth = d.nums(), d.nums()
	m.redactedBy = Num(d.uv())
	m.before = d.root()
	m.after = m.before
	if bits&metaHasAfter != 0 {
		m.after = d.root()
	}
	m.current = m.after
	if bits&metaHasCurrent != 0 {
		m.current = d.root()
	}
	return m, d.err("em")
}

// summary is the rc row: what a room's owner needs to go on.
type summary struct {
	root     statetree.Root // current state
	ext      []Num          // forward extremities, oldest first
	next     Num            // next event number
	nextNode uint64         // next node of the state tree
	last     Ord            // of the newest live event
	back     Ord            // of the oldest backfilled event, LiveOrd(0) before the first
	pos      uint64         // last position that a sync must show
	depth    int64          // greatest depth of a live event
	joined   int
	invited  int
}

const summaryVersion = 1

func (s *summary) encode() []byte {
	e := newEncoder(summaryVersion)
	e.root(s.root)
	e.nums(s.ext)
	for _, v := range []uint64{uint64(s.next), s.nextNode, s.last.Pos(), uint64(liveBit - s.back), s.pos, uint64(s.depth), uint64(s.joined), uint64(s.invited)} {
		e.uv(v)
	}
	return e.b
}

func decodeSummary(b []byte) (summary, error) {
	d := newDecoder(b, summaryVersion)
	s := summary{root: d.root(), ext: d.nums()}
	s.next, s.nextNode = Num(d.uv()), d.uv()
	if p := d.uv(); p > 0 {
		s.last = LiveOrd(p)
	}
	s.back = liveBit - Ord(d.uv())
	s.pos, s.depth = d.uv(), int64(d.uv())
	s.joined, s.invited = int(d.uv()), int(d.uv())
	return s, d.err("rc")
}

// userRoom is an mu row.
type userRoom struct {
	membership Membership
	forgotten  bool
	stripped   bool // an mi row has stripped state; n is 0 if nothing more is known
	ord        Ord
	n          Num
}

func (u *userRoom) encode() []byte {
	e := newEncoder(1)
	e.uv(uint64(u.membership) | uint64(b2u(u.forgotten))<<4 | uint64(b2u(u.stripped))<<5)
	e.b = binary.BigEndian.AppendUint64(e.b, uint64(u.ord))
	e.uv(uint64(u.n))
	return e.b
}

func decodeUserRoom(b []byte) (userRoom, error) {
	d := newDecoder(b, 1)
	bits := d.uv()
	u := userRoom{membership: Membership(bits & 7), forgotten: bits&(1<<4) != 0, stripped: bits&(1<<5) != 0}
	u.ord = Ord(binary.BigEndian.Uint64(d.raw(8)))
	u.n = Num(d.uv())
	return u, d.err("mu")
}

// A single number as a value: counts in mh, event numbers in mr and tl.
func encodeNum(v uint64) []byte { return binary.AppendUvarint([]byte{1}, v) }

func decodeNum(b []byte, what string) (uint64, error) {
	d := newDecoder(b, 1)
	v := d.uv()
	return v, d.err(what)
}

// txnRow is a tx row.
type txnRow struct {
	rid intern.RID
	n   Num
	day uint32 // since 1970; the row may go a day later
}

const milliDay = 24 * 3600 * 1000

func (t *txnRow) encode() []byte {
	e := newEncoder(1)
	e.uv(uint64(t.rid))
	e.uv(uint64(t.n))
	e.uv(uint64(t.day))
	return e.b
}

func decodeTxn(b []byte) (txnRow, error) {
	d := newDecoder(b, 1)
	t := txnRow{rid: intern.RID(d.uv()), n: Num(d.uv()), day: uint32(d.uv())}
	return t, d.err("tx")
}

// relKind is how an event relates to its parent, in the key of an re row.
type relKind uint8

// The relation types of the specification.
const (
	relOther relKind = iota
	relAnnotation
	relReplace
	relThread
	relReference
)

func relKindOf(relType string) relKind {
	switch relType {
	case "m.annotation":
		return relAnnotation
	case "m.replace":
		return relReplace
	case "m.thread":
		return relThread
	case "m.reference":
		return relReference
	}
	return relOther
}

// relation is an re row: child n relates to its parent.
type relation struct {
	kind   relKind
	n      Num
	sender intern.UID
	typ    intern.KID // of (type, messageKey)
}

func (r *relation) encode() []byte {
	e := newEncoder(1)
	e.uv(uint64(r.sender))
	e.uv(uint64(r.typ))
	return e.b
}

func decodeRelation(p storage.Pair) (relation, error) {
	d := newDecoder(p.Value, 1)
	r := relation{sender: intern.UID(d.uv()), typ: intern.KID(d.uv())}
	if len(p.Key) != 2+4+4+1+4 {
		return r, corrupt("re")
	}
	r.kind, r.n = relKind(p.Key[10]), Num(storage.ReadU32(p.Key, 11))
	return r, d.err("re")
}

// thread is a tH row.
type thread struct {
	latest Ord
	last   Num // the event at latest
	count  int
	locals []intern.UID // local users who wrote in it, at most maxThreadUsers
}

const maxThreadUsers = 1000

func (t *thread) encode() []byte {
	e := newEncoder(1)
	e.b = binary.BigEndian.AppendUint64(e.b, uint64(t.latest))
	e.uv(uint64(t.last))
	e.uv(uint64(t.count))
	e.uv(uint64(len(t.locals)))
	for _, u := range t.locals {
		e.uv(uint64(u))
	}
	return e.b
}

func decodeThread(b []byte) (thread, error) {
	d := newDecoder(b, 1)
	t := thread{latest: Ord(binary.BigEndian.Uint64(d.raw(8)))}
	t.last, t.count = Num(d.uv()), int(d.uv())
	n := d.uv()
	if n > uint64(len(d.b)) {
		return t, corrupt("tH")
	}
	for range n {
		t.locals = append(t.locals, intern.UID(d.uv()))
	}
	return t, d.err("tH")
}

// idOf rebuilds an event ID from its hash. Room versions 1 and 2 have IDs
// that aren't hashes: the event's JSON has them.
func idOf(version string, hash [32]byte, fromJSON string) mxid.EventID {
	switch version {
	case "1", "2":
		return mxid.EventID(fromJSON)
	case "3":
		return mxid.EventID("$" + rawStd.EncodeToString(hash[:]))
	}
	return mxid.EventID("$" + rawURL.EncodeToString(hash[:]))
}
