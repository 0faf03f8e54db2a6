package mediaapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/draw"
	"golang.org/x/image/webp"
)

// errNotAnImage means that the file isn't a picture of a known format, or is a
// broken one.
var errNotAnImage = errors.New("mediaapi: not an image")

// maxSide bounds the width and height of a picture.
const maxSide = 32_767

// maxKernelBytes bounds what the better of the two scalers may take; it needs
// 32 bytes for each pixel of an intermediate picture.
const maxKernelBytes = 32 << 20

// jpegQuality is what common servers use for thumbnails.
const jpegQuality = 80

// picture is an encoded image.
type picture struct {
	data []byte
	typ  string
}

// format is a kind of image that can be read.
type format struct {
	typ    string
	magic  string // "?" is any byte
	config func(io.Reader) (image.Config, error)
	decode func(io.Reader) (image.Image, error)
}

// formats lists what is decoded. Only the first frame of animations is.
func formats() []format {
	return []format{
		{"image/jpeg", "\xff\xd8\xff", jpeg.DecodeConfig, jpeg.Decode},
		{"image/png", "\x89PNG\r\n\x1a\n", png.DecodeConfig, png.Decode},
		{"image/gif", "GIF8?a", gif.DecodeConfig, gif.Decode},
		{"image/webp", "RIFF????WEBPVP8", webp.DecodeConfig, webp.Decode},
	}
}

func sniff(head []byte) (format, bool) {
next:
	for _, f := range formats() {
		if len(head) < len(f.magic) {
			continue
		}
		for i := range len(f.magic) {
			if f.magic[i] != '?' && f.magic[i] != head[i] {
				continue next
			}
		}
		return f, true
	}
	return format{}, false
}

// shrink makes a thumbnail of a picture. Its memory is reserved before
// anything is decoded: what would take more than there is at all is
// errTooLarge, else it waits for its turn. errOriginal means that the file
// itself is small enough and is what it was declared as.
func (s *Service) shrink(ctx context.Context, src *content, v variant, declared string) (*picture, error) {
	var head [64]byte
	n, err := src.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	f, ok := sniff(head[:n])
	if !ok {
		return nil, errNotAnImage
	}
	if v.Moving {
		if p, err := s.shrinkMoving(ctx, f, src, v, declared); !errors.Is(err, errNoMotion) {
			return p, err
		}
	}
	file := func() io.Reader { return io.NewSectionReader(src, 0, src.Size()) }
	if first := firstFrame(f, src, src.Size()); first != nil {
		file = first
	}
	reader := func() io.Reader { return &cancelReader{ctx, file()} }
	cfg, err := guard(f.config, reader())
	if err != nil {
		return nil, err
	}
	need, err := decodeBytes(f, cfg, src)
	if err != nil {
		return nil, err
	}
	if need > s.cfg.DecodeMemory || cfg.Width > maxSide || cfg.Height > maxSide {
		return nil, errTooLarge
	}
	if err := s.decodeMem.Acquire(ctx, need); err != nil {
		return nil, context.Cause(ctx)
	}
	defer s.decodeMem.Release(need)
	img, err := guard(f.decode, reader())
	if err != nil {
		return nil, err
	}
	if b := img.Bounds(); b.Dx() > cfg.Width || b.Dy() > cfg.Height || b.Empty() {
		return nil, errNotAnImage
	}
	turn := orientation(f.typ, src)
	if fits(img, v) && turn == 1 && f.typ == declared && still(f.typ, src) {
		return nil, errOriginal
	}
	return render(img, v, turn, f.typ)
}

// guard runs a decoder, whose panics and errors all mean a broken picture,
// except for errors of reading the file.
func guard[T any](decode func(io.Reader) (T, error), r io.Reader) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: decoder panicked", errNotAnImage)
		}
	}()
	out, err = decode(r)
	if cr, ok := r.(*cancelReader); ok && cr.ctx.Err() != nil {
		return out, context.Cause(cr.ctx)
	}
	if err != nil {
		return out, fmt.Errorf("%w: %w", errNotAnImage, err)
	}
	return out, nil
}

// cancelReader ends a decoder when its time is over.
type cancelReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// decodeBytes bounds the memory that decoding a picture takes, from what its
// header says. The numbers a pixel are what Go's decoders allocate.
func decodeBytes(f format, cfg image.Config, src io.ReaderAt) (int64, error) {
	if cfg.Width <= 0 || cfg.Height <= 0 {
		return 0, errNotAnImage
	}
	perPixel := int64(4)
	switch f.typ {
	case "image/jpeg":
		perPixel = 3
		if cfg.ColorModel == color.CMYKModel {
			perPixel = 8 // read as two pictures
		}
		if progressive(src) {
			perPixel += 16 // coefficients of four components
		}
	case "image/png":
		perPixel = 8 // filtered rows and pixels
		switch cfg.ColorModel {
		case color.NRGBA64Model, color.RGBA64Model:
			perPixel = 16
		}
	case "image/gif":
		perPixel = 2
	case "image/webp":
		perPixel = 12
	}
	// The strip that is averaged, the kernel's rows, and the thumbnail.
	const fixed = maxKernelBytes + 16<<20
	return int64(cfg.Width)*int64(cfg.Height)*perPixel + fixed, nil
}

// progressive reports whether a JPEG is, which its decoder needs much more
// memory for. Unclear files count as progressive.
func progressive(src io.ReaderAt) bool {
	at := int64(2)
	for range 1000 {
		var h [4]byte
		if _, err := src.ReadAt(h[:], at); err != nil || h[0] != 0xff {
			return true
		}
		switch m := h[1]; {
		case m == 0xff: // padding
			at++
			continue
		case m == 0xc0 || m == 0xc1:
			return false
		case m == 0xc2:
			return true
		}
		at += 2 + int64(binary.BigEndian.Uint16(h[2:]))
	}
	return true
}

