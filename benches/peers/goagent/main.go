// An agent on opamp-go's client with the duties that benches/footprint gives Chiton: mutual TLS, status, health, effective
// config, a remote config written durably and followed by a restart of the workload, heartbeats.
//
//	goagent -endpoint wss://… -ca ca.pem -cert agent.pem -key agent.key -dir DIR -- /bin/sleep 100000
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any)            {}
func (quiet) Errorf(_ context.Context, format string, v ...any) { log.Printf(format, v...) }

type agent struct {
	client client.OpAMPClient
	file   string
	argv   []string
	mutex  sync.Mutex
	child  *exec.Cmd
}

func main() {
	endpoint := flag.String("endpoint", "", "URL of the server")
	ca := flag.String("ca", "", "PEM of the server's CA")
	cert := flag.String("cert", "", "PEM of the client certificate")
	key := flag.String("key", "", "PEM of its key")
	dir := flag.String("dir", ".", "where the configuration is kept")
	flag.Parse()
	roots, err := os.ReadFile(*ca)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	must(err)

	a := &agent{client: client.NewWebSocket(quiet{}), file: filepath.Join(*dir, "config.yaml"), argv: flag.Args()}
	must(a.restart())
	var uid types.InstanceUid
	_, _ = rand.Read(uid[:])
	must(a.client.SetAgentDescription(&protobufs.AgentDescription{IdentifyingAttributes: []*protobufs.KeyValue{text("service.name", "goagent")}}))
	// Before the capabilities, which ask for it.
	must(a.client.SetHealth(&protobufs.ComponentHealth{Healthy: true, Status: "running", StartTimeUnixNano: uint64(time.Now().UnixNano())}))
	capabilities := protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus |
		protobufs.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHeartbeat
	must(a.client.SetCapabilities(&capabilities))
	heartbeat := 30 * time.Second
	must(a.client.Start(context.Background(), types.StartSettings{
		OpAMPServerURL:    *endpoint,
		TLSConfig:         &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}},
		InstanceUid:       uid,
		HeartbeatInterval: &heartbeat,
		Callbacks:         types.Callbacks{OnMessage: a.message, GetEffectiveConfig: a.effective},
	}))
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
	a.mutex.Lock()
	_ = a.child.Process.Kill()
}

func (a *agent) message(ctx context.Context, message *types.MessageData) {
	if message.RemoteConfig == nil {
		return
	}
	status := &protobufs.RemoteConfigStatus{
		LastRemoteConfigHash: message.RemoteConfig.ConfigHash,
		Status:               protobufs.RemoteConfigStatuses_RemoteConfigStatuses_APPLIED,
	}
	if err := a.apply(message.RemoteConfig.Config.ConfigMap); err != nil {
		status.Status = protobufs.RemoteConfigStatuses_RemoteConfigStatuses_FAILED
		status.ErrorMessage = err.Error()
	}
	_ = a.client.SetRemoteConfigStatus(status)
	_ = a.client.UpdateEffectiveConfig(ctx)
}

func (a *agent) apply(files map[string]*protobufs.AgentConfigFile) error {
	for _, file := range files {
		next, err := os.Create(a.file + ".next")
		if err != nil {
			return err
		}
		_, err = next.Write(file.Body)
		if err == nil {
			err = next.Sync()
		}
		if err := next.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		if err := os.Rename(a.file+".next", a.file); err != nil {
			return err
		}
	}
	return a.restart()
}

func (a *agent) restart() error {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.child != nil {
		_ = a.child.Process.Signal(syscall.SIGTERM)
		_ = a.child.Wait()
	}
	a.child = exec.Command(a.argv[0], a.argv[1:]...)
	a.child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return a.child.Start()
}

func (a *agent) effective(context.Context) (*protobufs.EffectiveConfig, error) {
	body, err := os.ReadFile(a.file)
	if err != nil {
		body = nil
	}
	return &protobufs.EffectiveConfig{ConfigMap: &protobufs.AgentConfigMap{
		ConfigMap: map[string]*protobufs.AgentConfigFile{"config.yaml": {Body: body}},
	}}, nil
}

func text(key, value string) *protobufs.KeyValue {
	return &protobufs.KeyValue{Key: key, Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: value}}}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
