package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"
)

// settings is what differs between one test's chiton.yaml and another's.
type settings struct {
	Endpoint         string
	CA, Cert, Key    string
	Offers           bool     // of connections are accepted
	AllowEndpoints   []string // with Offers
	Enroll           string   // with Offers: the common name of the certificate that it asks for
	Heartbeat        string
	ServiceName      string
	Command          []string
	PidFile          string // with Restart: the workload is external
	Restart          []string
	Validate         []string
	HealthURL        string
	Gate             string // a second check, over HTTP
	Rollback         string
	PackageKey       string // a public key: with it packages are accepted
	PackageSignature string // the form that will do; manifest if empty
	Verify           []string
	LocalConfig      string // its contents; without any there is no local file
	LocalConfigPath  string
	StateDir, Socket string
}

// JSON is YAML's quoting for any text and list.
var settingsFile = template.Must(template.New("chiton.yaml").Funcs(template.FuncMap{
	"yaml": func(v any) (string, error) {
		text, err := json.Marshal(v)
		// ${NAME} is the agent's to expand; a path never means it.
		return strings.ReplaceAll(string(text), "$", "$$"), err
	},
}).Parse(`opamp:
  server:
    endpoint: {{yaml .Endpoint}}
{{- if .CA}}
    tls:
      ca_file: {{yaml .CA}}
{{- if .Cert}}
      cert_file: {{yaml .Cert}}
      key_file: {{yaml .Key}}
{{- end}}
{{- if .Enroll}}
      enroll: { common_name: {{yaml .Enroll}}, key: p256 }
{{- end}}
{{- end}}
{{- if .AllowEndpoints}}
    allow_endpoints: {{yaml .AllowEndpoints}}
{{- end}}
    heartbeat_interval: {{.Heartbeat}}
    poll_interval: 500ms
    reconnect: { initial: 100ms, max: 1s }
  agent:
    service_name: {{yaml .ServiceName}}
    labels: { env: interop }
  capabilities:
    accepts_remote_config: true
{{- if .Offers}}
    accepts_opamp_connection_settings: true
{{- end}}
{{- if .PackageKey}}
    accepts_packages: true
{{- end}}
  health:
    check_interval: 500ms
{{- if .HealthURL}}
    checks:
      - { http: {{yaml .HealthURL}}, timeout: 2s }
{{- if .Gate}}
      - { http: {{yaml .Gate}}, timeout: 2s }
{{- end}}
{{- end}}
{{- if .Command}}
  workload:
    command: {{yaml .Command}}
    stop_timeout: 20s
    restart: { initial: 500ms, max: 2s }
{{- end}}
{{- if .PidFile}}
  workload:
    external: { pid_file: {{yaml .PidFile}}, restart: {{yaml .Restart}} }
{{- end}}
{{- if .LocalConfigPath}}
  local_config_path: {{yaml .LocalConfigPath}}
{{- end}}
  remote_config:
{{- if .Validate}}
    validate: {{yaml .Validate}}
{{- end}}
    rollback: {{.Rollback}}
    min_interval: 1ms
{{- if .PackageKey}}
  packages:
    trusted_keys: [{{yaml .PackageKey}}]
{{- if .PackageSignature}}
    signature: {{.PackageSignature}}
{{- end}}
    verify: {{yaml .Verify}}
{{- end}}
  state_dir: {{yaml .StateDir}}
  status_socket: {{yaml .Socket}}
  log: { level: debug }
`))

// agent is chiton on one device: its directory outlives its processes.
type agent struct {
	t        *testing.T
	server   *opampServer // nil where there is none
	dir      string
	settings settings
	binary   string

	process *os.Process
	exited  chan struct{}
	state   *os.ProcessState
}

