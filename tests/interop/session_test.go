package interop

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
	"google.golang.org/protobuf/proto"
)

func anything(received) bool { return true }

func nothing(*settings) {}

func attributes(of []*protobufs.KeyValue) map[string]string {
	all := map[string]string{}
	for _, kv := range of {
		all[kv.Key] = kv.Value.GetStringValue()
	}
	return all
}

func uuidText(uid []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", uid[0:4], uid[4:6], uid[6:8], uid[8:10], uid[10:])
}

func TestFirstReportIsFull(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, nothing)
		first, _ := s.awaitMessage(0, "the first report", anything)
		if first.SequenceNum != 0 {
			t.Errorf("sequence_num %d, want 0", first.SequenceNum)
		}
		if len(first.InstanceUid) != 16 {
			t.Fatalf("instance_uid %x, want 16 bytes", first.InstanceUid)
		}
		if version := first.InstanceUid[6] >> 4; version != 7 {
			t.Errorf("instance_uid %x has version %d, want 7", first.InstanceUid, version)
		}
		if row.secure && first.peer != "edge-1" {
			t.Errorf("the agent's certificate names %q, want edge-1", first.peer)
		}
		for _, bit := range []protobufs.AgentCapabilities{
			protobufs.AgentCapabilities_AgentCapabilities_ReportsStatus,
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsRemoteConfig,
			protobufs.AgentCapabilities_AgentCapabilities_ReportsRemoteConfig,
			protobufs.AgentCapabilities_AgentCapabilities_ReportsEffectiveConfig,
			protobufs.AgentCapabilities_AgentCapabilities_ReportsHealth,
			protobufs.AgentCapabilities_AgentCapabilities_ReportsHeartbeat,
		} {
			if first.Capabilities&uint64(bit) == 0 {
				t.Errorf("capabilities %#x lack %v", first.Capabilities, bit)
			}
		}
		for _, bit := range []protobufs.AgentCapabilities{
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsPackages,
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsRestartCommand,
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsOpAMPConnectionSettings,
			protobufs.AgentCapabilities_AgentCapabilities_AcceptsOtherConnectionSettings,
		} {
			if first.Capabilities&uint64(bit) != 0 {
				t.Errorf("capabilities %#x hold %v, which is opt-in and was not opted into", first.Capabilities, bit)
			}
		}
		if lack := missing(first.AgentToServer); len(lack) > 0 {
			t.Errorf("the first report lacks %v", lack)
		}
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		identifying := attributes(first.AgentDescription.GetIdentifyingAttributes())
		for key, want := range map[string]string{
			"service.name":        "interop",
			"service.instance.id": uuidText(first.InstanceUid),
		} {
			if identifying[key] != want {
				t.Errorf("identifying %s is %q, want %q", key, identifying[key], want)
			}
		}
		other := attributes(first.AgentDescription.GetNonIdentifyingAttributes())
		for key, want := range map[string]string{"os.type": "linux", "host.name": host, "env": "interop"} {
			if other[key] != want {
				t.Errorf("non-identifying %s is %q, want %q", key, other[key], want)
			}
		}
		for _, key := range []string{"host.arch", "os.version"} {
			if other[key] == "" {
				t.Errorf("non-identifying %s is missing", key)
			}
		}
		a.stop()
	})
}

// Sequence numbers are checked for every conversation, in checkOrder.
func TestHeartbeats(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, nothing)
		// Health settles; from the first heartbeat on nothing changes, and nothing else is said.
		_, at := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		const n = 5
		var beats []received
		for range n {
			var m received
			m, at = s.awaitMessage(at, "another heartbeat", anything)
			if rest := beyondHeartbeat(m.AgentToServer); rest != "" {
				t.Errorf("a heartbeat holds %s", rest)
			}
			beats = append(beats, m)
			// The payload of the WebSocket frame: a zero byte and the message.
			if size := proto.Size(m.AgentToServer) + 1; size > 32 {
				t.Errorf("a heartbeat takes %d bytes, want at most 32", size)
			}
		}
		// As set, where the default is 30 s. The first may have come late, never early.
		interval := time.Second
		if row.polling {
			interval = 500 * time.Millisecond
		}
		if span := beats[n-1].at.Sub(beats[0].at); span < (n-2)*interval || span > 25*time.Second {
			t.Errorf("%d heartbeats took %v, set to one each %v", n, span, interval)
		}
		a.stop()
	})
}

