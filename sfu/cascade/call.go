package cascade

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	"parley/internal/mxid"
	"parley/sfu"
	"parley/sfu/media"
)

// call is a call as its own actor sees it: what goes from the core to the
// service, and the guests that the service lets in. Only the actor touches it,
// but for the methods that say so.
type call struct {
	s       *Service
	bridge  *sfu.Bridge
	alias   string
	numbers numbers
	// tracks gives this server's tracks the numbers under which others know
	// them.
	tracks map[string]uint32
	guests map[guestKey]*guest
	// refused are those whose identity somebody else has.
	refused map[guestKey]refused
	// salts hide identities that name users, by the participant's sid.
	salts map[string]string
	// remote finds a guest's track by its sid here.
	remote map[string]trackKey
}

type guestKey struct {
	server mxid.ServerName
	part   uint32
}

type trackKey struct {
	server mxid.ServerName
	track  uint32
}

// guest is a participant of another server.
type guest struct {
	*sfu.Guest
	as     refused // what it is let in as again
	tracks map[uint32]*guestTrack
}

// refused is a participant of another server whose identity is taken.
type refused struct {
	named
	trunk *media.Trunk
}

type guestTrack struct {
	track
	sid string
}

// named is a participant of another server whose identity is known.
type named struct {
	part
	identity string
}

func name(p part, identity string) named { return named{part: p, identity: identity} }

// numbers gives out numbers from 1. Safe for concurrent use.
type numbers struct{ n atomic.Uint32 }

func (n *numbers) next() uint32 { return n.n.Add(1) }

// local is a participant of this server, as told to the service.
type local struct {
	sid       string
	gone      bool
	pid, salt string
	tracks    []localTrack
}

type localTrack struct {
	track
	sid   string
	ssrcs [maxLayers]uint32
}

// Opened is sfu.Cascade's.
func (s *Service) Opened(b *sfu.Bridge) sfu.Observer {
	c := &call{s: s, bridge: b, alias: b.Name(), tracks: map[string]uint32{}, guests: map[guestKey]*guest{},
		refused: map[guestKey]refused{}, salts: map[string]string{}, remote: map[string]trackKey{}}
	s.post(func() {
		if len(c.alias) > maxAlias || s.closed {
			return
		}
		s.calls[c.alias] = &room{s: s, alias: c.alias, call: c, locals: map[uint32]part{}, bySID: map[string]uint32{}, sids: map[uint32]string{},
			sources: map[uint32][maxLayers]uint32{}, peers: map[mxid.ServerName]*presence{}}
		s.arm()
	})
	return c
}

// room runs f with the service's side of the call, in the service's inbox.
func (c *call) room(f func(*room)) {
	c.s.post(func() {
		if r := c.s.calls[c.alias]; r != nil && r.call == c {
			f(r)
		}
	})
}

// Tell is sfu.Observer's.
func (c *call) Tell(m sfu.Message) {
	u, ok := m.(*sfu.Update)
	if !ok {
		return
	}
	var out []local
	left := false
	for _, info := range u.Participants {
		left = left || info.State == sfu.Disconnected
		if info.Home != "" {
			continue // nothing goes from link to link
		}
		if l, ok := c.local(info); ok {
			out = append(out, l)
		}
	}
	if len(out) > 0 {
		c.room(func(r *room) { r.updated(out) })
	}
	if left && len(c.guests)+len(c.refused) > 0 {
		c.bridge.Do(c.reconsider)
	}
}

// reconsider lets those in whose identity has become free.
func (c *call) reconsider() {
	for k, g := range c.guests {
		if g.Gone() {
			c.leave(k)
			c.refused[k] = g.as
		}
	}
	for k, r := range c.refused {
		c.put(k.server, r.trunk, r.named)
	}
}

// local describes a participant of this server.
func (c *call) local(info *sfu.ParticipantInfo) (local, bool) {
	l := local{sid: info.SID, gone: info.State == sfu.Disconnected, pid: info.Identity}
	switch {
	case strings.HasPrefix(info.Identity, "@"):
		if c.salts[info.SID] == "" {
			c.salts[info.SID] = newNonce()
		}
		l.salt = c.salts[info.SID]
		l.pid = hide(c.alias, info.Identity, l.salt)
	case !pseudonym(info.Identity):
		return local{}, false
	}
	if l.gone {
		delete(c.salts, info.SID)
		return l, true
	}
	for i := range info.Tracks {
		if t := &info.Tracks[i]; len(l.tracks) < maxTracks && c.bridge.Exportable(t.SID) {
			l.tracks = append(l.tracks, c.track(t))
		}
	}
	return l, true
}

