package node

import (
	"context"

	"parley/internal/httpx"
	"parley/internal/mxid"
	"parley/keys/pgp"
	"parley/privacy/disclose"
)

// openDisclosures makes who answers legal orders. Call it when accounts and
// rooms are there.
func (n *Node) openDisclosures() {
	n.disclosures = disclose.New(disclose.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Vault: n.vault, Clock: n.clk,
		Signer: n.signer, Users: n.users, Rooms: n.rooms, Log: n.log})
	n.onClose(func() error { n.disclosures.Close(); return nil })
}

// DiscloseOrder is a legal order, as it goes over the control socket.
type DiscloseOrder struct {
	User       string `json:"user"` // localpart or user ID
	Basis      string `json:"basis"`
	Gag        string `json:"gag,omitempty"`
	Recipients string `json:"recipients"` // public keys, armored
	Out        string `json:"out"`        // absolute
}

// Disclose answers a legal order.
func (n *Node) Disclose(ctx context.Context, o DiscloseOrder) (disclose.Entry, error) {
	id := o.User
	if id != "" && id[0] != '@' {
		id = string(mxid.NewUserID(id, n.cfg.ServerName))
	}
	who, err := mxid.ParseUserID(id)
	if err != nil {
		return disclose.Entry{}, httpx.InvalidParam("%q is not a user name", o.User)
	}
	to := &pgp.Recipients{}
	if err := to.AddKeys([]byte(o.Recipients), pgp.Options{Now: n.clk.Now}); err != nil {
		return disclose.Entry{}, err
	}
	return n.disclosures.Disclose(ctx, disclose.Order{User: who, Basis: o.Basis, Gag: o.Gag, Recipient: to, Out: o.Out})
}

// Disclosures is the ledger, checked.
func (n *Node) Disclosures(ctx context.Context) ([]disclose.Entry, error) {
	return n.disclosures.Ledger(ctx)
}
