package interop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// leadsTo is what brings an agent to a server: its address, by name, and what its TLS needs.
func leadsTo(t *testing.T, s *opampServer, host string) *protobufs.OpAMPConnectionSettings {
	t.Helper()
	opamp := &protobufs.OpAMPConnectionSettings{
		DestinationEndpoint:      fmt.Sprintf("%s://%s:%d/v1/opamp", s.transport.scheme, host, s.port()),
		HeartbeatIntervalSeconds: 1,
	}
	if s.transport.secure {
		opamp.Tls = &protobufs.TLSConnectionSettings{CaPemContents: s.ca.pem(t), MinVersion: "1.2", MaxVersion: "1.3"}
		opamp.Certificate = s.ca.rotated(t)
	}
	return opamp
}

// moved waits until an agent that was one server's is another one's.
func moved(t *testing.T, from, to *opampServer, offer *protobufs.ServerToAgent) {
	t.Helper()
	marks := []int{from.mark(), to.mark()}
	from.offer(offer)
	hash := offer.ConnectionSettings.Hash
	_, at := from.awaitMessage(marks[0], "APPLYING", func(m received) bool {
		return isConnection(m.AgentToServer, hash, connectionApplying)
	})
	from.awaitMessage(at, "a goodbye", func(m received) bool { return m.AgentDisconnect != nil })
	first, _ := to.awaitMessage(marks[1], "a report to the other server", anything)
	if !isFull(first) || !isConnection(first.AgentToServer, hash, connectionApplying) {
		t.Errorf("the first report to the other server lacks %v, with the status %v",
			missing(first.AgentToServer), first.ConnectionSettingsStatus)
	}
	if uid := from.since(0)[0].InstanceUid; string(first.InstanceUid) != string(uid) {
		t.Errorf("it moved as %x, was %x", first.InstanceUid, uid)
	}
	to.awaitConnection(marks[1], offer, connectionApplied)
	from.await("the old connection's end", func() bool { return len(from.live) == 0 })
	to.awaitMessage(to.mark(), "a heartbeat to the other server", isHeartbeat)
}

func TestCredentialsMoveToAnotherServerAndBack(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		first, second := newServer(t, row), newServer(t, row)
		port := freePort(t)
		a := startAgent(t, first, withSmallWorkload(t, port, func(set *settings) {
			set.Offers = true
			set.AllowEndpoints = []string{"127.0.0.1", "localhost"}
		}))
		first.awaitMessage(0, "a heartbeat", isHeartbeat)
		before := awaitServed(t, port, "who: local")
		moved(t, first, second, offerOf("there", leadsTo(t, second, "localhost")))
		left := first.mark()
		// Across a restart too.
		a.server = second
		a.stop()
		at := second.mark()
		a.start()
		second.awaitMessage(at, "a message after a restart", anything)
		before = awaitServed(t, port, "who: local")
		second.awaitMessage(at, "a heartbeat", isHeartbeat)
		if heard := first.since(left); len(heard) > 0 {
			t.Errorf("the server that it left heard %s", summary(heard[0].AgentToServer))
		}
		moved(t, second, first, offerOf("back", leadsTo(t, first, "127.0.0.1")))
		stillServed(t, port, before, "who: local")
		a.server = first
		a.stop()
	})
}

// staysWith fails unless an offer fails for a reason and the agent goes on with the server of before.
func (s *opampServer) staysWith(offer *protobufs.ServerToAgent, why string) {
	s.t.Helper()
	from := s.mark()
	s.offer(offer)
	m, _ := s.awaitConnection(from, offer, connectionFailed)
	if text := m.ConnectionSettingsStatus.ErrorMessage; !strings.Contains(text, why) {
		s.t.Errorf("error_message %q, want %q in it", text, why)
	}
	s.awaitMessage(s.mark(), "a heartbeat over the connection of before", isHeartbeat)
	// Asked again, it is not tried again.
	from = s.mark()
	s.offer(offer)
	s.goesOn(from)
}

func TestCredentialsOfAServerThatRefuses(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		home := newServer(t, row)
		refusing := newServerWith(t, row, func(s *opampServer) { s.refuse = http.StatusUnauthorized })
		port := freePort(t)
		a := startAgent(t, home, withSmallWorkload(t, port, acceptsOffers))
		home.awaitMessage(0, "a heartbeat", isHeartbeat)
		before := awaitServed(t, port, "who: local")
		home.staysWith(offerOf("refused", leadsTo(t, refusing, "127.0.0.1")), "401")
		if refusing.refused == 0 {
			t.Error("the other server was not even asked")
		}
		home.staysWith(offerOf("not allowed", leadsTo(t, refusing, "localhost")), "allow_endpoints")
		if row.secure {
			weaker := map[string]string{"wss": "ws", "https": "http"}[row.scheme]
			home.staysWith(offerOf("weaker", &protobufs.OpAMPConnectionSettings{
				DestinationEndpoint: weaker + "://" + refusing.address + "/v1/opamp",
			}), "TLS")
			// The other server's root, and a certificate that it never signed.
			opamp := leadsTo(t, refusing, "127.0.0.1")
			opamp.Certificate = home.ca.rotated(t)
			home.staysWith(offerOf("unknown there", opamp), "ertificate")
			// Its root is not known here.
			opamp = leadsTo(t, refusing, "127.0.0.1")
			opamp.Tls = nil
			home.staysWith(offerOf("unknown here", opamp), "ertificate")
		}
		nobody := leadsTo(t, refusing, "127.0.0.1")
		nobody.DestinationEndpoint = fmt.Sprintf("%s://127.0.0.1:%d/v1/opamp", row.scheme, freePort(t))
		home.staysWith(offerOf("nobody", nobody), "refused")
		stillServed(t, port, before, "who: local")
		a.stop()
	})
}

