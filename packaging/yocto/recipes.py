"""Parses the recipes with bitbake itself, openembedded-core's classes being stand-ins (stubs/), and looks at what comes out."""

import logging
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

# bitbake-setup brings bitbake's library without the hash server, which is imported and not needed for parsing.
for name in ("hashserv", "hashserv.client"):
    sys.modules.setdefault(name, types.ModuleType(name))
sys.modules["hashserv"].client = sys.modules["hashserv.client"]

import bb
import bb.data
import bb.data_smart
import bb.fetch2
import bb.parse
import bb.siggen

logging.getLogger("BitBake").addHandler(logging.StreamHandler())

HERE = Path(__file__).resolve().parent
LAYERS = [HERE / "meta-chiton", HERE / "example"]
sys.dont_write_bytecode = True
sys.path.append(str(HERE.parent))
from checks import BUILDS, ROOT, must, over  # noqa: E402



def base(work, **more):
    """What is known before a recipe is read: the stand-ins' bitbake.conf, and the layers'."""
    d = bb.data.init()
    d.setVar("TOPDIR", str(work))
    for name, value in more.items():
        d.setVar(name, value)
    d.setVar("BBPATH", ":".join(str(path) for path in [HERE / "stubs", *LAYERS]))
    os.chdir(work)
    d = bb.parse.handle("conf/bitbake.conf", d, True)
    for layer in LAYERS:
        d.setVar("LAYERDIR", str(layer))
        d = bb.parse.handle(str(layer / "conf/layer.conf"), d, True)
        d.expandVarref("LAYERDIR")
    d.setVar("__bbclasstype", "global")
    bb.parse.BBHandler.inherit("base", "conf", 0, d)
    # As local.conf would: after the layers, before the recipe.
    for name, value in more.items():
        d.setVar(name, value)
    return d


def recipe(work, name, **more):
    files = [path for layer in LAYERS for path in layer.glob(f"recipes-*/*/{name}_*.bb")]
    assert len(files) == 1, f"{name}: {files}"
    d = base(work, **more).createCopy()
    d.setVar("FILE", str(files[0]))
    bb.parse.cached_mtime_noerror(str(files[0]))
    # As bitbake's cooker does before each recipe.
    bb.parse.siggen = bb.siggen.init(d)
    d.setVar("__bbclasstype", "recipe")
    variants = bb.parse.handle(str(files[0]), d, 0)
    return variants[""]


def refused(d):
    """Why bitbake would skip it."""
    return d.getVar("__SKIPPED") or ""


