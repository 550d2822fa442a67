package interop

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/open-telemetry/opamp-go/protobufs"
)

const (
	installed     = protobufs.PackageStatusEnum_PackageStatusEnum_Installed
	installing    = protobufs.PackageStatusEnum_PackageStatusEnum_Installing
	installFailed = protobufs.PackageStatusEnum_PackageStatusEnum_InstallFailed
	downloading   = protobufs.PackageStatusEnum_PackageStatusEnum_Downloading
)

// anotherStart is what chiton logs at each start of its workload.
const anotherStart = "the workload runs as process"

// packaged is chiton that has no Collector: it comes from the server, as the package "otelcol".
type packaged struct {
	*collector
	shelf *shelf
}

func startPackaged(t *testing.T, row transport, key *signing, form string) *packaged {
	t.Helper()
	p := &packaged{&collector{t: t, server: newServer(t, row), health: freePort(t)}, newShelf(t)}
	p.agent = newAgent(t, p.server, func(set *settings) {
		const program = "{package_dir:otelcol}/otelcol"
		set.Command = []string{program, "--config={config_file}"}
		set.Validate = []string{program, "validate", "--config={config_file}"}
		set.Verify = []string{program, "--version"}
		set.HealthURL = fmt.Sprintf("http://127.0.0.1:%d/", p.health)
		set.PackageKey, set.PackageSignature = key.public, form
		set.Rollback = "{ window: 12s, interval: 100ms, successes: 2 }"
	})
	p.agent.start()
	p.server.awaitMessage(0, "the first report", anything)
	return p
}

// otelcol is the Collector as it was built.
func (p *packaged) otelcol() []byte {
	p.t.Helper()
	program, err := os.ReadFile(fromEnv(p.t, "OTELCOL_BIN"))
	if err != nil {
		p.t.Fatal(err)
	}
	return program
}

// plainBuild is the Collector alone.
func (p *packaged) plainBuild(version string, level int) *build {
	p.t.Helper()
	return p.shelf.archive(version, level, part{"otelcol", p.otelcol()})
}

// wrappedBuild is another one: a script starts the Collector in it.
func (p *packaged) wrappedBuild(version string) *build {
	p.t.Helper()
	script := "#!/bin/sh\nexec \"$(dirname \"$0\")/lib/collector\" \"$@\"\n"
	return p.shelf.archive(version, gzip.BestSpeed, part{"otelcol", []byte(script)}, part{"lib/collector", p.otelcol()})
}

// muteBuild says yes to everything, lives, and serves nothing.
func (p *packaged) muteBuild(version string) *build {
	p.t.Helper()
	script := "#!/bin/sh\ncase $1 in --version | validate) exit 0 ;; esac\nexec sleep 600\n"
	return p.shelf.archive(version, gzip.BestSpeed, part{"otelcol", []byte(script)})
}

// offer is one message with a package, and a config where it has a name.
func (p *packaged) offer(b *build, hash, config string) {
	p.t.Helper()
	m := &protobufs.ServerToAgent{}
	if hash != "" {
		m = remoteConfig(hash, map[string]string{"": config})
	}
	m.PackagesAvailable = &protobufs.PackagesAvailable{
		Packages:        map[string]*protobufs.PackageAvailable{"otelcol": p.shelf.offered(b)},
		AllPackagesHash: all(b),
	}
	p.server.offer(m)
}

func all(b *build) []byte { return []byte("all of " + b.version) }

// status is what a message says of the package, once the offer of a build was received.
func status(m received, b *build) *protobufs.PackageStatus {
	if !bytes.Equal(m.PackageStatuses.GetServerProvidedAllPackagesHash(), all(b)) {
		return nil
	}
	return m.PackageStatuses.Packages["otelcol"]
}

