package mediaapi

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"io"
	"testing"
	"time"

	"golang.org/x/image/draw"
)

var (
	red   = color.RGBA{255, 0, 0, 255}
	green = color.RGBA{0, 255, 0, 255}
	blue  = color.RGBA{0, 0, 255, 255}
	none  = color.RGBA{}
)

func plain(c color.Color, r image.Rectangle) *image.Paletted {
	img := image.NewPaletted(r, color.Palette{none, red, green, blue})
	draw.Draw(img, r, image.NewUniform(c), image.Point{}, draw.Src)
	return img
}

// movingGIF uses every way in which frames follow each other: 200x200, all
// red, then a green quarter that goes again, then a blue one that clears.
func movingGIF() []byte {
	all, corner := image.Rect(0, 0, 200, 200), image.Rect(0, 0, 100, 100)
	far := image.Rect(100, 100, 200, 200)
	var b bytes.Buffer
	_ = gif.EncodeAll(&b, &gif.GIF{
		Image:    []*image.Paletted{plain(red, all), plain(green, corner), plain(blue, far), plain(none, image.Rect(0, 100, 100, 200)), plain(green, image.Rect(190, 0, 200, 10))},
		Delay:    []int{5, 10, 15, 20, 0},
		Disposal: []byte{gif.DisposalNone, gif.DisposalPrevious, gif.DisposalBackground, gif.DisposalNone, gif.DisposalNone},
		Config:   image.Config{ColorModel: color.Palette{none, red, green, blue}, Width: 200, Height: 200},
	})
	return b.Bytes()
}

// withComment makes a GIF larger by at least n bytes.
func withComment(b []byte, n int) []byte {
	b = append(append([]byte(nil), b[:len(b)-1]...), 0x21, 0xfe)
	for ; n > 0; n -= 255 {
		b = append(append(b, 255), make([]byte, 255)...)
	}
	return append(b, 0, 0x3b)
}

// movingPNG is made by the encoder of thumbnails.
func movingPNG() []byte {
	a := newAPNG(120, 60)
	for _, c := range []color.Color{red, green, none} {
		img := image.NewRGBA(image.Rect(0, 0, 120, 60))
		draw.Draw(img, image.Rect(10, 10, 110, 50), image.NewUniform(c), image.Point{}, draw.Src)
		a.add(img, 40)
	}
	return a.end()
}

// movingWebP has two frames with the same picture of one pixel, on a canvas of
// three.
func movingWebP(t testing.TB) []byte {
	still := webpFile(t)
	le := binary.LittleEndian
	chunk := func(name string, body []byte) []byte {
		b := append(le.AppendUint32([]byte(name), uint32(len(body))), body...)
		return append(b, make([]byte, len(body)&1)...)
	}
	body := append([]byte("WEBP"), chunk("VP8X", []byte{2, 0, 0, 0, 2, 0, 0, 0, 0, 0})...)
	body = append(body, chunk("ANIM", make([]byte, 6))...)
	for i := range 2 {
		fr := make([]byte, 16)
		fr[0], fr[12] = byte(i), 100
		body = append(body, chunk("ANMF", append(fr, still[12:]...))...)
	}
	return chunk("RIFF", body)
}

// shown is what a moving picture shows, frame by frame.
func shown(t *testing.T, typ string, b []byte) (out []*image.RGBA, delays []int) {
	t.Helper()
	f, ok := sniff(b)
	if !ok || f.typ != typ {
		t.Fatalf("%s is %s", typ, f.typ)
	}
	a, err := animated(f, bytes.NewReader(b), int64(len(b)))
	if err != nil || a == nil {
		t.Fatalf("%s doesn't move: %v", typ, err)
	}
	canvas := image.NewRGBA(image.Rect(0, 0, a.w, a.h))
	var before *image.RGBA
	for {
		fr, err := a.next()
		if err == io.EOF {
			return out, delays
		}
		must(t, err)
		before, err = drawFrame(ctx, f, canvas, before, fr)
		must(t, err)
		picture := image.NewRGBA(canvas.Bounds())
		copy(picture.Pix, canvas.Pix)
		out, delays = append(out, picture), append(delays, fr.delay)
		dispose(canvas, before, fr)
	}
}

