package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

// The server of these tests against opamp-go's own client, so that a failure elsewhere is chiton's.
func TestHarness(t *testing.T) {
	overEach(t, []transport{ws, wss, plain, plainTLS}, func(t *testing.T, row transport) {
		s := newServer(t, row)
		interval := 200 * time.Millisecond
		start := types.StartSettings{
			OpAMPServerURL:    s.endpoint(),
			InstanceUid:       types.InstanceUid{1, 2, 3},
			HeartbeatInterval: &interval,
		}
		if row.secure {
			certFile, keyFile := s.ca.client(t, "edge-1")
			pair, err := tls.LoadX509KeyPair(certFile, keyFile)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(s.ca.cert)
			start.TLSConfig = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
		}
		var c client.OpAMPClient = client.NewWebSocket(nil)
		if row.polling {
			c = client.NewHTTP(nil)
		}
		body := make(chan string, 1)
		start.Callbacks.OnMessage = func(_ context.Context, m *types.MessageData) {
			if m.RemoteConfig == nil {
				return
			}
			body <- string(m.RemoteConfig.Config.ConfigMap[""].Body)
			_ = c.SetRemoteConfigStatus(&protobufs.RemoteConfigStatus{
				LastRemoteConfigHash: m.RemoteConfig.ConfigHash, Status: applied,
			})
		}
		capabilities := protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus |
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig |
			protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig |
			protobufs.AgentCapabilities_AgentCapabilities_ReportsHeartbeat
		err := c.SetCapabilities(&capabilities)
		if err == nil {
			err = c.SetAgentDescription(&protobufs.AgentDescription{IdentifyingAttributes: []*protobufs.KeyValue{{
				Key:   "service.name",
				Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: "harness"}},
			}}})
		}
		if err == nil {
			err = c.Start(t.Context(), start)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		first, at := s.awaitMessage(0, "a first message", func(received) bool { return true })
		if row.secure && first.peer != "edge-1" {
			t.Errorf("the client proved itself as %q", first.peer)
		}
		_, at = s.awaitMessage(at, "a heartbeat", isHeartbeat)
		s.offer(remoteConfig("h1", map[string]string{"": "a: 1"}))
		s.awaitStatus(at, "h1", applied)
		if got := <-body; got != "a: 1" {
			t.Errorf("the client got %q", got)
		}
		s.stop()
		at = s.mark()
		s.start()
		s.awaitMessage(at, "a message to the server that came back", func(received) bool { return true })
	})
}
