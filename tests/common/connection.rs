//! Connections that a server offers: the offers, the server's end over both transports, and what lies on the disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentToServer, ConnectionSettingsOffers, ConnectionSettingsStatus, ConnectionSettingsStatuses,
    Header, Headers, OpAmpConnectionSettings, ServerToAgent, TlsCertificate,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::authority::Authority;
use super::http::{Http, Request};
use super::{Agent, Home, PATIENCE, Peer, Server, Settings, Stream, until};

/// An offer of a connection.
pub(crate) fn connection(
    hash: &str,
    change: impl FnOnce(&mut OpAmpConnectionSettings),
) -> ServerToAgent {
    let mut opamp = OpAmpConnectionSettings::default();
    change(&mut opamp);
    ServerToAgent {
        connection_settings: Some(ConnectionSettingsOffers {
            hash: hash.as_bytes().to_vec().into(),
            opamp: Some(opamp),
            ..ConnectionSettingsOffers::default()
        }),
        ..ServerToAgent::default()
    }
}

/// An offer of headers.
pub(crate) fn header(hash: &str, key: &str, value: &str) -> ServerToAgent {
    connection(hash, |opamp| opamp.headers = Some(headers(&[(key, value)])))
}

pub(crate) fn headers(pairs: &[(&str, &str)]) -> Headers {
    let header =
        |(key, value): &(&str, &str)| Header { key: (*key).to_owned(), value: (*value).to_owned() };
    Headers { headers: pairs.iter().map(header).collect() }
}

/// An offered certificate.
pub(crate) fn certificate(cert: &str, key: &str, issuer: &str) -> TlsCertificate {
    TlsCertificate {
        cert: cert.to_owned().into(),
        private_key: key.to_owned().into(),
        ca_cert: issuer.to_owned().into(),
    }
}

/// A TLS server with a certificate for `127.0.0.1`, which demands a client of one of these.
pub(crate) fn mutual(
    authority: &Authority,
    clients: &[&Authority],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for client in clients {
        roots.add(CertificateDer::from_pem_slice(client.pem().as_bytes()).unwrap()).unwrap();
    }
    let (cert, key) = authority.issue("127.0.0.1", |_| {});
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    Arc::new(builder.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
}

/// The transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    WebSocket,
    Http,
}

impl Over {
    pub(crate) fn url(self, server: &Server, tls: bool) -> String {
        match (self, tls) {
            (Self::WebSocket, false) => server.ws(),
            (Self::WebSocket, true) => server.wss(),
            (Self::Http, false) => server.http(),
            (Self::Http, true) => server.https(),
        }
    }
}

/// Settings under which offers are accepted.
pub(crate) fn accepting(server: &[&str]) -> Settings {
    let mut lines: Vec<String> = server.iter().map(|line| (*line).to_owned()).collect();
    if !lines.iter().any(|line| line.starts_with("poll_interval")) {
        lines.push("poll_interval: 100ms".to_owned());
    }
    Settings {
        server: lines,
        capabilities: vec!["accepts_opamp_connection_settings"],
        ..Settings::default()
    }
}

/// The agent on one connection, as a server sees it.
pub(crate) enum Line {
    WebSocket(Box<Peer>),
    Http {
        http: Http,
        /// The head of the first request.
        head: String,
        /// Read, and not yet given out.
        read: Option<Box<Request>>,
        /// Given out, and not yet answered.
        owed: Option<Box<Request>>,
    },
}

impl Line {
    pub(crate) fn new(stream: Stream, over: Over) -> Self {
        match over {
            Over::WebSocket => Self::WebSocket(Box::new(Peer::upgrade(stream))),
            Over::Http => {
                let mut http = Http::new(stream);
                let first = http.request();
                Self::Http {
                    http,
                    head: first.head.clone(),
                    read: Some(Box::new(first)),
                    owed: None,
                }
            }
        }
    }

