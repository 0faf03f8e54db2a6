package blob

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// S3Location says where a bucket is and how to get in. Print only String: the
// secret is in it.
type S3Location struct {
	Host      string // host[:port]
	Bucket    string
	Prefix    string // of all names in the bucket; empty or ends in /
	Region    string // empty: the service is asked
	Plain     bool   // HTTP without TLS
	AccessKey string
	SecretKey string
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixName = regexp.MustCompile(`^([A-Za-z0-9_.-]+/)*$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{0,40}$`)
)

// ParseS3 reads s3://KEY:SECRET@host[:port]/bucket[/prefix], with the options
// region=NAME and secure=false (HTTP without TLS, for a service on the same
// machine). Errors never contain the secret.
func ParseS3(raw string) (S3Location, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return S3Location{}, errors.New("not a URL; special characters in the key and the secret must be percent-encoded")
	}
	switch {
	case u.Scheme != "s3":
		return S3Location{}, errors.New("must begin with s3://")
	case u.Hostname() == "" || u.Opaque != "" || u.Fragment != "":
		return S3Location{}, errors.New("must name a host, as in s3://KEY:SECRET@host/bucket")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return S3Location{}, errors.New("has a bad port")
		}
	}
	secret, ok := u.User.Password()
	if !ok || u.User.Username() == "" || secret == "" {
		return S3Location{}, errors.New("must have an access key and a secret, as in s3://KEY:SECRET@host/bucket")
	}
	l := S3Location{Host: u.Host, AccessKey: u.User.Username(), SecretKey: secret}
	bucket, prefix, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	l.Bucket, l.Prefix = bucket, prefix
	if !bucketName.MatchString(bucket) || !prefixName.MatchString(prefix) || len(prefix) > 200 {
		return S3Location{}, errors.New("must name a bucket in lower-case letters, as in s3://KEY:SECRET@host/bucket")
	}
	return l, l.options(u.RawQuery)
}

func (l *S3Location) options(query string) error {
	q, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("has unreadable options")
	}
	for name, values := range q {
		v := values[0]
		switch {
		case len(values) != 1:
			return fmt.Errorf("has the option %q twice", name)
		case name == "region" && regionName.MatchString(v):
			l.Region = v
		case name == "secure" && (v == "true" || v == "false"):
			l.Plain = v == "false"
		default:
			return fmt.Errorf("has the unknown option or value %q; there are region=NAME and secure=true|false", name)
		}
	}
	return nil
}

// String is the location without the key.
func (l S3Location) String() string { return "s3://" + l.Host + "/" + l.Bucket + "/" + l.Prefix }

// GoString keeps the secret out of %#v.
func (l S3Location) GoString() string { return l.String() }

// address is the host and port that connections go to.
func (l S3Location) address() string {
	if _, _, err := net.SplitHostPort(l.Host); err == nil {
		return l.Host
	}
	if l.Plain {
		return net.JoinHostPort(strings.Trim(l.Host, "[]"), "80")
	}
	return net.JoinHostPort(strings.Trim(l.Host, "[]"), "443")
}