func (p *packaged) await(from int, b *build, want protobufs.PackageStatusEnum) (*protobufs.PackageStatus, int) {
	p.t.Helper()
	final := want == installed || want == installFailed
	m, at := p.server.awaitMessage(from, fmt.Sprintf("%v of %s", want, b.version), func(m received) bool {
		s := status(m, b)
		return s != nil && (s.Status == want || final && (s.Status == installed || s.Status == installFailed))
	})
	s := status(m, b)
	if s.Status != want {
		p.t.Fatalf("build %s: %v %q, want %v", b.version, s.Status, s.ErrorMessage, want)
	}
	return s, at
}

// awaitInstalled waits until a build is reported as the one that is there.
func (p *packaged) awaitInstalled(from int, b *build) int {
	p.t.Helper()
	s, at := p.await(from, b, installed)
	offer := p.shelf.offered(b)
	if s.AgentHasVersion != b.version || !bytes.Equal(s.AgentHasHash, offer.Hash) ||
		s.ServerOfferedVersion != b.version || !bytes.Equal(s.ServerOfferedHash, offer.Hash) {
		p.t.Errorf("Installed as %v", s)
	}
	return at
}

// runs returns the one Collector's process, which is of a build.
func (p *packaged) runs(b *build) int {
	p.t.Helper()
	pid := 0
	tree := regexp.MustCompile(`^.*/packages/trees/\d+/`)
	eventually(p.t, "the Collector of "+b.version, func() error {
		found := slices.DeleteFunc(p.agent.descendants(), func(r running) bool {
			return slices.Contains(r.args, "validate") || slices.Contains(r.args, "--version")
		})
		if len(found) != 1 {
			return fmt.Errorf("%d processes: %v", len(found), found)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", found[0].pid))
		if err != nil {
			return err
		}
		version, err := os.ReadFile(filepath.Join(tree.FindString(exe), "BUILD"))
		if err == nil && string(version) != b.version {
			err = fmt.Errorf("process %v is of build %q", found[0], version)
		}
		pid = found[0].pid
		return err
	})
	return pid
}

// starts counts how often the workload was started.
func (p *packaged) starts() int {
	p.t.Helper()
	text, err := os.ReadFile(p.agent.path("stderr"))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.Count(string(text), anotherStart)
}

func (p *packaged) startedTimes(want int) {
	p.t.Helper()
	if got := p.starts(); got != want {
		p.t.Errorf("a Collector was started %d times, want %d", got, want)
	}
}

// fetchedOnce fails unless each byte of a build was asked for once.
func (p *packaged) fetchedOnce(b *build) {
	p.t.Helper()
	if asked := p.shelf.requests(b.file); len(asked) != 1 {
		p.t.Errorf("%s was asked for %d times: %q", b.file, len(asked), asked)
	}
	if sent := p.shelf.bytes(b.file); sent != b.size {
		p.t.Errorf("%d bytes of %s were sent, it has %d", sent, b.file, b.size)
	}
}

// install offers a build with a config, where nothing was before, and waits until it runs.
func (p *packaged) install(b *build, hash string, port int) int {
	p.t.Helper()
	from := p.server.mark()
	p.offer(b, hash, p.config(port))
	at := p.awaitInstalled(from, b)
	p.server.awaitStatus(from, hash, applied)
	p.server.awaitHealthy()
	p.serves(port, "span of "+b.version)
	p.fetchedOnce(b)
	return max(at, p.server.mark())
}

// kilobytes reads a line of the agent's /proc/PID/status.
func (p *packaged) kilobytes(name string) int {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.agent.process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), name+":")
	number, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return number
}

// wrongStatuses tells what no report of packages may hold.
func wrongStatuses(all *protobufs.PackageStatuses) (wrong []string) {
	for name, s := range all.GetPackages() {
		must := func(holds bool, what string) {
			if !holds {
				wrong = append(wrong, fmt.Sprintf("%s: %v", what, s))
			}
		}
		must(s.Name == name, "another name than its key")
		must((s.AgentHasVersion == "") == (len(s.AgentHasHash) == 0), "half of what the agent has")
		must(s.ServerOfferedVersion != "" && len(s.ServerOfferedHash) > 0, "not what was offered")
		must((s.ErrorMessage != "") == (s.Status == installFailed), "error_message goes with InstallFailed, and only there")
		must(s.DownloadDetails == nil || s.Status == downloading, "download_details go with Downloading")
		if s.Status == installed {
			must(s.AgentHasVersion == s.ServerOfferedVersion && bytes.Equal(s.AgentHasHash, s.ServerOfferedHash),
				"Installed, and not what was offered")
		}
	}
	return wrong
}

