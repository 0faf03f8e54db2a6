package mediaapi

import (
	"encoding/binary"
	"image"
	"io"
)

// gifFrames takes a GIF apart. Each frame becomes a GIF with the same screen
// and colours. spec: GIF89a
func gifFrames(src io.ReaderAt, size int64) (*animation, error) {
	w := &window{src: src, size: size}
	head, err := w.bytes(0, 13)
	if err != nil {
		return nil, err
	}
	head = append([]byte(nil), head...)
	at := int64(13) + colours(head[10])
	if at > size {
		return nil, io.ErrUnexpectedEOF
	}
	g := &gifReader{window: w, at: at, screen: section{src, 0, at}}
	a := &animation{w: int(binary.LittleEndian.Uint16(head[6:])), h: int(binary.LittleEndian.Uint16(head[8:])), next: g.next}
	return a, nil
}

// colours is the size of a colour table that flags announce.
func colours(flags byte) int64 {
	if flags&0x80 == 0 {
		return 0
	}
	return 3 << (flags&7 + 1)
}

type gifReader struct {
	*window
	at      int64
	screen  section // header, screen and global colours
	control section // graphic control of the next frame
	delay   int
	dispose int
}

// maxGIFBlocks bounds the blocks between two frames.
const maxGIFBlocks = 1000

func (g *gifReader) next() (*frame, error) {
	g.control, g.delay, g.dispose = section{}, 0, keepFrame
	for range maxGIFBlocks {
		b, err := g.bytes(g.at, 1)
		if err != nil {
			return nil, err
		}
		switch b[0] {
		case 0x3b:
			return nil, io.EOF
		case 0x21:
			if err := g.extension(); err != nil {
				return nil, err
			}
		case 0x2c:
			return g.image()
		default:
			return nil, errNotAnImage
		}
	}
	return nil, errNotAnImage
}

// extension reads the graphic control and passes over others.
func (g *gifReader) extension() error {
	b, err := g.bytes(g.at, 8)
	if err != nil {
		return err
	}
	if b[1] == 0xf9 && b[2] == 4 && b[7] == 0 {
		g.control = section{g.src, g.at, 8}
		g.delay = 10 * int(binary.LittleEndian.Uint16(b[4:]))
		switch b[3] >> 2 & 7 {
		case 2:
			g.dispose = clearFrame
		case 3:
			g.dispose = restoreBefore
		}
		g.at += 8
		return nil
	}
	g.at += 2
	return g.skipBlocks()
}

// skipBlocks goes to the end of a chain of blocks.
func (g *gifReader) skipBlocks() error {
	for {
		b, err := g.bytes(g.at, 1)
		if err != nil {
			return err
		}
		n := int64(b[0])
		g.at += 1 + n
		if n == 0 {
			return nil
		}
	}
}

func (g *gifReader) image() (*frame, error) {
	b, err := g.bytes(g.at, 10)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	x, y, w, h := int(le.Uint16(b[1:])), int(le.Uint16(b[3:])), int(le.Uint16(b[5:])), int(le.Uint16(b[7:]))
	from := g.at
	g.at += 10 + colours(b[9]) + 1
	if err := g.skipBlocks(); err != nil {
		return nil, err
	}
	parts := []any{g.screen, g.control, section{g.src, from, g.at - from}, []byte{0x3b}}
	if g.control.src == nil {
		parts = append(parts[:1], parts[2:]...)
	}
	return &frame{file: joined(parts...), bounds: image.Rect(x, y, x+w, y+h), delay: g.delay, dispose: g.dispose, over: true}, nil
}
