package vault

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A sealed stream is a header and frames:
//
//	header  version byte, key number u64, salt 16
//	frame   AES-256-GCM(64 KiB of plaintext, the last one less) + tag 16
//
// Each stream has a key of its own, derived from the data key with the header
// as context. The nonce of a frame is its number and whether it is the last
// one, so frames can't be dropped, repeated, moved or cut off unseen. There
// is always a last frame; it is empty only when the stream is.
const (
	FramePlain   = 64 << 10 // bytes of plaintext in a full frame
	frameSealed  = FramePlain + tagSize
	streamHeader = 1 + 8 + 16
	maxFrames    = 1 << 32 // the frame counter has 32 bits: 256 TiB
	// atOnce is how many frames are read and written at once; more makes
	// nothing faster.
	atOnce = 4
)

// SealStream returns a writer that encrypts in 64 KiB frames to dst; Close
// writes the last frame. Truncation and reordering are detected on reading.
// The writer is for one goroutine. Close doesn't close dst.
func (v *Vault) SealStream(ref Ref, dst io.Writer) (io.WriteCloser, error) {
	num, _, err := v.sealer(ref)
	if err != nil {
		return nil, fmt.Errorf("seal stream: %w", err)
	}
	head := binary.BigEndian.AppendUint64([]byte{streamV1}, num)
	head = append(head, make([]byte, 16)...)
	if _, err := io.ReadFull(v.rand, head[9:]); err != nil {
		return nil, fmt.Errorf("seal stream: random salt: %w", err)
	}
	aead, err := v.streamCipher(num, Ref{}, head)
	if err != nil {
		return nil, fmt.Errorf("seal stream: %w", err)
	}
	if _, err := dst.Write(head); err != nil {
		return nil, fmt.Errorf("seal stream: %w", err)
	}
	return &streamWriter{dst: dst, aead: aead, buf: make([]byte, 0, atOnce*FramePlain+1)}, nil
}

// streamCipher derives the key of a stream. want, unless empty, is the key
// reference that the number must belong to.
func (v *Vault) streamCipher(num uint64, want Ref, head []byte) (cipher.AEAD, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	e, ok := v.ring.byNum(num)
	if !ok {
		return nil, ErrDestroyed
	}
	if want != (Ref{}) && e.ref != want {
		return nil, ErrCorrupt
	}
	key, err := hkdf.Key(sha256.New, e.key[:], nil, "parley vault stream"+string(head), keySize)
	if err != nil {
		return nil, err
	}
	return newAEAD(key), nil
}

func frameNonce(n uint64, last bool) (nonce [nonceSize]byte) {
	binary.BigEndian.PutUint32(nonce[7:], uint32(n))
	if last {
		nonce[11] = 1
	}
	return nonce
}

type streamWriter struct {
	dst  io.Writer
	aead cipher.AEAD
	// buf is the plaintext of the frames that are being filled. A byte more
	// than they hold shows that none of them is the last.
	buf []byte
	out []byte
	n   uint64
	err error // sticky; io.ErrClosedPipe after Close
}

func (w *streamWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 && w.err == nil {
		if len(w.buf) == cap(w.buf) {
			w.flush(false)
			continue
		}
		k := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf, p, written = w.buf[:len(w.buf)+k], p[k:], written+k
	}
	return written, w.err
}

// ReadFrom is io.Copy without a buffer in between.
func (w *streamWriter) ReadFrom(r io.Reader) (read int64, err error) {
	for empty := 0; w.err == nil; {
		if len(w.buf) == cap(w.buf) {
			w.flush(false)
			continue
		}
		n, err := r.Read(w.buf[len(w.buf):cap(w.buf)])
		w.buf, read = w.buf[:len(w.buf)+n], read+int64(n)
		if err == io.EOF {
			return read, nil
		}
		if n > 0 {
			empty = 0
		} else if empty++; err == nil && empty == 100 {
			err = io.ErrNoProgress
		}
		if err != nil {
			return read, err
		}
	}
	return read, w.err
}

// flush writes the frames that there are; last says that the stream ends.
func (w *streamWriter) flush(last bool) {
	w.out = w.out[:0]
	frames := w.buf[:min(len(w.buf), atOnce*FramePlain)]
	over := w.buf[len(frames):]
	if last {
		frames, over = w.buf, nil
	}
	for rest := frames; ; {
		if w.n >= maxFrames {
			w.err = errors.New("vault: stream too long")
			return
		}
		frame := rest[:min(len(rest), FramePlain)]
		rest = rest[len(frame):]
		nonce := frameNonce(w.n, last && len(rest) == 0)
		w.out = w.aead.Seal(w.out, nonce[:], frame, nil)
		w.n++
		if len(rest) == 0 {
			break
		}
	}
	w.buf = w.buf[:copy(w.buf, over)]
	_, w.err = w.dst.Write(w.out)
}