// A device without any Collector gets one, with its config, in one message.
func TestPackageIsInstalledWithItsConfig(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := keygen(t)
		p := startPackaged(t, row, key, "")
		// Not compressed: as large as it gets.
		b := key.sign(p.shelf, p.plainBuild("1.0", gzip.NoCompression))
		port := freePort(t)
		p.server.awaitHealth(0, false)

		// A new peak from here on.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.agent.process.Pid), []byte("5"), 0); err != nil {
			t.Fatal(err)
		}
		before, beforeAnon := p.kilobytes("VmRSS"), p.kilobytes("RssAnon")
		p.shelf.hold(b.file, b.size/2)
		from := p.server.mark()
		p.offer(b, "config 1", p.config(port))
		// Half of it is there: nothing of it is used.
		s, at := p.await(from, b, downloading)
		for s.DownloadDetails == nil || s.DownloadDetails.DownloadPercent == 0 {
			s, at = p.await(at, b, downloading)
		}
		if left := p.agent.descendants(); len(left) > 0 {
			t.Errorf("half a download, and there runs %v", left)
		}
		closedPort(t, p.health)
		p.shelf.release()
		_, at = p.await(at, b, installing)
		p.awaitInstalled(at, b)
		p.server.awaitStatus(from, "config 1", applied)
		p.server.awaitHealth(from, true)
		p.server.awaitEffective(p.endpoint(port))
		p.serves(port, "span of the first build")
		pid := p.runs(b)
		peak := p.kilobytes("VmHWM")
		p.startedTimes(1)
		p.fetchedOnce(b)
		t.Logf("file %d bytes, sent %d; agent before %d KiB (anonymous %d KiB), peak while it fetched and unpacked %d KiB, after %d KiB (anonymous %d KiB)",
			b.size, p.shelf.bytes(b.file), before, beforeAnon, peak, p.kilobytes("VmRSS"), p.kilobytes("RssAnon"))

		// The same again is nothing new.
		p.offer(b, "config 1", p.config(port))
		_, at = p.server.awaitMessage(p.server.mark(), "a message after it", anything)
		p.server.awaitMessage(at, "another message after it", anything)
		if now := p.runs(b); now != pid {
			t.Errorf("the Collector is process %d, was %d", now, pid)
		}
		p.fetchedOnce(b)

		// It is the device's own now.
		p.agent.stop()
		closedPort(t, port)
		from = p.server.mark()
		p.agent.start()
		first, _ := p.server.awaitMessage(from, "the first report after the restart", anything)
		if s := status(first, b); s == nil || s.Status != installed {
			t.Errorf("the first report after the restart says %v", first.PackageStatuses)
		}
		p.server.awaitHealth(from, true)
		p.serves(port, "span after the restart")
		p.fetchedOnce(b)
		p.startedTimes(2)
		p.agent.stop()
	})
}

// Another build takes the old one's place, without a new config.
func TestPackageIsUpgraded(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := keygen(t)
		p := startPackaged(t, row, key, "")
		one := key.sign(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
		two := key.sign(p.shelf, p.wrappedBuild("2.0"))
		port := freePort(t)
		p.install(one, "config 1", port)
		pid := p.runs(one)

		from := p.server.mark()
		p.offer(two, "", "")
		at := p.awaitInstalled(from, two)
		if now := p.runs(two); now == pid {
			t.Errorf("process %d runs both builds", pid)
		}
		p.serves(port, "span of the second build")
		p.server.awaitHealthy()
		p.fetchedOnce(two)
		p.startedTimes(2)
		// On the way there the old one was there, and was said to be.
		for _, m := range p.server.since(from)[:at-1-from] {
			if s := status(m, two); s != nil && s.AgentHasVersion != "1.0" {
				t.Errorf("before it was installed the agent had %v", s)
			}
			if s := m.RemoteConfigStatus; s != nil && s.Status == failed {
				t.Errorf("the config is told as %v", s)
			}
		}
		p.agent.stop()
	})
}

