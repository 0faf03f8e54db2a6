package mediaapi

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/png"
	"io"
	"math"

	"golang.org/x/image/draw"
)

const pngMagic = "\x89PNG\r\n\x1a\n"

// pngFrames takes an APNG apart; nil if the PNG doesn't move. Each frame
// becomes a PNG with the same colours.
// spec: Portable Network Graphics (Third Edition), "APNG"
func pngFrames(src io.ReaderAt, size int64) (*animation, error) {
	p := &pngReader{window: window{src: src, size: size}, at: int64(len(pngMagic))}
	name, body, err := p.chunk()
	if err != nil || name != "IHDR" || len(body) != 13 {
		return nil, errNotAnImage
	}
	p.header = append([]byte(nil), body...)
	be := binary.BigEndian
	a := &animation{w: int(be.Uint32(p.header)), h: int(be.Uint32(p.header[4:])), next: p.next}
	for range maxPNGChunks {
		switch name, body, err := p.chunk(); {
		case err != nil:
			return nil, err
		case name == "acTL":
			return a, nil
		case name == "IDAT" || name == "IEND":
			return nil, nil
		default:
			p.keep(name, body)
		}
	}
	return nil, errNotAnImage
}

type pngReader struct {
	window
	at     int64
	header []byte
	shared []byte // chunks that all frames need
	// control is the frame that has begun.
	control []byte
}

// maxPNGChunks bounds the chunks between two frames.
const maxPNGChunks = 10_000

// chunk reads the next chunk. Its body is valid until the next call.
func (p *pngReader) chunk() (name string, body []byte, err error) {
	h, err := p.bytes(p.at, 8)
	if err != nil {
		return "", nil, err
	}
	n := binary.BigEndian.Uint32(h)
	name = string(h[4:8])
	if n > math.MaxInt32 {
		return "", nil, errNotAnImage
	}
	from := p.at + 8
	p.at = from + int64(n) + 4
	switch name {
	case "IHDR", "fcTL", "PLTE", "tRNS", "IDAT", "fdAT":
		if n > maxFrameBytes {
			return "", nil, errTooLarge
		}
		body, err = p.bytes(from, int(n))
	}
	return name, body, err
}

// keep remembers what frames need to be decoded.
func (p *pngReader) keep(name string, body []byte) {
	if name == "PLTE" || name == "tRNS" {
		p.shared = appendChunk(p.shared, name, body)
	}
}

func (p *pngReader) next() (*frame, error) {
	var data []byte
	for range maxPNGChunks {
		before := p.at
		name, body, err := p.chunk()
		if err != nil {
			return nil, err
		}
		switch name {
		case "fcTL":
			if p.control != nil && len(data) > 0 {
				p.at = before // it belongs to the next one
				return p.frame(data)
			}
			if len(body) != 26 {
				return nil, errNotAnImage
			}
			p.control = append(p.control[:0], body...)
		case "IDAT":
			if p.control != nil { // else the still picture isn't a frame
				data = append(data, body...)
			}
		case "fdAT":
			if p.control == nil || len(body) < 4 {
				return nil, errNotAnImage
			}
			data = append(data, body[4:]...)
		case "IEND":
			if p.control == nil || len(data) == 0 {
				return nil, io.EOF
			}
			p.at = before
			return p.frame(data)
		default:
			p.keep(name, body)
		}
		if len(data) > maxFrameBytes {
			return nil, errTooLarge
		}
	}
	return nil, errNotAnImage
}

// frame makes a PNG of a frame.
func (p *pngReader) frame(data []byte) (*frame, error) {
	be := binary.BigEndian
	c := p.control
	p.control = nil
	w, h, x, y := be.Uint32(c[4:]), be.Uint32(c[8:]), be.Uint32(c[12:]), be.Uint32(c[16:])
	if max(w, h, x, y) > maxSide {
		return nil, errNotAnImage
	}
	head := append([]byte(nil), p.header...)
	be.PutUint32(head, w)
	be.PutUint32(head[4:], h)
	file := appendChunk([]byte(pngMagic), "IHDR", head)
	file = append(file, p.shared...)
	file = appendChunk(file, "IDAT", data)
	file = appendChunk(file, "IEND", nil)
	fr := &frame{file: joined(file), bounds: image.Rect(int(x), int(y), int(x+w), int(y+h)), over: c[25] == 1}
	den := int(be.Uint16(c[22:]))
	if den == 0 {
		den = 100
	}
	fr.delay = int(be.Uint16(c[20:])) * 1000 / den
	if c[24] <= restoreBefore {
		fr.dispose = int(c[24])
	}
	return fr, nil
}

