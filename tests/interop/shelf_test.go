package interop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-telemetry/opamp-go/protobufs"
)

// shelf is a file server made with http.ServeContent, which knows ranges, with a memory.
type shelf struct {
	t   *testing.T
	dir string
	url string

	mu    sync.Mutex
	asked map[string][]string // the Range of each request for a file, empty where it had none
	sent  map[string]int64    // bytes of bodies
	// held, where set, stops the bodies of a file after so many bytes, until the channel is closed.
	held map[string]*hold
}

type hold struct {
	after    int64
	cut      bool // it ends the connection then, once
	released chan struct{}
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{t: t, dir: t.TempDir(), asked: map[string][]string{}, sent: map[string]int64{}, held: map[string]*hold{}}
	server := httptest.NewServer(s)
	s.url = server.URL
	t.Cleanup(func() {
		s.release()
		server.Close()
	})
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.Lock()
	s.asked[name] = append(s.asked[name], r.Header.Get("Range"))
	h := s.held[name]
	if h != nil && h.cut {
		delete(s.held, name)
	}
	s.mu.Unlock()
	f, err := os.Open(filepath.Join(s.dir, filepath.Base(name)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	w.Header().Set("Etag", fmt.Sprintf("%q", name))
	http.ServeContent(&counting{ResponseWriter: w, shelf: s, name: name, hold: h}, r, name, time.Time{}, f)
}

// counting counts a body as it goes out, and holds it.
type counting struct {
	http.ResponseWriter
	shelf *shelf
	name  string
	hold  *hold
	sent  int64
}

func (c *counting) Write(part []byte) (int, error) {
	if c.hold != nil && c.sent+int64(len(part)) > c.hold.after {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		if c.hold.cut {
			panic(http.ErrAbortHandler)
		}
		<-c.hold.released
	}
	n, err := c.ResponseWriter.Write(part)
	c.sent += int64(n)
	c.shelf.mu.Lock()
	defer c.shelf.mu.Unlock()
	c.shelf.sent[c.name] += int64(n)
	return n, err
}

// hold keeps back what follows the first bytes of a file.
func (s *shelf) hold(name string, after int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = &hold{after: after, released: make(chan struct{})}
}

// cut ends the next connection that fetches a file after its first bytes.
func (s *shelf) cut(name string, after int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = &hold{after: after, cut: true}
}

func (s *shelf) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, h := range s.held {
		if h.released != nil {
			close(h.released)
		}
		delete(s.held, name)
	}
}

func (s *shelf) requests(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked[name]...)
}

func (s *shelf) bytes(name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[name]
}

// build is a package on the shelf.
type build struct {
	file    string
	version string
	size    int64
	sha256  []byte
	// signature is what the offer carries of it.
	signature []byte
}

// part is a file of an archive.
type part struct {
	name string
	body []byte
}

// archive puts a .tar.gz on the shelf, which names its version in a file BUILD.
func (s *shelf) archive(version string, level int, parts ...part) *build {
	s.t.Helper()
	b := &build{file: "otelcol-" + version + ".tar.gz", version: version}
	f, err := os.Create(s.path(b))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	packed, err := gzip.NewWriterLevel(f, level)
	if err != nil {
		s.t.Fatal(err)
	}
	archive := tar.NewWriter(packed)
	for _, p := range append(parts, part{"BUILD", []byte(version)}) {
		header := &tar.Header{Name: p.name, Mode: 0o755, Size: int64(len(p.body)), Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(header); err != nil {
			s.t.Fatal(err)
		}
		if _, err := archive.Write(p.body); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, end := range []func() error{archive.Close, packed.Close} {
		if err := end(); err != nil {
			s.t.Fatal(err)
		}
	}
	body, err := os.ReadFile(s.path(b))
	if err != nil {
		s.t.Fatal(err)
	}
	hash.Write(body)
	b.size, b.sha256 = int64(len(body)), hash.Sum(nil)
	return b
}

func (s *shelf) path(b *build) string { return filepath.Join(s.dir, b.file) }

// offered is the package as the server names it. Its hash is the server's own business.
func (s *shelf) offered(b *build) *protobufs.PackageAvailable {
	return &protobufs.PackageAvailable{
		Type:    protobufs.PackageType_PackageType_TopLevel,
		Version: b.version,
		Hash:    []byte("hash of " + b.version),
		File: &protobufs.DownloadableFile{
			DownloadUrl: s.url + "/" + b.file,
			ContentHash: b.sha256,
			Signature:   b.signature,
		},
	}
}

// tool runs a program to its end and returns what it printed.
func tool(t *testing.T, name string, arguments ...string) []byte {
	t.Helper()
	command := exec.Command(name, arguments...)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, arguments, err, complaint.String())
	}
	return output
}

// signing is a key pair, and how its owner signs.
type signing struct {
	t           *testing.T
	key, public string
}

func keygen(t *testing.T) *signing {
	t.Helper()
	k := &signing{t: t, key: filepath.Join(t.TempDir(), "release.key")}
	k.public = k.key + ".pub"
	tool(t, fromEnv(t, "CHITON_BIN"), "keygen", "--out", k.key)
	return k
}

// sign makes the manifest form, with the counter that rises by itself.
func (k *signing) sign(s *shelf, b *build) *build {
	k.t.Helper()
	tool(k.t, fromEnv(k.t, "CHITON_BIN"), "sign", "--key", k.key, "--name", "otelcol", "--version", b.version, s.path(b))
	return signedBy(k.t, s, b)
}

func signedBy(t *testing.T, s *shelf, b *build) *build {
	t.Helper()
	signature, err := os.ReadFile(s.path(b) + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	b.signature = signature
	return b
}

// openssl is a pair that chiton has no part in.
func openssl(t *testing.T) *signing {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	k := &signing{t: t, key: filepath.Join(t.TempDir(), "release.key")}
	k.public = k.key + ".pub"
	tool(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", k.key)
	tool(t, "openssl", "pkey", "-in", k.key, "-pubout", "-out", k.public)
	return k
}

// digest makes the digest form.
func (k *signing) digest(s *shelf, b *build) *build {
	k.t.Helper()
	hash := s.path(b) + ".sha256"
	tool(k.t, "openssl", "dgst", "-sha256", "-binary", "-out", hash, s.path(b))
	tool(k.t, "openssl", "pkeyutl", "-sign", "-rawin", "-inkey", k.key, "-in", hash, "-out", s.path(b)+".sig")
	if got, err := os.ReadFile(hash); err != nil || !bytes.Equal(got, b.sha256) {
		k.t.Fatalf("openssl hashes to %s, this test to %s (%v)", hex.EncodeToString(got), hex.EncodeToString(b.sha256), err)
	}
	return signedBy(k.t, s, b)
}
