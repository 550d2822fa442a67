package interop

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/proto"
)

const (
	connectionApplied  = protobufs.ConnectionSettingsStatuses_ConnectionSettingsStatuses_APPLIED
	connectionApplying = protobufs.ConnectionSettingsStatuses_ConnectionSettingsStatuses_APPLYING
	connectionFailed   = protobufs.ConnectionSettingsStatuses_ConnectionSettingsStatuses_FAILED
)

// likeTheExample is the example server's way: a client without a certificate is let in, and nothing is said of
// capabilities.
func likeTheExample(s *opampServer) {
	s.capabilities = 0
	if s.tls != nil {
		s.tls.ClientAuth = tls.VerifyClientCertIfGiven
	}
}

// newcomer accepts offers and has no certificate yet.
func newcomer(set *settings) {
	set.Offers = true
	set.Cert, set.Key = "", ""
}

// acceptsOffers has a certificate of its own.
func acceptsOffers(set *settings) { set.Offers = true }

// withSmallWorkload runs a local config on a port.
func withSmallWorkload(t *testing.T, port int, more func(*settings)) func(*settings) {
	return func(set *settings) {
		servesConfig(t, port)(set)
		set.LocalConfig = "who: local\n"
		more(set)
	}
}

func isConnection(m *protobufs.AgentToServer, hash []byte, want protobufs.ConnectionSettingsStatuses) bool {
	status := m.ConnectionSettingsStatus
	return status != nil && bytes.Equal(status.LastConnectionSettingsHash, hash) && status.Status == want
}

func withoutRequest(m *protobufs.AgentToServer) string {
	rest := proto.Clone(m).(*protobufs.AgentToServer)
	rest.ConnectionSettingsRequest = nil
	return beyondHeartbeat(rest)
}

