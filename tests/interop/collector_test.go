package interop

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// collector is chiton with a real Collector as its workload, which has no config of its own: what
// it runs came from the server.
type collector struct {
	t         *testing.T
	server    *opampServer
	agent     *agent
	health    int
	validated string // a byte for each call of the validate command
}

func startCollector(t *testing.T, row transport) *collector {
	t.Helper()
	return startCollectorFor(t, newServer(t, row), nothing)
}

func startCollectorFor(t *testing.T, server *opampServer, change func(*settings)) *collector {
	t.Helper()
	c := &collector{t: t, server: server, health: freePort(t)}
	otelcol := fromEnv(t, "OTELCOL_BIN")
	c.agent = newAgent(t, c.server, func(set *settings) {
		c.validated = set.StateDir + ".validated"
		set.Command = []string{otelcol, "--config", "{config_file}"}
		set.Validate = []string{testBinary(t), "count-and-exec", c.validated,
			otelcol, "validate", "--config={config_file}"}
		set.HealthURL = fmt.Sprintf("http://127.0.0.1:%d/", c.health)
		change(set)
	})
	c.agent.start()
	return c
}

// config is a Collector that receives OTLP over HTTP on a port.
func (c *collector) config(port int) string {
	return fmt.Sprintf(`extensions:
  health_check:
    endpoint: 127.0.0.1:%d
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:%d
exporters:
  debug:
    verbosity: detailed
service:
  extensions: [health_check]
  telemetry:
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [debug]
`, c.health, port)
}

// apply offers a config and waits until it runs.
func (c *collector) apply(hash, config string) {
	c.t.Helper()
	from := c.server.mark()
	c.server.offer(remoteConfig(hash, map[string]string{"": config}))
	_, end := c.server.awaitStatus(from, hash, applied)
	// On the way there it says so, unless an earlier message did.
	var steps []protobufs.RemoteConfigStatuses
	for _, m := range c.server.since(from)[:end-from] {
		if m.RemoteConfigStatus != nil && string(m.RemoteConfigStatus.LastRemoteConfigHash) == hash {
			steps = append(steps, m.RemoteConfigStatus.Status)
		}
	}
	if steps[0] != applying {
		c.t.Errorf("the statuses of %q are %v, want APPLYING first", hash, steps)
	}
}

func (c *collector) validations() int {
	c.t.Helper()
	info, err := os.Stat(c.validated)
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return int(info.Size())
}

// sendSpan hands a span to the Collector, over OTLP/HTTP in JSON.
func sendSpan(port int, name string) error {
	now := time.Now().UnixNano()
	body := fmt.Sprintf(`{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"interop"}}]},
		"scopeSpans":[{"spans":[{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":%q,
		"kind":1,"startTimeUnixNano":"%d","endTimeUnixNano":"%d"}]}]}]}`, name, now, now+1)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/traces", port), "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, text)
	}
	return nil
}

// serves fails unless the Collector takes a span on a port, now.
func (c *collector) serves(port int, name string) {
	c.t.Helper()
	if err := sendSpan(port, name); err != nil {
		c.t.Errorf("the Collector takes no span: %v", err)
	}
}

func closedPort(t *testing.T, port int) {
	t.Helper()
	connection, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err == nil {
		connection.Close()
		t.Errorf("something still listens on port %d", port)
	}
}

func (c *collector) endpoint(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func TestCollectorIsConfiguredAndReconfigured(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := startCollector(t, row)
		portA, portB := freePort(t), freePort(t)
		_, at := c.server.awaitHealth(0, false)

		c.apply("config A", c.config(portA))
		c.server.awaitEffective(c.endpoint(portA))
		health, _ := c.server.awaitHealth(at, true)
		if health.StartTimeUnixNano == 0 {
			t.Error("a healthy workload has no start time")
		}
		c.serves(portA, "span for A")
		first := c.agent.workload()

		c.apply("config B", c.config(portB))
		c.server.awaitEffective(c.endpoint(portB))
		if strings.Contains(c.server.effective(), c.endpoint(portA)) {
			t.Error("the effective config still shows config A")
		}
		c.serves(portB, "span for B")
		closedPort(t, portA)
		if second := c.agent.workload(); second == first {
			t.Errorf("process %d runs both configs", first)
		}
		c.agent.stop()
		closedPort(t, portB)
	})
}

