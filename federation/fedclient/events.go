package fedclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"parley/internal/jsonx"
	"parley/internal/mxid"
)

// errShape means that an answer isn't the object that it should be.
var errShape = errors.New("not the object that the endpoint answers with")

// wanted says which members of an answer to read: lists of events, and single
// values. Other members are skipped.
type wanted struct {
	events map[string]*[]json.RawMessage
	values map[string]*json.RawMessage
}

// askEvents makes a request whose answer holds lists of events, which are read
// one by one. Events that break the rules of jsonx.Event are left out: no
// server can use them, and one of them must not make a room unreachable.
func (c *Client) askEvents(ctx context.Context, to mxid.ServerName, q call, w wanted) error {
	a, err := c.send(ctx, to, q)
	if err != nil {
		return err
	}
	defer a.body.Close()
	src := &errReader{r: a.body}
	if err := decodeEvents(src, w); err != nil {
		if src.err != nil {
			return readError(to, src.err)
		}
		return &BadAnswerError{to, err}
	}
	return nil
}

// errReader remembers a failure of its source, which is not the document's.
type errReader struct {
	r   io.Reader
	err error
}

func (e *errReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

func decodeEvents(r io.Reader, w wanted) error {
	d := json.NewDecoder(r)
	if err := delim(d, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		tok, err := d.Token()
		if err != nil {
			return errShape
		}
		name, _ := tok.(string)
		if seen[name] || len(seen) > 1000 {
			return jsonx.ErrDuplicateKey
		}
		seen[name] = true
		if err := decodeMember(d, name, w); err != nil {
			return err
		}
	}
	if err := delim(d, '}'); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errShape
	}
	return nil
}

func delim(d *json.Decoder, want json.Delim) error {
	if tok, err := d.Token(); err != nil || tok != want {
		return errShape
	}
	return nil
}

func decodeMember(d *json.Decoder, name string, w wanted) error {
	if list, ok := w.events[name]; ok {
		return decodeList(d, list)
	}
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return errShape
	}
	v, ok := w.values[name]
	if !ok {
		return nil
	}
	if err := jsonx.Check(raw, jsonx.Answer); err != nil {
		return fmt.Errorf("member %s: %w", name, err)
	}
	*v = raw
	return nil
}

// decodeList reads an array of events, or null.
func decodeList(d *json.Decoder, list *[]json.RawMessage) error {
	tok, err := d.Token()
	if err == nil && tok == nil {
		return nil
	}
	if err != nil || tok != json.Delim('[') {
		return errShape
	}
	for d.More() {
		var ev json.RawMessage
		if err := d.Decode(&ev); err != nil {
			return errShape
		}
		if jsonx.Check(ev, jsonx.Event) == nil {
			*list = append(*list, ev)
		}
	}
	return delim(d, ']')
}
