// What opampsupervisor wants of a Collector and nothing more: it connects to the supervisor's own OpAMP server, says who it
// is and that it is well. It takes the place of a workload, so it is not measured.
package main

import (
	"context"
	"encoding/hex"
	"log"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/open-telemetry/opamp-go/client"
	"github.com/open-telemetry/opamp-go/client/types"
	"github.com/open-telemetry/opamp-go/protobufs"
)

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any)            {}
func (quiet) Errorf(_ context.Context, format string, v ...any) { log.Printf(format, v...) }

var (
	uidLine      = regexp.MustCompile(`instance_uid: *"?([0-9a-f-]{36})`)
	ppidLine     = regexp.MustCompile(`ppid: *(\d+)`)
	endpointLine = regexp.MustCompile(`endpoint: *"?(ws://[^"\s]+)`)
)

func main() {
	config := ""
	for i, argument := range os.Args {
		if argument == "--config" && i+1 < len(os.Args) && os.Args[1] == "--config" {
			body, err := os.ReadFile(os.Args[i+1])
			must(err)
			config += string(body)
		}
	}
	uid, endpoint := uidLine.FindStringSubmatch(config), endpointLine.FindStringSubmatch(config)
	if uid == nil || endpoint == nil {
		return // `validate`, `featuregate`
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(uid[1], "-", ""))
	must(err)
	c := client.NewWebSocket(quiet{})
	identifying := []*protobufs.KeyValue{text("service.name", "collector"), text("service.instance.id", uid[1])}
	must(c.SetAgentDescription(&protobufs.AgentDescription{IdentifyingAttributes: identifying}))
	// Before the capabilities, which ask for it.
	must(c.SetHealth(&protobufs.ComponentHealth{Healthy: true, StartTimeUnixNano: uint64(time.Now().UnixNano())}))
	capabilities := protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus |
		protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth
	must(c.SetCapabilities(&capabilities))
	must(c.Start(context.Background(), types.StartSettings{OpAMPServerURL: endpoint[1], InstanceUid: types.InstanceUid(raw)}))
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	// A supervisor that is ended may leave it behind: as the Collector's extension does, it looks for its parent.
	parent := ppidLine.FindStringSubmatch(config)
	for parent == nil || strconv.Itoa(os.Getppid()) == parent[1] {
		select {
		case <-end:
			return
		case <-time.After(time.Second):
		}
	}
}

func text(key, value string) *protobufs.KeyValue {
	return &protobufs.KeyValue{Key: key, Value: &protobufs.AnyValue{Value: &protobufs.AnyValue_StringValue{StringValue: value}}}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
