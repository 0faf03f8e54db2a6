package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"strings"
	"time"
)

// newCertificate makes the server's DTLS certificate. Its key lives in memory
// only; peers know it by the fingerprint that signalling gives them, so its
// names and dates mean nothing.
func newCertificate(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the DTLS key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the DTLS certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "WebRTC"},
		NotBefore:    now.AddDate(0, 0, -1),
		NotAfter:     now.AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the DTLS certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// fingerprintOf formats a certificate's hash for a=fingerprint (RFC 8122).
func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	var b strings.Builder
	b.WriteString("sha-256 ")
	for i, c := range sum {
		if i > 0 {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%02X", c)
	}
	return b.String()
}

// fingerprint is a parsed a=fingerprint value.
type fingerprint struct {
	hash func() hash.Hash
	sum  string
}

var errFingerprint = errors.New("transport: fingerprint is missing or of an unknown kind")

func parseFingerprint(s string) (fingerprint, error) {
	name, value, _ := strings.Cut(strings.TrimSpace(s), " ")
	var f fingerprint
	switch strings.ToLower(name) {
	case "sha-256":
		f.hash = sha256.New
	case "sha-384":
		f.hash = sha512.New384
	case "sha-512":
		f.hash = sha512.New
	default:
		return f, errFingerprint
	}
	sum, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(value), ":", ""))
	if err != nil || len(sum) != f.hash().Size() {
		return f, errFingerprint
	}
	f.sum = string(sum)
	return f, nil
}

func (f fingerprint) matches(der []byte) bool {
	h := f.hash()
	h.Write(der)
	return string(h.Sum(nil)) == f.sum
}