func TestMovingThumbnails(t *testing.T) {
	f := newServer(t)
	small := f.upload(movingGIF(), "image/gif", "")
	if a := f.get(v1Thumbnail+small+"?width=96&height=96&animated=true", "bob").ok(); !bytes.Equal(a.body, movingGIF()) {
		t.Error("a file that is smaller than its thumbnail would be isn't used itself")
	}
	file := f.upload(withComment(movingGIF(), 20_000), "image/gif", "")
	a := f.get(v1Thumbnail+file+"?width=96&height=96&animated=true", "bob").ok()
	if typ, d := a.header.Get("Content-Type"), a.header.Get("Content-Disposition"); typ != "image/apng" || d != "inline; filename=thumbnail.apng" {
		t.Errorf("%s, %s", typ, d)
	}
	if w, h := size(t, a.body); w != 96 || h != 96 {
		t.Errorf("%dx%d", w, h)
	}
	frames, delays := shown(t, "image/png", a.body)
	if len(frames) != 5 {
		t.Fatalf("%d frames", len(frames))
	}
	for i, want := range []int{50, 100, 150, 200, 0} {
		if delays[i] != want {
			t.Errorf("frame %d stays for %d ms", i, delays[i])
		}
	}
	for i, want := range [][3]color.RGBA{ // upper left, lower right, lower left
		{red, red, red}, {green, red, red}, {red, blue, red}, {red, none, red}, {red, none, red},
	} {
		for j, at := range []image.Point{{20, 20}, {76, 76}, {20, 76}} {
			if got := frames[i].RGBAAt(at.X, at.Y); got != want[j] {
				t.Errorf("frame %d at %v: %v, want %v", i, at, got, want[j])
			}
		}
	}
	if got := frames[4].RGBAAt(94, 1); got.G < 100 {
		t.Errorf("the last frame isn't there: %v", got)
	}
	for _, q := range []string{"", "&animated=false"} {
		a := f.get(v1Thumbnail+file+"?width=96&height=96"+q, "bob").ok()
		if f, _ := sniff(a.body); a.header.Get("Content-Type") != "image/png" || !still(f.typ, bytes.NewReader(a.body)) {
			t.Errorf("%q moves", q)
		}
	}
	f.get(v1Thumbnail+file+"?width=96&height=96&animated=1", "bob").fails(400, "M_INVALID_PARAM")

	for _, c := range []struct {
		content []byte
		typ     string
		w, h    int
		frames  int
	}{
		{movingPNG(), "image/png", 64, 32, 3},
		{movingWebP(t), "image/webp", 3, 1, 2},
	} {
		file := f.upload(c.content, c.typ, "")
		a := f.get(v1Thumbnail+file+"?width=32&height=32&animated=true", "bob").ok()
		fm, _ := sniff(a.body)
		frames, _ := shown(t, fm.typ, a.body)
		if b := frames[0].Bounds(); b.Dx() != c.w || b.Dy() != c.h || len(frames) != c.frames {
			t.Errorf("%s: %d frames of %v", c.typ, len(frames), b)
		}
		still := f.get(v1Thumbnail+file+"?width=32&height=32", "bob")
		if c.typ != "image/webp" || still.status == 200 {
			still.ok()
			if _, _, err := image.Decode(bytes.NewReader(still.body)); err != nil {
				t.Errorf("%s, still: %v", c.typ, err)
			}
		}
	}
}

