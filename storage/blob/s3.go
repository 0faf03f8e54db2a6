package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"parley/internal/clock"
	"parley/internal/netguard"
	"parley/storage"
)

// S3Options of OpenS3.
type S3Options struct {
	Resolver netguard.Resolver // nil: the system's
	Clock    clock.Clock
	Rand     io.Reader // nil: crypto/rand
}

const (
	// partSize is what is sent at once, and so the memory of an upload. It is
	// the least that the protocol allows.
	partSize = 5 << 20
	// s3Idle ends connections to the service that have stopped moving.
	s3Idle = 30 * time.Second
	// youngFor is how old a file must be to count as left over: another server
	// may still be starting or stopping on the same bucket.
	youngFor = 24 * time.Hour
	// s3Tries is how often a request is made until it fails.
	s3Tries = 3
)

// bucket is a bucket of an S3 service, or what begins with a prefix in it. A
// file is an object named by its ID in hex. Objects become visible whole.
type bucket struct {
	core  minio.Core
	at    S3Location
	clock clock.Clock
}

// OpenS3 opens a bucket that exists. When the service can't be reached the
// store is opened all the same, and its files are storage.ErrUnavailable; when
// it says that the bucket or the key is wrong, that is an error.
func OpenS3(ctx context.Context, at S3Location, o S3Options) (*Store, error) {
	core, err := newCore(at, o.Resolver)
	if err != nil {
		return nil, fmt.Errorf("blob: S3 service %s: %w", at, err)
	}
	b := &bucket{core: core, at: at, clock: o.Clock}
	ok, err := core.BucketExists(ctx, at.Bucket)
	switch {
	case err == nil && !ok:
		return nil, fmt.Errorf("blob: the S3 service has no bucket %q; make it first", at.Bucket)
	case err != nil && minio.ToErrorResponse(err).StatusCode/100 == 4:
		return nil, fmt.Errorf("blob: S3 service %s: %w", at, err)
	}
	return newStore(b, o.Rand), nil
}

func newCore(at S3Location, r netguard.Resolver) (minio.Core, error) {
	client, err := minio.New(at.Host, &minio.Options{
		Creds: credentials.NewStaticV4(at.AccessKey, at.SecretKey, ""), Secure: !at.Plain, Transport: s3Transport(at, r),
		Region: at.Region, MaxRetries: s3Tries,
	})
	if err != nil {
		return minio.Core{}, err
	}
	client.SetAppInfo("parley", "")
	return minio.Core{Client: client}, nil
}

// s3Transport connects to the service only: the operator has named it, so it
// may be in a private network, and nothing else may be reached this way.
func s3Transport(at S3Location, r netguard.Resolver) *http.Transport {
	guard := netguard.New(netguard.Options{Resolver: r,
		Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
	host, port, _ := net.SplitHostPort(at.address())
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			h, p, err := net.SplitHostPort(address)
			if err != nil || p != port || h != host && h != at.Bucket+"."+host && !amazon(h, host) {
				return nil, netguard.ErrForbidden
			}
			c, err := guard.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return idleConn{c}, nil
		},
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute, IdleConnTimeout: time.Minute,
		MaxIdleConnsPerHost: 64, MaxConnsPerHost: 256, DisableCompression: true,
		WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
	}
}

// amazon: the client itself chooses among the names of Amazon's service.
func amazon(h, configured string) bool {
	const domain = ".amazonaws.com"
	return strings.HasSuffix(configured, domain) && strings.HasSuffix(h, domain)
}

// idleConn is a connection whose transfers may take long but not stand still.
// Deadlines of sockets are on the machine's clock.
type idleConn struct{ net.Conn }

func (c idleConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(2 * s3Idle))
	return c.Conn.Read(p)
}

func (c idleConn) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(s3Idle))
	return c.Conn.Write(p)
}

func (b *bucket) name(id ID) string { return b.at.Prefix + id.String() }

func (b *bucket) id(name string) (ID, bool) {
	name, ok := strings.CutPrefix(name, b.at.Prefix)
	if !ok {
		return ID{}, false
	}
	return parseID(name)
}

// s3Error gives failures their meaning. What the service says about a request
// may hold the key, so only its code is told.
func s3Error(err error) error {
	if err == nil {
		return nil
	}
	r := minio.ToErrorResponse(err)
	switch {
	case r.Code == minio.NoSuchKey:
		return storage.ErrNotFound
	case r.Code != "":
		return fmt.Errorf("%w: S3 service: %s", storage.ErrUnavailable, r.Code)
	}
	return unavailable(err)
}

