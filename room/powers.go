package room

import (
	"math"

	"github.com/matrix-org/gomatrixserverlib"

	"parley/internal/mxid"
	"parley/room/statetree"
)

// powers are the power levels of a state.
type powers struct {
	content  gomatrixserverlib.PowerLevelContent
	creators map[mxid.UserID]bool // with power above any number
	creator  mxid.UserID
	explicit bool // there is a power levels event
}

// powersOf reads the power levels from a create and a power levels event, the
// latter nil if the state has none.
// spec: client-server API, "m.room.power_levels"; room version 12, creators
func powersOf(create, levels *Event) (powers, error) {
	p := powers{creators: map[mxid.UserID]bool{}}
	p.content.Defaults()
	if create != nil {
		pdu, err := create.PDU()
		if err != nil {
			return p, err
		}
		p.creator = create.Sender
		if impl, err := roomVersion(create.pdu.version); err == nil && impl.PrivilegedCreators() {
			for _, c := range gomatrixserverlib.CreatorsFromCreateEvent(pdu) {
				p.creators[mxid.UserID(c)] = true
			}
		}
	}
	if levels == nil {
		p.content.StateDefault = 0
		return p, nil
	}
	pdu, err := levels.PDU()
	if err != nil {
		return p, err
	}
	p.explicit = true
	p.content, err = gomatrixserverlib.NewPowerLevelContentFromEvent(pdu)
	return p, err
}

func (p *powers) user(u mxid.UserID) int64 {
	if p.creators[u] {
		return math.MaxInt64
	}
	if !p.explicit && u == p.creator {
		return 100
	}
	if l, ok := p.content.Users[string(u)]; ok {
		return l
	}
	return p.content.UsersDefault
}

func (p *powers) redact() int64 { return p.content.Redact }
func (p *powers) invite() int64 { return p.content.Invite }

// event is the level that sending an event of this type takes.
func (p *powers) event(typ string, state bool) int64 { return p.content.EventLevel(typ, state) }

func (w *work) powersAt(root statetree.Root) (powers, error) {
	create, err := w.get(root, typeCreate, "")
	if err != nil {
		return powers{}, err
	}
	levels, err := w.get(root, typePowerLevels, "")
	if err != nil {
		return powers{}, err
	}
	return powersOf(create, levels)
}
