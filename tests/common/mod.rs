//! What the tests from outside share: a home for an agent, the running binary, and a server that does as it is told.
//!
//! Nothing sleeps to synchronise. A test is the server: it accepts, reads and answers in its own thread, and every
//! wait has a deadline that only a broken agent reaches.
#![expect(dead_code, reason = "each test binary uses a part")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

pub(crate) mod authority;
pub(crate) mod connection;
pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod packages;
pub(crate) mod proxy;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{AgentToServer, Message as _, RemoteConfigStatus, ServerToAgent};
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_yaml::Value;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Bytes, Message, WebSocket};

/// Only a broken agent makes a test wait this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test watches for something that must not happen.
pub(crate) const WINDOW: Duration = Duration::from_millis(700);

/// Waits until a condition gives a value.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The parts of a settings file, as YAML in flow style.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// More keys of `opamp.server`, a line each.
    pub(crate) server: Vec<String>,
    /// Entries of `opamp.capabilities`.
    pub(crate) capabilities: Vec<&'static str>,
    /// Arguments of the workload's script.
    pub(crate) arguments: Vec<&'static str>,
    /// `opamp.workload.command` in place of the script's.
    pub(crate) command: Option<String>,
    /// More keys of `opamp.workload`, a line each.
    pub(crate) workload: Vec<String>,
    /// More keys of `opamp`, a line each.
    pub(crate) opamp: Vec<String>,
    /// Entries of `opamp.workload.external`, in place of the script.
    pub(crate) external: Option<String>,
}

/// Where one agent lives: its settings, state, socket and workload. Outlives the agent's process.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// A home in a directory that is there.
    pub(crate) fn below(dir: &Path) -> Self {
        let home = Self { dir: tempfile::tempdir_in(dir).unwrap() };
        home.script("");
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the workload: it notes its pid and the configuration that it was given, does `body` and stays.
    pub(crate) fn script(&self, body: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            "if [ -n \"$1\" ]; then cp \"$1\" {dir}/seen.$$; fi\necho $$ >> {dir}/pids\n{body}\nexec sleep 1000\n"
        );
        fs::write(self.path("workload.sh"), script).unwrap();
    }

    /// Writes chiton.yaml.
    pub(crate) fn settings(&self, endpoint: &str, settings: &Settings) {
        self.settings_at("chiton.yaml", endpoint, settings);
    }

    /// Writes settings into a file of this name.
    pub(crate) fn settings_at(&self, name: &str, endpoint: &str, settings: &Settings) {
        let dir = self.dir.path().display();
        let mut yaml = format!("opamp:\n  server:\n    endpoint: {endpoint}\n");
        if !settings.server.iter().any(|line| line.starts_with("reconnect")) {
            yaml.push_str("    reconnect: { initial: 20ms, max: 100ms }\n");
        }
        for line in &settings.server {
            yaml.push_str(&format!("    {line}\n"));
        }
        let capabilities = settings.capabilities.join(": true, ");
        if !capabilities.is_empty() {
            yaml.push_str(&format!("  capabilities: {{ {capabilities}: true }}\n"));
        }
        let arguments: String = settings.arguments.iter().map(|a| format!(", \"{a}\"")).collect();
        let command = settings.command.clone();
        let command = command.unwrap_or_else(|| format!("[/bin/sh, {dir}/workload.sh{arguments}]"));
        let mut script = format!(
            "  workload:\n    command: {command}\n    restart: {{ initial: 50ms, max: 100ms }}\n"
        );
        if !settings.workload.iter().any(|line| line.starts_with("stop_timeout")) {
            script.push_str("    stop_timeout: 5s\n");
        }
        for line in &settings.workload {
            script.push_str(&format!("    {line}\n"));
        }
        yaml.push_str(&match &settings.external {
            Some(external) => format!("  workload: {{ external: {{ {external} }} }}\n"),
            None => script,
        });
        for line in &settings.opamp {
            yaml.push_str(&format!("  {line}\n"));
        }
        yaml.push_str(&format!("  state_dir: {dir}/state\n  status_socket: {dir}/status.sock\n"));
        fs::write(self.path(name), yaml).unwrap();
    }

    /// Runs the binary to its end: `command --config FILE` and what else is given.
    pub(crate) fn chiton(&self, command: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_chiton"))
            .arg(command)
            .arg("--config")
            .arg(self.path("chiton.yaml"))
            .args(more)
            .output()
            .unwrap()
    }

    /// Starts the agent.
    pub(crate) fn start(&self) -> Agent<'_> {
        self.start_with(&[])
    }

    /// Starts the agent with more in its environment.
    pub(crate) fn start_with(&self, environment: &[(&str, &str)]) -> Agent<'_> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.envs(environment.iter().copied());
        self.start_by(command)
    }

    /// Starts the agent by a command that ends where the agent's arguments begin.
    pub(crate) fn start_by(&self, mut command: Command) -> Agent<'_> {
        let mut child = command
            .args(["run", "--config"])
            .arg(self.path("chiton.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_remove("JOURNAL_STREAM")
            .spawn()
            .unwrap();
        let log = Arc::new(Log::default());
        let lines = BufReader::new(child.stderr.take().unwrap());
        let collecting = Arc::clone(&log);
        thread::spawn(move || collecting.collect(lines));
        Agent { home: self, child, log }
    }

    /// The pids of the workloads that were started, in order.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path("pids")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap());
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// The configuration that this workload was started with.
    pub(crate) fn seen(&self, pid: i32) -> String {
        fs::read_to_string(self.path(&format!("seen.{pid}"))).unwrap_or_default()
    }

    /// Waits for workload number `count` (from 1).
    pub(crate) fn workload(&self, count: usize) -> i32 {
        eventually("the workload starts", || self.pids().get(count - 1).copied())
    }
}

