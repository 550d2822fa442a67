package interop

import (
	"testing"
)

var secureTransports = []transport{wss, plainTLS}

// refused waits until the server has turned the agent away several times, on connections that
// never reached OpAMP, and then looks at the workload.
func refused(t *testing.T, s *opampServer, port int) {
	t.Helper()
	before := awaitServed(t, port, "who: local")
	s.await("three refused TLS handshakes", func() bool { return len(s.tlsErrors) >= 3 && s.accepted >= 3 })
	s.mu.Lock()
	connected := s.connected
	s.mu.Unlock()
	if connected != 0 {
		t.Errorf("%d connections reached the server, want none", connected)
	}
	stillServed(t, port, before, "who: local")
}

func TestClientWithoutCertificateIsRefused(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			set.LocalConfig = "who: local\n"
			set.Cert, set.Key = "", ""
		})
		refused(t, s, port)
		a.stop()
	})
}

func TestServerOfAnotherAuthorityIsRefused(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			set.LocalConfig = "who: local\n"
			set.CA = newAuthority(t, "another root").caFile
		})
		refused(t, s, port)
		a.stop()
	})
}

func TestClientOfAnotherAuthorityIsRefused(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			set.LocalConfig = "who: local\n"
			set.Cert, set.Key = newAuthority(t, "another root").client(t, "edge-1")
		})
		refused(t, s, port)
		a.stop()
	})
}