// The connection ends in the middle of the file: the rest is fetched, and no byte twice.
func TestPackageIsFetchedInParts(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := keygen(t)
		p := startPackaged(t, row, key, "")
		b := key.sign(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
		p.shelf.cut(b.file, b.size/2)
		port := freePort(t)
		from := p.server.mark()
		p.offer(b, "config 1", p.config(port))
		p.awaitInstalled(from, b)
		p.server.awaitStatus(from, "config 1", applied)
		p.serves(port, "span of a build in two parts")
		asked := p.shelf.requests(b.file)
		if len(asked) != 2 || asked[0] != "" || !strings.HasPrefix(asked[1], "bytes=") {
			t.Errorf("it was asked for as %q", asked)
		}
		if sent := p.shelf.bytes(b.file); sent < b.size || sent > b.size+1<<20 {
			t.Errorf("%d bytes were sent, the file has %d", sent, b.size)
		}
		p.agent.stop()
	})
}

// Death of chiton in the middle of the file, and again in the trial: what was fetched is kept, and
// what was interrupted is repeated.
func TestPackageOutlivesDeathOfChiton(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := keygen(t)
		p := startPackaged(t, row, key, "")
		one := key.sign(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
		two := key.sign(p.shelf, p.wrappedBuild("2.0"))
		port := freePort(t)
		p.shelf.hold(one.file, one.size/2)
		from := p.server.mark()
		p.offer(one, "config 1", p.config(port))
		eventually(t, "half of the file to be on the disk", func() error {
			_, had, err := p.incoming()
			if err == nil && had < one.size/3 {
				err = fmt.Errorf("%d of %d bytes", had, one.size)
			}
			return err
		})
		p.server.awaitMessage(from, "the offer's receipt", func(m received) bool { return status(m, one) != nil })
		p.agent.kill()
		p.shelf.release()
		from = p.server.mark()
		p.agent.start()
		first, _ := p.server.awaitMessage(from, "the first report after the crash", anything)
		if len(first.PackageStatuses.GetPackages()) > 0 || len(first.PackageStatuses.GetServerProvidedAllPackagesHash()) > 0 {
			t.Errorf("the first report after the crash says %v", first.PackageStatuses)
		}
		sent := p.shelf.bytes(one.file)
		p.offer(one, "config 1", p.config(port))
		p.awaitInstalled(from, one)
		p.server.awaitStatus(from, "config 1", applied)
		p.serves(port, "span after the crash")
		asked := p.shelf.requests(one.file)
		if len(asked) != 2 || !strings.HasPrefix(asked[1], "bytes=") {
			t.Errorf("it was asked for as %q", asked)
		}
		if again := p.shelf.bytes(one.file) - sent; again > one.size*3/4 {
			t.Errorf("%d bytes were fetched after the crash, the file has %d", again, one.size)
		}
		if name, had, err := p.incoming(); err == nil {
			t.Errorf("%s with %d bytes is left", name, had)
		}

		// In the trial. Nothing answers the check, so that it lasts.
		pid := p.runs(one)
		quiet := strings.Replace(p.config(port), "extensions: [health_check]", "extensions: []", 1)
		from = p.server.mark()
		p.offer(two, "config 2", quiet)
		trial := p.runs(two)
		p.agent.kill()
		from = p.server.mark()
		p.agent.start()
		first, _ = p.server.awaitMessage(from, "the first report after the second crash", anything)
		if s := status(first, two); s == nil || s.Status != installing || s.AgentHasVersion != "1.0" {
			t.Errorf("the first report after the second crash says %v", first.PackageStatuses)
		}
		s, _ := p.await(from, two, installFailed)
		if s.AgentHasVersion != "1.0" {
			t.Errorf("after going back: %v", s)
		}
		p.server.awaitStatus(from, "config 2", failed)
		if now := p.runs(one); now == pid || now == trial {
			t.Errorf("the Collector is process %d", now)
		}
		p.server.awaitHealthy()
		p.serves(port, "span at the end")
		p.startedTimes(5) // one; two; one again; its trial again; back
		p.fetchedOnce(two)
		p.agent.stop()
	})
}

