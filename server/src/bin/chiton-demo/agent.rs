//! The demo's agent: its home and its process.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, process};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Failure;

/// The agent stops its workload in this time, or is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Lines of its log that are shown when something went wrong.
const LAST_LINES: usize = 20;

/// Where the agent lives, and what it was told.
pub(crate) struct Home {
    directory: Directory,
    server: SocketAddr,
    workload_port: u16,
}

/// A file and its signature.
pub(crate) type Signed = (Vec<u8>, Vec<u8>);

/// The running agent.
pub(crate) struct Agent {
    child: Child,
}

/// A directory that goes away with the demo.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left in the system's temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Home {
    /// A new directory, a free port for the workload, the settings and the local config.
    pub(crate) fn furnish(server: SocketAddr) -> Result<Self, Failure> {
        let directory = Directory(env::temp_dir().join(format!("chiton-demo-{}", process::id())));
        fs::create_dir(&directory.0)?;
        let home = Self { directory, server, workload_port: free_port()? };
        let local = format!("greeting: hello from the local file\nport: {}\n", home.workload_port);
        fs::write(home.file("sample.yaml"), local)?;
        home.chiton(&["keygen", "--out", &home.file("release.key").to_string_lossy()])?;
        let workload = built("examples/sample-workload")?;
        fs::write(home.settings_file(), serde_yaml::to_string(&home.settings(&workload))?)?;
        Ok(home)
    }

    /// Where the agent's settings are.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.file("chiton.yaml")
    }

    /// Where the workload answers health checks.
    pub(crate) fn workload_port(&self) -> u16 {
        self.workload_port
    }

    /// Signs a file as the package `name`; the file and its signature.
    pub(crate) fn sign(&self, name: &str, version: &str, text: &str) -> Result<Signed, Failure> {
        let (file, key) = (self.file(name), self.file("release.key"));
        fs::write(&file, text)?;
        let (file, key) = (file.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
        self.chiton(&["sign", "--key", &key, "--name", name, "--version", version, &file])?;
        Ok((text.into(), fs::read(format!("{file}.sig"))?))
    }

    /// A file of the package as the workload would find it.
    pub(crate) fn installed(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(self.file("state/packages/current").join(name).join(name))
    }

    /// One of its commands, to its end.
    fn chiton(&self, arguments: &[&str]) -> Result<(), Failure> {
        let done = process::Command::new(built("chiton")?).args(arguments).output()?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        Err(format!("chiton {}: {said}", arguments.join(" ")).into())
    }

    /// The end of the agent's log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.file("chiton.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last: Vec<_> =
            lines.iter().skip(lines.len().saturating_sub(LAST_LINES)).copied().collect();
        if last.is_empty() { "(nothing)".to_owned() } else { last.join("\n") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    fn settings(&self, workload: &Path) -> serde_json::Value {
        let (server, port) = (self.server, self.workload_port);
        json!({"opamp": {
            "server": {"endpoint": format!("ws://{server}/v1/opamp"), "heartbeat_interval": "5s"},
            "agent": {"service_name": "sample-workload", "labels": {"env": "demo", "region": "desk"}},
            "capabilities": {"accepts_remote_config": true, "accepts_packages": true},
            "packages": {"trusted_keys": [self.file("release.key.pub")]},
            "health": {
                "check_interval": "1s",
                "checks": [{"http": format!("http://127.0.0.1:{port}/"), "timeout": "1s"}],
            },
            "workload": {"command": [workload, "{config_file}"], "stop_timeout": "2s"},
            "local_config_path": self.file("sample.yaml"),
            "remote_config": {
                "validate": [workload, "validate", "{config_file}"],
                "rollback": {"window": "20s", "interval": "500ms", "successes": 3, "attempts": 3},
                "min_interval": "1s",
            },
            "state_dir": self.file("state"),
            "status_socket": self.file("status.sock"),
        }})
    }
}

impl Agent {
    /// `chiton run` with the settings that are in its home.
    pub(crate) fn start(home: &Home) -> Result<Self, Failure> {
        let log = File::create(home.file("chiton.log"))?;
        let child = Command::new(built("chiton")?)
            .args(["run", "--config"])
            .arg(home.settings_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child })
    }

    /// Waits until it ends by itself; gives how.
    pub(crate) async fn ended(&mut self) -> Failure {
        match self.child.wait().await {
            Ok(status) => format!("the agent ended by itself: {status}").into(),
            Err(error) => error.into(),
        }
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Without a pid it has ended, and was waited for.
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, Signal::TERM)?;
        match timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(status) => match status? {
                status if status.success() => Ok(()),
                status => Err(format!("the agent did not end in order: {status}").into()),
            },
            Err(_) => {
                self.child.kill().await?;
                Err("the agent did not end when it was told to, and was killed".into())
            }
        }
    }
}

/// A program that was built beside this one.
fn built(name: &str) -> Result<PathBuf, Failure> {
    let beside = env::current_exe()?
        .parent()
        .map(|directory| directory.join(name))
        .ok_or("where is this program?")?;
    if beside.is_file() {
        return Ok(beside);
    }
    Err(format!("{} is not there; demo/run builds everything that is needed", beside.display())
        .into())
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
