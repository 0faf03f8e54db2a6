package mediaapi

import (
	"encoding/binary"
	"image"
	"io"
)

// webpFrames takes a moving WebP apart; nil if it doesn't move. Each frame
// becomes a WebP. spec: WebP Container Specification, "Animation"
func webpFrames(src io.ReaderAt, size int64) (*animation, error) {
	r := &riffReader{window: window{src: src, size: size}, at: 12}
	name, body, err := r.chunk()
	if err != nil || name != "VP8X" || body.n != 10 {
		return nil, nil
	}
	b, err := r.bytes(body.at, 10)
	if err != nil {
		return nil, err
	}
	const moves = 1 << 1
	if b[0]&moves == 0 {
		return nil, nil
	}
	w := &webpReader{riffReader: r}
	return &animation{w: 1 + u24(b[4:]), h: 1 + u24(b[7:]), next: w.next}, nil
}

func u24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// riffReader reads chunks of a RIFF file.
type riffReader struct {
	window
	at int64
}

func (r *riffReader) chunk() (name string, body section, err error) {
	h, err := r.bytes(r.at, 8)
	if err != nil {
		return "", section{}, io.EOF
	}
	n := int64(binary.LittleEndian.Uint32(h[4:]))
	body = section{r.src, r.at + 8, n}
	r.at += 8 + n + n&1
	if body.at+n > r.size {
		return "", section{}, io.EOF
	}
	return string(h[:4]), body, nil
}

// maxWebPChunks bounds the chunks between two frames, and within one.
const maxWebPChunks = 1000

type webpReader struct{ *riffReader }

func (w *webpReader) next() (*frame, error) {
	for range maxWebPChunks {
		name, body, err := w.chunk()
		if err != nil {
			return nil, err
		}
		if name == "ANMF" && body.n > 16 {
			return w.frame(body)
		}
	}
	return nil, errNotAnImage
}

func (w *webpReader) frame(body section) (*frame, error) {
	b, err := w.bytes(body.at, 16)
	if err != nil {
		return nil, err
	}
	x, y, dx, dy := 2*u24(b), 2*u24(b[3:]), 1+u24(b[6:]), 1+u24(b[9:])
	if max(x, y, dx, dy) > maxSide {
		return nil, errNotAnImage
	}
	fr := &frame{bounds: image.Rect(x, y, x+dx, y+dy), delay: u24(b[12:]), over: b[15]&2 == 0}
	if b[15]&1 != 0 {
		fr.dispose = clearFrame
	}
	inner := &riffReader{window: window{src: w.src, size: body.at + body.n}, at: body.at + 16}
	var alpha *section
	for range maxWebPChunks {
		name, part, err := inner.chunk()
		switch {
		case err != nil:
			return nil, errNotAnImage
		case name == "ALPH":
			alpha = &part
		case name == "VP8 " || name == "VP8L":
			fr.file = stillWebP(name, part, alpha, dx, dy)
			return fr, nil
		}
	}
	return nil, errNotAnImage
}

// stillWebP is a still WebP of a frame's data.
func stillWebP(name string, data section, alpha *section, w, h int) func() io.Reader {
	le := binary.LittleEndian
	chunk := func(name string, n int64) []byte { return le.AppendUint32([]byte(name), uint32(n)) }
	pad := func(s section) []byte { return make([]byte, s.n&1) }
	total := 4 + 8 + data.n + data.n&1
	var parts []any
	if alpha != nil && name == "VP8 " {
		head := append(chunk("VP8X", 10), 1<<4, 0, 0, 0, byte(w-1), byte((w-1)>>8), byte((w-1)>>16), byte(h-1), byte((h-1)>>8), byte((h-1)>>16))
		parts = append(parts, head, chunk("ALPH", alpha.n), *alpha, pad(*alpha))
		total += int64(len(head)) + 8 + alpha.n + alpha.n&1
	}
	parts = append(parts, chunk(name, data.n), data, pad(data))
	riff := append(chunk("RIFF", total), "WEBP"...)
	return joined(append([]any{riff}, parts...)...)
}
