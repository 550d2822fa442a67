// Package interop drives the real chiton binary with code that others wrote: opamp-go's server
// library on the one side, an OpenTelemetry Collector on the other. Start it through ./run.
package interop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen. It is far longer than anything takes
// on an idle machine, so that a busy one does not fail a test.
const patience = 40 * time.Second

// The test binary is also the small workload, and two wrappers: one counts the calls of a command,
// the other tells which config it starts with and whether another one lives.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve-config":
			serveConfig(os.Args[2], os.Args[3])
		case "count-and-exec":
			countAndExec(os.Args[2], os.Args[3:])
		case "only-one":
			onlyOne(os.Args[2], os.Args[3:])
		}
	}
	os.Exit(m.Run())
}

// served is what the small workload says of itself.
type served struct {
	PID    int
	Config string
}

// serveConfig is a workload without the Collector's start-up time: it reads its config once, as a
// Collector does, and shows it over HTTP.
func serveConfig(address, file string) {
	body, err := os.ReadFile(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	err = http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(served{PID: os.Getpid(), Config: string(body)})
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// countAndExec adds a byte to a file and becomes the command.
func countAndExec(file string, command []string) {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write([]byte{'.'})
	}
	if err == nil {
		err = syscall.Exec(command[0], command, os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// onlyOne adds a line to a file, the first one of the config that the command ends with, and becomes
// the command. Two at once are seen whenever it happens: each process keeps a lock until its end.
func onlyOne(file string, command []string) {
	config, _ := os.ReadFile(command[len(command)-1])
	line, _, _ := strings.Cut(string(config), "\n")
	lock, err := syscall.Open(file+".lock", syscall.O_CREAT|syscall.O_RDWR, 0o600) // kept over the exec
	if err == nil && syscall.Flock(lock, syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		line = twoAtOnce + line
	}
	var log *os.File
	if err == nil {
		log, err = os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	}
	if err == nil {
		_, err = fmt.Fprintln(log, line)
	}
	if err == nil {
		err = syscall.Exec(command[0], command, os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

const twoAtOnce = "beside another: "

func testBinary(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func fromEnv(t *testing.T, name string) string {
	t.Helper()
	path := os.Getenv(name)
	if path == "" {
		t.Fatalf("%s is not set: start these tests through ./run", name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return path
}

var ports = struct {
	sync.Mutex
	next int
}{next: 20000 + rand.IntN(5000)}

// freePort hands out each port once. They lie below the range that the kernel takes outgoing ports
// from, so that none is taken between this look and its use.
func freePort(t *testing.T) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for ports.next < 32000 {
		ports.next++
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports.next))
		if err == nil {
			l.Close()
			awaitUnbound(t, ports.next)
			return ports.next
		}
	}
	t.Fatal("no free port below the ephemeral range")
	return 0
}

// awaitUnbound waits until nobody listens on a port of loopback that was closed. A child of ours
// keeps copies of our listeners until its exec is through, and no lock of Go's covers the whole of that.
func awaitUnbound(t *testing.T, port int) {
	t.Helper()
	local := fmt.Sprintf("0100007F:%04X", port)
	eventually(t, fmt.Sprintf("port %d to be free", port), func() error {
		text, err := os.ReadFile("/proc/net/tcp")
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st …, where 0A is LISTEN.
			if f := strings.Fields(line); len(f) > 3 && f[1] == local && f[3] == "0A" {
				return fmt.Errorf("somebody listens")
			}
		}
		return err
	})
}

// eventually polls what no channel tells of: a port, a file, a process.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
