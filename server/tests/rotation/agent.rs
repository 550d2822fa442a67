//! An agent: what it remembers, and how it takes an offer up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chiton_proto::{
    AgentDisconnect, AgentToServer, ConnectionSettingsOffers, ConnectionSettingsStatuses,
    Message as _, ServerToAgent,
};
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::client::{
    connection_status, heartbeat, report, uid_text, with_connections, with_request,
};
use ConnectionSettingsStatuses::{Applied, Applying, Failed};

/// One step in so many goes wrong.
const FAULT: u64 = 20;
/// A candidate must be answered within this time.
const CANDIDATE: Duration = Duration::from_secs(20);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// What the agents share: where the server is, and what went wrong so far.
pub(crate) struct World {
    server: SocketAddr,
    authority: Arc<dyn ClientCertVerifier>,
    pub(crate) faults: AtomicBool,
    /// Agents that have what they need to begin with.
    pub(crate) ready: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
    pub(crate) refused: AtomicUsize,
    pub(crate) restarted: AtomicUsize,
    pub(crate) unsaid: AtomicUsize,
}

impl World {
    pub(crate) fn new(server: SocketAddr, authority: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority).unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let none = || AtomicUsize::new(0);
        Self {
            server,
            authority: verifier.build().unwrap(),
            faults: AtomicBool::new(false),
            ready: none(),
            dropped: none(),
            refused: none(),
            restarted: none(),
            unsaid: none(),
        }
    }
}

/// Certificate and key, PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// What outlives a restart of the agent.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) uid: [u8; 16],
    pub(crate) committed: Option<Identity>,
    /// The certificate that it was enrolled with.
    pub(crate) first: Option<String>,
    /// Its own key, and the request for it.
    own: Option<(String, String)>,
    /// Staged, with the hash of its offer.
    trial: Option<(Bytes, Identity)>,
    status: Option<(Bytes, ConnectionSettingsStatuses, String)>,
}

/// One agent.
pub(crate) struct Sim {
    world: Arc<World>,
    disk: Disk,
    sequence: u64,
    random: u64,
    is_ready: bool,
}

/// Why a connection ended.
enum End {
    /// It broke, or was dropped: connect again with what is committed, or go on with the trial.
    Lost,
    /// The test is over.
    Stopped,
}

type Socket = WebSocketStream<TcpStream>;