// newAgent prepares a device for a server, without starting anything. A short path, because the
// socket's is limited to a hundred bytes or so.
func newAgent(t *testing.T, server *opampServer, change func(*settings)) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "chiton")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, server: server, dir: dir, binary: fromEnv(t, "CHITON_BIN")}
	a.settings = settings{
		Heartbeat:   "1s",
		ServiceName: "interop",
		Rollback:    "{ window: 20s, interval: 100ms, successes: 2 }",
		StateDir:    filepath.Join(dir, "state"),
		Socket:      filepath.Join(dir, "status.sock"),
	}
	if server != nil {
		a.settings.Endpoint = server.endpoint()
		if server.transport.secure {
			a.settings.CA = server.ca.caFile
			a.settings.Cert, a.settings.Key = server.ca.client(t, "edge-1")
		}
	}
	change(&a.settings)
	if a.settings.LocalConfig != "" {
		a.settings.LocalConfigPath = filepath.Join(dir, "local.yaml")
		if err := os.WriteFile(a.settings.LocalConfigPath, []byte(a.settings.LocalConfig), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var text bytes.Buffer
	if err := settingsFile.Execute(&text, a.settings); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.path("chiton.yaml"), text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.cleanUp)
	return a
}

func startAgent(t *testing.T, server *opampServer, change func(*settings)) *agent {
	t.Helper()
	a := newAgent(t, server, change)
	a.start()
	return a
}

func (a *agent) path(name string) string { return filepath.Join(a.dir, name) }

func (a *agent) start() {
	a.t.Helper()
	// A file, not a pipe: a workload that inherits it must not keep us waiting for its end.
	stderr, err := os.OpenFile(a.path("stderr"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	defer stderr.Close()
	command := exec.Command(a.binary, "run", "--config", a.path("chiton.yaml"))
	command.Dir = a.dir
	command.Stdout, command.Stderr = stderr, stderr
	// If these tests die, chiton dies too. The kernel ties that to the thread, so one is kept for it.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	exited := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait()
			a.state = command.ProcessState
			close(exited)
		}
	}()
	if err := <-started; err != nil {
		a.t.Fatal(err)
	}
	a.process, a.exited = command.Process, exited
}

// stop ends the agent as an init system does, and holds it to its promises: exit code 0, nothing it
// started is left, and a goodbye on the wire.
func (a *agent) stop() {
	a.t.Helper()
	from, closed, cleanly := 0, 0, 0
	talking := false
	if a.server != nil {
		a.server.mu.Lock()
		from, closed, cleanly = len(a.server.messages), a.server.closed, a.server.cleanly
		talking = len(a.server.live) > 0 || a.server.transport.polling && a.server.connected > 0
		a.server.mu.Unlock()
	}
	select {
	case <-a.exited:
		a.t.Fatalf("chiton ended by itself: %v", a.state)
	default:
	}
	if err := a.process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	select {
	case <-a.exited:
	case <-time.After(patience):
		a.t.Fatalf("chiton still runs %v after SIGTERM", patience)
	}
	if left := a.descendants(); len(left) > 0 {
		a.t.Errorf("chiton is gone and left behind: %v", left)
	}
	if code := a.state.ExitCode(); code != 0 {
		a.t.Errorf("chiton ended with %v after SIGTERM, want exit code 0", a.state)
	}
	if !talking {
		return
	}
	a.server.awaitMessage(from, "agent_disconnect after SIGTERM", func(m received) bool { return m.AgentDisconnect != nil })
	a.server.await("the connection's end", func() bool { return a.server.closed > closed && len(a.server.live) == 0 })
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	if last := a.server.messages[len(a.server.messages)-1]; last.AgentDisconnect == nil {
		a.t.Errorf("the last message is not agent_disconnect but %s", summary(last.AgentToServer))
	}
	if a.server.closed-closed != a.server.cleanly-cleanly {
		a.t.Error("the WebSocket ended without a close handshake of status 1000")
	}
}

// kill is a crash of chiton: no goodbye, no order. What it started dies with it, and is gone when this
// returns: a Collector that still serves while it dies would be taken for the next one.
func (a *agent) kill() {
	a.t.Helper()
	started := a.descendants()
	if err := a.process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	<-a.exited
	if status, ok := a.state.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		a.t.Fatalf("chiton ended with %v before it was killed", a.state)
	}
	for _, p := range started {
		eventually(a.t, "the death of "+p.String(), func() error { return p.gone() })
	}
	a.server.lost()
}

