package mediaapi

import (
	"bytes"
	"context"
	"errors"
	"image"
	"io"

	"golang.org/x/image/draw"
)

// Moving pictures: GIF, APNG and WebP are taken apart into frames, each of
// which is made into a file of one picture for the still decoders, so that no
// decoder ever holds more than one frame. Thumbnails that move are APNG.

const (
	// maxFrames bounds the frames of a moving thumbnail. Longer pictures get a
	// still one.
	maxFrames = 500
	// maxAnimPixels bounds what is decoded for one thumbnail, all frames
	// together: a 480x270 video of 500 frames is less than half of it.
	maxAnimPixels = 150_000_000
	// maxAnimBytes bounds a moving thumbnail.
	maxAnimBytes = 4 << 20
	// maxFrameBytes bounds a frame that has to be put together in memory.
	maxFrameBytes = 8 << 20
)

// errNoMotion means that a picture doesn't move, or can't be shown moving
// within the limits: a still thumbnail will do.
var errNoMotion = errors.New("mediaapi: no moving thumbnail")

// What becomes of a frame's place before the next one is drawn.
const (
	keepFrame = iota
	clearFrame
	restoreBefore
)

// frame is one picture of a moving one.
type frame struct {
	file    func() io.Reader // of one picture in the still format
	bounds  image.Rectangle  // where on the canvas
	delay   int              // milliseconds
	dispose int
	over    bool // blended over what is there, else replacing it
}

// animation is a moving picture being read.
type animation struct {
	w, h int
	// next is the next frame; io.EOF after the last.
	next func() (*frame, error)
}

// animated takes a moving picture apart; nil if it isn't one.
func animated(f format, src io.ReaderAt, size int64) (*animation, error) {
	switch f.typ {
	case "image/gif":
		return gifFrames(src, size)
	case "image/png":
		return pngFrames(src, size)
	case "image/webp":
		return webpFrames(src, size)
	}
	return nil, nil
}

// animBytes bounds the memory for a moving thumbnail: the canvas twice, a
// frame as its decoder holds it, and what each picture is scaled with.
func animBytes(w, h int) int64 {
	const fixed = maxKernelBytes + 16<<20 + maxFrameBytes + maxAnimBytes
	return int64(w)*int64(h)*(4+4+12) + fixed
}

// shrinkMoving makes a moving thumbnail.
func (s *Service) shrinkMoving(ctx context.Context, f format, src *content, v variant, declared string) (*picture, error) {
	reader := io.NewSectionReader(src, 0, src.Size())
	a, err := animated(f, reader, src.Size())
	if err != nil || a == nil {
		return nil, errNoMotion
	}
	need := animBytes(a.w, a.h)
	if a.w <= 0 || a.h <= 0 || a.w > maxSide || a.h > maxSide || need > s.cfg.DecodeMemory {
		return nil, errNoMotion
	}
	if err := s.decodeMem.Acquire(ctx, need); err != nil {
		return nil, context.Cause(ctx)
	}
	defer s.decodeMem.Release(need)
	out, err := replay(ctx, f, a, v)
	if err != nil {
		return nil, err
	}
	if f.typ == declared && src.Size() <= int64(len(out)) {
		return nil, errOriginal
	}
	return &picture{data: out, typ: "image/apng"}, nil
}

// replay draws frame after frame and encodes what one would see.
func replay(ctx context.Context, f format, a *animation, v variant) ([]byte, error) {
	canvas := image.NewRGBA(image.Rect(0, 0, a.w, a.h))
	var before *image.RGBA
	cut, tw, th := target(a.w, a.h, v)
	tw, th = max(tw, 1), max(th, 1)
	out := newAPNG(tw, th)
	for pixels := 0; ; {
		fr, err := a.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errNoMotion
		}
		if pixels += a.w*a.h + fr.bounds.Dx()*fr.bounds.Dy(); pixels > maxAnimPixels || out.frames >= maxFrames {
			return nil, errNoMotion
		}
		if before, err = drawFrame(ctx, f, canvas, before, fr); err != nil {
			return nil, err
		}
		out.add(scale(canvas, cut.in(canvas.Bounds()), tw, th), fr.delay)
		if out.size() > maxAnimBytes {
			return nil, errNoMotion
		}
		dispose(canvas, before, fr)
	}
	if out.frames < 2 {
		return nil, errNoMotion
	}
	return out.end(), nil
}