/// Whether a process is there; a zombie is not.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// What the agent logs.
#[derive(Default)]
struct Log {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    over: bool,
}

impl Log {
    fn collect(&self, lines: impl BufRead) {
        for line in lines.split(b'\n') {
            let Ok(line) = line else { break };
            self.said.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
            self.more.notify_all();
        }
        self.said.lock().unwrap().over = true;
        self.more.notify_all();
    }

    fn wait<T>(&self, what: &str, found: impl Fn(&Said) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut said = self.said.lock().unwrap();
        loop {
            if let Some(value) = found(&said) {
                return value;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "in vain: {what}; the log:\n{}", said.lines.join("\n"));
            said = self.more.wait_timeout(said, left).unwrap().0;
        }
    }
}

/// A running agent. Killed, and its workload with it, when a test fails.
pub(crate) struct Agent<'a> {
    home: &'a Home,
    child: Child,
    log: Arc<Log>,
}

impl Agent<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Waits for a line with all these words and returns it.
    pub(crate) fn logs(&self, words: &[&str]) -> String {
        let fits = |line: &&String| words.iter().all(|word| line.contains(word));
        self.log
            .wait(&format!("a line with {words:?}"), |said| said.lines.iter().find(fits).cloned())
    }

    /// All that was logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.said.lock().unwrap().lines.join("\n")
    }

    /// What `chiton status --json` says, and its exit code.
    pub(crate) fn status(&self) -> (Value, Option<i32>) {
        let output = self.home.chiton("status", &["--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (serde_yaml::from_str(&text).unwrap_or_default(), output.status.code())
    }

    /// Waits for a status in which the value at a dotted path fits.
    pub(crate) fn shows(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(path, || {
            let (status, _) = self.status();
            last = path.split('.').try_fold(&status, |at, key| at.get(key))?.clone();
            fits(&last).then(|| last.clone())
        })
    }

    /// Waits for a status in which the text at a dotted path contains the words.
    pub(crate) fn tells(&self, path: &str, words: &[&str]) -> String {
        let fits =
            |value: &Value| value.as_str().is_some_and(|t| words.iter().all(|w| t.contains(w)));
        self.shows(path, fits).as_str().unwrap().to_owned()
    }

    /// The workload that runs is the one that was started first, and the only one.
    pub(crate) fn unharmed(&self) {
        let pid = self.home.workload(1);
        self.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
        assert_eq!(self.home.pids(), [pid], "the workload was restarted; the log:\n{}", self.log());
        assert!(is_alive(pid));
    }

    /// Waits until the workload's health is known and told: nothing changes any more by itself.
    pub(crate) fn settled(&self, peer: &mut Peer, uid: &[u8]) {
        self.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        // What was told before comes before this.
        peer.proves_to_work(uid);
    }

    /// Whether it has ended, in whatever way.
    pub(crate) fn is_over(&self) -> bool {
        self.log.said.lock().unwrap().over
    }

    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), Signal::TERM).unwrap();
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), Signal::HUP).unwrap();
    }

    /// Waits for the end in order: exit code 0, and no workload left.
    pub(crate) fn ended(mut self) -> String {
        self.log.wait("the agent ends", |said| said.over.then_some(()));
        let code = self.child.wait().unwrap().code();
        assert_eq!(code, Some(0), "the log:\n{}", self.log());
        for pid in self.home.pids() {
            assert!(!is_alive(pid), "the workload {pid} was left behind");
        }
        self.log()
    }

    /// SIGTERM with no connection, or one that the test no longer serves.
    pub(crate) fn stop(self) -> String {
        self.terminate();
        self.ended()
    }

    /// SIGTERM; the server sees the last message and the Close.
    pub(crate) fn stop_with(self, mut peer: Peer) -> String {
        self.terminate();
        peer.goodbye();
        // The server ends the connection first (RFC 6455 §7.1.1); the agent waits for it.
        drop(peer);
        self.ended()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plain or encrypted.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Also within TLS, as behind an encrypted proxy.
    Tls(Box<StreamOwned<ServerConnection, Self>>),
}