// incoming is the file on the disk that has not come whole.
func (p *packaged) incoming() (string, int64, error) {
	parts, _ := filepath.Glob(p.agent.path("state/packages/incoming/*.part"))
	if len(parts) != 1 {
		return "", 0, fmt.Errorf("incoming: %q", parts)
	}
	info, err := os.Stat(parts[0])
	if err != nil {
		return "", 0, err
	}
	return parts[0], info.Size(), nil
}

// Servers that do not compare hashes offer the same with each answer. That is one download, one
// start, and no conversation without end.
func TestPackageIsOfferedWithEachAnswer(t *testing.T) {
	for _, row := range []struct {
		name string
		hash []byte
		bad  bool
	}{
		{"with a hash", []byte("all"), false},
		{"without a hash", nil, false},
		{"with a hash, and fails", []byte("all"), true},
		{"without a hash, and fails", nil, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			overEach(t, gateTransports, func(t *testing.T, via transport) {
				key := keygen(t)
				p := startPackaged(t, via, key, "")
				b := p.plainBuild("1.0", gzip.BestSpeed)
				if row.bad {
					b = p.muteBuild("1.0")
				}
				key.sign(p.shelf, b)
				port := freePort(t)
				p.shelf.hold(b.file, b.size/2)
				from := p.server.mark()
				offers := 0
				p.server.setAnswer(func(_ *protobufs.AgentToServer, reply *protobufs.ServerToAgent) {
					reply.RemoteConfig = remoteConfig("config 1", map[string]string{"": p.config(port)}).RemoteConfig
					reply.PackagesAvailable = &protobufs.PackagesAvailable{
						Packages:        map[string]*protobufs.PackageAvailable{"otelcol": p.shelf.offered(b)},
						AllPackagesHash: row.hash,
					}
					offers++
				})
				p.server.await("offers while it is fetched", func() bool { return offers >= 5 })
				p.shelf.release()
				want := installed
				if row.bad {
					want = installFailed
				}
				p.server.awaitMessage(from, want.String(), func(m received) bool {
					s := m.PackageStatuses.GetPackages()["otelcol"]
					return s != nil && s.Status == want
				})
				starts := p.starts()
				p.server.mu.Lock()
				offers = 0
				p.server.mu.Unlock()
				from = p.server.mark()
				p.server.await("offers of what is there", func() bool { return offers >= 6 })
				told := 0
				for _, m := range p.server.since(from) {
					if m.PackageStatuses != nil {
						told++
					}
				}
				if told > 2 {
					t.Errorf("the packages are told %d times for 6 offers of what was concluded", told)
				}
				p.startedTimes(starts)
				p.fetchedOnce(b)
				if !row.bad {
					p.serves(port, "span at the end")
					p.startedTimes(1)
				}
				p.agent.stop()
			})
		})
	}
}

