package node

import "parley/privacy/erase"

// openErasures makes who does what follows when accounts are erased. Call it
// when all that knows of people's keys is there.
func (n *Node) openErasures() {
	n.erasures = erase.New(erase.Config{KV: n.kv, Commit: n.commit, Vault: n.vault, Intern: n.intern, Clock: n.clk,
		Users: n.users, Rooms: n.rooms, Media: n.media, Log: n.log})
	n.onClose(func() error { n.erasures.Close(); return nil })
}

// Erasures does what follows when accounts are erased.
func (n *Node) Erasures() *erase.Service { return n.erasures }