func (a *agent) cleanUp() {
	if a.process != nil {
		select {
		case <-a.exited:
		default:
			_ = a.process.Kill()
			<-a.exited
		}
	}
	for _, p := range a.descendants() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	if a.t.Failed() {
		text, _ := os.ReadFile(a.path("chiton.yaml"))
		a.t.Logf("settings:\n%s", text)
		text, _ = os.ReadFile(a.path("stderr"))
		if over := len(text) - 20000; over > 0 {
			text = append([]byte("…"), text[over:]...)
		}
		a.t.Logf("stderr of chiton and its workload:\n%s", text)
	}
	if err := os.RemoveAll(a.dir); err != nil {
		a.t.Error(err)
	}
}

// running is a process of this device besides chiton itself.
type running struct {
	pid  int
	args []string
}

func (r running) String() string { return fmt.Sprintf("%d %s", r.pid, strings.Join(r.args, " ")) }

// gone says whether all threads have ended: the first may be a zombie while others still serve.
func (r running) gone() error {
	directory := filepath.Join("/proc", strconv.Itoa(r.pid))
	stat, err := os.ReadFile(filepath.Join(directory, "stat"))
	if err != nil {
		return nil
	}
	threads, err := os.ReadDir(filepath.Join(directory, "task"))
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 0 && fields[0] == "Z" && len(threads) <= 1 {
		return nil
	}
	return fmt.Errorf("%d threads, state %v", len(threads), fields[:min(1, len(fields))])
}

// descendants finds what chiton started: children, and whatever names this device's own directory,
// which also finds an orphan.
func (a *agent) descendants() []running {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		a.t.Fatal(err)
	}
	var found []running
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || (a.process != nil && pid == a.process.Pid) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		// pid (name) state ppid …, where the name may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		child := a.process != nil && fields[1] == strconv.Itoa(a.process.Pid)
		if child || bytes.Contains(cmdline, []byte(a.dir+"/")) {
			found = append(found, running{pid, strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")})
		}
	}
	return found
}

// workload waits for the one process that runs the workload's command, and returns its id.
func (a *agent) workload() int {
	a.t.Helper()
	var pid int
	eventually(a.t, "the workload's process", func() error {
		var found []running
		for _, p := range a.descendants() {
			if len(p.args) > 1 && p.args[0] == a.settings.Command[0] && p.args[1] == a.settings.Command[1] {
				found = append(found, p)
			}
		}
		if len(found) != 1 {
			return fmt.Errorf("%d processes: %v", len(found), found)
		}
		pid = found[0].pid
		return nil
	})
	return pid
}

// servesConfig makes the small workload this agent's, listening on a port.
func servesConfig(t *testing.T, port int) func(*settings) {
	return func(s *settings) {
		s.Command = []string{testBinary(t), "serve-config", fmt.Sprintf("127.0.0.1:%d", port), "{config_file}"}
		s.HealthURL = fmt.Sprintf("http://127.0.0.1:%d/", port)
	}
}

// show asks the small workload what it runs.
func show(port int) (served, error) {
	var got served
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return got, err
	}
	defer answer.Body.Close()
	return got, json.NewDecoder(answer.Body).Decode(&got)
}

// awaitServed waits until the small workload runs a config with a text in it.
func awaitServed(t *testing.T, port int, text string) served {
	t.Helper()
	var got served
	eventually(t, fmt.Sprintf("the workload with %q", text), func() (err error) {
		got, err = show(port)
		if err == nil && !strings.Contains(got.Config, text) {
			err = fmt.Errorf("it runs %q", got.Config)
		}
		return err
	})
	return got
}

// stillServed fails unless the same process runs a config with a text in it, now.
func stillServed(t *testing.T, port int, before served, text string) {
	t.Helper()
	now, err := show(port)
	if err != nil {
		t.Fatalf("the workload is gone: %v", err)
	}
	if now.PID != before.PID {
		t.Errorf("the workload was restarted: process %d, before %d", now.PID, before.PID)
	}
	if !strings.Contains(now.Config, text) {
		t.Errorf("the workload runs %q, want %q in it", now.Config, text)
	}
}
