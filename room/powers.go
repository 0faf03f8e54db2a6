package room

import (
	"github.com/matrix-org/gomatrixserverlib"

	"parley/room/authrules"
	"parley/room/statetree"
)

// powersOf reads the power levels from a create and a power levels event, the
// latter nil if the state has none.
func powersOf(create, levels *Event) (*authrules.Power, error) {
	c, err := create.PDU()
	if err != nil {
		return nil, err
	}
	var l gomatrixserverlib.PDU
	if levels != nil {
		if l, err = levels.PDU(); err != nil {
			return nil, err
		}
	}
	return authrules.NewPower(c, l)
}

// powersAt are the power levels of a state.
func (w *work) powersAt(root statetree.Root) (*authrules.Power, error) {
	create, err := w.get(root, typeCreate, "")
	if err != nil {
		return nil, err
	}
	if create == nil {
		return nil, errNoState
	}
	levels, err := w.get(root, typePowerLevels, "")
	if err != nil {
		return nil, err
	}
	return powersOf(create, levels)
}