impl Stream {
    /// TLS over it, with its handshake begun by the first read.
    pub(crate) fn encrypted(self, config: &Arc<ServerConfig>) -> Self {
        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
        Self::Tls(Box::new(StreamOwned::new(connection, self)))
    }

    /// The TLS side of it, its handshake done.
    pub(crate) fn shaken(&mut self) -> io::Result<&ServerConnection> {
        let Self::Tls(stream) = self else { panic!("not encrypted") };
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(&stream.conn)
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.sock.tcp(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A server that accepts connections; what happens on them is the test's business.
pub(crate) struct Server {
    address: SocketAddr,
    accepted: Receiver<TcpStream>,
}

impl Server {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // The test is over when nobody takes it.
                if stream.is_ok_and(|stream| sender.send(stream).is_err()) {
                    return;
                }
            }
        });
        Self { address, accepted }
    }

    /// `ws://…` with the path that OpAMP proposes.
    pub(crate) fn ws(&self) -> String {
        format!("ws://{}/v1/opamp", self.address)
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn wss(&self) -> String {
        format!("wss://{}/v1/opamp", self.address)
    }

    pub(crate) fn http(&self) -> String {
        format!("http://{}/v1/opamp", self.address)
    }

    pub(crate) fn https(&self) -> String {
        format!("https://{}/v1/opamp", self.address)
    }

    /// The next connection as it comes.
    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = self.accepted.recv_timeout(PATIENCE).expect("the agent does not connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The next connection, with its handshake begun by the first read.
    pub(crate) fn tls(&self, config: &Arc<ServerConfig>) -> Stream {
        Stream::Plain(self.tcp()).encrypted(config)
    }

    /// Takes the next connection, reads the request and answers it with these bytes instead of an upgrade.
    pub(crate) fn refuse(&self, answer: &str) -> String {
        let mut stream = self.tcp();
        let request = read_head(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
        request
    }

    /// The next connection, upgraded.
    pub(crate) fn accept(&self) -> Peer {
        Peer::upgrade(Stream::Plain(self.tcp()))
    }

    /// The next connection, upgraded; the first report was answered.
    pub(crate) fn greet(&self) -> (Peer, AgentToServer) {
        let mut peer = self.accept();
        let first = peer.report();
        peer.answer(&first);
        (peer, first)
    }

    /// Nobody connects within the window.
    pub(crate) fn nobody_for(&self, window: Duration) {
        let came = self.accepted.recv_timeout(window);
        assert_eq!(came.err(), Some(RecvTimeoutError::Timeout), "the agent came back too early");
    }
}

/// The head of an HTTP request, byte by byte so that nothing after it is lost.
pub(crate) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Takes one report after the other until one will do.
fn until<T>(what: &str, mut next: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = next() {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
    }
}

/// The agent as a server sees it, over one WebSocket connection.
pub(crate) struct Peer {
    socket: WebSocket<Stream>,
    /// The head of its request.
    pub(crate) request: String,
    last_sequence: Option<u64>,
}

impl Peer {
    pub(crate) fn upgrade(mut stream: Stream) -> Self {
        let request = read_head(&mut stream);
        let key = request
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Key"))
            .map(|(_, key)| derive_accept_key(key.as_bytes()))
            .unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {key}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        stream.flush().unwrap();
        let socket = WebSocket::from_raw_socket(stream, Role::Server, None);
        Self { socket, request, last_sequence: None }
    }

    /// The next WebSocket message of any kind; pings are answered by the codec.
    pub(crate) fn next(&mut self) -> Message {
        self.socket.read().expect("the agent says nothing")
    }

    /// The next report: its header is 0 and its sequence number is one more than the last.
    pub(crate) fn report(&mut self) -> AgentToServer {
        loop {
            match self.next() {
                Message::Binary(bytes) => return self.decode(&bytes),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?} instead of a report"),
            }
        }
    }

    pub(crate) fn decode(&mut self, bytes: &[u8]) -> AgentToServer {
        let (header, body) = bytes.split_first().unwrap();
        assert_eq!(*header, 0, "the header of a message");
        let report = AgentToServer::decode(body).unwrap();
        if let Some(last) = self.last_sequence {
            assert_eq!(report.sequence_num, last + 1, "one more each time: {report:?}");
        }
        self.last_sequence = Some(report.sequence_num);
        report
    }

    /// Reads and answers reports until one fits.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut fits: impl FnMut(&AgentToServer) -> bool,
    ) -> AgentToServer {
        until(what, || {
            let report = self.report();
            self.answer(&report);
            fits(&report).then_some(report)
        })
    }

    /// The remote config status of the next report that has one for this hash and status.
    pub(crate) fn status(
        &mut self,
        hash: &str,
        status: chiton_proto::RemoteConfigStatuses,
    ) -> RemoteConfigStatus {
        let report = self.until(&format!("{hash} {status:?}"), |report| {
            report.remote_config_status.as_ref().is_some_and(|sent| {
                sent.last_remote_config_hash == hash.as_bytes() && sent.status() == status
            })
        });
        report.remote_config_status.unwrap()
    }

    pub(crate) fn send(&mut self, message: &ServerToAgent) {
        self.send_body(&message.encode_to_vec());
    }

    /// A message with its header.
    pub(crate) fn send_body(&mut self, body: &[u8]) {
        self.send_payload(&[&[0], body].concat());
    }

    /// A binary frame with exactly this payload.
    pub(crate) fn send_payload(&mut self, payload: &[u8]) {
        self.socket.send(Message::Binary(Bytes::copy_from_slice(payload))).unwrap();
    }

    pub(crate) fn send_frame(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    /// Bytes on the stream, past the codec.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        let stream = self.socket.get_mut();
        stream.write_all(bytes).unwrap();
        stream.flush().unwrap();
    }

    /// The least that a server says.
    pub(crate) fn answer(&mut self, report: &AgentToServer) {
        self.send(&ServerToAgent {
            instance_uid: report.instance_uid.clone(),
            ..ServerToAgent::default()
        });
    }

    /// Asks for a full report and gets it: the link carries messages both ways.
    pub(crate) fn proves_to_work(&mut self, uid: &[u8]) -> AgentToServer {
        self.send(&ServerToAgent {
            instance_uid: uid.to_vec().into(),
            flags: 1,
            ..ServerToAgent::default()
        });
        self.until("a full report", |report| report.agent_description.is_some())
    }

    /// Reads on until the agent closes; its code.
    pub(crate) fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.next() {
                return frame.map_or(1005, |frame| frame.code.into());
            }
        }
    }

    /// The agent's orderly end: agent_disconnect is in the last message, then Close 1000.
    pub(crate) fn goodbye(&mut self) {
        let mut last = AgentToServer::default();
        loop {
            match self.next() {
                Message::Binary(bytes) => {
                    assert!(last.agent_disconnect.is_none(), "a message after agent_disconnect");
                    last = self.decode(&bytes);
                }
                Message::Close(frame) => {
                    assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1000));
                    assert!(last.agent_disconnect.is_some(), "the last message: {last:?}");
                    // Reading on sends the answer to the Close.
                    let _ = self.socket.read();
                    return;
                }
                _ => {}
            }
        }
    }

    /// No report comes within the window.
    pub(crate) fn quiet_for(&mut self, window: Duration) {
        self.socket.get_ref().tcp().set_read_timeout(Some(window)).unwrap();
        let came = self.socket.read();
        let quiet = matches!(&came, Err(tungstenite::Error::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        assert!(quiet, "{came:?}");
        self.socket.get_ref().tcp().set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

/// An offer of config files.
pub(crate) fn offer(uid: &[u8], hash: &str, files: &[(&str, &str)]) -> ServerToAgent {
    let object = |body: &str| chiton_proto::AgentConfigObject {
        body: body.as_bytes().to_vec().into(),
        ..chiton_proto::AgentConfigObject::default()
    };
    let map = files.iter().map(|(name, body)| ((*name).to_owned(), object(body))).collect();
    ServerToAgent {
        instance_uid: uid.to_vec().into(),
        remote_config: Some(chiton_proto::AgentRemoteConfig {
            config: Some(chiton_proto::AgentConfigMap { config_map: map }),
            config_hash: hash.as_bytes().to_vec().into(),
        }),
        ..ServerToAgent::default()
    }
}

/// The files below a directory that contain a word.
pub(crate) fn files_with(dir: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with(&path, word));
        } else if fs::read(&path).is_ok_and(|bytes| {
            word.is_empty() || bytes.windows(word.len()).any(|window| window == word.as_bytes())
        }) {
            found.push(path);
        }
    }
    found
}