func (w *streamWriter) Close() error {
	if w.err != nil {
		return w.err
	}
	w.flush(true)
	err := w.err
	if err == nil {
		w.err = io.ErrClosedPipe
	}
	clear(w.buf[:cap(w.buf)])
	return err
}

// SealedSize is how many bytes SealStream makes of n bytes of plaintext.
func SealedSize(n int64) int64 {
	frames := max((n+FramePlain-1)/FramePlain, 1)
	return streamHeader + n + frames*tagSize
}

// plainSize is the reverse; ok is false for sizes that no stream has.
func plainSize(size int64) (n int64, ok bool) {
	body := size - streamHeader
	if body < tagSize {
		return 0, false
	}
	full, rest := body/frameSealed, body%frameSealed
	switch {
	case rest == 0:
		return full * FramePlain, true
	case rest < tagSize, rest == tagSize && full > 0:
		return 0, false
	}
	return full*FramePlain + rest - tagSize, true
}

// OpenStream returns the plaintext of a sealed stream of size bytes, with
// random access in whole frames. It reads the header and the last frame at
// once: a truncated stream is ErrCorrupt here, other damage on reading.
// The reader is safe for concurrent use if src is. The caller closes src.
func (v *Vault) OpenStream(ref Ref, src io.ReaderAt, size int64) (*io.SectionReader, error) {
	n, ok := plainSize(size)
	if !ok {
		return nil, fmt.Errorf("open stream: size: %w", ErrCorrupt)
	}
	head := make([]byte, streamHeader)
	if err := readAt(src, head, 0); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	if head[0] != streamV1 {
		return nil, fmt.Errorf("open stream: version: %w", ErrCorrupt)
	}
	aead, err := v.streamCipher(binary.BigEndian.Uint64(head[1:]), ref, head)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	r := &streamReader{src: src, aead: aead, size: n, last: uint64(max(n-1, 0) / FramePlain), have: -1}
	if _, err := r.frame(r.last); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return io.NewSectionReader(r, 0, n), nil
}

// readAt fills p; a file that is shorter than its size said is corrupt.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return ErrCorrupt
	}
	return err
}

// streamReader keeps the frame that it opened last, as most reads go on where
// the one before ended.
type streamReader struct {
	src  io.ReaderAt
	aead cipher.AEAD
	size int64
	last uint64

	mu     sync.Mutex
	have   int64 // number of the frame in plain, -1 none
	plain  []byte
	sealed []byte
}

func (r *streamReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.size {
		return 0, io.EOF
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	done := 0
	for done < len(p) && off < r.size {
		k, err := r.whole(p[done:], off)
		if err != nil {
			return done, fmt.Errorf("read stream: %w", err)
		}
		if done, off = done+k, off+int64(k); k > 0 {
			continue
		}
		f, err := r.frame(uint64(off / FramePlain))
		if err != nil {
			return done, fmt.Errorf("read stream: %w", err)
		}
		k = copy(p[done:], f[off%FramePlain:])
		done, off = done+k, off+int64(k)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// whole opens frames that p holds as a whole right into it, several at once;
// it returns 0 if there is none at this offset. Caller has mu.
func (r *streamReader) whole(p []byte, off int64) (int, error) {
	n := uint64(off / FramePlain)
	if off%FramePlain != 0 || n >= r.last || len(p) < FramePlain {
		return 0, nil
	}
	count := int(min(uint64(len(p)/FramePlain), r.last-n, atOnce))
	r.grow(count * frameSealed)
	if err := readAt(r.src, r.sealed, streamHeader+int64(n)*frameSealed); err != nil {
		return 0, err
	}
	for i := range count {
		nonce := frameNonce(n+uint64(i), false)
		at := p[i*FramePlain : i*FramePlain : (i+1)*FramePlain]
		if _, err := r.aead.Open(at, nonce[:], r.sealed[i*frameSealed:(i+1)*frameSealed], nil); err != nil {
			return i * FramePlain, ErrCorrupt
		}
	}
	return count * FramePlain, nil
}

// grow makes room for n sealed bytes.
func (r *streamReader) grow(n int) {
	if cap(r.sealed) < n {
		r.sealed = make([]byte, n)
	}
	r.sealed = r.sealed[:n]
}

// frame opens one frame. Caller has mu, or is alone.
func (r *streamReader) frame(n uint64) ([]byte, error) {
	if r.have == int64(n) {
		return r.plain, nil
	}
	r.have = -1
	size := FramePlain
	if n == r.last {
		size = int(r.size - int64(n)*FramePlain)
	}
	r.grow(size + tagSize)
	if err := readAt(r.src, r.sealed, streamHeader+int64(n)*frameSealed); err != nil {
		return nil, err
	}
	nonce := frameNonce(n, n == r.last)
	plain, err := r.aead.Open(r.plain[:0], nonce[:], r.sealed, nil)
	if err != nil {
		return nil, ErrCorrupt
	}
	r.plain, r.have = plain, int64(n)
	return plain, nil
}