// leafOf is the first certificate of a PEM chain.
func leafOf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(chain)
	if block == nil {
		t.Fatal("no PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// awaitConnection waits for a final status of an offer.
func (s *opampServer) awaitConnection(from int, offer *protobufs.ServerToAgent, want protobufs.ConnectionSettingsStatuses) (received, int) {
	s.t.Helper()
	hash := offer.ConnectionSettings.Hash
	m, at := s.awaitMessage(from, fmt.Sprintf("%v of the offer %q", want, hash), func(m received) bool {
		return isConnection(m.AgentToServer, hash, connectionApplied) || isConnection(m.AgentToServer, hash, connectionFailed)
	})
	status := m.ConnectionSettingsStatus
	if status.Status != want {
		s.t.Fatalf("the offer %q: %v %q, want %v", hash, status.Status, status.ErrorMessage, want)
	}
	if failed := want == connectionFailed; failed != (status.ErrorMessage != "") {
		s.t.Errorf("the offer %q is %v with error_message %q", hash, want, status.ErrorMessage)
	}
	return m, at
}

// taken holds an offer to the specification's steps (L1733–1747), where the server of before and of after is one:
// APPLYING and a goodbye on the old connection, a full report with APPLYING on the new one, APPLIED there.
func (s *opampServer) taken(from int, offer *protobufs.ServerToAgent) received {
	s.t.Helper()
	hash := offer.ConnectionSettings.Hash
	told, at := s.awaitMessage(from, "APPLYING", func(m received) bool {
		return isConnection(m.AgentToServer, hash, connectionApplying)
	})
	left, at := s.awaitMessage(at, "a goodbye on the old connection", func(m received) bool {
		return m.AgentDisconnect != nil
	})
	if told.session != left.session || !sameLeaf(told.leaf, left.leaf) {
		s.t.Error("APPLYING and the goodbye came over different connections")
	}
	first, _ := s.awaitMessage(at, "a message over the new connection", anything)
	if !isFull(first) || !isConnection(first.AgentToServer, hash, connectionApplying) {
		s.t.Errorf("the first report over the new connection lacks %v, with the status %v",
			missing(first.AgentToServer), first.ConnectionSettingsStatus)
	}
	done, _ := s.awaitConnection(at, offer, connectionApplied)
	if certificate := offer.ConnectionSettings.Opamp.GetCertificate(); certificate != nil {
		for _, m := range []received{first, done} {
			if !sameLeaf(m.leaf, leafOf(s.t, certificate.Cert)) {
				s.t.Error("the new connection does not prove itself by the offered certificate")
			}
		}
	}
	return done
}

func sameLeaf(a, b *x509.Certificate) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(b)
}

// goesOn waits for heartbeats from now on, and fails if anything is said of connections.
func (s *opampServer) goesOn(from int) int {
	s.t.Helper()
	at := s.mark()
	for range 3 {
		_, at = s.awaitMessage(at, "a heartbeat", isHeartbeat)
	}
	for _, m := range s.since(from)[:at-from] {
		if m.ConnectionSettingsStatus != nil || m.AgentDisconnect != nil {
			s.t.Errorf("nothing happened, and yet it said %s", summary(m.AgentToServer))
		}
	}
	return at
}

func TestCredentialsAreRotatedByOffers(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		port := freePort(t)
		a := startAgent(t, s, withSmallWorkload(t, port, newcomer))
		before := awaitServed(t, port, "who: local")
		first, _ := s.awaitMessage(0, "the first report", anything)
		if first.leaf != nil {
			t.Fatal("a newcomer has a certificate")
		}
		for _, bit := range []protobufs.AgentCapabilities{
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsOpAMPConnectionSettings,
			protobufs.AgentCapabilities_AgentCapabilities_ReportsConnectionSettingsStatus,
		} {
			if first.Capabilities&uint64(bit) == 0 {
				t.Errorf("capabilities %#x lack %v", first.Capabilities, bit)
			}
		}
		var offer *protobufs.ServerToAgent
		for range 3 {
			_, from := s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
			offer = exampleOffer(&protobufs.OpAMPConnectionSettings{Certificate: s.ca.rotated(t)})
			s.offer(offer)
			done := s.taken(from, offer)
			if !bytes.Equal(done.InstanceUid, first.InstanceUid) {
				t.Errorf("it came back as %x, was %x", done.InstanceUid, first.InstanceUid)
			}
		}
		stillServed(t, port, before, "who: local")
		a.stop()
		at := s.mark()
		a.start()
		again, _ := s.awaitMessage(at, "the first report after a restart", anything)
		if !sameLeaf(again.leaf, leafOf(t, offer.ConnectionSettings.Opamp.Certificate.Cert)) {
			t.Error("after a restart the connection is not of the newest certificate")
		}
		if !isConnection(again.AgentToServer, offer.ConnectionSettings.Hash, connectionApplied) {
			t.Errorf("after a restart it says %v", again.ConnectionSettingsStatus)
		}
		a.stop()
	})
}

// An agent with files of its own keeps them, byte for byte.
func TestCredentialsOfTheSettingsAreLeftAlone(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, acceptsOffers)
		files := []string{a.settings.CA, a.settings.Cert, a.settings.Key}
		var before [][]byte
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			before = append(before, text)
		}
		first, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		if first.peer != "edge-1" {
			t.Errorf("the connection is of %q, want edge-1", first.peer)
		}
		offer := exampleOffer(&protobufs.OpAMPConnectionSettings{
			Certificate: s.ca.rotated(t),
			Tls:         &protobufs.TLSConnectionSettings{CaPemContents: s.ca.pem(t), MinVersion: "1.3", MaxVersion: "1.3"},
		})
		s.offer(offer)
		s.taken(from, offer)
		for i, file := range files {
			if text, err := os.ReadFile(file); err != nil || !bytes.Equal(text, before[i]) {
				t.Errorf("%s has changed: %v", file, err)
			}
		}
		a.stop()
	})
}