// drawFrame decodes a frame onto the canvas; it keeps a copy of what was there
// if that must come back.
func drawFrame(ctx context.Context, f format, canvas, before *image.RGBA, fr *frame) (*image.RGBA, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if fr.bounds.Empty() || !fr.bounds.In(canvas.Bounds()) {
		return nil, errNoMotion
	}
	img, err := decodeFrame(ctx, f, fr)
	if err != nil {
		return nil, err
	}
	if fr.dispose == restoreBefore {
		if before == nil {
			before = image.NewRGBA(canvas.Bounds())
		}
		draw.Draw(before, fr.bounds, canvas, fr.bounds.Min, draw.Src)
	}
	op := draw.Src
	if fr.over {
		op = draw.Over
	}
	draw.Draw(canvas, fr.bounds, img, img.Bounds().Min, op)
	return before, nil
}

// decodeFrame decodes a frame's file, which must be as large as announced.
func decodeFrame(ctx context.Context, f format, fr *frame) (image.Image, error) {
	cfg, err := guard(f.config, &cancelReader{ctx, fr.file()})
	if err == nil && f.typ != "image/gif" && (cfg.Width != fr.bounds.Dx() || cfg.Height != fr.bounds.Dy()) {
		err = errNoMotion
	}
	if err != nil {
		return nil, broken(ctx, err)
	}
	img, err := guard(f.decode, &cancelReader{ctx, fr.file()})
	if err == nil && img.Bounds().Size() != fr.bounds.Size() {
		err = errNoMotion
	}
	if err != nil {
		return nil, broken(ctx, err)
	}
	return img, nil
}

// broken is a frame that can't be decoded, unless there was no time.
func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return errNoMotion
}

func dispose(canvas, before *image.RGBA, fr *frame) {
	switch fr.dispose {
	case clearFrame:
		draw.Draw(canvas, fr.bounds, image.Transparent, image.Point{}, draw.Src)
	case restoreBefore:
		draw.Draw(canvas, fr.bounds, before, fr.bounds.Min, draw.Src)
	}
}

// firstFrame is the file of the first picture of a moving WebP, which the
// still decoder doesn't read; nil if src isn't one.
func firstFrame(f format, src io.ReaderAt, size int64) func() io.Reader {
	if f.typ != "image/webp" {
		return nil
	}
	a, err := webpFrames(src, size)
	if err != nil || a == nil {
		return nil
	}
	fr, err := a.next()
	if err != nil || fr.bounds.Size() != image.Pt(a.w, a.h) {
		return nil
	}
	return fr.file
}

// joined is a reader of several parts.
func joined(parts ...any) func() io.Reader {
	return func() io.Reader {
		rs := make([]io.Reader, len(parts))
		for i, p := range parts {
			switch p := p.(type) {
			case []byte:
				rs[i] = bytes.NewReader(p)
			case section:
				rs[i] = io.NewSectionReader(p.src, p.at, p.n)
			}
		}
		return io.MultiReader(rs...)
	}
}

// section is a part of a file.
type section struct {
	src   io.ReaderAt
	at, n int64
}

// window reads small pieces of a file without asking for each.
type window struct {
	src  io.ReaderAt
	size int64
	buf  []byte
	at   int64
}

// bytes returns n bytes at an offset, valid until the next call.
func (w *window) bytes(at int64, n int) ([]byte, error) {
	if at < 0 || at+int64(n) > w.size {
		return nil, io.ErrUnexpectedEOF
	}
	if at < w.at || at+int64(n) > w.at+int64(len(w.buf)) {
		want := min(max(int64(n), 32<<10), w.size-at)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		w.at = at
		if m, err := w.src.ReadAt(w.buf, at); int64(m) < want {
			w.buf = w.buf[:0]
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return w.buf[at-w.at:][:n], nil
}
