//! A server that never tires: it takes whoever it is told to take, answers each report as it is told, and keeps what it
//! heard. Whoever calls may die at any time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use chiton_proto::{AgentToServer, ConnectionSettingsStatuses, Message as _, ServerToAgent};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

/// Who calls.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    /// The head of its request.
    pub(crate) head: String,
    /// Its certificate, DER.
    pub(crate) certificate: Option<Vec<u8>>,
    /// The hash of the offer that the agent told of last, on whichever connection.
    pub(crate) knows: Vec<u8>,
}

impl Caller {
    /// Whether it shows this certificate (PEM).
    pub(crate) fn shows(&self, pem: &str) -> bool {
        self.certificate.as_deref() == Some(&der(pem)[..])
    }
}

/// What was told of an offer.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) hash: String,
    pub(crate) status: ConnectionSettingsStatuses,
    pub(crate) error: String,
    pub(crate) by: Caller,
}

type Answer = Box<dyn FnMut(&Caller, &AgentToServer) -> Option<ServerToAgent> + Send>;

/// The server.
pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    tls: Mutex<Arc<ServerConfig>>,
    up: Arc<AtomicBool>,
    answer: Mutex<Answer>,
    told: Mutex<Vec<Told>>,
    knows: Mutex<Vec<u8>>,
    heads: Mutex<Vec<u8>>,
    heard: Mutex<Vec<u8>>,
    /// The certificates on connections that came to a report.
    calls: Mutex<Vec<Option<Vec<u8>>>>,
    messages: AtomicUsize,
    /// Connections of an earlier number end with their next message.
    epoch: AtomicUsize,
    /// Connections that did not come to a request.
    refused: AtomicUsize,
}

impl Hub {
    /// Takes those whom the configuration takes, and offers nothing.
    pub(crate) fn new(tls: &Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            tls: Mutex::new(Arc::clone(tls)),
            up: Arc::new(AtomicBool::new(true)),
            answer: Mutex::new(Box::new(|_, _| Some(ServerToAgent::default()))),
            told: Mutex::default(),
            knows: Mutex::default(),
            heads: Mutex::default(),
            heard: Mutex::default(),
            calls: Mutex::default(),
            messages: AtomicUsize::new(0),
            epoch: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&inner);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inner = Arc::clone(&serving);
                if inner.up.load(Ordering::SeqCst) {
                    thread::spawn(move || inner.serve(stream));
                }
            }
        });
        Self { address, inner }
    }

    pub(crate) fn wss(&self) -> String {
        format!("wss://{}/v1/opamp", self.address)
    }

    /// Whom it takes from now on.
    pub(crate) fn takes(&self, tls: &Arc<ServerConfig>) {
        *self.inner.tls.lock().unwrap() = Arc::clone(tls);
    }

    /// Whether anybody answers there.
    pub(crate) fn is_up(&self, up: bool) {
        self.inner.up.store(up, Ordering::SeqCst);
    }

    /// What it answers to each report.
    pub(crate) fn answers(
        &self,
        mut answer: impl FnMut(&Caller, &AgentToServer) -> ServerToAgent + Send + 'static,
    ) {
        self.answers_if(move |caller, report| Some(answer(caller, report)));
    }

    /// The same; or nothing.
    pub(crate) fn answers_if(
        &self,
        answer: impl FnMut(&Caller, &AgentToServer) -> Option<ServerToAgent> + Send + 'static,
    ) {
        *self.inner.answer.lock().unwrap() = Box::new(answer);
    }

    /// Offers this until it is told of, and forgets what it was told before.
    pub(crate) fn offers(&self, offer: &ServerToAgent) {
        self.offers_until(offer, || {});
    }

    /// The same; with the word that it is tried, nobody answers there any more.
    pub(crate) fn offers_and_goes_down(&self, offer: &ServerToAgent) {
        let up = Arc::clone(&self.inner.up);
        self.offers_until(offer, move || up.store(false, Ordering::SeqCst));
    }

    fn offers_until(&self, offer: &ServerToAgent, known: impl Fn() + Send + 'static) {
        let offer = offer.clone();
        let hash = offer.connection_settings.clone().unwrap_or_default().hash;
        self.inner.told.lock().unwrap().clear();
        self.answers(move |caller, _| {
            if caller.knows == hash {
                known();
                return ServerToAgent::default();
            }
            offer.clone()
        });
    }

    /// All that was told of offers.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.inner.told.lock().unwrap().clone()
    }

    /// What became of this offer, once that is known.
    pub(crate) fn outcome(&self, hash: &str) -> Option<Told> {
        let over = |told: &&Told| {
            told.hash == hash
                && matches!(
                    told.status,
                    ConnectionSettingsStatuses::Applied | ConnectionSettingsStatuses::Failed
                )
        };
        self.told().iter().rev().find(over).cloned()
    }

    /// The heads of all requests.
    pub(crate) fn heads(&self) -> Vec<u8> {
        self.inner.heads.lock().unwrap().clone()
    }

    /// All messages.
    pub(crate) fn heard(&self) -> Vec<u8> {
        self.inner.heard.lock().unwrap().clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.inner.calls.lock().unwrap().len()
    }

    /// Those of them with this certificate (PEM).
    pub(crate) fn calls_with(&self, pem: &str) -> usize {
        let wanted = Some(der(pem));
        self.inner.calls.lock().unwrap().iter().filter(|call| **call == wanted).count()
    }

    /// How many there are, for an answer to ask.
    pub(crate) fn counter(&self) -> impl Fn() -> usize + Send + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().map_or(0, |inner| inner.calls.lock().unwrap().len())
    }

    /// The certificate of the last one.
    pub(crate) fn last_certificate(&self) -> Option<Vec<u8>> {
        self.inner.calls.lock().unwrap().last().cloned().flatten()
    }

    /// How many messages came.
    pub(crate) fn messages(&self) -> usize {
        self.inner.messages.load(Ordering::SeqCst)
    }

    /// Each connection ends when the next message comes, without a word.
    pub(crate) fn cut(&self) {
        self.inner.epoch.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn refused(&self) -> usize {
        self.inner.refused.load(Ordering::SeqCst)
    }
}