// TestStillOnDemand: what doesn't move, or can't be shown moving, gets a still
// thumbnail although a moving one was asked for. Row S16.
func TestStillOnDemand(t *testing.T) {
	f := newServer(t)
	cut := movingGIF()
	for name, c := range map[string]struct {
		content []byte
		typ     string
	}{
		"jpeg":           {jpegFile(gradient(300, 300)), "image/jpeg"},
		"png":            {pngFile(gradient(300, 300)), "image/png"},
		"one frame":      {gifFile(1, 300, 300), "image/gif"},
		"too many":       {gifFile(maxFrames+10, 40, 40), "image/gif"},
		"ends early":     {cut[:len(cut)-40], "image/gif"},
		"empty acTL":     {apngFile(), "image/png"},
		"too much to do": {gifFile(60, 1700, 1700), "image/gif"},
	} {
		file := f.upload(c.content, c.typ, "")
		a := f.get(v1Thumbnail+file+"?width=32&height=32&animated=true", "bob").ok()
		if fm, ok := sniff(a.body); !ok || !still(fm.typ, bytes.NewReader(a.body)) {
			t.Errorf("%s: moves", name)
		}
	}
	// A frame may not be larger than the picture says, whatever is in it.
	b := movingPNG()
	at := bytes.Index(b, []byte("fcTL")) + 8
	binary.BigEndian.PutUint32(b[at:], 30_000)
	if a, err := pngFrames(bytes.NewReader(b), int64(len(b))); err == nil {
		fr, err := a.next()
		must(t, err)
		fm, _ := sniff(b)
		if _, err := drawFrame(ctx, fm, image.NewRGBA(image.Rect(0, 0, 120, 60)), nil, fr); err != errNoMotion {
			t.Errorf("a frame of %v was drawn: %v", fr.bounds, err)
		}
	}
}

// TestEncryptedFilesAreNotOpened: the server doesn't look into what isn't said
// to be a picture, whatever its bytes look like.
func TestEncryptedFilesAreNotOpened(t *testing.T) {
	f := newServer(t)
	for _, typ := range []string{"application/octet-stream", "", "video/mp4", "text/plain"} {
		file := f.upload(pngFile(gradient(100, 100)), typ, "")
		f.get(v1Thumbnail+file+"?width=32&height=32", "bob").fails(400, "M_UNKNOWN")
	}
}

// TestMotionBombs: small files that unfold cost little. Row S16.
func TestMotionBombs(t *testing.T) {
	f := newServer(t)
	begin := time.Now()
	files := [][]byte{gifBomb(32_000, 32_000), gifFile(3000, 1, 1)}
	big := movingPNG()
	binary.BigEndian.PutUint32(big[16:], 30_000)
	binary.BigEndian.PutUint32(big[20:], 30_000)
	files = append(files, big)
	web := movingWebP(t)
	web[24], web[25], web[27], web[28] = 0xff, 0x7e, 0xff, 0x7e
	files = append(files, web)
	blocks := append([]byte(nil), movingGIF()[:13]...)
	for range 100_000 {
		blocks = append(blocks, 0x21, 0xfe, 1, 'x', 0)
	}
	files = append(files, blocks)
	for i, b := range files {
		for _, typ := range []string{"image/gif"} {
			file := f.upload(b, typ, "")
			if a := f.get(v1Thumbnail+file+"?width=32&height=32&animated=true", "bob"); a.status == 500 {
				t.Errorf("%d: %d %s", i, a.status, a.body)
			}
		}
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzFrames(f *testing.F) {
	for _, b := range [][]byte{movingGIF(), movingPNG(), movingWebP(f)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fm, ok := sniff(b)
		if !ok {
			return
		}
		a, err := animated(fm, bytes.NewReader(b), int64(len(b)))
		if err != nil || a == nil || a.w > 500 || a.h > 500 || a.w < 1 || a.h < 1 {
			return
		}
		if out, err := replay(ctx, fm, a, variant{W: 32, H: 32}); err == nil {
			if _, err := png.Decode(bytes.NewReader(out)); err != nil {
				t.Error(err)
			}
		}
	})
}