// connectProxy is a proxy by CONNECT.
type connectProxy struct {
	listening *httptest.Server

	mu sync.Mutex
	// targets are those that were asked for, tokens what each came with.
	targets, tokens []string
	status          int
}

func newConnectProxy(t *testing.T, status int) *connectProxy {
	p := &connectProxy{status: status}
	p.listening = httptest.NewServer(p)
	t.Cleanup(p.listening.Close)
	return p
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	p.mu.Lock()
	p.targets = append(p.targets, request.Method+" "+request.Host)
	p.tokens = append(p.tokens, request.Header.Get("Proxy-Authorization"))
	p.mu.Unlock()
	if p.status != http.StatusOK {
		w.WriteHeader(p.status)
		return
	}
	there, err := net.Dial("tcp", request.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer there.Close()
	w.WriteHeader(http.StatusOK)
	here, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	go func() {
		_, _ = io.Copy(there, early) // what came before the hijacking too
		_ = there.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(here, there)
}

func (p *connectProxy) asked() (targets, tokens []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.targets...), append([]string(nil), p.tokens...)
}

func TestCredentialsThroughAProxy(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		good, closed := newConnectProxy(t, http.StatusOK), newConnectProxy(t, http.StatusProxyAuthRequired)
		a := startAgent(t, s, acceptsOffers)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		through := func(url string) *protobufs.OpAMPConnectionSettings {
			opamp := &protobufs.OpAMPConnectionSettings{Proxy: &protobufs.ProxyConnectionSettings{
				Url: url,
				ConnectHeaders: &protobufs.Headers{Headers: []*protobufs.Header{
					{Key: "Proxy-Authorization", Value: "Bearer edge"},
				}},
			}}
			if row.secure {
				opamp.Tls = &protobufs.TLSConnectionSettings{CaPemContents: s.ca.pem(t), MinVersion: "1.2", MaxVersion: "1.3"}
			}
			return opamp
		}
		offer := offerOf("good", through(good.listening.URL))
		s.offer(offer)
		s.taken(from, offer)
		targets, tokens := good.asked()
		if len(targets) == 0 {
			t.Fatal("the offered proxy was not asked")
		}
		for i, target := range targets {
			if target != "CONNECT "+s.address || tokens[i] != "Bearer edge" {
				t.Errorf("the proxy was asked for %q with %q", target, tokens[i])
			}
		}
		s.staysWith(offerOf("closed", through(closed.listening.URL)), "407")
		if asked, _ := closed.asked(); len(asked) == 0 {
			t.Error("the proxy that refuses was not asked")
		}
		s.staysWith(offerOf("nobody", through(fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))), "refused")
		if again, _ := good.asked(); len(again) <= len(targets) {
			t.Error("it did not come back through the proxy of before")
		}
		a.stop()
	})
}

// With neither server there nothing is judged: whichever is back first says what becomes of the offer.
func TestCredentialsWhileNobodyIsThere(t *testing.T) {
	for name, moves := range map[string]bool{"the new one comes": true, "the old one comes": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overEach(t, []transport{ws, plainTLS}, func(t *testing.T, row transport) {
				old, other := newServer(t, row), newServer(t, row)
				other.stop()
				port := freePort(t)
				a := startAgent(t, old, withSmallWorkload(t, port, acceptsOffers))
				old.awaitMessage(0, "a heartbeat", isHeartbeat)
				before := awaitServed(t, port, "who: local")
				offer := offerOf("there", leadsTo(t, other, "127.0.0.1"))
				from := old.mark()
				old.offer(offer)
				old.awaitMessage(from, "a goodbye", func(m received) bool { return m.AgentDisconnect != nil })
				old.stop()
				eventually(t, "both to have been tried", func() error {
					text, err := os.ReadFile(a.path("stderr"))
					if err == nil && bytes.Count(text, []byte("the offered connection does not work")) < 2 {
						err = errors.New("not yet")
					}
					return err
				})
				stillServed(t, port, before, "who: local")
				from = old.mark()
				if moves {
					other.start()
					other.awaitConnection(0, offer, connectionApplied)
					other.awaitMessage(other.mark(), "a heartbeat to the new server", isHeartbeat)
					a.server = other
				} else {
					old.start()
					_, from = old.awaitConnection(from, offer, connectionFailed)
					old.goesOn(from)
				}
				stillServed(t, port, before, "who: local")
				a.stop()
			})
		})
	}
}
