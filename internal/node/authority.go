package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lifetimes of certificates that parley makes itself.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 5 * 365 * 24 * time.Hour
)

// Authority is a throw-away certificate authority for servers on one machine.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority reads ca.crt and ca.key of a folder, or makes them.
func OpenAuthority(dir string) (*Authority, error) {
	crt, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := os.Stat(crt); errors.Is(err, os.ErrNotExist) {
		return newAuthority(dir, crt, key)
	}
	return ReadAuthority(crt, key)
}

func newAuthority(dir, crt, key string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := template("parley local authority", authorityLifetime)
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		return nil, err
	}
	if err := writeCertificate(crt, key, der, k); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{cert: cert, key: k}, err
}

// ReadAuthority reads an authority's certificate and key; the key may be ECDSA
// or RSA (PKCS#1, PKCS#8).
func ReadAuthority(crt, key string) (*Authority, error) {
	c, err := readPEM(crt)
	if err != nil {
		return nil, err
	}
	k, err := readPEM(key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", crt, err)
	}
	priv, err := parseKey(k)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return &Authority{cert: cert, key: priv}, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key can't sign")
	}
	return s, nil
}

// Issue writes tls.crt and tls.key for a host name to a folder.
func (a *Authority) Issue(dir, host string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf(host), a.cert, &k.PublicKey, a.key)
	if err != nil {
		return err
	}
	return writeCertificate(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), der, k)
}

// selfSigned writes a certificate that nobody vouches for, so that HTTPS
// works before the operator has set one.
func selfSigned(crt, key, host string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := leaf(host)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		return err
	}
	return writeCertificate(crt, key, der, k)
}

func template(name string, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic("node: the system has no random numbers: " + err.Error())
	}
	// An hour of slack for clocks that are behind.
	from := time.Now().Add(-time.Hour)
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: from.Add(life)}
}

func leaf(host string) *x509.Certificate {
	t := template(host, leafLifetime)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	return t
}

func writeCertificate(crt, key string, der []byte, k *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return err
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func readPEM(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return nil, fmt.Errorf("%s: not a PEM file", path)
	}
	return b.Bytes, nil
}
