// Package jsonx checks and canonicalises JSON from strangers in one linear
// pass, whatever the input: no recursion, no cost that grows with nesting.
//
// Everything that comes from outside and will be parsed, signed, verified or
// stored goes through Check first. What passes means the same to every
// parser: valid UTF-8, no lone surrogates, no duplicate keys.
//
// The package has no state; all functions are safe for concurrent use.
//
// spec: appendices, "Canonical JSON"; RFC 8259
package jsonx

import (
	"errors"
	"fmt"
)

// Kinds of errors of Check and Canonical.
var (
	ErrSyntax       = errors.New("not valid JSON")
	ErrUTF8         = errors.New("not valid UTF-8")
	ErrSurrogate    = errors.New("lone surrogate in a string")
	ErrDuplicateKey = errors.New("duplicate key in an object")
	ErrDepth        = errors.New("nested too deeply")
	ErrKeys         = errors.New("too many keys")
	ErrTooLarge     = errors.New("too large")
	ErrNumber       = errors.New("number isn't an integer in the range of canonical JSON")
	ErrNotObject    = errors.New("not a JSON object")
)

// Error is an error kind with the byte offset where it was found.
type Error struct {
	Kind   error // one of the Err values of this package
	Offset int
}

// Error never quotes the input.
func (e *Error) Error() string { return fmt.Sprintf("json: %v at byte %d", e.Kind, e.Offset) }

// Unwrap gives the kind, for errors.Is.
func (e *Error) Unwrap() error { return e.Kind }

// Malformed says that the bytes aren't JSON text at all (ErrSyntax, ErrUTF8):
// M_NOT_JSON rather than M_BAD_JSON.
func Malformed(err error) bool {
	return errors.Is(err, ErrSyntax) || errors.Is(err, ErrUTF8)
}

// Limits of one document. Zero means no limit.
type Limits struct {
	MaxBytes int
	MaxDepth int // of objects and arrays in one another; {} has depth 1
	MaxKeys  int // object keys in the whole document
	// Integers refuses numbers that canonical JSON doesn't have: fractions,
	// exponents, -0, and what is outside -(2^53)+1 .. 2^53-1.
	Integers bool
	// Object refuses anything but an object at the top.
	Object bool
	// FoldTop refuses names of the top object that differ in case only.
	// encoding/json takes them for the same field, so that whoever decodes
	// into a struct may read another value than whoever doesn't.
	FoldTop bool
}

// MaxEventBytes is the size of the largest event.
// spec: client-server API, "Size limits"
const MaxEventBytes = 65536

// Event are the limits of one PDU. The size has room for "unsigned" and
// whitespace, which don't count; the exact limit is the room's to check. The
// depth is about what the most lenient servers take: refusing what others
// accept would leave holes in rooms. At this depth a quadratic parser takes
// about 30 ms for 64 KiB.
var Event = Limits{MaxBytes: 2 * MaxEventBytes, MaxDepth: 500, MaxKeys: 16384, Object: true, FoldTop: true}

// Request are the limits of what clients send. It may become part of events,
// which the strictest servers must be able to parse: serde_json, which some
// use, ends at depth 128. Answer are the limits of requests and answers of
// other servers, which hold events. Their bytes are limited where they are
// read.
var (
	Request = Limits{MaxDepth: 100, MaxKeys: 1 << 20}
	Answer  = Limits{MaxDepth: 520, MaxKeys: 4 << 20}
)

// Check reads b once and returns an *Error for the first thing that breaks
// the rules or the limits.
func Check(b []byte, lim Limits) error {
	var frames [24]frame // on the stack; most documents need no more
	var keys [48][]byte
	s := scanner{b: b, lim: lim, frames: frames[:0], keys: keys[:0]}
	return s.run()
}