func fits(img image.Image, v variant) bool {
	return img.Bounds().Dx() <= v.W && img.Bounds().Dy() <= v.H
}

// render turns, scales and encodes a decoded picture.
func render(img image.Image, v variant, turn turn, typ string) (*picture, error) {
	b := img.Bounds()
	w, h := b.Dx(), b.Dy()
	if turn.swaps() {
		w, h = h, w
	}
	cut, tw, th := target(w, h, v)
	if turn.swaps() {
		tw, th = th, tw
		cut = cut.swapped()
	}
	small := scale(img, cut.in(b), max(tw, 1), max(th, 1))
	return encode(turn.apply(small), typ)
}

// inset is how much of each side is cut off, in pixels.
type inset struct{ x, y int }

func (i inset) swapped() inset { return inset{i.y, i.x} }

func (i inset) in(b image.Rectangle) image.Rectangle {
	return image.Rect(b.Min.X+i.x, b.Min.Y+i.y, b.Max.X-i.x, b.Max.Y-i.y)
}

// target says what to cut off a picture of w x h and how large to make the
// rest. Nothing is made larger than it is.
// spec: "Thumbnails"
func target(w, h int, v variant) (cut inset, tw, th int) {
	if v.Crop {
		// The largest part with the wished proportions.
		if w*v.H > h*v.W {
			cut.x = (w - max(h*v.W/v.H, 1)) / 2
		} else {
			cut.y = (h - max(w*v.H/v.W, 1)) / 2
		}
		w, h = w-2*cut.x, h-2*cut.y
		if w > v.W {
			return cut, v.W, max(h*v.W/w, min(v.H, h))
		}
		return cut, w, h
	}
	// Not smaller than wished on either side, as far as the picture goes.
	if w*v.H > h*v.W {
		tw, th = w*v.H/h, v.H
	} else {
		tw, th = v.W, h*v.W/w
	}
	if tw >= w || th >= h {
		return cut, w, h
	}
	// Extreme proportions must not make extreme thumbnails.
	limit := 4 * thumbSteps[len(thumbSteps)-1]
	return cut, min(tw, limit), min(th, limit)
}

// scale shrinks a part of a picture. Large pictures are first averaged in
// whole blocks, strip by strip, which is fast and needs little memory.
func scale(img image.Image, part image.Rectangle, w, h int) *image.RGBA {
	if f := min(part.Dx()/w, part.Dy()/h); f >= 2 {
		img = average(img, part, f)
		part = img.Bounds()
	}
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	if part.Dx() == w && part.Dy() == h {
		draw.Draw(out, out.Bounds(), img, part.Min, draw.Src)
		return out
	}
	if int64(w)*int64(part.Dy())*32 <= maxKernelBytes {
		draw.CatmullRom.Scale(out, out.Bounds(), img, part, draw.Src, nil)
	} else {
		draw.ApproxBiLinear.Scale(out, out.Bounds(), img, part, draw.Src, nil)
	}
	return out
}

// average makes one pixel of each block of f x f.
func average(img image.Image, part image.Rectangle, f int) *image.RGBA {
	w, h := part.Dx()/f, part.Dy()/f
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	strip := image.NewRGBA(image.Rect(0, 0, w*f, f))
	sums := make([]uint32, 4*w)
	for y := range h {
		draw.Draw(strip, strip.Bounds(), img, image.Pt(part.Min.X, part.Min.Y+y*f), draw.Src)
		clear(sums)
		for sy := range f {
			row := strip.Pix[sy*strip.Stride:]
			for x := range w * f {
				for c := range 4 {
					sums[x/f*4+c] += uint32(row[x*4+c])
				}
			}
		}
		for i, sum := range sums {
			out.Pix[y*out.Stride+i] = uint8(sum / uint32(f*f))
		}
	}
	return out
}

// maxPNG is when a thumbnail is rather sent as a JPEG, if it can be.
const maxPNG = 256 << 10

// encode writes a JPEG, or a PNG if something is transparent or the source was
// drawn (PNG, GIF) rather than photographed and stays small.
func encode(img *image.RGBA, typ string) (*picture, error) {
	opaque := img.Opaque()
	if !opaque || typ == "image/png" || typ == "image/gif" {
		var b bytes.Buffer
		if err := png.Encode(&b, img); err != nil {
			return nil, err
		}
		if !opaque || b.Len() <= maxPNG {
			return &picture{data: b.Bytes(), typ: "image/png"}, nil
		}
	}
	var b bytes.Buffer
	err := jpeg.Encode(&b, img, &jpeg.Options{Quality: jpegQuality})
	return &picture{data: b.Bytes(), typ: "image/jpeg"}, err
}

// still reports whether a picture surely doesn't move. GIF and WebP count as
// moving; a PNG is if it has an animation control chunk before its data.
func still(typ string, src io.ReaderAt) bool {
	if typ != "image/png" {
		return typ == "image/jpeg"
	}
	at := int64(8)
	for range 1000 {
		var h [8]byte
		if _, err := src.ReadAt(h[:], at); err != nil {
			return true
		}
		switch string(h[4:]) {
		case "acTL":
			return false
		case "IDAT", "IEND":
			return true
		}
		at += 12 + int64(binary.BigEndian.Uint32(h[:]))
	}
	return false
}