// track describes a track of this server.
func (c *call) track(t *sfu.TrackInfo) localTrack {
	n := c.tracks[t.SID]
	if n == 0 {
		n = c.numbers.next()
		c.tracks[t.SID] = n
	}
	coding := c.bridge.Coding(t.SID)
	out := localTrack{sid: t.SID, track: track{Track: n, Video: t.Kind == media.Video, Source: uint8(t.Source), Mime: coding.Mime, Fmtp: variant(coding.Fmtp),
		SVC: coding.SVC, Muted: t.Muted, Encryption: uint8(t.Encryption), Stereo: t.Stereo, NoDTX: t.DisableDTX,
		Width: uint16(min(t.Width, 1<<14)), Height: uint16(min(t.Height, 1<<14))}}
	for i, l := range t.Layers {
		if !out.Video || i >= maxLayers {
			break
		}
		out.ssrcs[i] = l.SSRC
		out.Layers = append(out.Layers, layer{Quality: uint8(min(l.Quality, media.High)), Width: uint16(min(max(l.Width, 0), 1<<14)),
			Height: uint16(min(max(l.Height, 0), 1<<14)), Bitrate: uint32(max(l.Bitrate, 0))})
	}
	return out
}

// variants are the parameters of codecs that tell their variants apart.
var variants = []string{"packetization-mode", "profile-level-id", "level-asymmetry-allowed", "profile-id", "profile", "tier"}

// variant is what a decoder must know of a codec's parameters, without what else
// the client wrote into its description.
func variant(fmtp string) string {
	var out []string
	for _, p := range strings.Split(fmtp, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if slices.Contains(variants, key) && len(value) <= 6 && !strings.ContainsFunc(value, notHex) {
			out = append(out, key+"="+value)
		}
	}
	return strings.Join(out, ";")
}

