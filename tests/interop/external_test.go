package interop

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// initSystem keeps a Collector running that it owns itself: it starts it again whenever it ends, and
// notes its process in a pid file.
type initSystem struct {
	dir, pidFile string
	stop, done   chan struct{}
}

// startInit gives the Collector a path of its own to the config, so that its command line does not
// name the agent's directory: what the agent started is found by that.
func startInit(t *testing.T, config string) *initSystem {
	t.Helper()
	dir := t.TempDir()
	i := &initSystem{dir, filepath.Join(dir, "otelcol.pid"), make(chan struct{}), make(chan struct{})}
	link := filepath.Join(dir, "config.yaml")
	if err := os.Symlink(config, link); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(i.stop)
		<-i.done
		output.Close()
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("the Collector says:\n%s", text[max(0, len(text)-8000):])
		}
	})
	go i.serve(fromEnv(t, "OTELCOL_BIN"), link, output)
	return i
}

func (i *initSystem) serve(program, config string, output *os.File) {
	defer close(i.done)
	for {
		command := exec.Command(program, "--config", config)
		command.Stdout, command.Stderr = output, output
		if err := command.Start(); err != nil {
			fmt.Fprintln(output, err)
			return
		}
		_ = os.WriteFile(i.pidFile, fmt.Appendln(nil, command.Process.Pid), 0o600)
		ended := make(chan struct{})
		go func() {
			_ = command.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-i.stop:
			_ = command.Process.Kill()
			<-ended
			return
		}
		select {
		case <-time.After(100 * time.Millisecond): // as RestartSec=
		case <-i.stop:
			return
		}
	}
}

// pid is the process in the pid file, if it lives.
func (i *initSystem) pid() (int, error) {
	text, err := os.ReadFile(i.pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(text[:max(0, len(text)-1)]))
	if err != nil {
		return 0, err
	}
	return pid, syscall.Kill(pid, 0)
}

// A Collector that the init system owns is configured, rolled back, and left alone at the end.
func TestExternalCollector(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		c := &collector{t: t, server: newServer(t, row), health: freePort(t)}
		var owner *initSystem
		c.agent = newAgent(t, c.server, func(set *settings) {
			owner = startInit(t, filepath.Join(set.StateDir, "workloads/default/config/config.yaml"))
			set.PidFile = owner.pidFile
			// Ends when another process is there. Between two starts there is nobody to be ended.
			set.Restart = []string{"/bin/sh", "-c", fmt.Sprintf(
				`old=$(cat %[1]s); kill $old 2>/dev/null; while [ "$(cat %[1]s)" = "$old" ]; do sleep 0.05; done`, owner.pidFile)}
			set.HealthURL = fmt.Sprintf("http://127.0.0.1:%d/", c.health)
		})
		c.agent.start()
		_, at := c.server.awaitHealth(0, false)

		portA, portB := freePort(t), freePort(t)
		c.apply("config A", c.config(portA))
		c.server.awaitEffective(c.endpoint(portA))
		if health, _ := c.server.awaitHealth(at, true); health.StartTimeUnixNano == 0 {
			t.Error("a healthy workload has no start time")
		}
		c.serves(portA, "span for A")

		c.apply("config B", c.config(portB))
		c.serves(portB, "span for B")
		closedPort(t, portA)

		// A config that reads well and cannot run: the Collector ends, init starts it again, and again.
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		from := c.server.mark()
		c.server.offer(remoteConfig("bad", map[string]string{"": c.config(taken.Addr().(*net.TCPAddr).Port)}))
		status, _ := c.server.awaitStatus(from, "bad", failed)
		if status.ErrorMessage == "" {
			t.Error("FAILED without an error_message")
		}
		eventually(t, "config B to serve again", func() error { return sendSpan(portB, "span after the rollback") })
		c.server.awaitEffective(c.endpoint(portB))

		// It outlives the agent, which finds it again.
		pid, err := owner.pid()
		if err != nil {
			t.Fatal(err)
		}
		c.agent.stop()
		c.serves(portB, "span without the agent")
		at = c.server.mark()
		c.agent.start()
		c.server.awaitHealth(at, true)
		if now, err := owner.pid(); err != nil || now != pid {
			t.Errorf("the Collector is process %d (%v), was %d", now, err, pid)
		}
		c.serves(portB, "span after the agent's restart")
		c.agent.stop()
	})
}
