package interop

import (
	"fmt"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// What opamp-go's own client is tested for with offers of connections, held against chiton.

// heartbeatOffer changes nothing but the interval.
func heartbeatOffer(hash string, seconds uint64) *protobufs.ServerToAgent {
	return offerOf(hash, &protobufs.OpAMPConnectionSettings{HeartbeatIntervalSeconds: seconds})
}

// tokenOffer is one that needs a new connection.
func tokenOffer(hash, token string) *protobufs.ServerToAgent {
	return offerOf(hash, &protobufs.OpAMPConnectionSettings{Headers: &protobufs.Headers{
		Headers: []*protobufs.Header{{Key: "Authorization", Value: "Bearer " + token}},
	}})
}

// connections is how many there were over WebSocket; over plain HTTP each request has its own.
func (s *opampServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.transport.polling {
		return 0
	}
	return s.connected
}

func TestCredentialsFilteredByCapability(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, nothing)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		before := s.connections()
		offer := tokenOffer("all", "new")
		telemetry := &protobufs.TelemetryConnectionSettings{DestinationEndpoint: "http://telemetry.example"}
		offer.ConnectionSettings.OwnMetrics = telemetry
		offer.ConnectionSettings.OwnTraces = telemetry
		offer.ConnectionSettings.OwnLogs = telemetry
		offer.ConnectionSettings.OtherConnections = map[string]*protobufs.OtherConnectionSettings{
			"other": {DestinationEndpoint: "http://other.example"},
		}
		s.offer(offer)
		s.goesOn(from)
		if after := s.connections(); after != before {
			t.Errorf("%d connections, before %d", after, before)
		}
		a.stop()
	})
}

func TestCredentialsStatusInFullState(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, acceptsOffers)
		full := func(from int) received {
			s.offer(&protobufs.ServerToAgent{Flags: uint64(protobufs.ServerToAgentFlags_ServerToAgentFlags_ReportFullState)})
			m, _ := s.awaitMessage(from, "a full report on request", isFull)
			return m
		}
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		unset := protobufs.ConnectionSettingsStatuses_ConnectionSettingsStatuses_UNSET
		if m := full(from); !isConnection(m.AgentToServer, nil, unset) {
			t.Errorf("before any offer it says %v", m.ConnectionSettingsStatus)
		}
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		good := tokenOffer("good", "new")
		s.offer(good)
		s.taken(from, good)
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		if m := full(from); !isConnection(m.AgentToServer, []byte("good"), connectionApplied) {
			t.Errorf("after an offer it says %v", m.ConnectionSettingsStatus)
		}
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		bad := tokenOffer("bad", "two\nlines")
		s.offer(bad)
		s.awaitConnection(from, bad, connectionFailed)
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		m := full(from)
		if !isConnection(m.AgentToServer, []byte("bad"), connectionFailed) || m.ConnectionSettingsStatus.ErrorMessage == "" {
			t.Errorf("after a bad offer it says %v", m.ConnectionSettingsStatus)
		}
		a.stop()
	})
}

// The hash stands for all of an offer. The example server's leaves the proxy out: that is its to mend.
func TestCredentialsSkippedWhenHashUnchanged(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, acceptsOffers)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		offer := tokenOffer("same", "one")
		s.offer(offer)
		s.taken(from, offer)
		before := s.connections()
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		for _, again := range []*protobufs.ServerToAgent{tokenOffer("same", "one"), tokenOffer("same", "two")} {
			s.offer(again)
			from = s.goesOn(from)
		}
		if last := s.since(from - 1)[0]; last.authorization != "Bearer one" {
			t.Errorf("the header is %q, want that of the first offer", last.authorization)
		}
		if after := s.connections(); after != before {
			t.Errorf("%d connections, before %d", after, before)
		}
		a.stop()
	})
}

// A status is sent when it changes, and only then; the last one outlives a crash.
func TestCredentialsStatusIsSentOnChange(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, acceptsOffers)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		offer := tokenOffer("a", "one")
		s.offer(offer)
		s.taken(from, offer)
		before := s.connections()
		// Other hashes for what is in use: told, and no new connection.
		for _, hash := range []string{"b", "c"} {
			_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
			offer = tokenOffer(hash, "one")
			s.offer(offer)
			_, at := s.awaitConnection(from, offer, connectionApplied)
			s.goesOn(at)
		}
		_, from = s.awaitMessage(s.mark(), "a heartbeat", isHeartbeat)
		bad := offerOf("bad", &protobufs.OpAMPConnectionSettings{DestinationEndpoint: "gopher://" + s.address})
		s.offer(bad)
		_, from = s.awaitConnection(from, bad, connectionFailed)
		s.goesOn(from)
		if after := s.connections(); after != before {
			t.Errorf("%d connections, before %d", after, before)
		}
		a.kill()
		at := s.mark()
		a.start()
		first, _ := s.awaitMessage(at, "the first report after a crash", anything)
		if !isConnection(first.AgentToServer, []byte("bad"), connectionFailed) {
			t.Errorf("after a crash it says %v", first.ConnectionSettingsStatus)
		}
		a.stop()
	})
}

// An interval is no reason for a new connection, and zero does not mean it.
func TestCredentialsHeartbeatAlone(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, acceptsOffers)
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		before := s.connections()
		for n, seconds := range []uint64{2, 0} {
			offer := heartbeatOffer(fmt.Sprintf("beat %d", n), seconds)
			s.offer(offer)
			_, from = s.awaitConnection(from, offer, connectionApplied)
			// One may have been on its way.
			_, at := s.awaitMessage(from, "a heartbeat", isHeartbeat)
			var beats []received
			for range 3 {
				var m received
				m, at = s.awaitMessage(at, "another heartbeat", isHeartbeat)
				beats = append(beats, m)
			}
			if span := beats[2].at.Sub(beats[0].at); span < 2*time.Second {
				t.Errorf("three heartbeats took %v, set to one each 2 s", span)
			}
			from = at
		}
		if after := s.connections(); after != before {
			t.Errorf("%d connections, before %d", after, before)
		}
		a.stop()
	})
}

// A server that takes no requests is sent none.
func TestCredentialsAreNotAskedForInVain(t *testing.T) {
	overEach(t, secureTransports, func(t *testing.T, row transport) {
		s := newServerWith(t, row, func(s *opampServer) {
			likeTheExample(s)
			s.capabilities = protobufs.ServerCapabilities_ServerCapabilities_AcceptsStatus
		})
		a := startAgent(t, s, func(set *settings) {
			newcomer(set)
			set.Enroll = exampleName
		})
		_, from := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		s.goesOn(from)
		for _, m := range s.since(0) {
			if m.ConnectionSettingsRequest != nil {
				t.Error("it asked for a certificate")
			}
		}
		a.stop()
	})
}
