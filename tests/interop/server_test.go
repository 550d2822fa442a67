package interop

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
	"github.com/open-telemetry/opamp-go/server"
	"github.com/open-telemetry/opamp-go/server/types"
	"google.golang.org/protobuf/proto"
)

// transport is a row of the tests: how agent and server talk.
type transport struct {
	scheme string
	// secure: TLS, and each side proves itself with a certificate.
	secure bool
	// polling: plain HTTP, where an offer waits for the next request.
	polling bool
}

var (
	ws       = transport{scheme: "ws"}
	wss      = transport{scheme: "wss", secure: true}
	plain    = transport{scheme: "http", polling: true}
	plainTLS = transport{scheme: "https", secure: true, polling: true}
)

// agentTransports are those that chiton speaks.
var agentTransports = []transport{ws, wss, plain, plainTLS}

func overEach(t *testing.T, rows []transport, test func(*testing.T, transport)) {
	for _, row := range rows {
		t.Run(row.scheme, func(t *testing.T) {
			t.Parallel()
			test(t, row)
		})
	}
}

// received is one AgentToServer as it came in.
type received struct {
	*protobufs.AgentToServer
	at time.Time
	// connection counts from 1; each plain HTTP request has its own.
	connection int
	// session is what sequence numbers have no gaps in: a connection, or over plain HTTP the time
	// from the server's start to its end or to the agent's death.
	session int
	peer    string
	// leaf is the client's certificate, where it showed one.
	leaf *x509.Certificate
	// authorization is the header of the request that the message, or its connection, came with.
	authorization string
}

// opampServer is opamp-go's server with a memory.
type opampServer struct {
	t         *testing.T
	transport transport
	ca        *authority
	address   string
	tls       *tls.Config

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever something below changes
	messages []received
	live     map[types.Connection]struct{}
	// accepted counts TCP connections, connected those that reached OpAMP, closed those of them that
	// ended, cleanly those that ended with a WebSocket close handshake or an HTTP answer.
	accepted, connected, closed, cleanly int
	// unheard counts TCP connections that may still hold a request.
	unheard   int
	tlsErrors []string
	waiting   []*protobufs.ServerToAgent
	starts    int
	deaths    int // of the agent, without a goodbye
	// answer, where set, adds to the reply to each message.
	answer func(*protobufs.AgentToServer, *protobufs.ServerToAgent)
	// capabilities are those of each reply.
	capabilities protobufs.ServerCapabilities
	// refuse is the status that every agent is turned away with, and refused counts them; 0: none is.
	refuse, refused int

	listening *http.Server
}

func newServer(t *testing.T, row transport) *opampServer {
	t.Helper()
	return newServerWith(t, row, func(*opampServer) {})
}

// newServerWith changes a server before it starts.
func newServerWith(t *testing.T, row transport, change func(*opampServer)) *opampServer {
	t.Helper()
	s := &opampServer{
		t:         t,
		transport: row,
		address:   fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		changed:   make(chan struct{}),
		live:      map[types.Connection]struct{}{},
		capabilities: protobufs.ServerCapabilities_ServerCapabilities_AcceptsStatus |
			protobufs.ServerCapabilities_ServerCapabilities_OffersRemoteConfig |
			protobufs.ServerCapabilities_ServerCapabilities_AcceptsEffectiveConfig |
			protobufs.ServerCapabilities_ServerCapabilities_OffersPackages |
			protobufs.ServerCapabilities_ServerCapabilities_AcceptsPackagesStatus |
			protobufs.ServerCapabilities_ServerCapabilities_OffersConnectionSettings |
			protobufs.ServerCapabilities_ServerCapabilities_AcceptsConnectionSettingsRequest,
	}
	if row.secure {
		s.ca = newAuthority(t, "interop root")
		s.tls = s.ca.serverConfig(t)
	}
	change(s)
	s.start()
	t.Cleanup(func() {
		s.stop()
		s.checkOrder()
		if t.Failed() {
			t.Logf("what the server saw:\n%s", s.describe())
		}
	})
	return s
}

func (s *opampServer) endpoint() string {
	return s.transport.scheme + "://" + s.address + "/v1/opamp"
}

