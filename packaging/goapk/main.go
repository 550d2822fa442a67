// goapk installs a package into a root as `apk add` does, by another's implementation of apk: the archive is taken apart, the
// hash of its data and of each file are compared, a repository's index is made of what it says of itself and read again, its dependencies are resolved, its files
// and its entry in apk's database are written. Scripts are kept in the database and not run.
//
//	goapk PACKAGE.apk ROOT ARCH
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/chainguard-dev/go-apk/pkg/apk"
	"github.com/chainguard-dev/go-apk/pkg/expandapk"
	"github.com/chainguard-dev/go-apk/pkg/fs"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "goapk PACKAGE.apk ROOT ARCH")
		os.Exit(2)
	}
	if err := install(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "goapk:", err)
		os.Exit(1)
	}
}

func install(ctx context.Context, file, root, arch string) error {
	repository, err := os.MkdirTemp("", "goapk")
	if err != nil {
		return err
	}
	defer os.RemoveAll(repository)
	pkg, err := publish(ctx, file, repository, arch)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	a, err := apk.New(apk.WithFS(fs.DirFS(root)), apk.WithArch(arch), apk.WithIgnoreMknodErrors(true),
		apk.WithNoSignatureIndexes(repository))
	if err != nil {
		return err
	}
	if err := a.InitDB(ctx); err != nil {
		return err
	}
	if err := a.SetRepositories(ctx, []string{repository}); err != nil {
		return err
	}
	if err := a.SetWorld(ctx, []string{pkg.Name}); err != nil {
		return err
	}
	if err := a.FixateWorld(ctx, nil); err != nil {
		return err
	}
	installed, err := a.GetInstalled()
	if err != nil {
		return err
	}
	for _, it := range installed {
		fmt.Println(it.Name, it.Version, it.Arch, len(it.Files))
	}
	return nil
}

// publish makes a repository of one package.
func publish(ctx context.Context, file, repository, arch string) (*apk.Package, error) {
	from, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	pkg, err := apk.ParsePackage(ctx, from)
	if err != nil {
		return nil, err
	}
	if err := sameData(ctx, file, pkg); err != nil {
		return nil, err
	}
	size, err := from.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	pkg.Size = uint64(size)
	index, err := apk.ArchiveFromIndex(&apk.APKIndex{Packages: []*apk.Package{pkg}})
	if err != nil {
		return nil, err
	}
	directory := filepath.Join(repository, arch)
	if err := os.Mkdir(directory, 0o755); err != nil {
		return nil, err
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for name, content := range map[string]io.Reader{"APKINDEX.tar.gz": index, pkg.Filename(): from} {
		to, err := os.Create(filepath.Join(directory, name))
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(to, content); err != nil {
			return nil, err
		}
		if err := to.Close(); err != nil {
			return nil, err
		}
	}
	return pkg, nil
}

// sameData compares the files' archive with the hash in what the package says of itself: go-apk leaves that to its cache.
func sameData(ctx context.Context, file string, pkg *apk.Package) error {
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	defer from.Close()
	expanded, err := expandapk.ExpandApk(ctx, from, "")
	if err != nil {
		return err
	}
	defer expanded.Close()
	data, err := os.ReadFile(expanded.PackageFile)
	if err != nil {
		return err
	}
	if found := fmt.Sprintf("%x", sha256.Sum256(data)); found != pkg.DataHash {
		return fmt.Errorf("datahash is %s, the data has %s", pkg.DataHash, found)
	}
	return nil
}
