package interop

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// gateTransports: the gate does not know how an offer came; one row of each kind will do.
var gateTransports = []transport{ws, plain}

// gated is a Collector that tells of each of its starts, with a check besides its own that a test
// can hold: what it asks about then stays in its trial.
type gated struct {
	*collector
	starts string // a line for each start: the config's name
	url    string

	mu    sync.Mutex
	held  string
	asked int // while it was held
}

func startGated(t *testing.T, row transport, rollback string) *gated {
	t.Helper()
	g := &gated{collector: &collector{t: t, server: newServer(t, row), health: freePort(t)}}
	gate := httptest.NewServer(g)
	t.Cleanup(gate.Close)
	g.url = gate.URL + "/gate"
	otelcol := fromEnv(t, "OTELCOL_BIN")
	g.agent = newAgent(t, g.server, func(set *settings) {
		g.starts = set.StateDir + ".starts"
		set.Command = []string{testBinary(t), "only-one", g.starts, otelcol, "--config", "{config_file}"}
		set.Validate = []string{otelcol, "validate", "--config={config_file}"}
		set.HealthURL = fmt.Sprintf("http://127.0.0.1:%d/", g.health)
		set.Gate = g.url
		set.Rollback = rollback
	})
	g.agent.start()
	g.server.awaitMessage(0, "the first report", anything)
	return g
}

// ServeHTTP is the check.
func (g *gated) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	started := g.started()
	if g.held == "" || len(started) == 0 || started[len(started)-1] != g.held {
		return
	}
	g.asked++
	http.Error(w, "held by the test", http.StatusServiceUnavailable)
}

// hold keeps a config from passing its gate; an empty name lets all pass.
func (g *gated) hold(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held, g.asked = name, 0
}

// inTrial waits until the gate looks at the config that is held, which has been started often.
func (g *gated) inTrial(often int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("the gate to look at %q, trial %d", g.held, often), func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		times := 0
		for _, name := range g.started() {
			if name == g.held {
				times++
			}
		}
		if times < often || g.asked == 0 {
			return fmt.Errorf("started %d times, asked %d times", times, g.asked)
		}
		return nil
	})
}

// named is a config whose starts can be told from others'.
func (g *gated) named(name string, port int) string { return "# " + name + "\n" + g.config(port) }

// started lists the configs that a Collector was started with, in order.
func (g *gated) started() []string {
	text, _ := os.ReadFile(g.starts)
	var names []string
	for line := range strings.Lines(string(text)) {
		names = append(names, strings.TrimPrefix(strings.TrimSpace(line), "# "))
	}
	return names
}

// startedOnly fails unless these were all the starts there have been, in this order, one at a time.
func (g *gated) startedOnly(want ...string) {
	g.t.Helper()
	if got := g.started(); !slices.Equal(got, want) {
		g.t.Errorf("the Collector was started with %q, want %q", got, want)
	}
}

func (g *gated) awaitStarts(number int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("start %d of the Collector", number), func() error {
		if got := g.started(); len(got) < number {
			return fmt.Errorf("started with %q", got)
		}
		return nil
	})
}

// otelcol waits for the one Collector and returns its process.
func (g *gated) otelcol() int {
	g.t.Helper()
	pid := 0
	eventually(g.t, "the Collector's process", func() error {
		found := slices.DeleteFunc(g.agent.descendants(), func(p running) bool {
			return len(p.args) < 2 || p.args[1] != "--config"
		})
		if len(found) != 1 {
			return fmt.Errorf("%d processes: %v", len(found), found)
		}
		pid = found[0].pid
		return nil
	})
	return pid
}

// inForce waits until the config of a port serves, is shown and healthy, and another is not.
func (g *gated) inForce(port, not int) {
	g.t.Helper()
	eventually(g.t, "the right config to serve", func() error { return sendSpan(port, "span to the right one") })
	g.server.awaitEffective(g.endpoint(port))
	if strings.Contains(g.server.effective(), g.endpoint(not)) {
		g.t.Errorf("the effective config still shows another: %s", g.server.effective())
	}
	closedPort(g.t, not)
	g.server.awaitHealthy()
	g.serves(port, "span of a healthy Collector")
}

// staysBack offers what failed again and again, with its hash and with a new one, and holds that it
// is not started.
func (g *gated) staysBack(hash, config, quote string) {
	g.t.Helper()
	starts, pid := g.started(), g.otelcol()
	offers, at := 0, g.server.mark()
	g.server.setAnswer(func(_ *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
		reply.RemoteConfig = remoteConfig(hash, map[string]string{"": config}).RemoteConfig
		offers++
	})
	g.server.await("three more offers", func() bool { return offers >= 3 })
	g.server.setAnswer(nil)
	_, at2 := g.server.awaitMessage(g.server.mark(), "a heartbeat after them", anything)
	for _, m := range g.server.since(at)[:at2-at] {
		if s := m.RemoteConfigStatus; s != nil {
			g.t.Errorf("the offer that failed already is told again, %v", s)
		}
	}
	again := hash + " under another hash"
	g.server.offer(remoteConfig(again, map[string]string{"": config}))
	status, _ := g.server.awaitStatus(at2, again, failed)
	g.quotes(status, quote)
	g.startedOnly(starts...)
	if now := g.otelcol(); now != pid {
		g.t.Errorf("the Collector is process %d, was %d", now, pid)
	}
}