func (b *bucket) create(id ID) (sink, error) { return &s3Sink{b: b, id: id}, nil }

// s3Sink sends a file in parts as it comes; a file of one part is one request.
type s3Sink struct {
	b      *bucket
	id     ID
	buf    []byte
	upload string // of several parts; empty until there are two
	parts  []minio.CompletePart
}

func (w *s3Sink) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if len(w.buf) == partSize {
			if err := w.flush(); err != nil {
				return written, err
			}
		}
		n := min(partSize-len(w.buf), len(p))
		w.buf = append(w.buf, p[:n]...)
		p, written = p[n:], written+n
	}
	return written, nil
}

func (w *s3Sink) flush() (err error) {
	ctx := context.Background() // the connection's deadlines end it
	name := w.b.name(w.id)
	if w.upload == "" {
		if w.upload, err = w.b.core.NewMultipartUpload(ctx, w.b.at.Bucket, name, opaque()); err != nil {
			return s3Error(err)
		}
	}
	part, err := w.b.core.PutObjectPart(ctx, w.b.at.Bucket, name, w.upload, len(w.parts)+1,
		bytes.NewReader(w.buf), int64(len(w.buf)), minio.PutObjectPartOptions{})
	if err != nil {
		return s3Error(err)
	}
	w.parts = append(w.parts, minio.CompletePart{PartNumber: part.PartNumber, ETag: part.ETag})
	w.buf = w.buf[:0]
	return nil
}

// opaque says nothing of a file but that it is bytes.
func opaque() minio.PutObjectOptions {
	return minio.PutObjectOptions{ContentType: "application/octet-stream"}
}

func (w *s3Sink) commit() error {
	ctx := context.Background()
	name := w.b.name(w.id)
	if w.upload == "" {
		_, err := w.b.core.PutObject(ctx, w.b.at.Bucket, name, bytes.NewReader(w.buf), int64(len(w.buf)), "", "", opaque())
		w.buf = nil
		return s3Error(err)
	}
	if len(w.buf) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.buf = nil
	_, err := w.b.core.CompleteMultipartUpload(ctx, w.b.at.Bucket, name, w.upload, w.parts, opaque())
	return s3Error(err)
}

func (w *s3Sink) abort() {
	w.buf = nil
	ctx := context.Background()
	if w.upload != "" {
		_ = w.b.core.AbortMultipartUpload(ctx, w.b.at.Bucket, w.b.name(w.id), w.upload)
	}
	_ = w.b.remove([]ID{w.id})
}

func (b *bucket) remove(ids []ID) error {
	ctx := context.Background()
	if len(ids) == 1 {
		return s3Error(b.core.RemoveObject(ctx, b.at.Bucket, b.name(ids[0]), minio.RemoveObjectOptions{}))
	}
	names := make(chan minio.ObjectInfo, len(ids))
	for _, id := range ids {
		names <- minio.ObjectInfo{Key: b.name(id)}
	}
	close(names)
	var first error
	for e := range b.core.RemoveObjects(ctx, b.at.Bucket, names, minio.RemoveObjectsOptions{}) {
		if err := s3Error(e.Err); first == nil && !errors.Is(err, storage.ErrNotFound) {
			first = err
		}
	}
	return first
}

func (b *bucket) young(t time.Time) bool { return b.clock.Now().Sub(t) < youngFor }

func (b *bucket) list(ctx context.Context, f func(ID, bool) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing when f fails
	for o := range b.core.Client.ListObjects(ctx, b.at.Bucket, minio.ListObjectsOptions{Prefix: b.at.Prefix, Recursive: true}) {
		if o.Err != nil {
			return s3Error(o.Err)
		}
		id, ok := b.id(o.Key)
		if !ok {
			continue // not ours
		}
		if err := f(id, b.young(o.LastModified)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (b *bucket) tidy(ctx context.Context, busy func(ID) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for u := range b.core.Client.ListIncompleteUploads(ctx, b.at.Bucket, b.at.Prefix, true) {
		if u.Err != nil {
			return s3Error(u.Err)
		}
		id, ok := b.id(u.Key)
		if !ok || busy(id) || b.young(u.Initiated) {
			continue
		}
		if err := b.core.AbortMultipartUpload(ctx, b.at.Bucket, u.Key, u.UploadID); err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchUpload {
			return s3Error(err)
		}
	}
	return ctx.Err()
}
