"""Reads Config.in with kconfiglib and lets make carry out chiton.mk, Buildroot's own parts being stand-ins (stubs/)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import kconfiglib

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.append(str(HERE.parent))
from checks import BUILDS, ROOT, must, over  # noqa: E402

os.environ["BR2_EXTERNAL_CHITON_PATH"] = str(HERE)
os.environ["CONFIG_"] = ""


def configured(*chosen, **texts):
    kconf = kconfiglib.Kconfig(str(HERE / "stubs/Config.in"), warn_to_stderr=False)
    must("Config.in without warnings", [it for it in kconf.warnings if "BR2_PACKAGE_CHITON" in it], [])
    for name in chosen:
        kconf.syms["BR2_" + name].set_value(2)
    for name, text in texts.items():
        kconf.syms["BR2_" + name].set_value(text)
    return {name: sym.str_value for name, sym in kconf.syms.items() if name.startswith("BR2_") and sym.str_value not in ("", "n")}


SOURCE, BINARY, ON = "BR2_PACKAGE_CHITON_SOURCE", "BR2_PACKAGE_CHITON_BINARY", "BR2_PACKAGE_CHITON"
RUST = "PACKAGE_HOST_RUSTC_TARGET_ARCH_SUPPORTS"

chosen = configured("x86_64", RUST, "PACKAGE_CHITON")
must("from source where there is Rust", (chosen.get(ON), chosen.get(SOURCE), chosen.get(BINARY)), ("y", "y", None))
must("Rust is selected", chosen.get("BR2_PACKAGE_HOST_RUSTC"), "y")
must("its state", chosen["BR2_PACKAGE_CHITON_STATE_DIR"], "/var/lib/chiton")
must("not started by itself", "BR2_PACKAGE_CHITON_AUTOSTART" in chosen, False)
chosen = configured("x86_64", RUST, "PACKAGE_CHITON", "PACKAGE_CHITON_BINARY", "PACKAGE_CHITON_ZSTD")
must("the binary, if wanted", (chosen.get(SOURCE), chosen.get(BINARY)), (None, "y"))
must("which has no options", "BR2_PACKAGE_CHITON_ZSTD" in chosen, False)
must("and no Rust", "BR2_PACKAGE_HOST_RUSTC" in chosen, False)
chosen = configured("arm", "ARM_EABIHF", "ARM_CPU_ARMV6", "PACKAGE_CHITON")
must("armv6 without Rust", (chosen.get(ON), chosen.get(SOURCE), chosen.get(BINARY)), ("y", None, "y"))
chosen = configured("arm", "ARM_EABIHF", "ARM_CPU_ARMV6", "PACKAGE_CHITON", "PACKAGE_CHITON_SOURCE")
must("also if it is asked for", (chosen.get(SOURCE), chosen.get(BINARY)), (None, "y"))
must("armv7 with soft floats, without Rust", ON in configured("arm", "ARM_CPU_ARMV7A", "PACKAGE_CHITON"), False)
must("armv5 without Rust", ON in configured("arm", "ARM_CPU_ARMV5", "PACKAGE_CHITON"), False)
must("x86 without SSE2, without Rust", ON in configured("i386", "PACKAGE_CHITON"), False)
must("mips without Rust", ON in configured("mipsel", "PACKAGE_CHITON"), False)
must("mips with Rust", configured("mipsel", RUST, "PACKAGE_CHITON").get(SOURCE), "y")
chosen = configured("aarch64", RUST, "PACKAGE_CHITON", "PACKAGE_CHITON_AUTOSTART", "INIT_BUSYBOX")
must("init runs it", chosen.get("BR2_PACKAGE_CHITON_RESPAWN"), "y")
chosen = configured("aarch64", RUST, "PACKAGE_CHITON", "PACKAGE_CHITON_AUTOSTART", "INIT_SYSTEMD")
must("systemd needs no such line", "BR2_PACKAGE_CHITON_RESPAWN" in chosen, False)

# The fragment sets only what there is.
for line in (HERE / "configs/chiton.fragment").read_text().splitlines():
    name = line.split("=")[0]
    if name.startswith("BR2_PACKAGE_CHITON"):
        must(f"{name} is an option", name in kconfiglib.Kconfig(str(HERE / "stubs/Config.in"), warn_to_stderr=False).syms)


def make(work, *targets, **variables):
    """make, with BR2_ options as .config has them."""
    options = [f'{name}="{value}"' if name.endswith(("_DIR", "_RELEASES")) else f"{name}={value}" for name, value in variables.items()]
    places = [f"TARGET_DIR={work}/target", f"BUILD={work}/build", f"CHITON_DL_DIR={work}/dl"]
    command = ["make", "--no-print-directory", "-s", "-f", str(HERE / "stubs/Makefile"), *places, *options, *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    must(f"{targets} ({done.stderr})", done.returncode, 0)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def tree(directory):
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_file():
            found[name] = oct(path.stat().st_mode & 0o7777)
    return found


def life(**options):
    """What is installed with these options: files, and the work directory to look into."""
    work = Path(tempfile.mkdtemp())
    (work / "build/target/stub-linux/release").mkdir(parents=True)
    (work / "build/target/stub-linux/release/chiton").write_bytes(b"built")
    (work / "dl").mkdir()
    (work / "target/etc").mkdir(parents=True)
    (work / "target/etc/inittab").write_text("::sysinit:/etc/init.d/rcS\n")
    shown = make(work, "show", **options)
    if shown["KIND"] == "generic":
        (work / "dl" / shown["SOURCE"]).write_bytes(b"released")
    init = "systemd" if "BR2_INIT_SYSTEMD" in options else "sysv"
    make(work, f"{work}/build/installed", f"{work}/build/{init}", **options)
    return shown, tree(work / "target"), work


import tomllib

version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
source = configured("x86_64", RUST, "PACKAGE_CHITON", "PACKAGE_CHITON_ZSTD", "PACKAGE_CHITON_SOCKS", "PACKAGE_CHITON_SECCOMP", "INIT_BUSYBOX")
shown, there, work = life(**source)
must("its version is Cargo.toml's", shown["VERSION"], version)
must("built by cargo", shown["KIND"], "cargo")
must("of this tree", (shown["SITE"], shown["SITE_METHOD"]), (str(ROOT), "local"))
must("its features", shown["CARGO_BUILD_OPTS"], "--package chiton --bin chiton --features zstd,socks,seccomp")
features = tomllib.loads((ROOT / "Cargo.toml").read_text())["features"]
must("they are cargo's", {"zstd", "socks", "seccomp"} <= set(features))
must("an account that owns nothing", shown["USERS"].split()[:4], ["chiton", "-1", "chiton", "-1"])
must("what is installed", there, {
    "etc/chiton/chiton.yaml": "0o600", "etc/init.d/chiton": "0o755", "etc/inittab": "0o644", "usr/bin/chiton": "0o755"})
must("the binary", (work / "target/usr/bin/chiton").read_bytes(), b"built")
settings = (work / "target/etc/chiton/chiton.yaml").read_text()
must("busybox init loses stderr", "log: { to: syslog }" in settings)
must("no placeholder is left", "@" in settings, False)
must("init does not run it by itself", "chiton" in (work / "target/etc/inittab").read_text(), False)
subprocess.run(["rm", "-rf", work], check=True)

shown, there, work = life(**configured("x86_64", RUST, "PACKAGE_CHITON"))
must("no features", shown["CARGO_BUILD_OPTS"], "--package chiton --bin chiton")
subprocess.run(["rm", "-rf", work], check=True)

for init, line in (("BUSYBOX", "::respawn:/etc/init.d/chiton foreground"), ("SYSV", "ch:2345:respawn:/etc/init.d/chiton foreground")):
    options = configured("x86_64", "PACKAGE_CHITON", "PACKAGE_CHITON_AUTOSTART", f"INIT_{init}")
    shown, there, work = life(**options)
    must("the binary of a release", (shown["KIND"], shown["SOURCE"]), ("generic", f"chiton-{version}-x86_64"))
    must("as it is", (work / "target/usr/bin/chiton").read_bytes(), b"released")
    make(work, f"{work}/build/sysv", **options)
    must("one line, however often", (work / "target/etc/inittab").read_text().count(line + "\n"), 1)
    must("and no script in rcS", "etc/init.d/S60chiton" in there, False)
    subprocess.run(["rm", "-rf", work], check=True)

options = configured("x86_64", "PACKAGE_CHITON", "PACKAGE_CHITON_AUTOSTART", "INIT_BUSYBOX")
del options["BR2_PACKAGE_CHITON_RESPAWN"]
shown, there, work = life(**options)
must("the script of rcS", there.get("etc/init.d/S60chiton"), "0o755")
subprocess.run(["rm", "-rf", work], check=True)

options = configured("x86_64", RUST, "PACKAGE_CHITON", "INIT_SYSTEMD", "PACKAGE_CHITON_AUTOSTART", PACKAGE_CHITON_STATE_DIR="/data/chiton")
shown, there, work = life(**options)
units = work / "target/usr/lib/systemd"
must("a unit", there.get("usr/lib/systemd/system/chiton.service"), "0o644")
must("its profile", there.get("usr/lib/systemd/system/chiton.service.d/50-profile.conf"), "-> /usr/share/chiton/systemd/parent.conf")
must("enabled", (units / "system-preset/50-chiton.preset").read_text(), "enable chiton.service\n")
must("it waits for the data", "RequiresMountsFor=/data/chiton\n" in (units / "system/chiton.service.d/60-state.conf").read_text())
must("tmpfiles", "d /data/chiton 0711" in (work / "target/usr/lib/tmpfiles.d/chiton.conf").read_text())
must("the settings", "state_dir: /data/chiton\n" in (work / "target/etc/chiton/chiton.yaml").read_text())
must("no init script", "etc/init.d/chiton" in there, False)
subprocess.run(["rm", "-rf", work], check=True)

for board, want in (
    (("i386", "X86_CPU_HAS_SSE2"), "i686"), (("aarch64",), "aarch64"), (("RISCV_64",), "riscv64"),
    (("arm", "ARM_EABIHF", "ARM_CPU_ARMV7A"), "armv7"), (("arm", "ARM_EABIHF", "ARM_CPU_ARMV8A"), "armv7"),
    (("arm", "ARM_EABIHF", "ARM_CPU_ARMV6"), "armv6"),
):
    with tempfile.TemporaryDirectory() as work:
        must(f"{board}", make(work, "show", **configured(*board, "PACKAGE_CHITON"))["TARGET"], want)
        must("there is such a build", want in BUILDS)

sys.exit(over())