// What the example server has for telemetry comes beside, and is not accepted: the rest is.
func TestCredentialsBesideOtherOffers(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		a := startAgent(t, s, newcomer)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		metrics := &protobufs.TelemetryConnectionSettings{DestinationEndpoint: "http://localhost:4318/v1/metrics"}
		alone := offerOf("metrics", nil)
		alone.ConnectionSettings.OwnMetrics = metrics
		s.offer(alone)
		from = s.goesOn(from)
		offer := exampleOffer(&protobufs.OpAMPConnectionSettings{Certificate: s.ca.rotated(t)})
		offer.ConnectionSettings.OwnMetrics = metrics
		offer.ConnectionSettings.OwnTraces = metrics
		offer.ConnectionSettings.OwnLogs = metrics
		offer.ConnectionSettings.OtherConnections = map[string]*protobufs.OtherConnectionSettings{
			"other": {DestinationEndpoint: "http://other.example"},
		}
		s.offer(offer)
		s.taken(from, offer)
		a.stop()
	})
}

// Servers that do not compare hashes offer the same at each connect, and over HTTP at each poll. That is one new
// connection, also where they give no hash.
func TestCredentialsAreOfferedWithEachAnswer(t *testing.T) {
	for name, hash := range map[string]string{"with a hash": "c", "without a hash": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overEach(t, secureTransports, func(t *testing.T, row transport) {
				s := newServerWith(t, row, likeTheExample)
				offer := offerOf(hash, &protobufs.OpAMPConnectionSettings{Certificate: s.ca.rotated(t)})
				offers := 0
				s.setAnswer(func(m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
					reply.ConnectionSettings = offer.ConnectionSettings
					if m.AgentDisconnect == nil {
						offers++
					}
				})
				a := startAgent(t, s, newcomer)
				_, from := s.awaitConnection(0, offer, connectionApplied)
				enough := offers + 10
				s.await("offers of what is in use", func() bool { return offers >= enough })
				s.goesOn(from)
				a.stop()
			})
		})
	}
}

// The example server's page offers TLS settings: its root, a lowest version, the highest.
func TestCredentialsTLSSettings(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		s.tls.MaxVersion = tls.VersionTLS12
		s.stop()
		s.start()
		a := startAgent(t, s, newcomer)
		of := func(hash, root, lowest string) *protobufs.ServerToAgent {
			return offerOf(hash, &protobufs.OpAMPConnectionSettings{
				Tls: &protobufs.TLSConnectionSettings{CaPemContents: root, MinVersion: lowest, MaxVersion: "1.3"},
			})
		}
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		// What is below 1.2 means 1.2.
		offer := of("low", s.ca.pem(t), "1.0")
		s.offer(offer)
		s.taken(from, offer)
		for hash, row := range map[string]struct {
			root, lowest, why string
		}{
			"a version that the server lacks": {s.ca.pem(t), "1.3", "version"},
			"another root":                    {newAuthority(t, "another root").pem(t), "1.2", "issue"},
			"no root":                         {"no PEM at all", "1.2", "ca.pem"},
		} {
			from = s.mark()
			offer = of(hash, row.root, row.lowest)
			s.offer(offer)
			failed, _ := s.awaitConnection(from, offer, connectionFailed)
			if why := failed.ConnectionSettingsStatus.ErrorMessage; !strings.Contains(strings.ToLower(why), row.why) {
				t.Errorf("%s: the error is %q, want %q in it", hash, why, row.why)
			}
			s.awaitMessage(s.mark(), "a heartbeat over the connection of before", isHeartbeat)
		}
		a.stop()
	})
}

// revocation is a server's list of certificates that it no longer takes.
type revocation struct {
	sync.Mutex
	revoked []*x509.Certificate
}

func (r *revocation) add(leaf *x509.Certificate) {
	r.Lock()
	defer r.Unlock()
	r.revoked = append(r.revoked, leaf)
}

func (r *revocation) clear() {
	r.Lock()
	defer r.Unlock()
	r.revoked = nil
}

func (r *revocation) check(state tls.ConnectionState) error {
	r.Lock()
	defer r.Unlock()
	for _, leaf := range r.revoked {
		if len(state.PeerCertificates) > 0 && leaf.Equal(state.PeerCertificates[0]) {
			return errors.New("the certificate was revoked")
		}
	}
	return nil
}

