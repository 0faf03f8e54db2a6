package mediaapi

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"runtime"
	"strings"
	"testing"

	"parley/storage/disk/simdisk"
)

// gradient is opaque; its corners tell how it is turned.
func gradient(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			img.SetRGBA(x, y, color.RGBA{uint8(x * 255 / max(w-1, 1)), uint8(y * 255 / max(h-1, 1)), 128, 255})
		}
	}
	return img
}

func pngFile(img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func jpegFile(img image.Image) []byte {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, nil); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func gifFile(frames int, w, h int) []byte {
	g := &gif.GIF{}
	for i := range frames {
		p := image.NewPaletted(image.Rect(0, 0, w, h), color.Palette{color.Black, color.White})
		p.SetColorIndex(i%w, 0, 1)
		g.Image = append(g.Image, p)
		g.Delay = append(g.Delay, 1)
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, g); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func size(t *testing.T, b []byte) (w, h int) {
	t.Helper()
	cfg, _, err := image.DecodeConfig(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Width, cfg.Height
}

// webpFile is one pixel, lossy.
func webpFile(t testing.TB) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
	must(t, err)
	return b
}

func TestThumbnailSizes(t *testing.T) {
	f := newServer(t)
	file := f.upload(jpegFile(gradient(1000, 500)), "image/jpeg", "")
	for _, c := range []struct {
		query string
		w, h  int
	}{
		{"width=32&height=32&method=crop", 32, 32},
		{"width=96&height=96&method=crop", 96, 96},
		{"width=320&height=240", 480, 240},
		{"width=320&height=240&method=scale", 480, 240},
		{"width=640&height=480&method=scale", 960, 480},
		{"width=800&height=600&method=scale", 1000, 500},
		{"width=30&height=10&method=scale", 64, 32},
		{"width=1&height=1&method=crop", 32, 32},
		{"width=300&height=1000&method=crop", 125, 500},
		{"width=5000&height=5000&method=crop", 1000, 500}, // itself
		{"width=500&height=500&method=crop", 500, 500},
		{"width=999999999&height=1&method=scale", 1000, 500},
	} {
		a := f.get(v1Thumbnail+file+"?"+c.query, "bob").ok()
		w, h := size(t, a.body)
		if abs(w-c.w) > 1 || abs(h-c.h) > 1 {
			t.Errorf("%s: %dx%d, want %dx%d", c.query, w, h, c.w, c.h)
		}
		if got := a.header.Get("Content-Disposition"); !strings.HasPrefix(got, "inline") || a.header.Get("Content-Type") != "image/jpeg" ||
			!strings.HasPrefix(a.header.Get("Content-Security-Policy"), "sandbox") || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", c.query, a.header)
		}
	}
}

func abs(n int) int { return max(n, -n) }

func TestThumbnailParameters(t *testing.T) {
	f := newServer(t)
	file := f.upload(pngFile(gradient(100, 100)), "image/png", "")
	for query, want := range map[string]string{
		"":                                    "M_MISSING_PARAM",
		"width=32":                            "M_MISSING_PARAM",
		"width=-1&height=5":                   "M_UNKNOWN",
		"width=0&height=5":                    "M_UNKNOWN",
		"width=a&height=5":                    "M_UNKNOWN",
		"width=1.5&height=5":                  "M_UNKNOWN",
		"width=5&height=99999999999999999999": "M_UNKNOWN",
		"width=5&height=5&method=stretch":     "M_INVALID_PARAM",
	} {
		f.get(v1Thumbnail+file+"?"+query, "bob").fails(400, want)
	}
	f.get(v1Thumbnail+file+"?width=32&height=32", "").fails(401, "M_MISSING_TOKEN")
}

func TestThumbnailFormats(t *testing.T) {
	f := newServer(t)
	glass := image.NewNRGBA(image.Rect(0, 0, 100, 100))
	for i, c := range []struct {
		content []byte
		typ     string
		want    string // type of the thumbnail
		w, h    int
	}{
		{pngFile(gradient(100, 100)), "image/png", "image/png", 32, 32},
		{jpegFile(gradient(100, 100)), "image/jpeg", "image/jpeg", 32, 32},
		{pngFile(glass), "image/png", "image/png", 32, 32},
		{pngFile(image.NewGray16(image.Rect(0, 0, 100, 100))), "image/png", "image/png", 32, 32},
		{gifFile(5, 100, 50), "image/gif", "image/png", 64, 32},
		{gifFile(5, 10, 10), "image/gif", "image/png", 10, 10}, // would move: made anew
		{webpFile(t), "image/webp", "image/jpeg", 1, 1},
		{pngFile(gradient(20, 10)), "image/png", "image/png", 20, 10},  // itself
		{pngFile(gradient(20, 10)), "image/jpeg", "image/png", 20, 10}, // not what it says
		{apngFile(), "image/png", "image/png", 20, 10},
		{jpegFile(gradient(3000, 2)), "image/jpeg", "image/jpeg", 3000, 2},
		{jpegFile(gradient(1, 1)), "image/jpeg", "image/jpeg", 1, 1},
	} {
		file := f.upload(c.content, c.typ, "")
		a := f.get(v1Thumbnail+file+"?width=32&height=32", "bob").ok()
		w, h := size(t, a.body)
		if a.header.Get("Content-Type") != c.want || w != c.w || h != c.h {
			t.Errorf("%d: %s %dx%d, want %s %dx%d", i, a.header.Get("Content-Type"), w, h, c.want, c.w, c.h)
		}
	}
	for i, content := range [][]byte{nil, []byte("x"), []byte("<svg xmlns='http://www.w3.org/2000/svg'/>"), []byte("%PDF-1.4"), noise(1, 10_000), []byte("GIF89a"), []byte("\xff\xd8\xff"), []byte("RIFF\x00\x00\x00\x00WEBPVP8 ")} {
		file := f.upload(content, "image/png", "")
		a := f.get(v1Thumbnail+file+"?width=32&height=32", "bob")
		if a.status != 400 {
			t.Errorf("%d: %d", i, a.status)
		}
		a.fails(400, "M_UNKNOWN")
	}
}

// apngFile has an animation control chunk.
func apngFile() []byte {
	b := pngFile(gradient(20, 10))
	chunk := make([]byte, 8)
	return append(append(append([]byte(nil), b[:33]...), pngChunk("acTL", chunk)...), b[33:]...)
}

func pngChunk(name string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, name...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// pngBomb claims a size and has its pixels, all black, in few bytes.
func pngBomb(w, h uint32, depth, typ byte) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, w), h)
	head = append(head, depth, typ, 0, 0, 0)
	var z bytes.Buffer
	zw := zlib.NewWriter(&z)
	_, _ = zw.Write(make([]byte, 1<<20))
	_ = zw.Close()
	b := append([]byte("\x89PNG\r\n\x1a\n"), pngChunk("IHDR", head)...)
	b = append(b, pngChunk("IDAT", z.Bytes())...)
	return append(b, pngChunk("IEND", nil)...)
}