def shell(d, task, work, environment=None):
    """The task's shell function, with all that it calls, as a script; run, if there is an environment for it."""
    script = work / f"{task}.sh"
    with open(script, "w") as file:
        file.write("#!/bin/sh\nset -e\n")
        bb.data.emit_func(task, file, d)
        file.write(f"{task}\n")
    code = subprocess.run(["sh", "-n", script]).returncode
    must(f"{d.getVar('PN')}: {task} is a shell function", code, 0)
    if environment is not None:
        done = subprocess.run(["sh", script], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
        must(f"{d.getVar('PN')}: {task} ({done.stderr})", done.returncode, 0)


def tree(directory):
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_file():
            found[name] = oct(path.stat().st_mode & 0o7777)
    return found


SYSTEMD = {
    "usr/lib/systemd/system/chiton.service": "0o644",
    "usr/lib/systemd/system/chiton-recover.service": "0o644",
    "usr/lib/systemd/system/chiton.service.d/50-profile.conf": "-> /usr/share/chiton/systemd/parent.conf",
    "usr/share/chiton/systemd/parent.conf": "0o644",
    "usr/share/chiton/systemd/external.conf": "0o644",
    "usr/lib/tmpfiles.d/chiton.conf": "0o644",
}
ALWAYS = {"usr/bin/chiton": "0o755", "etc/chiton/chiton.yaml": "0o600"}
SYSVINIT = {"etc/init.d/chiton": "0o755"}


def unpacked(d):
    """Fetches and unpacks by bitbake's own fetcher what lies here."""
    uris = [uri for uri in d.getVar("SRC_URI").split() if uri.startswith(("file://", "git:///"))]
    fetcher = bb.fetch2.Fetch(uris, d)
    # git has much to say.
    said, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        fetcher.download()
    finally:
        os.dup2(said, 1)
    unpack = Path(d.getVar("UNPACKDIR"))
    unpack.mkdir(parents=True, exist_ok=True)
    fetcher.unpack(str(unpack))


def from_source(work):
    d = recipe(work, "chiton", CHITON_PACKAGING=str(HERE.parent), DL_DIR=str(work / "downloads"))
    must("its version is Cargo.toml's", d.getVar("PV"), version())
    crates = [uri for uri in d.getVar("SRC_URI").split() if uri.startswith("crate://")]
    must("crates", len(crates) > 50)
    fetcher = bb.fetch2.Fetch(d.getVar("SRC_URI").split(), d)
    for url in crates:
        must(f"{url} has a checksum", len(fetcher.ud[url].sha256_expected or ""), 64)
    must("not enabled by itself", d.getVar("SYSTEMD_AUTO_ENABLE:chiton"), "disable")
    must("only stopped by itself", d.getVar("INITSCRIPT_PARAMS"), "stop 20 0 1 6 .")
    must("one binary", d.getVar("CARGO_BUILD_FLAGS").endswith("--package chiton --bin chiton "))
    shell(d, "do_install", work)
    unpacked(d)
    must("what is built is this tree", (Path(d.getVar("S")) / "src/main.rs").exists())
    # Without the crates cargo is a stand-in here; packaging/yocto/test lets it look at the real ones.
    d.setVar("CARGO", "true")
    if (Path(d.getVar("S")) / "packaging/yocto/agent-only").exists():
        shell(d, "do_configure", work, {})
    licence = [path for path in (ROOT / "LICENSE", HERE.parent / "LICENSE") if path.exists()][0]
    must("the licence's checksum", d.getVar("LIC_FILES_CHKSUM"), f"file://LICENSE;md5={bb.utils.md5_file(str(licence))}")

    built = Path(d.getVar("B")) / "target" / d.getVar("CARGO_TARGET_SUBDIR")
    built.mkdir(parents=True)
    (built / "chiton").write_bytes(b"binary")
    for features, more in (("systemd sysvinit", {**SYSTEMD, **SYSVINIT}), ("systemd", SYSTEMD), ("sysvinit", SYSVINIT)):
        d.setVar("DISTRO_FEATURES", features)
        d.setVar("D", str(work / features.replace(" ", "-")))
        shell(d, "do_install", work, {})
        must(f"what is installed with {features}", tree(d.getVar("D")), dict(sorted({**ALWAYS, **more}.items())))
        settings = (Path(d.getVar("D")) / "etc/chiton/chiton.yaml").read_text()
        must("no placeholder is left", "@" in settings, False)
        must("the log", "to: syslog" in settings, "systemd" not in features)

    every = recipe(work, "chiton", PACKAGECONFIG=" ".join(features_of(d)))
    known = set(tomllib().loads((ROOT / "Cargo.toml").read_text())["features"])
    must("its features are cargo's", set(features_of(d)) <= known)
    for feature in features_of(d):
        must(feature, f"--features {feature}" in every.getVar("CARGO_BUILD_FLAGS"))

    must("an older Rust is refused, with advice", "chiton-bin" in refused(recipe(work, "chiton", RUSTVERSION="1.94.1")))
    must("this one is not", refused(d), "")

    d = recipe(work, "chiton", CHITON_STATE_DIR="/data/chiton", CHITON_AUTO_ENABLE="enable", CHITON_PROFILE="external",
               CHITON_PACKAGING=str(HERE.parent), D=str(work / "data"))
    must("enabled", (d.getVar("SYSTEMD_AUTO_ENABLE:chiton"), d.getVar("INITSCRIPT_PARAMS")), ("enable", "defaults 60 20"))
    shell(d, "do_install", work, {})
    there = tree(work / "data")
    units = "usr/lib/systemd/system/"
    must("the profile", there[units + "chiton.service.d/50-profile.conf"], "-> /usr/share/chiton/systemd/external.conf")
    for unit in ("chiton", "chiton-recover"):
        text = (work / "data" / units / f"{unit}.service.d/60-state.conf").read_text()
        must(f"{unit} waits for the data", "RequiresMountsFor=/data/chiton\n" in text)
    must("systemd makes no other state", "\nStateDirectory=\n" in (work / "data" / units / "chiton.service.d/60-state.conf").read_text())
    must("tmpfiles makes it", "d /data/chiton 0711" in (work / "data/usr/lib/tmpfiles.d/chiton.conf").read_text())
    must("the settings name it", "state_dir: /data/chiton\n" in (work / "data/etc/chiton/chiton.yaml").read_text())


def tomllib():
    import tomllib as library
    return library


def features_of(d):
    return [name for name in (d.getVarFlags("PACKAGECONFIG") or {}) if name != "doc"]


def version():
    return tomllib().loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def binary(work):
    releases = work / "releases"
    releases.mkdir()
    for arch, tune, want in (
        ("x86_64", "m64 core2", "x86_64"), ("i686", "m32 core2", "i686"), ("aarch64", "aarch64 crc", "aarch64"),
        ("riscv64", "riscv64", "riscv64"), ("arm", "arm armv7a vfp neon callconvention-hard", "armv7"),
        ("arm", "arm armv7ve vfp callconvention-hard", "armv7"), ("arm", "arm armv6 vfp callconvention-hard", "armv6"),
    ):
        d = recipe(work, "chiton-bin", TARGET_ARCH=arch, TUNE_FEATURES=tune)
        must(f"{arch} {tune}", d.getVar("CHITON_TARGET"), want)
        must("there is such a build", want in BUILDS)
        must("it is taken", refused(d), "")
    for arch, tune in (("arm", "arm armv7a vfp"), ("arm", "arm armv5 thumb dsp"), ("i586", "m32 i586"), ("i686", "m32 i686")):
        must(f"{arch} {tune} has no build", "no static binary" in refused(recipe(work, "chiton-bin", TARGET_ARCH=arch, TUNE_FEATURES=tune)))
    must("a processor without a build is refused", "COMPATIBLE_HOST" in refused(recipe(work, "chiton-bin", TARGET_ARCH="mips")))

    # A release that lies in a directory, fetched and installed.
    (releases / f"chiton-{version()}-aarch64").write_bytes(b"binary")
    d = recipe(work, "chiton-bin", CHITON_RELEASES=f"file://{releases}", D=str(work / "bin"))
    unpacked(d)
    shell(d, "do_install", work, {})
    must("what chiton-bin installs", tree(work / "bin"), dict(sorted({**ALWAYS, **SYSTEMD, **SYSVINIT}.items())))
    must("the binary", (work / "bin/usr/bin/chiton").read_bytes(), b"binary")
    must("it stands for chiton", "chiton" in d.getVar("PROVIDES").split() and d.getVar("RPROVIDES:chiton-bin") == "chiton")


def site(work):
    d = recipe(work, "chiton-site", D=str(work / "site"))
    unpacked(d)
    shell(d, "do_install", work, {})
    must("what the example installs", tree(work / "site"),
         {"etc/chiton/conf.d/20-fleet.yaml": "0o644", "etc/chiton/keys/release.pub": "0o644"})


for part in (from_source, binary, site):
    with tempfile.TemporaryDirectory() as work:
        part(Path(work))
        os.chdir("/")
sys.exit(over())
