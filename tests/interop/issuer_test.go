package interop

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// exampleName is what opamp-go's example server names each client, and demands of each request.
const exampleName = "OpAMP Example Client"

// sign makes a client's certificate as the example server does: always of the same name and serial number, for
// both ends of a connection, in PEM.
func (a *authority) sign(t *testing.T, subject pkix.Name, key crypto.PublicKey, life time.Duration) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      subject,
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(life),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// rotated is what the example server offers when an operator rotates: an RSA key in the old form, the
// certificate, and its issuer.
func (a *authority) rotated(t *testing.T) *protobufs.TLSCertificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{
		CommonName: exampleName, Organization: []string{"OpAMP Example"}, Country: []string{"CA"},
		Province: []string{"ON"}, Locality: []string{"City"}, StreetAddress: []string{""}, PostalCode: []string{""},
	}
	return &protobufs.TLSCertificate{
		Cert: a.sign(t, subject, &key.PublicKey, 1000*time.Hour),
		PrivateKey: pem.EncodeToMemory(&pem.Block{
			Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key),
		}),
		CaCert: []byte(a.pem(t)),
	}
}

// pem is the root.
func (a *authority) pem(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(a.caFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// requested reads what an agent asks for.
func requested(m *protobufs.AgentToServer) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(m.GetConnectionSettingsRequest().GetOpamp().GetCertificateRequest().GetCsr())
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("no PEM of one certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	return csr, err
}

// issuer answers requests as the example server does: its own name or BAD_REQUEST, and the subject as asked for.
type issuer struct {
	// life is that of what it signs next.
	life time.Duration
	// silent: it keeps what it signs.
	silent bool
	// anyName: it signs for others than the example server's client too.
	anyName bool
	// requests are those it was sent.
	requests []*x509.CertificateRequest
	signed   []byte
}

// answer is called under the server's lock.
func (i *issuer) answer(t *testing.T, ca *authority, m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
	if m.ConnectionSettingsRequest == nil {
		return
	}
	bad := func(why string) {
		reply.ErrorResponse = &protobufs.ServerErrorResponse{
			Type: protobufs.ServerErrorResponseType_ServerErrorResponseType_BadRequest, ErrorMessage: why,
		}
	}
	if rest := withoutRequest(m); rest != "" {
		t.Errorf("a request for a certificate comes with %s", rest)
	}
	csr, err := requested(m)
	if err != nil {
		t.Errorf("a request for a certificate: %v", err)
		bad(err.Error())
		return
	}
	i.requests = append(i.requests, csr)
	if csr.Subject.CommonName != exampleName && !i.anyName {
		bad("Invalid CommonName in certificate request")
		return
	}
	i.signed = ca.sign(t, csr.Subject, csr.PublicKey, i.life)
	if !i.silent {
		reply.ConnectionSettings = exampleOffer(&protobufs.OpAMPConnectionSettings{
			Certificate: &protobufs.TLSCertificate{Cert: i.signed},
		}).ConnectionSettings
	}
}

// exampleOffer is an offer with the hash that the example server gives it: not all of it is in there.
func exampleOffer(opamp *protobufs.OpAMPConnectionSettings) *protobufs.ServerToAgent {
	hash := sha256.New()
	hash.Write([]byte(opamp.DestinationEndpoint))
	for _, header := range opamp.GetHeaders().GetHeaders() {
		hash.Write([]byte(header.Key + header.Value))
	}
	certificate := opamp.GetCertificate()
	hash.Write(certificate.GetCert())
	hash.Write(certificate.GetPrivateKey())
	hash.Write(certificate.GetCaCert())
	hash.Write([]byte(opamp.GetTls().GetCaPemContents()))
	return offerOf(string(hash.Sum(nil)), opamp)
}

func offerOf(hash string, opamp *protobufs.OpAMPConnectionSettings) *protobufs.ServerToAgent {
	return &protobufs.ServerToAgent{ConnectionSettings: &protobufs.ConnectionSettingsOffers{
		Hash: []byte(hash), Opamp: opamp,
	}}
}