func (s *opampServer) port() int {
	_, text, _ := strings.Cut(s.address, ":")
	port, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return port
}

func (s *opampServer) start() {
	s.t.Helper()
	handler, connContext, err := server.New(nil).Attach(server.Settings{
		Callbacks: types.Callbacks{OnConnecting: s.onConnecting},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/opamp", handler)
	s.listening = &http.Server{
		Handler:     mux,
		ConnContext: connContext,
		ErrorLog:    log.New(tlsErrorWriter{s}, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.change(func() { s.accepted++; s.unheard++ })
			case http.StateClosed, http.StateHijacked:
				s.change(func() { s.unheard-- })
			}
		},
	}
	s.change(func() { s.starts++ })
	serve := s.listening
	if s.tls != nil {
		listener = tls.NewListener(listener, s.tls)
	}
	go func() { _ = serve.Serve(listener) }()
}

// stop is a server that falls over: nobody says goodbye.
func (s *opampServer) stop() {
	_ = s.listening.Close()
	awaitUnbound(s.t, s.port())
	s.mu.Lock()
	open := make([]types.Connection, 0, len(s.live))
	for c := range s.live {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Disconnect()
	}
	s.await("all connections to end", func() bool { return len(s.live) == 0 })
}

// lost waits until all that an agent sent before its death has been read.
func (s *opampServer) lost() {
	s.t.Helper()
	s.await("the dead agent's connections to end", func() bool { return s.unheard == 0 && len(s.live) == 0 })
	s.change(func() { s.deaths++ })
}

type tlsErrorWriter struct{ s *opampServer }

func (w tlsErrorWriter) Write(line []byte) (int, error) {
	w.s.change(func() { w.s.tlsErrors = append(w.s.tlsErrors, strings.TrimSpace(string(line))) })
	return len(line), nil
}

func (s *opampServer) onConnecting(request *http.Request) types.ConnectionResponse {
	peer := ""
	var leaf *x509.Certificate
	if request.TLS != nil && len(request.TLS.PeerCertificates) > 0 {
		leaf = request.TLS.PeerCertificates[0]
		peer = leaf.Subject.CommonName
	}
	s.mu.Lock()
	refuse := s.refuse
	s.mu.Unlock()
	if refuse != 0 {
		s.change(func() { s.refused++ })
		return types.ConnectionResponse{HTTPStatusCode: refuse}
	}
	authorization := request.Header.Get("Authorization")
	var number int
	broken := false
	return types.ConnectionResponse{
		Accept: true,
		ConnectionCallbacks: types.ConnectionCallbacks{
			OnConnected: func(_ context.Context, c types.Connection) {
				s.change(func() {
					s.connected++
					number = s.connected
					s.live[c] = struct{}{}
				})
			},
			OnMessage: func(_ context.Context, _ types.Connection, m *protobufs.AgentToServer) *protobufs.ServerToAgent {
				return s.onMessage(received{
					AgentToServer: m, at: time.Now(), connection: number, peer: peer, leaf: leaf, authorization: authorization,
				})
			},
			OnReadMessageError: func(types.Connection, int, []byte, error) { broken = true },
			OnConnectionClose: func(c types.Connection) {
				s.change(func() {
					delete(s.live, c)
					s.closed++
					if !broken {
						s.cleanly++
					}
				})
			},
		},
	}
}

func (s *opampServer) onMessage(m received) *protobufs.ServerToAgent {
	reply := &protobufs.ServerToAgent{}
	s.change(func() {
		m.session = m.connection
		if s.transport.polling {
			m.session = s.starts + s.deaths
		}
		s.messages = append(s.messages, m)
		if len(s.waiting) > 0 {
			reply, s.waiting = s.waiting[0], s.waiting[1:]
		}
		if s.answer != nil {
			s.answer(m.AgentToServer, reply)
		}
	})
	if m.AgentDisconnect != nil {
		return nil
	}
	reply.InstanceUid = m.InstanceUid
	reply.Capabilities = uint64(s.capabilities)
	return reply
}

// setAnswer changes what every reply carries besides the usual.
func (s *opampServer) setAnswer(answer func(*protobufs.AgentToServer, *protobufs.ServerToAgent)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// offer pushes a message over the open connection, or keeps it for the next poll.
func (s *opampServer) offer(m *protobufs.ServerToAgent) {
	s.t.Helper()
	if s.transport.polling {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting = append(s.waiting, m)
		return
	}
	var connection types.Connection
	s.await("a connection to send over", func() bool {
		for connection = range s.live {
			m.InstanceUid = s.uid()
		}
		return connection != nil && m.InstanceUid != nil
	})
	if err := connection.Send(context.Background(), m); err != nil {
		s.t.Fatalf("offer: %v", err)
	}
}

// uid is that of the newest message; the caller holds the lock.
func (s *opampServer) uid() []byte {
	if len(s.messages) == 0 {
		return nil
	}
	return s.messages[len(s.messages)-1].InstanceUid
}

func (s *opampServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until the condition holds, which is asked under the lock after each change.
func (s *opampServer) await(what string, condition func() bool) {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		ok, changed := condition(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			s.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// mark is the place in the log of messages before which awaitMessage does not look.
func (s *opampServer) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.messages)
}

// awaitMessage returns the first message at or after a mark that fits, and the mark behind it.
func (s *opampServer) awaitMessage(from int, what string, fits func(received) bool) (received, int) {
	s.t.Helper()
	var found received
	at := from
	s.await(what, func() bool {
		for ; at < len(s.messages); at++ {
			if fits(s.messages[at]) {
				found = s.messages[at]
				return true
			}
		}
		return false
	})
	return found, at + 1
}

// since returns the messages from a mark on.
func (s *opampServer) since(from int) []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages[from:])
}

// checkOrder holds what is true of any conversation, whatever its test is about.
func (s *opampServer) checkOrder() {
	s.t.Helper()
	for i, m := range s.since(0) {
		if len(m.InstanceUid) != 16 {
			s.t.Errorf("message %d: instance_uid has %d bytes", i, len(m.InstanceUid))
		}
		if m.Capabilities&uint64(protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus) == 0 {
			s.t.Errorf("message %d: no ReportsStatus in capabilities %#x", i, m.Capabilities)
		}
		for _, wrong := range wrongStatuses(m.PackageStatuses) {
			s.t.Errorf("message %d: %s", i, wrong)
		}
		if i == 0 {
			continue
		}
		last := s.messages[i-1]
		switch {
		case last.session != m.session: // what was lost between the two took its numbers along
		case last.AgentDisconnect != nil && s.transport.polling: // a new process, or one that was elsewhere
			if m.SequenceNum != 0 && !isFull(m) {
				s.t.Errorf("message %d: after agent_disconnect it lacks %v", i, missing(m.AgentToServer))
			}
		case last.AgentDisconnect != nil:
			s.t.Errorf("message %d follows agent_disconnect on one connection", i)
		case m.SequenceNum != last.SequenceNum+1:
			s.t.Errorf("message %d: sequence_num %d follows %d", i, m.SequenceNum, last.SequenceNum)
		}
	}
}

// beyondHeartbeat names what a message holds besides uid, sequence number and capabilities.
func beyondHeartbeat(m *protobufs.AgentToServer) string {
	rest := proto.Clone(m).(*protobufs.AgentToServer)
	rest.InstanceUid, rest.SequenceNum, rest.Capabilities = nil, 0, 0
	return summary(rest)
}

func isHeartbeat(m received) bool { return beyondHeartbeat(m.AgentToServer) == "" }

func summary(m *protobufs.AgentToServer) string {
	if proto.Size(m) == 0 {
		return ""
	}
	return strings.Join(strings.Fields(m.String()), " ")
}

// missing names the sub-messages that a full report of these capabilities must hold and this lacks.
func missing(m *protobufs.AgentToServer) []string {
	var lack []string
	demand := func(name string, absent bool, bits protobufs.AgentCapabilities) {
		if absent && m.Capabilities&uint64(bits) == uint64(bits) {
			lack = append(lack, name)
		}
	}
	demand("agent_description", m.AgentDescription == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus)
	demand("effective_config", m.EffectiveConfig == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig)
	demand("health", m.Health == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth)
	demand("remote_config_status", m.RemoteConfigStatus == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig)
	demand("connection_settings_status", m.ConnectionSettingsStatus == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsConnectionSettingsStatus)
	demand("package_statuses", m.PackageStatuses == nil, protobufs.AgentCapabilities_AgentCapabilities_ReportsPackageStatuses)
	return lack
}

func isFull(m received) bool { return len(missing(m.AgentToServer)) == 0 }

func (s *opampServer) describe() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out bytes.Buffer
	fmt.Fprintf(&out, "TCP connections %d, OpAMP connections %d, ended %d, of these cleanly %d\n",
		s.accepted, s.connected, s.closed, s.cleanly)
	for _, e := range s.tlsErrors {
		fmt.Fprintln(&out, e)
	}
	for i, m := range s.messages {
		fmt.Fprintf(&out, "%d %s connection %d: %.2000s\n", i, m.at.Format("05.000"), m.connection, summary(m.AgentToServer))
	}
	return out.String()
}

