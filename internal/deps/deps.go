//go:build tools

// Package deps keeps module requirements that no built file imports yet.
package deps

import (
	_ "github.com/ProtonMail/go-crypto/openpgp"
)