// What the Collector itself refuses is never started, and what it says reaches the server.
func TestCollectorRefusesBadConfig(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := startCollector(t, row)
		port, portC := freePort(t), freePort(t)
		c.server.awaitMessage(0, "the first report", anything)
		c.apply("config B", c.config(port))
		pid := c.agent.workload()
		calls := c.validations()
		if calls == 0 {
			t.Error("config B was applied without a call of the validate command")
		}

		bad := strings.ReplaceAll(c.config(portC), "otlp", "nosuchreceiver")
		from := c.server.mark()
		c.server.offer(remoteConfig("config C", map[string]string{"": bad}))
		status, at := c.server.awaitStatus(from, "config C", failed)
		// The Collector's own words.
		if !strings.Contains(status.ErrorMessage, `unknown type: "nosuchreceiver"`) {
			t.Errorf("error_message %q does not quote the Collector", status.ErrorMessage)
		}
		if now := c.validations(); now != calls+1 {
			t.Errorf("config C was validated %d times, want once", now-calls)
		}

		// Again and again, as servers do that compare hashes: with each answer to a heartbeat.
		var offers int
		c.server.setAnswer(func(_ *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
			reply.RemoteConfig = remoteConfig("config C", map[string]string{"": bad}).RemoteConfig
			offers++
		})
		c.server.await("three more offers of config C", func() bool { return offers >= 3 })
		_, at = c.server.awaitMessage(c.server.mark(), "a heartbeat after them", anything)
		c.server.setAnswer(nil)
		if now := c.validations(); now != calls+1 {
			t.Errorf("config C was tried %d times, want once", now-calls)
		}
		c.unharmed(pid, port, "config B")

		// It is still open to better ones.
		c.server.awaitMessage(at, "a heartbeat", anything)
		next := freePort(t)
		c.apply("config D", c.config(next))
		c.serves(next, "span for D")
		c.agent.stop()
	})
}

// unharmed fails unless the process from before still serves on a port, and the server knows.
func (c *collector) unharmed(pid, port int, name string) {
	c.t.Helper()
	if now := c.agent.workload(); now != pid {
		c.t.Errorf("the Collector is process %d, was %d", now, pid)
	}
	c.serves(port, "span after the bad config")
	if !strings.Contains(c.server.effective(), c.endpoint(port)) {
		c.t.Errorf("%s is not the effective config: %s", name, c.server.effective())
	}
}

// A config that reads well and cannot run: its port is taken. Only the health gate can tell.
func TestCollectorFailsItsGateAndGoesBack(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := startCollector(t, row)
		port := freePort(t)
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		c.server.awaitMessage(0, "the first report", anything)
		c.apply("good", c.config(port))
		c.server.awaitHealth(0, true)

		from := c.server.mark()
		c.server.offer(remoteConfig("bad", map[string]string{"": c.config(taken.Addr().(*net.TCPAddr).Port)}))
		status, _ := c.server.awaitStatus(from, "bad", failed)
		if status.ErrorMessage == "" {
			t.Error("FAILED without an error_message")
		}
		eventually(t, "the good config to serve again", func() error { return sendSpan(port, "span after the rollback") })
		c.server.awaitEffective(c.endpoint(port))
		c.server.awaitHealthy()
		c.agent.stop()
	})
}

func TestCollectorIsKilled(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := startCollector(t, row)
		port := freePort(t)
		c.server.awaitMessage(0, "the first report", anything)
		c.apply("config A", c.config(port))
		_, at := c.server.awaitHealth(0, true)
		at = max(at, c.server.mark())
		pid := c.agent.workload()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		health, at := c.server.awaitHealth(at, false)
		if health.LastError == "" {
			t.Error("unhealthy without last_error")
		}
		c.server.awaitHealth(at, true)
		c.serves(port, "span after the restart")
		if now := c.agent.workload(); now == pid {
			t.Errorf("process %d survived SIGKILL", pid)
		}
		c.agent.stop()
	})
}

// After a restart of chiton the committed config runs, from the disk, and the first report says so.
func TestCollectorAfterRestartOfChiton(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := startCollector(t, row)
		port := freePort(t)
		c.server.awaitMessage(0, "the first report", anything)
		c.apply("config A", c.config(port))
		c.agent.stop()
		closedPort(t, port)
		at := c.server.mark()
		c.agent.start()
		first, _ := c.server.awaitMessage(at, "the first report after the restart", anything)
		status := first.RemoteConfigStatus
		if status == nil || string(status.LastRemoteConfigHash) != "config A" || status.Status != applied {
			t.Errorf("the first report after the restart says %v, want config A APPLIED", status)
		}
		eventually(t, "the committed config to serve", func() error { return sendSpan(port, "span after the restart") })
		c.server.awaitHealth(at, true)
		c.agent.stop()
	})
}