// What passes everything but the health check goes, and its config goes with it.
func TestPackageFailsItsGateAndGoesBackWithItsConfig(t *testing.T) {
	for _, row := range []struct {
		name string
		make func(p *packaged) *build
		// config is the one that is offered with it.
		config func(p *packaged, port int) string
	}{
		{"a program that serves nothing", func(p *packaged) *build { return p.muteBuild("2.0") },
			func(p *packaged, port int) string { return p.config(port) }},
		{"a Collector without its health extension", func(p *packaged) *build { return p.wrappedBuild("2.0") },
			func(p *packaged, port int) string {
				return strings.Replace(p.config(port), "extensions: [health_check]", "extensions: []", 1)
			}},
	} {
		t.Run(row.name, func(t *testing.T) {
			overEach(t, gateTransports, func(t *testing.T, via transport) {
				key := keygen(t)
				p := startPackaged(t, via, key, "")
				good := key.sign(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
				bad := key.sign(p.shelf, row.make(p))
				portA, portB := freePort(t), freePort(t)
				p.install(good, "config 1", portA)
				pid := p.runs(good)

				from := p.server.mark()
				p.offer(bad, "config 2", row.config(p, portB))
				told, _ := p.server.awaitStatus(from, "config 2", failed)
				s, _ := p.await(from, bad, installFailed)
				for _, text := range []string{told.ErrorMessage, s.ErrorMessage} {
					if !strings.Contains(text, "not healthy within 12s") || !strings.Contains(text, p.agent.settings.HealthURL) {
						t.Errorf("the reason is %q", text)
					}
				}
				if s.AgentHasVersion != "1.0" || s.ServerOfferedVersion != "2.0" {
					t.Errorf("after going back: %v", s)
				}
				if now := p.runs(good); now == pid {
					t.Errorf("process %d outlived the trial of another build", pid)
				}
				eventually(t, "the good build to serve again", func() error { return sendSpan(portA, "span after going back") })
				closedPort(t, portB)
				p.server.awaitEffective(p.endpoint(portA))
				p.server.awaitHealthy()

				// Nor is it tried again.
				pid, starts := p.runs(good), p.starts()
				p.offer(bad, "config 2", row.config(p, portB))
				_, at := p.server.awaitMessage(p.server.mark(), "a message after it", anything)
				p.server.awaitMessage(at, "another message after it", anything)
				if now := p.runs(good); now != pid {
					t.Errorf("the Collector is process %d, was %d", now, pid)
				}
				p.startedTimes(starts)
				p.fetchedOnce(bad)
				p.agent.stop()
			})
		})
	}
}

// A build that was signed before the one that is there is refused, whoever offers it.
func TestPackageOfAnOlderBuildIsRefused(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := keygen(t)
		p := startPackaged(t, row, key, "")
		older := key.sign(p.shelf, p.wrappedBuild("0.9"))
		one := key.sign(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
		portA, portB := freePort(t), freePort(t)
		p.install(one, "config 1", portA)
		pid := p.runs(one)

		from := p.server.mark()
		p.offer(older, "config 2", p.config(portB))
		s, _ := p.await(from, older, installFailed)
		if !strings.Contains(s.ErrorMessage, "an older one") || s.AgentHasVersion != "1.0" || s.ServerOfferedVersion != "0.9" {
			t.Errorf("refused as %v", s)
		}
		// They belong together: its config is not applied without it.
		p.server.awaitStatus(from, "config 2", failed)
		if asked := p.shelf.requests(older.file); len(asked) > 0 {
			t.Errorf("it was fetched: %q", asked)
		}
		if now := p.runs(one); now != pid {
			t.Errorf("the Collector is process %d, was %d", now, pid)
		}
		p.serves(portA, "span of the build that stays")
		p.startedTimes(1)
		p.agent.stop()
	})
}

// openssl signs, and chiton believes it where the settings say so.
func TestPackageSignedByOpenssl(t *testing.T) {
	overEach(t, gateTransports, func(t *testing.T, row transport) {
		key := openssl(t)
		p := startPackaged(t, row, key, "digest")
		good := key.digest(p.shelf, p.plainBuild("1.0", gzip.BestSpeed))
		strange := openssl(t).digest(p.shelf, p.wrappedBuild("2.0"))
		port := freePort(t)

		// Another's key first.
		from := p.server.mark()
		p.offer(strange, "", "")
		if s, _ := p.await(from, strange, installFailed); s.AgentHasVersion != "" {
			t.Errorf("refused as %v", s)
		}
		if asked := p.shelf.requests(strange.file); len(asked) > 0 {
			t.Errorf("it was fetched: %q", asked)
		}
		p.install(good, "config 1", port)
		p.runs(good)
		p.startedTimes(1)
		p.agent.stop()
	})
}