func notHex(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", r) }

// hide is the pseudonym of an identity that names a user, for one join.
func hide(alias, identity, salt string) string {
	sum := sha256.Sum256([]byte("parley cascade\x00" + alias + "\x00" + salt + "\x00" + identity))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// Wanted is sfu.Observer's.
func (c *call) Wanted(sid string, qualities [3]bool) {
	k, ok := c.remote[sid]
	if !ok {
		return
	}
	mask := uint8(0)
	t := c.find(k)
	switch {
	case t == nil:
		return
	case t.SVC || len(t.Layers) <= 1:
		if qualities != [3]bool{} {
			mask = 1
		}
	default:
		for i, l := range t.Layers {
			if qualities[l.Quality] {
				mask |= 1 << i
			}
		}
	}
	c.room(func(r *room) {
		if x := r.peers[k.server]; x != nil {
			x.want(k.track, mask)
		}
	})
}

func (c *call) find(k trackKey) *guestTrack {
	for gk, g := range c.guests {
		if t := g.tracks[k.track]; gk.server == k.server && t != nil {
			return t
		}
	}
	return nil
}

// Data is sfu.Observer's.
func (c *call) Data(sid string, reliable bool, d sfu.DataPacket) {
	for _, to := range d.Identities {
		if !pseudonym(to) {
			return // it would name a user
		}
	}
	if len(d.SIDs) > 0 || len(d.Msg) > maxDataWire || len(d.Identities) > maxTo {
		return // sids mean nothing elsewhere
	}
	c.room(func(r *room) { r.data(sid, reliable, d) })
}

// data passes a message of a client to the servers whose participants it is
// for.
func (r *room) data(sid string, reliable bool, d sfu.DataPacket) {
	n, known := r.bySID[sid]
	if !known {
		return
	}
	d, err := r.s.cfg.Data.Stamp(d.Msg, r.locals[n].PID, "") // the identity may name a user
	if err != nil {
		return
	}
	for _, x := range r.peers {
		if x.told && x.addressed(d.Identities) {
			x.send(&message{Kind: kindData, Part: n, Reliable: reliable, Blob: d.Msg})
		}
	}
}

// addressed reports whether any of the recipients is a participant of the
// server; none are everybody.
func (x *presence) addressed(to []string) bool {
	if len(to) == 0 {
		return true
	}
	for _, p := range x.replica.parts {
		for _, id := range to {
			if p.PID == id {
				return true
			}
		}
	}
	return false
}

// Closed is sfu.Observer's.
func (c *call) Closed() { c.room(func(r *room) { r.closed() }) }

// apply lets participants of another server in, changes them and puts them out.
// Safe for concurrent use, as are the methods below.
func (c *call) apply(server mxid.ServerName, tr *media.Trunk, parts []named, gone []uint32) {
	c.bridge.Do(func() {
		for _, n := range gone {
			c.leave(guestKey{server, n})
		}
		for _, p := range parts {
			c.put(server, tr, p)
		}
	})
}

func (c *call) leave(k guestKey) {
	delete(c.refused, k)
	g := c.guests[k]
	if g == nil {
		return
	}
	for n := range g.tracks {
		c.unpublish(k.server, g, n)
	}
	delete(c.guests, k)
	g.Leave()
}

// unpublish ends a track of a guest: nothing of it is wanted any more.
func (c *call) unpublish(server mxid.ServerName, g *guest, n uint32) {
	sid := g.tracks[n].sid
	g.Unpublish(sid)
	delete(c.remote, sid)
	delete(g.tracks, n)
	c.room(func(r *room) {
		if x := r.peers[server]; x != nil {
			x.want(n, 0)
		}
	})
}

// put makes a guest what its server says of it.
func (c *call) put(server mxid.ServerName, tr *media.Trunk, p named) {
	k := guestKey{server, p.Part}
	g := c.guests[k]
	if g != nil && g.Gone() { // a client of this server has its identity now
		c.leave(k)
		g = nil
	}
	delete(c.refused, k)
	if g == nil {
		in, err := c.bridge.Join(sfu.GuestConfig{Identity: p.identity, Server: string(server), Trunk: tr})
		if errors.Is(err, sfu.ErrTaken) {
			c.refused[k] = refused{p, tr}
			return
		}
		if err != nil {
			c.s.cfg.Log.Warn("calls: a participant of another server can't come in", "server", string(server), "error", err)
			return
		}
		g = &guest{Guest: in, tracks: map[uint32]*guestTrack{}}
		c.guests[k] = g
	}
	g.as = refused{p, tr}
	for n, t := range g.tracks {
		if now := p.find(n); now == nil || !now.like(&t.track) {
			c.unpublish(server, g, n)
		}
	}
	for _, t := range p.Tracks {
		c.publish(server, g, t)
	}
}

func (p *part) find(n uint32) *track {
	for i := range p.Tracks {
		if p.Tracks[i].Track == n {
			return &p.Tracks[i]
		}
	}
	return nil
}

// like reports whether a track can go on as another describes it.
func (t *track) like(o *track) bool {
	return t.Video == o.Video && t.Source == o.Source && t.Mime == o.Mime && t.Fmtp == o.Fmtp && t.SVC == o.SVC && len(t.Layers) == len(o.Layers)
}

// publish makes a track of a guest, or mutes it.
func (c *call) publish(server mxid.ServerName, g *guest, t track) {
	if old := g.tracks[t.Track]; old != nil {
		if old.Muted != t.Muted {
			old.Muted = t.Muted
			g.Mute(old.sid, t.Muted)
		}
		return
	}
	a := sfu.AddTrack{Kind: media.Audio, Source: media.Source(t.Source), Muted: t.Muted, Width: uint32(t.Width), Height: uint32(t.Height),
		Stereo: t.Stereo, DisableDTX: t.NoDTX, Encryption: int32(t.Encryption)}
	if t.Video {
		a.Kind = media.Video
	}
	for _, l := range t.Layers {
		a.Layers = append(a.Layers, media.Layer{Quality: media.Quality(l.Quality), Width: int(l.Width), Height: int(l.Height), Bitrate: int(l.Bitrate)})
	}
	x := &guestTrack{track: t}
	sid, err := g.Publish(a, media.Coding{Mime: t.Mime, Fmtp: t.Fmtp, SVC: t.SVC})
	if err != nil {
		c.s.cfg.Log.Warn("calls: a track of another server can't come in", "server", string(server), "error", err)
		return
	}
	x.sid = sid
	g.tracks[t.Track] = x
	c.remote[sid] = trackKey{server, t.Track}
}

// flow says where the layers of a guest's track come.
func (c *call) flow(server mxid.ServerName, n uint32, flows []flow) {
	c.bridge.Do(func() {
		for k, g := range c.guests {
			t := g.tracks[n]
			if k.server != server || t == nil {
				continue
			}
			out := make([]media.Flow, len(flows))
			for i, f := range flows {
				out[i] = media.Flow{Layer: int(f.Layer), SSRC: f.SSRC, RTX: f.RTX}
			}
			g.Flow(t.sid, out)
		}
	})
}

// data passes a message of a guest to the clients here.
func (c *call) data(server mxid.ServerName, n uint32, reliable bool, msg []byte) {
	c.bridge.Do(func() {
		if g := c.guests[guestKey{server, n}]; g != nil {
			g.Data(reliable, msg)
		}
	})
}

// vanished puts out all participants of a server.
func (c *call) vanished(server mxid.ServerName) {
	c.bridge.Do(func() {
		for k := range c.guests {
			if k.server == server {
				c.leave(k)
			}
		}
		for k := range c.refused {
			if k.server == server {
				delete(c.refused, k)
			}
		}
	})
}

// export makes exports of layers of a track; false when the call has ended.
func (c *call) export(sid string, tr *media.Trunk, layers []int, done func(map[int]*media.Export)) bool {
	return c.bridge.Do(func() {
		made := map[int]*media.Export{}
		for _, l := range layers {
			x, err := c.bridge.Export(sid, tr, l, 0)
			if err != nil {
				c.s.cfg.Log.Debug("calls: a track can't go to another server", "error", err)
				continue
			}
			made[l] = x
		}
		done(made)
	})
}