// A device without any certificate asks for one, renews it, is given others, loses one and gets it back; and its
// Collector never notices.
func TestCredentialsOfACollectorsWholeLife(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		revoked := &revocation{}
		s := newServerWith(t, row, func(s *opampServer) {
			likeTheExample(s)
			s.tls.VerifyConnection = revoked.check
		})
		// Its last third, when it is to be renewed, begins some five seconds after it came: certificates begin an hour
		// before they are signed. One that is due at once would be taken for a mistake, and waited for.
		ca := &issuer{life: 30*time.Minute + 8*time.Second}
		s.setAnswer(func(m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
			ca.answer(t, s.ca, m, reply)
			if len(ca.requests) > 0 {
				ca.life = 1000 * time.Hour
			}
		})
		c := startCollectorFor(t, s, func(set *settings) {
			newcomer(set)
			set.Enroll = exampleName
		})
		port := freePort(t)
		s.await("two requests for certificates", func() bool { return len(ca.requests) >= 2 })
		key := func(n int) []byte { return ca.requests[n].RawSubjectPublicKeyInfo }
		if bytes.Equal(key(0), key(1)) {
			t.Error("it renews with the key of before")
		}
		s.await("a connection with the renewed certificate", func() bool {
			last := s.messages[len(s.messages)-1]
			return last.leaf != nil && bytes.Equal(last.leaf.RawSubjectPublicKeyInfo, key(1)) &&
				last.AgentDisconnect == nil
		})
		_, from := s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		c.apply("config A", c.config(port))
		eventually(t, "the Collector to serve", func() error { return sendSpan(port, "span of the enrolled") })
		pid := c.agent.workload()

		// Rotated by the operator.
		offer := exampleOffer(&protobufs.OpAMPConnectionSettings{Certificate: s.ca.rotated(t)})
		s.offer(offer)
		rotated := s.taken(from, offer)

		// Revoked while the agent is away.
		s.stop()
		revoked.add(rotated.leaf)
		s.mu.Lock()
		connected, refused := s.connected, len(s.tlsErrors)
		s.mu.Unlock()
		s.start()
		s.await("the revoked certificate to be turned away again and again", func() bool {
			return len(s.tlsErrors) >= refused+4
		})
		s.mu.Lock()
		if s.connected != connected {
			t.Errorf("%d connections reached the server that revoked the certificate", s.connected-connected)
		}
		s.mu.Unlock()
		c.unharmed(pid, port, "span of the revoked")

		// Thought better of.
		at := s.mark()
		revoked.clear()
		back, _ := s.awaitMessage(at, "a message after the revocation was lifted", anything)
		if !sameLeaf(back.leaf, rotated.leaf) {
			t.Error("it came back with another certificate")
		}
		c.unharmed(pid, port, "span of the one that came back")
		s.mu.Lock()
		if len(ca.requests) != 2 {
			t.Errorf("%d requests for certificates, want two", len(ca.requests))
		}
		s.mu.Unlock()
		c.agent.stop()
	})
}

// The example server refuses every name but its own, with the whole message.
func TestCredentialsRequestIsRefused(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		ca := &issuer{life: time.Hour}
		s.setAnswer(func(m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) { ca.answer(t, s.ca, m, reply) })
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			newcomer(set)
			set.Enroll = "{instance_uid}"
		})
		s.await("a request for a certificate", func() bool { return len(ca.requests) > 0 })
		first, from := s.awaitMessage(0, "the first report", anything)
		if name := ca.requests[0].Subject.CommonName; name != uuidText(first.InstanceUid) {
			t.Errorf("the request is for %q, the uid is %s", name, uuidText(first.InstanceUid))
		}
		eventually(t, "a word about the refusal", func() error {
			text, err := os.ReadFile(a.path("stderr"))
			if err == nil && !bytes.Contains(text, []byte("Invalid CommonName in certificate request")) {
				err = errors.New("none")
			}
			return err
		})
		s.goesOn(from)
		// What it was refused is no matter of this connection: another one is not asked either.
		s.stop()
		s.start()
		_, from = s.awaitMessage(s.mark(), "a heartbeat to the server that came back", isHeartbeat)
		s.goesOn(from)
		s.offer(remoteConfig("a", map[string]string{"": "who: a\n"}))
		s.awaitStatus(from, "a", applied)
		awaitServed(t, port, "who: a")
		s.mu.Lock()
		if len(ca.requests) != 1 {
			t.Errorf("%d requests for certificates, want one", len(ca.requests))
		}
		s.mu.Unlock()
		a.stop()
	})
}