func (g *gated) quotes(status *protobufs.RemoteConfigStatus, texts ...string) {
	g.t.Helper()
	for _, text := range texts {
		if !strings.Contains(status.ErrorMessage, text) {
			g.t.Errorf("error_message %q lacks %q", status.ErrorMessage, text)
		}
	}
}

// A config that the Collector validates, starts and serves with, and that answers no health check.
func TestGateHealthCheckFails(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		g := startGated(t, row, "{ window: 8s, interval: 200ms, successes: 2 }")
		portA, portB, elsewhere := freePort(t), freePort(t), freePort(t)
		g.apply("good", g.named("good", portA))
		g.server.awaitHealth(0, true)

		bad := strings.ReplaceAll(g.named("bad", portB), g.endpoint(g.health), g.endpoint(elsewhere))
		from := g.server.mark()
		g.server.offer(remoteConfig("bad", map[string]string{"": bad}))
		// It does run: nothing but the check speaks against it.
		eventually(t, "the bad config to serve", func() error { return sendSpan(portB, "span on trial") })
		status, _ := g.server.awaitStatus(from, "bad", failed)
		g.quotes(status, "not healthy within 8s", g.agent.settings.HealthURL, "refused")
		g.inForce(portA, portB)
		g.staysBack("bad", bad, g.agent.settings.HealthURL)
		g.startedOnly("good", "bad", "good")

		// Nor after a restart, which remembers.
		g.agent.stop()
		from = g.server.mark()
		g.agent.start()
		g.server.awaitHealth(from, true)
		g.staysBack("bad under another hash", bad, g.agent.settings.HealthURL)
		g.startedOnly("good", "bad", "good", "good")
		g.serves(portA, "span at the end")
		g.agent.stop()
	})
}

// Death of chiton in the window says nothing about the config: its trial is repeated.
func TestGateIsInterrupted(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		g := startGated(t, row, "{ window: 30s, interval: 200ms, successes: 3 }")
		portA, portB := freePort(t), freePort(t)
		g.apply("old", g.named("old", portA))
		g.server.awaitHealth(0, true)

		g.hold("new")
		g.server.offer(remoteConfig("new", map[string]string{"": g.named("new", portB)}))
		g.inTrial(1)
		g.agent.kill()
		g.hold("")
		from := g.server.mark()
		g.agent.start()
		first, _ := g.server.awaitMessage(from, "the first report after the crash", anything)
		if status := first.RemoteConfigStatus; status == nil || string(status.LastRemoteConfigHash) != "new" ||
			status.Status != applying && status.Status != applied {
			t.Errorf("the first report after the crash says %v, want new APPLYING", status)
		}
		g.server.awaitStatus(from, "new", applied)
		g.inForce(portB, portA)
		g.startedOnly("old", "new", "old", "new")

		// Committed is committed.
		g.agent.kill()
		from = g.server.mark()
		g.agent.start()
		g.awaitStarts(5)
		g.server.awaitHealth(from, true)
		g.serves(portB, "span after the second crash")
		g.startedOnly("old", "new", "old", "new", "new")
		g.agent.stop()
	})
}

// What is interrupted at each attempt is given up: it may be what kills the device.
func TestGateIsInterruptedTooOften(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		g := startGated(t, row, "{ window: 30s, interval: 200ms, successes: 2, attempts: 3 }")
		portA, portB := freePort(t), freePort(t)
		g.apply("old", g.named("old", portA))
		g.server.awaitHealth(0, true)

		g.hold("new")
		config := g.named("new", portB)
		g.server.offer(remoteConfig("new", map[string]string{"": config}))
		from := 0
		for attempt := range 3 {
			g.inTrial(attempt + 1)
			g.agent.kill()
			g.hold("new") // counts anew
			from = g.server.mark()
			g.agent.start()
		}
		status, at := g.server.awaitStatus(from, "new", failed)
		g.quotes(status, "interrupted", "3 times")
		g.inForce(portA, portB)
		g.startedOnly("old", "new", "old", "new", "old", "new", "old")
		g.hold("")
		g.server.awaitMessage(at, "a heartbeat", anything)
		g.staysBack("new", config, "interrupted")
		g.agent.stop()
	})
}

// A config that passes its gate and dies afterwards, again and again: back once, and no further.
func TestGateIsPassedAndTheCollectorDies(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		g := startGated(t, row, "{ window: 20s, interval: 200ms, successes: 2, crash_loop: { crashes: 3, within: 10m } }")
		portA, portB := freePort(t), freePort(t)
		g.apply("old", g.named("old", portA))
		config := g.named("new", portB)
		g.apply("new", config)
		from := g.server.mark()
		want := []string{"old", "new"}
		die := func(next string) {
			t.Helper()
			if err := syscall.Kill(g.otelcol(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			want = append(want, next)
			g.awaitStarts(len(want))
			g.startedOnly(want...)
		}
		die("new")
		die("new")
		die("old")
		status, at := g.server.awaitStatus(from, "new", failed)
		g.quotes(status, "crashed 3 times", "SIGKILL")
		g.inForce(portA, portB)

		// What it went back to dies no less often, and stays.
		for range 3 {
			die("old")
		}
		g.inForce(portA, portB)
		g.staysBack("new", config, "crashed 3 times")
		for _, m := range g.server.since(at) {
			if s := m.RemoteConfigStatus; s != nil && s.Status == applied {
				t.Errorf("%q is reported as APPLIED after going back", s.LastRemoteConfigHash)
			}
		}
		g.agent.stop()
	})
}
