package mediaapi

import (
	"encoding/binary"
	"image"
	"io"
)

// turn is an EXIF orientation, 1 to 8: how a camera was held. Decoders ignore
// it, and a thumbnail doesn't carry the tag, so it is applied.
type turn int

// swaps reports whether width and height change places.
func (t turn) swaps() bool { return t >= 5 && t <= 8 }

// apply turns a picture upright.
func (t turn) apply(src *image.RGBA) *image.RGBA {
	if t <= 1 || t > 8 {
		return src
	}
	w, h := src.Bounds().Dx(), src.Bounds().Dy()
	ow, oh := w, h
	if t.swaps() {
		ow, oh = h, w
	}
	out := image.NewRGBA(image.Rect(0, 0, ow, oh))
	for y := range oh {
		for x := range ow {
			sx, sy := t.source(x, y, w, h)
			copy(out.Pix[y*out.Stride+x*4:][:4], src.Pix[sy*src.Stride+sx*4:][:4])
		}
	}
	return out
}

// source is the pixel of a w x h picture that comes to x, y.
func (t turn) source(x, y, w, h int) (sx, sy int) {
	switch t {
	case 2:
		return w - 1 - x, y
	case 3:
		return w - 1 - x, h - 1 - y
	case 4:
		return x, h - 1 - y
	case 5:
		return y, x
	case 6:
		return y, h - 1 - x
	case 7:
		return w - 1 - y, h - 1 - x
	case 8:
		return w - 1 - y, x
	}
	return x, y
}

// maxExif is the size of an EXIF segment.
const maxExif = 64 << 10

// orientation reads the tag of a JPEG; 1 (upright) if there is none.
func orientation(typ string, src io.ReaderAt) turn {
	if typ != "image/jpeg" {
		return 1
	}
	at := int64(2)
	for range 100 {
		var h [4]byte
		if _, err := src.ReadAt(h[:], at); err != nil || h[0] != 0xff || h[1] == 0xda {
			return 1
		}
		n := int64(binary.BigEndian.Uint16(h[2:]))
		if h[1] == 0xe1 && n > 8 && n <= maxExif {
			b := make([]byte, n-2)
			if _, err := src.ReadAt(b, at+4); err != nil {
				return 1
			}
			if string(b[:6]) == "Exif\x00\x00" {
				return exifOrientation(b[6:])
			}
		}
		at += 2 + n
	}
	return 1
}

// exifOrientation finds tag 0x0112 in the first directory of a TIFF header.
func exifOrientation(b []byte) turn {
	var order binary.ByteOrder
	switch {
	case len(b) < 8:
		return 1
	case string(b[:2]) == "II":
		order = binary.LittleEndian
	case string(b[:2]) == "MM":
		order = binary.BigEndian
	default:
		return 1
	}
	dir := int64(order.Uint32(b[4:]))
	if dir+2 > int64(len(b)) {
		return 1
	}
	count := int64(order.Uint16(b[dir:]))
	for i := range count {
		at := dir + 2 + 12*i
		if at+12 > int64(len(b)) {
			return 1
		}
		if order.Uint16(b[at:]) == 0x0112 {
			if v := turn(order.Uint16(b[at+8:])); v >= 1 && v <= 8 {
				return v
			}
			return 1
		}
	}
	return 1
}
