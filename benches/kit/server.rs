//! An OpAMP server over WebSocket and mutual TLS that notes when things come, and does what it is told in between.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentConfigMap, AgentConfigObject, AgentRemoteConfig, AgentToServer, Message as _,
    RemoteConfigStatuses, ServerToAgent,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tungstenite::{Message, WebSocket};

use super::PATIENCE;

/// How long a connection may keep a job waiting.
const TURN: Duration = Duration::from_millis(10);

type Tls = StreamOwned<ServerConnection, TcpStream>;
type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A report, when it came and what it weighed.
pub struct Report {
    pub at: Instant,
    pub size: usize,
    pub message: AgentToServer,
}

/// One connection of an agent.
pub struct Connection {
    socket: WebSocket<Tls>,
    uid: Vec<u8>,
    over: bool,
}

impl Connection {
    fn message(&self) -> ServerToAgent {
        ServerToAgent { instance_uid: self.uid.clone().into(), ..ServerToAgent::default() }
    }

    fn send(&mut self, message: &ServerToAgent) {
        self.over |= self.socket.send(framed(message)).is_err();
    }

    /// So many messages that say nothing, and proof that they were read.
    pub fn flood(&mut self, count: usize) {
        let frame = framed(&self.message());
        for _ in 0..count {
            self.socket.write(frame.clone()).unwrap();
        }
        // Its pong comes when everything before has been read.
        self.socket.send(Message::Ping(b"end".to_vec().into())).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            match self.socket.read() {
                Ok(Message::Pong(_)) => return,
                Err(tungstenite::Error::Io(error)) if waits(&error) => {}
                Ok(_) => {}
                Err(error) => super::document::fail(&error.to_string()),
            }
            assert!(Instant::now() < end, "the flood is not read");
        }
    }

    /// Ends as a server does that is killed.
    pub fn cut(&mut self) {
        self.over = true;
    }
}

pub struct Server {
    pub port: u16,
    reports: Receiver<Report>,
    jobs: Sender<Job>,
}

impl Server {
    /// Puts `ca.pem`, `agent.pem` and `agent.key` into the directory, and listens.
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, |_| {})
    }

    /// The same; this is done on each connection after the first report.
    pub fn start_with(home: &Path, greet: impl Fn(&mut Connection) + Send + 'static) -> Self {
        let config = certificates(home);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_reports, reports) = channel();
        let (jobs, todo) = channel::<Job>();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &config, &to_reports, &todo, &greet);
            }
        });
        Self { port, reports, jobs }
    }

    /// Does this on the connection, now or when there is one, and waits for it.
    pub fn tell<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> T + Send + 'static,
    ) -> T {
        let (done, doing) = channel();
        let job: Job = Box::new(move |connection| {
            let _ = done.send(job(connection));
        });
        self.jobs.send(job).unwrap();
        doing.recv_timeout(PATIENCE * 3).unwrap()
    }

    pub fn report(&self) -> Report {
        self.reports.recv_timeout(PATIENCE).unwrap()
    }

    /// The reports that have come by now.
    pub fn came(&self) -> Vec<Report> {
        self.reports.try_iter().collect()
    }

    /// Offers a configuration of one file; when it went out.
    pub fn offer(&self, hash: &str, body: String) -> Instant {
        let hash = hash.as_bytes().to_vec();
        self.tell(move |connection| {
            let object = AgentConfigObject {
                body: body.into_bytes().into(),
                ..AgentConfigObject::default()
            };
            let map = AgentConfigMap { config_map: [("config.yaml".to_owned(), object)].into() };
            let offer = AgentRemoteConfig { config: Some(map), config_hash: hash.into() };
            let message = ServerToAgent { remote_config: Some(offer), ..connection.message() };
            let begun = Instant::now();
            connection.send(&message);
            begun
        })
    }

    /// Waits until it is reported as applied.
    pub fn applied(&self, hash: &str) -> Instant {
        loop {
            let report = self.report();
            let Some(status) = &report.message.remote_config_status else { continue };
            if status.last_remote_config_hash != hash.as_bytes() {
                continue;
            }
            match status.status() {
                RemoteConfigStatuses::Applied => return report.at,
                RemoteConfigStatuses::Failed => super::document::fail(&status.error_message),
                _ => {}
            }
        }
    }
}

fn framed(message: &ServerToAgent) -> Message {
    let mut bytes = vec![0];
    message.encode(&mut bytes).unwrap();
    Message::Binary(bytes.into())
}

fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Answers every message; does its jobs in between.
fn serve(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    reports: &Sender<Report>,
    jobs: &Receiver<Job>,
    greet: &impl Fn(&mut Connection),
) {
    // As every real server: or its handshake waits 40 ms for our acknowledgement.
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TURN)).unwrap();
    let tls = ServerConnection::new(Arc::clone(config)).unwrap();
    let Some(socket) = accept(StreamOwned::new(tls, stream)) else { return };
    let mut connection = Connection { socket, uid: Vec::new(), over: false };
    while !connection.over {
        match connection.socket.read() {
            Ok(Message::Binary(bytes)) => {
                let at = Instant::now();
                let message = AgentToServer::decode(bytes.slice(1..)).unwrap();
                let first = connection.uid.is_empty();
                connection.uid = message.instance_uid.to_vec();
                if reports.send(Report { at, size: bytes.len(), message }).is_err() {
                    return;
                }
                let answer = connection.message();
                connection.send(&answer);
                if first {
                    greet(&mut connection);
                }
            }
            Err(tungstenite::Error::Io(error)) if waits(&error) => {}
            Ok(_) => {}
            Err(_) => return,
        }
        // A job wants to know whom it talks to.
        if !connection.uid.is_empty()
            && let Ok(job) = jobs.try_recv()
        {
            job(&mut connection);
        }
    }
}

fn accept(stream: Tls) -> Option<WebSocket<Tls>> {
    let mut handshake = tungstenite::accept(stream);
    loop {
        match handshake {
            Ok(socket) => return Some(socket),
            Err(tungstenite::HandshakeError::Interrupted(middle)) => handshake = middle.handshake(),
            // Who goes away before the end is none of ours.
            Err(_) => return None,
        }
    }
}

fn certificates(home: &Path) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(home.join("ca.pem"), ca.pem()).unwrap();
    let server_key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let server = CertificateParams::new(names).unwrap().signed_by(&server_key, &ca).unwrap();
    let agent_key = KeyPair::generate().unwrap();
    let agent = CertificateParams::new(vec!["agent".to_owned()])
        .unwrap()
        .signed_by(&agent_key, &ca)
        .unwrap();
    fs::write(home.join("agent.pem"), agent.pem()).unwrap();
    fs::write(home.join("agent.key"), agent_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}
