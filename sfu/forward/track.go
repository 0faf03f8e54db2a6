package forward

// TrackConfig makes a Track.
type TrackConfig struct {
	Kind   Kind
	Layers []LayerSpec // lowest first, at most MaxLayers; none counts as one
	SVC    bool        // Layers are spatial layers of one stream
	Muted  bool
	Screen bool // a shared screen: served before cameras of equal priority
	// OnLayer is called when the first packet of a layer came (again after its
	// SSRC changed). It must not call back into the package.
	OnLayer func(layer int, ssrc uint32, codec Codec)
	// OnWanted is called when the set of layers that somebody wants changed
	// (dynacast): growing at once, shrinking after 5 s. It is called first when
	// the first subscriber comes; a track without any is not switched off
	// before 5 s have passed.
	OnWanted func(layers Layers)
}

// Track is one microphone, camera or screen with its layers.
type Track struct{}

// NewTrack returns a track that waits for Publisher.Add.
func NewTrack(cfg TrackConfig) *Track { panic("unimplemented") }

// SetLayers replaces what is known about the layers.
func (t *Track) SetLayers(l []LayerSpec) { panic("unimplemented") }

// SetMuted stops or restarts forwarding; unmuting asks for a keyframe.
func (t *Track) SetMuted(muted bool, now int64) { panic("unimplemented") }

// Wanted returns the layers that somebody wants now, as told to OnWanted.
func (t *Track) Wanted() Layers { panic("unimplemented") }

// LayerStats describes what comes in on one layer.
type LayerStats struct {
	SSRC    uint32 // 0: nothing came yet
	Active  bool   // packets came within the last second
	Bitrate int    // bit/s over about a second
	FPS     int
	Codec   Codec
}

// Layer returns the state of layer i.
func (t *Track) Layer(i int) LayerStats { panic("unimplemented") }

// Close ends the track and all its down tracks.
func (t *Track) Close() { panic("unimplemented") }
