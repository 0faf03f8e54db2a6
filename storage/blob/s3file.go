package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/minio/minio-go/v7"

	"parley/storage"
)

const (
	// headSize is what the first request for a file asks for: most files whole.
	headSize = 1 << 20
	// tailSize is what is fetched for a read near the end: a sealed file's
	// last piece is checked when it is opened.
	tailSize = 128 << 10
	// windowSize bounds what one further request asks for, so that a reader
	// who stops early has cost little.
	windowSize = 16 << 20
)

// s3File is an open object. The beginning and the end are kept; what lies
// between is read from one response as long as offsets rise without gaps.
type s3File struct {
	b      *bucket
	name   string
	size   int64
	head   []byte
	cancel context.CancelFunc
	ctx    context.Context

	mu     sync.Mutex
	tail   []byte // the last bytes, once somebody has asked for them
	stream io.ReadCloser
	at     int64 // offset of the next byte of stream
	until  int64 // where stream ends
}

func (b *bucket) open(id ID) (*File, error) {
	f := &s3File{b: b, name: b.name(id)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	if err := f.start(); err != nil {
		f.cancel()
		return nil, err
	}
	return &File{f, f, f.size}, nil
}

// start fetches the beginning, and learns the size from it.
func (f *s3File) start() error {
	var o minio.GetObjectOptions
	if err := o.SetRange(0, headSize-1); err != nil {
		return err
	}
	body, _, header, err := f.b.core.GetObject(f.ctx, f.b.at.Bucket, f.name, o)
	if err != nil {
		return s3Error(err)
	}
	defer body.Close()
	if f.size, err = rangeSize(header.Get("Content-Range")); err != nil {
		return err
	}
	f.head = make([]byte, min(headSize, f.size))
	_, err = io.ReadFull(body, f.head)
	return unavailable(err)
}

// rangeSize is the size of the whole object in "bytes 0-9/100".
func rangeSize(h string) (int64, error) {
	_, total, _ := strings.Cut(h, "/")
	n, err := strconv.ParseInt(total, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%w: S3 service: no size in its answer", storage.ErrUnavailable)
	}
	return n, nil
}

// get asks for the bytes from an offset to before another.
func (f *s3File) get(from, to int64) (io.ReadCloser, error) {
	var o minio.GetObjectOptions
	if err := o.SetRange(from, to-1); err != nil {
		return nil, err
	}
	body, _, _, err := f.b.core.GetObject(f.ctx, f.b.at.Bucket, f.name, o)
	if err != nil {
		return nil, s3Error(err)
	}
	return body, nil
}

// fetch fills p with one request.
func (f *s3File) fetch(p []byte, off int64) error {
	body, err := f.get(off, off+int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, p)
	return unavailable(err)
}

func (f *s3File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), f.size-off)]
	done := 0
	if off < int64(len(f.head)) {
		done = copy(want, f.head[off:])
	}
	if done < len(want) {
		f.mu.Lock()
		n, err := f.read(want[done:], off+int64(done))
		f.mu.Unlock()
		if done += n; err != nil {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// read fills p from past the head. Caller has mu.
func (f *s3File) read(p []byte, off int64) (int, error) {
	if tailAt := max(f.size-tailSize, int64(len(f.head))); off >= tailAt && (f.stream == nil || f.at != off) {
		if f.tail == nil {
			tail := make([]byte, f.size-tailAt)
			if err := f.fetch(tail, tailAt); err != nil {
				return 0, err
			}
			f.tail = tail
		}
		return copy(p, f.tail[off-tailAt:]), nil
	}
	done := 0
	for done < len(p) {
		n, err := f.readOn(p[done:], off+int64(done))
		done += n
		if err != nil {
			f.endStream()
			return done, err
		}
	}
	return done, nil
}

// readOn reads from the response that is open at this offset, or from a new
// one.
func (f *s3File) readOn(p []byte, off int64) (int, error) {
	if f.stream == nil || f.at != off || f.at == f.until {
		f.endStream()
		until := min(off+windowSize, f.size)
		body, err := f.get(off, until)
		if err != nil {
			return 0, err
		}
		f.stream, f.at, f.until = body, off, until
	}
	p = p[:min(int64(len(p)), f.until-f.at)]
	n, err := io.ReadFull(f.stream, p)
	f.at += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return n, storage.ErrUnavailable
	}
	return n, unavailable(err)
}

func (f *s3File) endStream() {
	if f.stream != nil {
		_ = f.stream.Close()
		f.stream = nil
	}
}

func (f *s3File) Close() error {
	f.cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endStream()
	return nil
}
