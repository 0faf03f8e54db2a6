package node

import (
	"path/filepath"

	"github.com/labstack/echo/v4"

	"parley/privacy/export"
	"parley/web"
)

// openExports makes who tells people what is held on them, and its endpoints.
func (n *Node) openExports(e *echo.Echo) error {
	n.exports = export.New(export.Config{ServerName: n.cfg.ServerName, KV: n.kv, Commit: n.commit, Vault: n.vault, Intern: n.intern,
		Clock: n.clk, Users: n.users, Rooms: n.rooms, Keys: n.e2e, Media: n.media, Dir: filepath.Join(n.cfg.DataDir, "exports"), Log: n.log})
	n.onClose(func() error { n.exports.Close(); return nil })
	n.exports.Register(e, n.api)
	return web.Register(e)
}

// Exports tells people what is held on them.
func (n *Node) Exports() *export.Service { return n.exports }