    /// The next connection of a server.
    pub(crate) fn accept(server: &Server, over: Over, tls: Option<&Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::new(Stream::Plain(server.tcp()), over),
            Some(config) => Self::new(server.tls(config), over),
        }
    }

    /// The next connection that comes to more than a TLS handshake; those before it were refused.
    pub(crate) fn accept_first_good(
        server: &Server,
        over: Over,
        config: &Arc<ServerConfig>,
    ) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut stream = server.tls(config);
            if stream.shaken().is_ok() {
                return Self::new(stream, over);
            }
            assert!(Instant::now() < end, "no client that is taken");
        }
    }

    /// The head of the request that began it.
    pub(crate) fn head(&self) -> &str {
        match self {
            Self::WebSocket(peer) => &peer.request,
            Self::Http { head, .. } => head,
        }
    }

    /// The next report. One that came before is answered first, as plain HTTP demands.
    pub(crate) fn report(&mut self) -> AgentToServer {
        match self {
            Self::WebSocket(peer) => peer.report(),
            Self::Http { http, read, owed, .. } => {
                if let Some(request) = owed.take() {
                    http.send(&request.to());
                }
                let request = read.take().unwrap_or_else(|| Box::new(http.request()));
                let report = request.report.clone();
                *owed = Some(request);
                report
            }
        }
    }

    /// The next report, or [`None`] when the agent has left, which is seen to the end.
    pub(crate) fn report_or_end(&mut self) -> Option<AgentToServer> {
        match self {
            Self::WebSocket(peer) => loop {
                match peer.next() {
                    tungstenite::Message::Binary(bytes) => return Some(peer.decode(&bytes)),
                    tungstenite::Message::Close(_) => {
                        let _ = peer.socket.read();
                        return None;
                    }
                    _ => {}
                }
            },
            Self::Http { http, owed, .. } => {
                let over = owed.as_ref().is_some_and(|owed| owed.report.agent_disconnect.is_some());
                if over {
                    let last = owed.take().map(|last| last.to()).unwrap_or_default();
                    http.send(&last);
                    http.is_dropped();
                    return None;
                }
                Some(self.report())
            }
        }
    }

    /// Says this: over plain HTTP in answer to the last report, or else to the next.
    pub(crate) fn send(&mut self, message: &ServerToAgent) {
        if let Self::Http { owed: None, .. } = self {
            self.report();
        }
        match self {
            Self::WebSocket(peer) => peer.send(message),
            Self::Http { http, owed, .. } => {
                *owed = None;
                http.send(message);
            }
        }
    }

    /// The least that a server says to a report.
    pub(crate) fn answer(&mut self, report: &AgentToServer) {
        self.send(&ServerToAgent {
            instance_uid: report.instance_uid.clone(),
            ..ServerToAgent::default()
        });
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

    /// Reads and answers until the outcome of this hash is told.
    pub(crate) fn outcome(
        &mut self,
        hash: &str,
        status: ConnectionSettingsStatuses,
    ) -> ConnectionSettingsStatus {
        let what = format!("{hash} {status:?}");
        let mut last = ConnectionSettingsStatus::default();
        self.until(&what, |report| {
            let Some(told) = &report.connection_settings_status else { return false };
            last = told.clone();
            told.last_connection_settings_hash == hash.as_bytes() && told.status() == status
        });
        last
    }

    pub(crate) fn applied(&mut self, hash: &str) {
        let told = self.outcome(hash, ConnectionSettingsStatuses::Applied);
        assert_eq!(told.error_message, "");
    }

    /// FAILED, and why.
    pub(crate) fn failed(&mut self, hash: &str) -> String {
        let told = self.outcome(hash, ConnectionSettingsStatuses::Failed);
        assert!(!told.error_message.is_empty(), "no reason");
        told.error_message
    }

    /// The agent leaves in order: the last message says so, then the end.
    pub(crate) fn goodbye(self) {
        match self {
            Self::WebSocket(mut peer) => peer.goodbye(),
            Self::Http { mut http, read, owed, .. } => {
                let gone = |request: &Request| request.report.agent_disconnect.is_some();
                let mut over = false;
                if let Some(request) = read.or(owed) {
                    http.send(&request.to());
                    over = gone(&request);
                }
                if !over {
                    http.until("agent_disconnect", gone);
                }
                http.is_dropped();
            }
        }
    }

    /// It hears that this offer is tried, and only then the agent leaves, in order.
    pub(crate) fn left_for(mut self, hash: &str) {
        self.outcome(hash, ConnectionSettingsStatuses::Applying);
        self.goodbye();
    }

    /// The first report on a new connection: all of it, with what became of this offer.
    pub(crate) fn first(
        &mut self,
        hash: &str,
        status: ConnectionSettingsStatuses,
    ) -> AgentToServer {
        let first = self.report();
        assert!(first.agent_description.is_some() && first.health.is_some(), "not full: {first:?}");
        assert!(first.agent_disconnect.is_none());
        let told = first.connection_settings_status.clone().unwrap_or_default();
        assert_eq!(
            (told.last_connection_settings_hash.as_ref(), told.status()),
            (hash.as_bytes(), status),
            "{told:?}"
        );
        self.answer(&first);
        first
    }

    /// It carries messages both ways, and no offer is tried: its next full report.
    pub(crate) fn stays(&mut self) -> AgentToServer {
        self.send(&ServerToAgent { flags: 1, ..ServerToAgent::default() });
        self.until("a full report", |report| {
            let told = report.connection_settings_status.clone().unwrap_or_default();
            assert_ne!(told.status(), ConnectionSettingsStatuses::Applying, "something is tried");
            assert!(report.agent_disconnect.is_none(), "the agent leaves");
            report.agent_description.is_some()
        })
    }

    /// SIGTERM, and an end in order.
    pub(crate) fn stop(self, agent: Agent<'_>) -> String {
        agent.terminate();
        self.goodbye();
        agent.ended()
    }

    pub(crate) fn peer(&mut self) -> &mut Peer {
        match self {
            Self::WebSocket(peer) => peer,
            Self::Http { .. } => panic!("plain HTTP"),
        }
    }
}