func gifBomb(w, h uint16) []byte {
	b := []byte("GIF89a")
	b = binary.LittleEndian.AppendUint16(b, w)
	b = binary.LittleEndian.AppendUint16(b, h)
	b = append(b, 0x80, 0, 0, 0, 0, 0, 255, 255, 255, 0x2c, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint16(b, w)
	b = binary.LittleEndian.AppendUint16(b, h)
	return append(b, 0, 2, 2, 0x44, 1, 0, 0x3b)
}

// TestPixelBombs: small files that would be huge pictures are refused before
// they are decoded.
func TestPixelBombs(t *testing.T) {
	f := newServer(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i, bomb := range [][]byte{
		pngBomb(30_000, 30_000, 8, 6), pngBomb(20_000, 20_000, 16, 6), pngBomb(1<<31-1, 1<<31-1, 8, 6), pngBomb(60_000, 1, 8, 2),
		pngBomb(30_000, 30_000, 1, 0), gifBomb(65_535, 65_535), gifBomb(30_000, 30_000),
	} {
		file := f.upload(bomb, "image/png", "")
		a := f.get(v1Thumbnail+file+"?width=32&height=32", "bob")
		if a.status != 413 && a.status != 400 {
			t.Errorf("%d: %d", i, a.status)
		}
	}
	f.remote.files["o/bomb"] = remoteFile{content: pngBomb(30_000, 30_000, 8, 6), typ: "image/png"}
	f.get(v1Thumbnail+"o/bomb?width=32&height=32", "bob").fails(502, "M_TOO_LARGE")
	runtime.ReadMemStats(&after)
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 100<<20 {
		t.Errorf("%d MiB allocated", grown>>20)
	}
}

// TestTruncatedPictures cuts and damages files of every format at many places.
func TestTruncatedPictures(t *testing.T) {
	f := newServer(t)
	for _, whole := range [][]byte{jpegFile(gradient(90, 60)), pngFile(gradient(90, 60)), gifFile(3, 90, 60), webpFile(t)} {
		for i := range 12 {
			cut := append([]byte(nil), whole[:len(whole)*i/12]...)
			spoiled := append([]byte(nil), whole...)
			for j := range 8 {
				spoiled[(i*31+j*len(whole)/8)%len(spoiled)] ^= byte(1 << j)
			}
			for _, content := range [][]byte{cut, spoiled} {
				a := f.get(v1Thumbnail+f.upload(content, "image/png", "")+"?width=32&height=32", "bob")
				if a.status != 200 && a.status != 400 && a.status != 413 {
					t.Errorf("%d: %s", a.status, a.body)
				}
			}
		}
	}
}

// withOrientation adds an EXIF segment to a JPEG.
func withOrientation(b []byte, o byte, order binary.AppendByteOrder, mark string) []byte {
	tiff := []byte(mark)
	tiff = order.AppendUint16(tiff, 42)
	tiff = order.AppendUint32(tiff, 8)
	tiff = order.AppendUint16(tiff, 1)
	tiff = order.AppendUint16(tiff, 0x0112)
	tiff = order.AppendUint16(tiff, 3)
	tiff = order.AppendUint32(tiff, 1)
	tiff = order.AppendUint16(tiff, uint16(o))
	tiff = append(tiff, 0, 0, 0, 0, 0, 0)
	seg := append([]byte("Exif\x00\x00"), tiff...)
	out := append([]byte(nil), b[:2]...)
	out = append(out, 0xff, 0xe1)
	out = binary.BigEndian.AppendUint16(out, uint16(len(seg)+2))
	return append(append(out, seg...), b[2:]...)
}

// TestOrientation: pictures of a camera held in any way come out upright.
func TestOrientation(t *testing.T) {
	f := newServer(t)
	upright := gradient(200, 100)
	for o := byte(1); o <= 8; o++ {
		// What the camera stores, so that orientation o makes it upright.
		w, h := 200, 100
		if turn(o).swaps() {
			w, h = h, w
		}
		stored := image.NewRGBA(image.Rect(0, 0, w, h))
		for y := range 100 {
			for x := range 200 {
				sx, sy := turn(o).source(x, y, w, h)
				stored.Set(sx, sy, upright.At(x, y))
			}
		}
		for mark, order := range map[string]binary.AppendByteOrder{"II": binary.LittleEndian, "MM": binary.BigEndian} {
			file := f.upload(withOrientation(jpegFile(stored), o, order, mark), "image/jpeg", "")
			for query, want := range map[string][2]int{"width=64&height=32": {64, 32}, "width=640&height=640": {200, 100}, "width=32&height=32&method=crop": {32, 32}} {
				a := f.get(v1Thumbnail+file+"?"+query, "bob").ok()
				img, err := jpeg.Decode(bytes.NewReader(a.body))
				must(t, err)
				b := img.Bounds()
				if o == 1 && query == "width=640&height=640" && b.Dx() != 200 {
					t.Errorf("original: %v", b)
				}
				if b.Dx() != want[0] || b.Dy() != want[1] {
					t.Errorf("orientation %d %s: %v", o, query, b)
				}
				left, _, _, _ := img.At(2, b.Dy()/2).RGBA()
				right, _, _, _ := img.At(b.Dx()-3, b.Dy()/2).RGBA()
				_, top, _, _ := img.At(b.Dx()/2, 2).RGBA()
				_, bottom, _, _ := img.At(b.Dx()/2, b.Dy()-3).RGBA()
				if left >= right || top >= bottom {
					t.Errorf("orientation %d %s isn't upright", o, query)
				}
			}
		}
	}
}

func TestLargePNGsBecomeJPEGs(t *testing.T) {
	f := newServer(t)
	noisy := gradient(900, 700)
	copy(noisy.Pix, noise(1, len(noisy.Pix)))
	for i := 3; i < len(noisy.Pix); i += 4 {
		noisy.Pix[i] = 255
	}
	file := f.upload(pngFile(noisy), "image/png", "")
	if a := f.get(v1Thumbnail+file+"?width=800&height=600", "bob").ok(); a.header.Get("Content-Type") != "image/jpeg" {
		t.Errorf("%s, %d bytes", a.header.Get("Content-Type"), len(a.body))
	}
}

// TestThumbnailsAreMadeOnce: the second request and the one after a restart
// get the stored one, which is encrypted and goes with the file.
func TestThumbnailsAreMadeOnce(t *testing.T) {
	f := newServer(t)
	file := f.upload(jpegFile(gradient(500, 500)), "image/jpeg", "")
	first := f.get(v1Thumbnail+file+"?width=96&height=96&method=crop", "bob").ok()
	if n := blobCount(t, f); n != 2 {
		t.Fatalf("%d files", n)
	}
	f.restart()
	for range 3 {
		again := f.get(v1Thumbnail+file+"?width=90&height=70&method=crop", "alice").ok()
		if !bytes.Equal(again.body, first.body) && again.header.Get("ETag") == first.header.Get("ETag") {
			t.Error("two thumbnails with one ETag")
		}
	}
	if n := blobCount(t, f); n != 2 {
		t.Errorf("%d files", n)
	}
	if a := f.get(v1Thumbnail+file+"?width=96&height=96&method=crop", "bob", "If-None-Match", first.header.Get("ETag")); a.status != 304 {
		t.Errorf("%d", a.status)
	}
	// Somebody asks for every size there is.
	for _, w := range thumbSteps[:8] {
		for _, h := range thumbSteps[:8] {
			f.get(fmt.Sprintf("%s%s?width=%d&height=%d&method=crop", v1Thumbnail, file, w, h), "bob").ok()
		}
	}
	if n := blobCount(t, f); n > maxThumbs+1 {
		t.Errorf("%d files", n)
	}
	must(t, f.s.Sweep(ctx))
	f.get(v1Download+file, "bob").ok()
}

func TestThumbnailsTogether(t *testing.T) {
	f := newServer(t)
	file := f.upload(jpegFile(gradient(800, 800)), "image/jpeg", "")
	results := make(chan int)
	for i := range 16 {
		go func() {
			a, err := f.try("GET", fmt.Sprintf("%s%s?width=%d&height=%d&method=crop", v1Thumbnail, file, 32+32*(i%3), 96), "bob", nil)
			if err != nil {
				t.Error(err)
			}
			results <- a.status
		}()
	}
	for range 16 {
		if s := <-results; s != 200 {
			t.Errorf("status %d", s)
		}
	}
	if n := blobCount(t, f); n != 4 {
		t.Errorf("%d files", n)
	}
}

func TestScaleKeepsColours(t *testing.T) {
	for _, n := range []int{100, 640, 3000} {
		out := scale(gradient(n, n), image.Rect(0, 0, n, n), 50, 50)
		for _, p := range []image.Point{{0, 0}, {49, 0}, {0, 49}, {25, 25}} {
			c := out.RGBAAt(p.X, p.Y)
			if abs(int(c.R)-p.X*255/49) > 8 || abs(int(c.G)-p.Y*255/49) > 8 || c.A != 255 {
				t.Errorf("%d at %v: %v", n, p, c)
			}
		}
	}
}

func FuzzExif(f *testing.F) {
	f.Add(withOrientation(jpegFile(gradient(2, 2)), 6, binary.BigEndian, "MM"))
	f.Add([]byte("II*\x00\x08\x00\x00\x00\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if o := orientation("image/jpeg", r); o < 1 || o > 8 {
			t.Errorf("orientation %d", o)
		}
		exifOrientation(b)
		still("image/png", r)
		progressive(r)
	})
}

// FuzzThumbnail must not crash, nor take more than the memory it reserves.
func FuzzThumbnail(f *testing.F) {
	for _, b := range [][]byte{jpegFile(gradient(9, 7)), pngFile(gradient(9, 7)), gifFile(2, 9, 7), pngBomb(300, 300, 8, 6), gifBomb(100, 100), movingGIF(), movingPNG(), movingWebP(f)} {
		f.Add(b, uint16(5), uint16(5), true, true)
	}
	d := simdisk.New(1)
	f.Fuzz(func(t *testing.T, b []byte, w, h uint16, crop, moving bool) {
		s := newShrinker()
		c, err := memoryContent(d, b)
		must(t, err)
		defer c.Close()
		p, err := s.shrink(ctx, c, variant{W: int(w)%1920 + 1, H: int(h)%1920 + 1, Crop: crop, Moving: moving}, "image/png")
		if err == nil && (len(p.data) == 0 || p.typ == "") {
			t.Error("empty thumbnail")
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("text/html; charset=utf-8", "a.html")
	f.Add("image/png", "x\r\ny")
	f.Fuzz(func(t *testing.T, typ, name string) {
		ct, d := contentType(typ), disposition(contentType(typ), fileName(name))
		for _, h := range []string{ct, d} {
			if strings.ContainsAny(h, "\r\n\x00") {
				t.Errorf("%q", h)
			}
		}
		if strings.HasPrefix(d, "inline") != inlineTypes[strings.TrimSpace(strings.SplitN(ct, ";", 2)[0])] {
			t.Errorf("%s is %s", ct, d)
		}
		dispositionName(name)
	})
}