impl Sim {
    pub(crate) fn new(number: usize, world: Arc<World>) -> Self {
        let mut uid = [7; 16];
        uid[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
        let own = number.is_multiple_of(2).then(|| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, uid_text(uid));
            (key.serialize_pem(), params.serialize_request(&key).unwrap().pem().unwrap())
        });
        let random = u64::try_from(number).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            world,
            disk: Disk { uid, own, ..Disk::default() },
            sequence: 0,
            random,
            is_ready: false,
        }
    }

    /// Until the test is over.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Disk {
        loop {
            let end = tokio::select! {
                end = self.connection() => end,
                _ = stop.wait_for(|stop| *stop) => End::Stopped,
            };
            match end {
                End::Stopped => return self.disk,
                End::Lost => sleep(PAUSE).await,
            }
        }
    }

    /// Whether this step goes wrong, the same in each run.
    fn fault(&mut self, counter: fn(&World) -> &AtomicUsize) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let now = self.world.faults.load(Ordering::Relaxed)
            && self.random >> 20 & 0xffff_ffff < (1 << 32) / FAULT;
        if now {
            counter(&self.world).fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// One connection from its beginning to its end.
    async fn connection(&mut self) -> End {
        let ended = match self.disk.trial.clone() {
            Some((hash, identity)) => self.candidate(hash, identity).await,
            None => self.committed().await,
        };
        ended.map_or(End::Lost, |()| End::Lost)
    }

    /// With what is committed: reports, and stages what is offered.
    async fn committed(&mut self) -> Option<()> {
        let mut socket = self.connect().await?;
        let enrolls = self.disk.committed.is_none();
        let request = self.disk.own.as_ref().filter(|_| enrolls).map(|(_, csr)| csr.clone());
        let full = self.status(report(self.disk.uid, self.sequence));
        let full = request.map_or(full.clone(), |csr| with_request(full, &csr));
        self.send(&mut socket, full).await?;
        loop {
            let answer = next(&mut socket).await?;
            assert_eq!(answer.error_response, None);
            if self.disk.own.is_none() {
                self.now_ready();
            }
            let Some(offer) = answer.connection_settings else { continue };
            if self.disk.status.as_ref().is_some_and(|(hash, ..)| *hash == offer.hash) {
                continue;
            }
            if self.fault(|world| &world.dropped) {
                return None;
            }
            match self.judge(&offer) {
                Ok(identity) => {
                    self.disk.trial = Some((offer.hash.clone(), identity));
                    self.disk.status = Some((offer.hash, Applying, String::new()));
                    let message = self.status(heartbeat(self.disk.uid, self.sequence));
                    self.send(&mut socket, message).await?;
                    next(&mut socket).await?;
                    return self.goodbye(socket).await;
                }
                Err(why) => panic!("an offer that is not good: {why}"),
            }
        }
    }

    /// With what is staged. The first answer commits it.
    async fn candidate(&mut self, hash: Bytes, identity: Identity) -> Option<()> {
        if self.fault(|world| &world.restarted) {
            // It begins anew with what is on its disk, which says that this trial goes on.
            self.sequence = 0;
            return None;
        }
        if self.fault(|world| &world.refused) {
            self.disk.trial = None;
            self.disk.status = Some((hash, Failed, "the server refused it".to_owned()));
            return None;
        }
        let mut socket = self.connect().await?;
        let full = self.status(report(self.disk.uid, self.sequence));
        self.send(&mut socket, full).await?;
        timeout(CANDIDATE, next(&mut socket)).await.ok()??;
        self.disk.first =
            self.disk.first.take().or(Some(identity.cert.clone()).filter(|_| !self.is_ready));
        self.disk.committed = Some(identity);
        self.disk.trial = None;
        self.disk.status = Some((hash, Applied, String::new()));
        if self.fault(|world| &world.unsaid) {
            return None;
        }
        let applied = self.status(heartbeat(self.disk.uid, self.sequence));
        self.send(&mut socket, applied).await?;
        next(&mut socket).await?;
        self.now_ready();
        // From here on it is like any other connection.
        drop(socket);
        Some(())
    }

    /// Whether a certificate is by the authority, for client authentication, for this agent and a key that it has.
    fn judge(&self, offer: &ConnectionSettingsOffers) -> Result<Identity, String> {
        let made =
            offer.opamp.clone().and_then(|opamp| opamp.certificate).ok_or("no certificate")?;
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let der = CertificateDer::from_pem_slice(&made.cert).map_err(|error| error.to_string())?;
        let verified = self.world.authority.verify_client_cert(&der, &[], UnixTime::now());
        verified.map_err(|error| error.to_string())?;
        let key = match (&self.disk.own, made.private_key.is_empty()) {
            (Some((own, _)), true) => own.clone(),
            (None, false) => text(&made.private_key),
            _ => return Err("a key where none belongs, or none where one does".to_owned()),
        };
        let pair = KeyPair::from_pem(&key).map_err(|error| error.to_string())?;
        let (_, leaf) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if leaf.public_key().subject_public_key.data != pair.public_key_raw() {
            return Err("it is for another key".to_owned());
        }
        if leaf.subject().to_string() != format!("CN={}", uid_text(self.disk.uid)) {
            return Err("it is for another agent".to_owned());
        }
        Ok(Identity { cert: text(&made.cert), key })
    }

    fn now_ready(&mut self) {
        if !self.is_ready {
            self.is_ready = true;
            self.world.ready.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The message with the status that is on the disk.
    fn status(&self, message: AgentToServer) -> AgentToServer {
        match &self.disk.status {
            None => with_connections(message),
            Some((hash, status, error)) => connection_status(message, hash, *status, error),
        }
    }

    async fn connect(&self) -> Option<Socket> {
        let stream = TcpStream::connect(self.world.server).await.ok()?;
        let request = "ws://localhost/v1/opamp";
        Some(tokio_tungstenite::client_async(request, stream).await.ok()?.0)
    }

    async fn send(&mut self, socket: &mut Socket, message: AgentToServer) -> Option<()> {
        self.sequence += 1;
        let mut bytes = vec![0];
        bytes.extend(message.encode_to_vec());
        socket.send(Message::Binary(bytes.into())).await.ok()
    }

    async fn goodbye(&mut self, mut socket: Socket) -> Option<()> {
        let agent_disconnect = Some(AgentDisconnect {});
        let message = AgentToServer { agent_disconnect, ..heartbeat(self.disk.uid, self.sequence) };
        self.send(&mut socket, with_connections(message)).await?;
        socket.close(None).await.ok()
    }
}

async fn next(socket: &mut Socket) -> Option<ServerToAgent> {
    loop {
        if let Message::Binary(bytes) = socket.next().await?.ok()? {
            return ServerToAgent::decode(&bytes[1..]).ok();
        }
    }
}