// A person looks at the request first: it is the same one on each connection, also after a crash, and the answer
// comes when nobody waits for it.
func TestCredentialsRequestIsApprovedLater(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		ca := &issuer{life: 1000 * time.Hour, silent: true}
		s.setAnswer(func(m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) { ca.answer(t, s.ca, m, reply) })
		a := startAgent(t, s, func(set *settings) {
			newcomer(set)
			set.Enroll = exampleName
		})
		s.await("a request for a certificate", func() bool { return len(ca.requests) == 1 })
		_, from := s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		s.goesOn(from)
		a.kill()
		a.start()
		s.await("the request again", func() bool { return len(ca.requests) == 2 })
		if !bytes.Equal(ca.requests[0].Raw, ca.requests[1].Raw) {
			t.Error("after a crash it asks for something else")
		}
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		offer := exampleOffer(&protobufs.OpAMPConnectionSettings{
			Certificate: &protobufs.TLSCertificate{Cert: ca.signed, CaCert: []byte(s.ca.pem(t))},
		})
		s.offer(offer)
		s.taken(from, offer)
		s.goesOn(s.mark())
		s.mu.Lock()
		if len(ca.requests) != 2 {
			t.Errorf("%d requests, want two", len(ca.requests))
		}
		s.mu.Unlock()
		a.stop()
	})
}

// A certificate that names the agent has to name it rightly: under another uid it asks for another one.
func TestCredentialsRequestUnderAnotherUid(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		ca := &issuer{life: 1000 * time.Hour, anyName: true}
		s.setAnswer(func(m *protobufs.AgentToServer, reply *protobufs.ServerToAgent) { ca.answer(t, s.ca, m, reply) })
		a := startAgent(t, s, func(set *settings) {
			newcomer(set)
			set.Enroll = "{instance_uid}"
		})
		named := func(uid []byte) func(received) bool {
			return func(m received) bool {
				return bytes.Equal(m.InstanceUid, uid) && m.peer == uuidText(uid) &&
					m.ConnectionSettingsStatus.GetStatus() == connectionApplied
			}
		}
		first, _ := s.awaitMessage(0, "the first report", anything)
		_, from := s.awaitMessage(0, "APPLIED by the certificate of the first uid", named(first.InstanceUid))
		s.awaitMessage(from, "a heartbeat", isHeartbeat)
		given := []byte{1, 0x99, 3, 4, 5, 6, 0x77, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}
		s.offer(&protobufs.ServerToAgent{AgentIdentification: &protobufs.AgentIdentification{NewInstanceUid: given}})
		_, from = s.awaitMessage(from, "APPLIED by a certificate of the new uid", named(given))
		s.goesOn(from)
		s.mu.Lock()
		if len(ca.requests) != 2 {
			t.Errorf("%d requests for certificates, want two", len(ca.requests))
		}
		s.mu.Unlock()
		a.stop()
	})
}

// A certificate without a key is of use to nobody but whoever asked for it.
func TestCredentialsForAnotherKeyAreRefused(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, likeTheExample)
		a := startAgent(t, s, newcomer)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		certificate := s.ca.rotated(t)
		certificate.PrivateKey = nil
		offer := exampleOffer(&protobufs.OpAMPConnectionSettings{Certificate: certificate})
		s.offer(offer)
		_, from = s.awaitConnection(from, offer, connectionFailed)
		s.goesOn(from)
		a.stop()
	})
}
