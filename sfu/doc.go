// Package sfu is the place of calls: participants, the packet plane and links
// between servers. Nothing of it is built yet; README.md says where the project
// stands.
package sfu