// remoteConfig offers config files under a hash.
func remoteConfig(hash string, files map[string]string) *protobufs.ServerToAgent {
	config := map[string]*protobufs.AgentConfigFile{}
	for name, body := range files {
		config[name] = &protobufs.AgentConfigFile{Body: []byte(body), ContentType: "text/yaml"}
	}
	return &protobufs.ServerToAgent{RemoteConfig: &protobufs.AgentRemoteConfig{
		Config:     &protobufs.AgentConfigMap{ConfigMap: config},
		ConfigHash: []byte(hash),
	}}
}

// awaitStatus waits for a final remote config status of a hash, and returns it with its mark.
func (s *opampServer) awaitStatus(from int, hash string, want protobufs.RemoteConfigStatuses) (*protobufs.RemoteConfigStatus, int) {
	s.t.Helper()
	m, at := s.awaitMessage(from, fmt.Sprintf("%v of %q", want, hash), func(m received) bool {
		status := m.RemoteConfigStatus
		return status != nil && string(status.LastRemoteConfigHash) == hash &&
			(status.Status == protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED ||
				status.Status == protobufs.RemoteConfigStatuses_RemoteConfigStatuses_FAILED)
	})
	if m.RemoteConfigStatus.Status != want {
		s.t.Fatalf("remote config %q: %v %q, want %v", hash, m.RemoteConfigStatus.Status, m.RemoteConfigStatus.ErrorMessage, want)
	}
	if want == protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED && m.RemoteConfigStatus.ErrorMessage != "" {
		s.t.Errorf("remote config %q is APPLIED with error_message %q", hash, m.RemoteConfigStatus.ErrorMessage)
	}
	return m.RemoteConfigStatus, at
}