func TestReportFullState(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, nothing)
		_, at := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		s.offer(&protobufs.ServerToAgent{Flags: uint64(protobufs.ServerToAgentFlags_ServerToAgentFlags_ReportFullState)})
		s.awaitMessage(at, "a full report on request", isFull)
		a.stop()
	})
}

// Some servers ask for everything in each answer; that must not become a storm.
func TestReportFullStateInEachAnswer(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		s.setAnswer(func(_ *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
			reply.Flags |= uint64(protobufs.ServerToAgentFlags_ServerToAgentFlags_ReportFullState)
		})
		a := startAgent(t, s, nothing)
		_, at := s.awaitMessage(0, "the first report", anything)
		const n = 5
		var full []received
		for range n {
			var m received
			m, at = s.awaitMessage(at, "another full report", isFull)
			full = append(full, m)
		}
		if span := full[n-1].at.Sub(full[0].at); !row.polling && span < (n-2)*time.Second {
			t.Errorf("%d full reports within %v, at one heartbeat a second", n, span)
		}
		a.stop()
	})
}

func TestServerGivesInstanceUid(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		a := startAgent(t, s, nothing)
		first, _ := s.awaitMessage(0, "the first report", anything)
		_, at := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		given := []byte{1, 0x99, 3, 4, 5, 6, 0x77, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}
		s.offer(&protobufs.ServerToAgent{AgentIdentification: &protobufs.AgentIdentification{NewInstanceUid: given}})
		adopted, _ := s.awaitMessage(at, "a message under the new uid", func(m received) bool {
			return bytes.Equal(m.InstanceUid, given)
		})
		if lack := missing(adopted.AgentToServer); len(lack) > 0 {
			t.Errorf("the first report under the new uid lacks %v", lack)
		}
		if id := attributes(adopted.AgentDescription.GetIdentifyingAttributes())["service.instance.id"]; id != uuidText(given) {
			t.Errorf("service.instance.id is %q under the new uid", id)
		}
		a.stop()
		for i, m := range s.since(at) {
			if bytes.Equal(m.InstanceUid, first.InstanceUid) && m.SequenceNum > adopted.SequenceNum {
				t.Errorf("message %d after the adoption is under the old uid", i)
			}
		}
		at = s.mark()
		a.start()
		again, _ := s.awaitMessage(at, "the first report after a restart", anything)
		if !bytes.Equal(again.InstanceUid, given) {
			t.Errorf("after a restart the uid is %x, want %x", again.InstanceUid, given)
		}
		if lack := missing(again.AgentToServer); len(lack) > 0 {
			t.Errorf("the first report after a restart lacks %v", lack)
		}
		a.stop()
	})
}

func TestServerComesBack(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			set.LocalConfig = "who: local\n"
		})
		s.awaitHealth(0, true)
		before := awaitServed(t, port, "who: local")
		first, at := s.awaitMessage(0, "a heartbeat", isHeartbeat)
		// An agent that is told of a lost connection comes back at once, and then again and again.
		s.stop()
		stillServed(t, port, before, "who: local")
		s.start()
		back, at := s.awaitMessage(at, "a message to the server that came back", func(m received) bool {
			return m.connection > first.connection
		})
		if !bytes.Equal(back.InstanceUid, first.InstanceUid) {
			t.Errorf("it came back as %x, was %x", back.InstanceUid, first.InstanceUid)
		}
		if back.SequenceNum <= first.SequenceNum {
			t.Errorf("it came back with sequence_num %d, after %d", back.SequenceNum, first.SequenceNum)
		}
		s.awaitMessage(at, "a heartbeat to the server that came back", isHeartbeat)
		stillServed(t, port, before, "who: local")
		a.stop()
	})
}

