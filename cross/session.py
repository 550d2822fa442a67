"""One life of a static binary beside a real chiton-server: what cross/test judges, and what cross/trace looks at."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET_DIR = (ROOT / os.environ.get("CARGO_TARGET_DIR", "target")).resolve()
SERVER = os.environ.get("CHITON_SERVER", TARGET_DIR / "debug/chiton-server")
# Patience with a condition, in seconds: an emulated agent on a loaded machine is slow.
PATIENCE = 120
# qemu-user 7.2 has no PR_SET_CHILD_SUBREAPER (Linux has, from 3.4 on): the agent says so and goes on. Nothing else may be a problem.
QEMU_LACKS = "what the workload leaves behind cannot be ended without /proc: Invalid argument (os error 22)"
WORKLOAD = """#!/bin/sh
# Runs until it is killed; a file with "crash" in it ends it at once.
if grep -q crash "$1"; then
    echo "cannot read $1" >&2
    exit 3
fi
exec sleep 86400
"""


class Failed(Exception):
    pass


def expect(what, expected, found):
    if found != expected:
        raise Failed(f"{what}: expected {expected!r}, found {found!r}")


def wait(what, condition, *, want=bool):
    """Waits until `condition()` gives what `want` likes, and returns it."""
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if want(found):
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: expected within {PATIENCE} s, last found {found!r}")
        time.sleep(0.05)


def run(*command, code=0, env=None):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)
    if done.returncode != code:
        raise Failed(f"{' '.join(map(str, command))}: expected exit code {code}, found {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def alive(mark):
    """Processes that carry our mark, whoever their parent is."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def certificates(here):
    """A CA of our own, and a server's certificate by it."""
    (here / "ext").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=test CA", "-keyout", here / "ca.key", "-out", here / "ca.pem")
    run("openssl", "req", *key, "-subj", "/CN=server", "-keyout", here / "server.key", "-out", here / "server.csr")
    run("openssl", "x509", "-req", "-in", here / "server.csr", "-CA", here / "ca.pem", "-CAkey", here / "ca.key", "-CAcreateserial",
        "-days", "2", "-extfile", here / "ext", "-out", here / "server.pem")


class Session:
    """chiton-server, natively, and the agent."""

    def __init__(self, command, here):
        self.command, self.here, self.mark = command, here, f"CHITON_CROSS_TEST={uuid.uuid4()}"
        self.server = self.api = None
        self.env = os.environ | dict([self.mark.split("=")])
        self.started = []

    def start(self, name, command, **more):
        with open(self.here / f"{name}.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **more)
        self.started.append(process)
        return process

    def said(self, name, pattern):
        found = re.search(pattern, (self.here / f"{name}.log").read_text(errors="replace"))
        return found and found.group(1)

    def rest(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def agent(self):
        """The only agent, as the server sees it."""
        return (self.rest("api/v1/agents")["agents"] or [None])[0]

    def push(self, text):
        self.rest("api/v1/config", {"target": "env=test", "files": {"main.yaml": text}})

    def verdict(self, status, word=""):
        """Waits for what the agent reports of its configuration."""
        def reported():
            return ((self.agent() or {}).get("remote_config_status")) or {}
        return wait(f"remote config {status}", reported,
                    want=lambda now: now.get("status") == status and word in now.get("error_message", ""))

    def status(self):
        """What `status --json` says; 0 and healthy, or 1 and not."""
        done = subprocess.run([*self.command, "status", "--json", "--config", self.here / "chiton.yaml"],
                              capture_output=True, text=True, timeout=PATIENCE)
        status = json.loads(done.stdout or "null") or {"healthy": False, "problems": [done.stderr]}
        expect(f"exit code of status, which says {done.stdout}{done.stderr}", 0 if status["healthy"] else 1, done.returncode)
        return status

    def healthy(self):
        """The status where all is well, else None."""
        status = self.status()
        lacks = [QEMU_LACKS] if len(self.command) > 1 else []
        well = status["health"]["healthy"] and not set(status["problems"]) - set(lacks) and status["healthy"] == (not status["problems"])
        return status if well and status["workload"]["pid"] else None

    def settings(self, endpoint, server):
        settings = {"opamp": {
            "server": {"endpoint": endpoint, "tls": {"ca_file": str(self.here / "ca.pem")}} | server,
            "agent": {"labels": {"env": "test"}},
            "capabilities": {"accepts_remote_config": True},
            "workload": {"command": ["/bin/sh", str(self.here / "workload"), "{config_file}"]},
            "remote_config": {"rollback": {"window": "60s", "interval": "100ms", "successes": 3}, "min_interval": "0s"},
            "state_dir": str(self.here / "state"),
            "status_socket": str(self.here / "status.sock"),
        }}
        (self.here / "chiton.yaml").write_text(json.dumps(settings))
        settings["opamp"]["heartbeet"] = 1
        (self.here / "bad.yaml").write_text(json.dumps(settings))

    def serve(self, **server):
        """Starts chiton-server, and writes settings that lead there; `server` goes into theirs."""
        here = self.here
        certificates(here)
        (here / "workload").write_text(WORKLOAD)
        self.server = self.start("server", [SERVER, "run", "--db", ":memory:", "--opamp", "127.0.0.1:0", "--rest",
                                            "127.0.0.1:0", "--tls-cert", here / "server.pem", "--tls-key", here / "server.key"])
        self.settings(wait("the server's address", lambda: self.said("server", r"agents: (wss://\S+)")), server)
        self.api = wait("the server's REST", lambda: self.said("server", r"REST: (http://\S+/)"))

    def connect(self):
        """Starts the agent, and waits for it to be connected."""
        agent = self.start("agent", [*self.command, "run", "--config", self.here / "chiton.yaml"], env=self.env)
        wait("the agent connected", self.agent, want=lambda found: found and found["connected"])
        return agent

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in alive(self.mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def session(command):
    """A session in a directory of its own; what it started is gone at the end, and told if it failed."""
    with tempfile.TemporaryDirectory(prefix="chiton-cross-") as directory:
        here = Session(command, pathlib.Path(directory))
        try:
            yield here
        except BaseException:
            for log in sorted(pathlib.Path(directory).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-8000:]}", file=sys.stderr)
            raise
        finally:
            here.end()


def targets():
    """The rows of cross/targets by name: Rust's target, zig's, its processor, qemu's name, the size that is allowed."""
    rows = [line.split() for line in (ROOT / "cross/targets").read_text().splitlines() if not line.startswith("#")]
    return {row[0]: row[1:] for row in rows}


def build_server():
    if "CHITON_SERVER" not in os.environ:
        subprocess.run(["cargo", "build", "--quiet", "-p", "chiton-server", "--bin", "chiton-server"], cwd=ROOT, check=True)