const (
	applied  = protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED
	applying = protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLYING
	failed   = protobufs.RemoteConfigStatuses_RemoteConfigStatuses_FAILED
)

// effective returns the newest reported effective config, all its files in one.
func (s *opampServer) effective() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.effectiveLocked()
}

func (s *opampServer) effectiveLocked() string {
	for i := len(s.messages) - 1; i >= 0; i-- {
		if e := s.messages[i].EffectiveConfig; e != nil {
			var all strings.Builder
			for name, file := range e.GetConfigMap().GetConfigMap() {
				fmt.Fprintf(&all, "# %s\n%s\n", name, file.GetBody())
			}
			return all.String()
		}
	}
	return ""
}

// awaitEffective waits until the newest effective config holds a text.
func (s *opampServer) awaitEffective(text string) {
	s.t.Helper()
	s.await(fmt.Sprintf("an effective config with %q", text), func() bool {
		return strings.Contains(s.effectiveLocked(), text)
	})
}

func (s *opampServer) awaitHealth(from int, healthy bool) (*protobufs.ComponentHealth, int) {
	s.t.Helper()
	m, at := s.awaitMessage(from, fmt.Sprintf("health with healthy=%v", healthy), func(m received) bool {
		return m.Health != nil && m.Health.Healthy == healthy
	})
	return m.Health, at
}

// awaitHealthy waits until the newest health is good.
func (s *opampServer) awaitHealthy() {
	s.t.Helper()
	s.await("the newest health to be good", func() bool {
		for i := len(s.messages) - 1; i >= 0; i-- {
			if h := s.messages[i].Health; h != nil {
				return h.Healthy
			}
		}
		return false
	})
}