func TestNoServerAtAll(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		nobody := freePort(t)
		port := freePort(t)
		a := startAgent(t, nil, func(set *settings) {
			servesConfig(t, port)(set)
			set.Endpoint = fmt.Sprintf("%s://127.0.0.1:%d/v1/opamp", row.scheme, nobody)
			if row.secure {
				set.CA = newAuthority(t, "nobody's root").caFile
			}
			set.LocalConfig = "who: local\n"
		})
		awaitServed(t, port, "who: local")
		a.stop()
	})
}

// opamp-go's example server offers one empty object to each agent that it does not know yet.
func TestEmptyConfigWithoutLocalConfig(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, servesConfig(t, port))
		_, at := s.awaitMessage(0, "the first report", anything)
		s.offer(remoteConfig("empty", map[string]string{"": ""}))
		status, at := s.awaitStatus(at, "empty", failed)
		if !strings.Contains(status.ErrorMessage, "empty config") {
			t.Errorf("error_message %q, want \"empty config\" in it", status.ErrorMessage)
		}
		s.offer(remoteConfig("a", map[string]string{"": "who: a\n"}))
		_, at = s.awaitStatus(at, "a", applied)
		before := awaitServed(t, port, "who: a")
		s.offer(remoteConfig("empty again", map[string]string{"": ""}))
		s.awaitStatus(at, "empty again", failed)
		stillServed(t, port, before, "who: a")
		a.stop()
	})
}

func TestEmptyConfigOverLocalConfig(t *testing.T) {
	overEach(t, agentTransports, func(t *testing.T, row transport) {
		s := newServer(t, row)
		port := freePort(t)
		a := startAgent(t, s, func(set *settings) {
			servesConfig(t, port)(set)
			set.LocalConfig = "who: local\n"
		})
		_, at := s.awaitMessage(0, "the first report", anything)
		s.offer(remoteConfig("empty", map[string]string{"": ""}))
		_, at = s.awaitStatus(at, "empty", applied)
		awaitServed(t, port, "who: local")
		// The remote part lies over the local one, and goes again.
		s.offer(remoteConfig("a", map[string]string{"": "who: remote\n"}))
		_, at = s.awaitStatus(at, "a", applied)
		awaitServed(t, port, "who: remote")
		s.awaitEffective("who: remote")
		s.offer(remoteConfig("empty again", map[string]string{"": ""}))
		s.awaitStatus(at, "empty again", applied)
		awaitServed(t, port, "who: local")
		s.awaitEffective("who: local")
		a.stop()
	})
}

// Servers that do not compare hashes offer the same with each answer. That is one start, and no
// conversation without end, also where they give no hash.
func TestConfigIsOfferedWithEachAnswer(t *testing.T) {
	for name, hash := range map[string][]byte{"with a hash": []byte("c"), "without a hash": nil} {
		t.Run(name, func(t *testing.T) {
			overEach(t, agentTransports, func(t *testing.T, row transport) {
				s := newServer(t, row)
				port := freePort(t)
				a := startAgent(t, s, servesConfig(t, port))
				offers := 0
				s.setAnswer(func(_ *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
					reply.RemoteConfig = remoteConfig(string(hash), map[string]string{"": "a: 1"}).RemoteConfig
					offers++
				})
				_, from := s.awaitStatus(0, string(hash), applied)
				served := awaitServed(t, port, "a: 1")
				s.await("offers of what runs", func() bool { return offers >= 10 })
				_, at := s.awaitMessage(s.mark(), "a message after them", anything)
				for _, m := range s.since(from)[:at-from] {
					if m.RemoteConfigStatus != nil {
						t.Errorf("what runs already is told again: %v", m.RemoteConfigStatus)
					}
				}
				stillServed(t, port, served, "a: 1")
				a.stop()
			})
		})
	}
}
