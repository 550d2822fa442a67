//! Accepts connections, bounded in number and time, with TLS or without.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::{Extension, Router};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;
use crate::journal::Journal;

/// Connections to one listener at once; more are closed as they come.
const MAX_CONNECTIONS: usize = 10_000;
/// A TLS handshake must be done within this time.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head must arrive within this time; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The buffer for a request's head.
const HEAD_BUFFER: usize = 16 << 10;
/// How long a request under way may take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The pause after `accept` failed: most often there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection's right to exist, and the sign that it does. Kept by whatever outlives its HTTP part.
pub(crate) type Ticket = Arc<(OwnedSemaphorePermit, mpsc::Sender<()>)>;

/// One listening socket and what is served there.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) tls: Option<TlsAcceptor>,
    /// Tells who showed a certificate.
    pub(crate) authority: Option<Arc<Authority>>,
    pub(crate) routes: Router,
    pub(crate) journal: Journal,
    pub(crate) stop: watch::Receiver<bool>,
    /// Cloned into every connection: when all clones are gone, all connections are.
    pub(crate) alive: mpsc::Sender<()>,
}

impl Listener {
    /// Accepts until the server stops.
    pub(crate) async fn run(mut self) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _ = self.stop.wait_for(|stop| *stop) => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    self.journal.note(format_args!("a connection could not be accepted: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.journal.note(format_args!(
                    "a connection was closed: {MAX_CONNECTIONS} are open, which is the limit"
                ));
                continue;
            };
            let ticket = Arc::new((permit, self.alive.clone()));
            let (routes, stop) = (self.routes.clone(), self.stop.clone());
            let (tls, authority) = (self.tls.clone(), self.authority.clone());
            tokio::spawn(connection(stream, tls, authority, routes, ticket, stop));
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    authority: Option<Arc<Authority>>,
    routes: Router,
    ticket: Ticket,
    mut stop: watch::Receiver<bool>,
) {
    // Without it small answers wait for the peer's acknowledgements; a socket that refuses works all the same.
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, routes, ticket, stop).await,
        Some(acceptor) => {
            let shaken = tokio::select! {
                shaken = timeout(TLS_TIMEOUT, acceptor.accept(stream)) => shaken,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if let Ok(Ok(stream)) = shaken {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let identity =
                    authority.as_ref().zip(shown).and_then(|(a, shown)| a.identify(shown));
                let routes = match identity {
                    Some(identity) => routes.layer(Extension(identity)),
                    None => routes,
                };
                speak(stream, routes, ticket, stop).await;
            }
        }
    }
}

async fn speak<S>(stream: S, routes: Router, ticket: Ticket, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&ticket));
        routes.call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // How it ended is the peer's business: there is nobody left to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(STOP_GRACE, connection).await;
}