impl Inner {
    /// Until it ends, in whatever way.
    fn serve(&self, tcp: TcpStream) -> Option<()> {
        tcp.set_nodelay(true).ok()?;
        let config = Arc::clone(&self.tls.lock().unwrap());
        let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, tcp);
        let Some(head) = head(&mut stream) else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        self.heads.lock().unwrap().extend_from_slice(head.as_bytes());
        let certificate = stream.conn.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.map(|first| first.to_vec());
        let mut caller = Caller { certificate, head: head.clone(), knows: Vec::new() };
        let key = head.lines().filter_map(|line| line.split_once(": "));
        let mut key = key.filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Key"));
        let key = derive_accept_key(key.next()?.1.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {key}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).ok()?;
        let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
        let mut first = true;
        let epoch = self.epoch.load(Ordering::SeqCst);
        while let Ok(message) = socket.read() {
            let Message::Binary(bytes) = message else { continue };
            if epoch != self.epoch.load(Ordering::SeqCst) {
                return None;
            }
            self.messages.fetch_add(1, Ordering::SeqCst);
            self.heard.lock().unwrap().extend_from_slice(&bytes);
            let report = AgentToServer::decode(bytes.get(1..)?).ok()?;
            if core::mem::take(&mut first) {
                self.calls.lock().unwrap().push(caller.certificate.clone());
            }
            if let Some(told) = &report.connection_settings_status {
                let hash = &told.last_connection_settings_hash;
                *self.knows.lock().unwrap() = hash.to_vec();
                self.told.lock().unwrap().push(Told {
                    hash: String::from_utf8_lossy(hash).into_owned(),
                    status: told.status(),
                    error: told.error_message.clone(),
                    by: caller.clone(),
                });
            }
            caller.knows.clone_from(&self.knows.lock().unwrap());
            let Some(mut answer) = (self.answer.lock().unwrap())(&caller, &report) else {
                continue;
            };
            answer.instance_uid = report.instance_uid.clone();
            let body = [&[0], answer.encode_to_vec().as_slice()].concat();
            socket.send(Message::Binary(body.into())).ok()?;
        }
        Some(())
    }
}

fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    String::from_utf8(head).ok()
}

/// The first certificate of a PEM file.
pub(crate) fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}