impl Server {
    /// Nobody has connected since the last connection was taken.
    pub(crate) fn was_left_alone(&self) {
        assert!(self.accepted.try_recv().is_err(), "the agent came here");
    }

    /// The next connection, for which one may have to wait longer than for others.
    pub(crate) fn tcp_within(&self, patience: Duration) -> std::net::TcpStream {
        let stream = self.accepted.recv_timeout(patience).expect("the agent does not connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// What lies below `state/connection`: the record, at most one pending request, and the names of the generations, which
/// nobody else may read.
pub(crate) fn generations(home: &Home) -> Vec<String> {
    let root = home.path("state/connection");
    let mut names = Vec::new();
    let Ok(entries) = fs::read_dir(&root) else { return names };
    assert_eq!(mode(&root), Some(0o700));
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() {
            assert!(mode(&path).is_none_or(|mode| mode == 0o700), "{}", path.display());
            // What is being removed may be gone by now.
            for file in fs::read_dir(&path).into_iter().flatten().flatten() {
                let mode = mode(&file.path());
                assert!(mode.is_none_or(|mode| mode == 0o600), "{}", file.path().display());
            }
            names.push(name);
        } else {
            assert!(mode(&path).is_none_or(|mode| mode == 0o600), "{}", path.display());
            assert!(
                matches!(name.trim_end_matches(".new"), "record" | "pending"),
                "{name} lies there"
            );
        }
    }
    names.sort();
    names
}

/// The only generation, once what was before it is removed.
pub(crate) fn generation(home: &Home) -> String {
    super::eventually("one generation is left", || {
        let mut names = generations(home);
        names.pop().filter(|_| names.is_empty())
    })
}

fn mode(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}