func appendChunk(b []byte, name string, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	from := len(b)
	b = append(append(b, name...), body...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[from:]))
}

// apng writes a moving PNG.
type apng struct {
	w, h     int
	chunks   []byte // of all frames but the headers
	frames   int
	sequence uint32
	last     *image.RGBA
}

func newAPNG(w, h int) *apng { return &apng{w: w, h: h} }

func (a *apng) size() int { return len(a.chunks) }

// translucent makes the encoder treat all pictures alike: the frames of an
// APNG share one header.
type translucent struct{ *image.RGBA }

func (translucent) Opaque() bool { return false }

// add appends a picture of the whole size that stays for so many milliseconds.
// Only what has changed is written.
func (a *apng) add(img *image.RGBA, delay int) {
	part := img.Bounds()
	if a.last != nil {
		part = changed(a.last, img)
	}
	a.last = img
	cut := image.NewRGBA(image.Rectangle{Max: part.Size()})
	draw.Draw(cut, cut.Bounds(), img, part.Min, draw.Src)
	var b bytes.Buffer
	// It can't fail: the picture has a size, and a buffer takes everything.
	_ = (&png.Encoder{CompressionLevel: png.DefaultCompression}).Encode(&b, translucent{cut})
	a.control(part, delay)
	a.data(b.Bytes())
	a.frames++
}

func (a *apng) control(part image.Rectangle, delay int) {
	be := binary.BigEndian
	c := be.AppendUint32(nil, a.sequence)
	c = be.AppendUint32(be.AppendUint32(c, uint32(part.Dx())), uint32(part.Dy()))
	c = be.AppendUint32(be.AppendUint32(c, uint32(part.Min.X)), uint32(part.Min.Y))
	c = be.AppendUint16(be.AppendUint16(c, uint16(min(max(delay, 0), math.MaxUint16))), 1000)
	a.chunks = appendChunk(a.chunks, "fcTL", append(c, 0, 0)) // stays, replaces
	a.sequence++
}

// data takes the picture's data out of a PNG.
func (a *apng) data(file []byte) {
	for at := len(pngMagic); at+12 <= len(file); {
		n := int(binary.BigEndian.Uint32(file[at:]))
		name, body := string(file[at+4:at+8]), file[at+8:at+8+n]
		at += 12 + n
		if name != "IDAT" {
			continue
		}
		if a.frames == 0 {
			a.chunks = appendChunk(a.chunks, name, body)
			continue
		}
		a.chunks = appendChunk(a.chunks, "fdAT", append(binary.BigEndian.AppendUint32(nil, a.sequence), body...))
		a.sequence++
	}
}

// changed is the smallest part that holds all pixels that differ; at least one
// pixel, as a frame can't be empty.
func changed(a, b *image.RGBA) image.Rectangle {
	var part image.Rectangle
	w := b.Bounds().Dx()
	for y := range b.Bounds().Dy() {
		ra, rb := a.Pix[y*a.Stride:][:4*w], b.Pix[y*b.Stride:][:4*w]
		if bytes.Equal(ra, rb) {
			continue
		}
		from, to := 0, w
		for bytes.Equal(ra[4*from:4*from+4], rb[4*from:4*from+4]) {
			from++
		}
		for bytes.Equal(ra[4*to-4:4*to], rb[4*to-4:4*to]) {
			to--
		}
		part = part.Union(image.Rect(from, y, to, y+1))
	}
	if part.Empty() {
		return image.Rect(0, 0, 1, 1)
	}
	return part
}

// end is the whole file. It plays for ever.
func (a *apng) end() []byte {
	be := binary.BigEndian
	head := be.AppendUint32(be.AppendUint32(nil, uint32(a.w)), uint32(a.h))
	file := appendChunk([]byte(pngMagic), "IHDR", append(head, 8, 6, 0, 0, 0)) // 8 bits, colour and alpha
	file = appendChunk(file, "acTL", be.AppendUint32(be.AppendUint32(nil, uint32(a.frames)), 0))
	file = append(file, a.chunks...)
	return appendChunk(file, "IEND", nil)
}
