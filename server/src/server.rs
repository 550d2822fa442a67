//! Starts and stops the whole.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::config::{Config, RestExposure};
use crate::depot::{Depot, DepotError};
use crate::hub::Hub;
use crate::listener::Listener;
use crate::store::{Store, StoreError};
use crate::tls::TlsError;
use crate::{opamp, rest, rest_credentials, rest_packages, tls};

/// How long connections may take to end in order when the server stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// REST would be reachable from other machines, and that was not asked for in so many words.
    RestExposed(SocketAddr),
    /// An address could not be listened on.
    Listen(SocketAddr, io::Error),
    /// A certificate or key could not be used.
    Tls(TlsError),
    /// The authority's certificate or key could not be used.
    Authority(TlsError),
    /// The database could not be used.
    Store(StoreError),
    /// The directory of packages could not be used.
    Depot(DepotError),
    /// The public URL makes no sense.
    PublicUrl(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RestExposed(address) => write!(
                out,
                "REST on {address}: other machines could push configs there without a password; use a loopback \
                 address, or allow it with --rest-unsafe"
            ),
            Self::Listen(address, error) => write!(out, "{address} cannot be listened on: {error}"),
            Self::Tls(error) => write!(out, "TLS: {error}"),
            Self::Authority(error) => write!(out, "the authority cannot be used: {error}"),
            Self::Depot(error) => write!(out, "the directory of packages cannot be used: {error}"),
            Self::PublicUrl(error) => write!(out, "the public URL {error}"),
            Self::Store(error) => write!(out, "the database cannot be used: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts servers.
#[derive(Debug)]
pub struct Server;

/// A server at work. Dropping it ends its listeners without order; [`Running::shutdown`] is the polite way.
#[derive(Debug)]
pub struct Running {
    opamp: SocketAddr,
    rest: SocketAddr,
    stop: watch::Sender<bool>,
    listeners: [JoinHandle<()>; 2],
    connections: mpsc::Receiver<()>,
    store: Store,
    depot: Arc<Depot>,
}

impl Server {
    /// Opens the database, listens on both addresses, and serves in the background.
    ///
    /// # Errors
    /// When a file, an address or the database cannot be used, or REST would be open to other machines.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        if config.rest_exposure == RestExposure::LoopbackOnly && !config.rest.ip().is_loopback() {
            return Err(StartError::RestExposed(config.rest));
        }
        config
            .public_url
            .as_deref()
            .map_or(Ok(()), Config::check_public_url)
            .map_err(StartError::PublicUrl)?;
        let authority = config.authority.as_ref().map(Authority::open).transpose();
        let authority = authority.map_err(StartError::Authority)?.map(Arc::new);
        let acceptor = |files| tls::acceptor(files, config.client_auth, authority.as_ref());
        let tls = config.tls.as_ref().map(acceptor).transpose().map_err(StartError::Tls)?;
        let (opamp_socket, opamp) = listen(config.opamp).await?;
        let (rest_socket, rest) = listen(config.rest).await?;
        let store = Store::open(&config.database).await.map_err(StartError::Store)?;
        let depot = Arc::new(Depot::open(&config.database).map_err(StartError::Depot)?);
        let hub = Hub::open(store.clone(), Arc::clone(&depot), authority.clone(), &config).await;
        let hub = Arc::new(hub.map_err(StartError::Store)?);
        hub.sweep().map_err(StartError::Depot)?;

        let (stop, stopped) = watch::channel(false);
        let (alive, connections) = mpsc::channel(1);
        let journal = config.journal;
        let opamp_listener = Listener {
            socket: opamp_socket,
            tls,
            authority,
            routes: opamp::routes(Arc::clone(&hub), stopped.clone()),
            journal,
            stop: stopped.clone(),
            alive: alive.clone(),
        };
        let rest_listener = Listener {
            socket: rest_socket,
            tls: None,
            authority: None,
            routes: rest::routes(
                Arc::clone(&hub),
                rest_packages::routes().merge(rest_credentials::routes()),
            ),
            journal,
            stop: stopped.clone(),
            alive: alive.clone(),
        };
        tokio::spawn(async move {
            // It writes: the database is not closed before it has ended.
            let _alive = alive;
            hub.rotate(stopped).await;
        });
        let listeners = [tokio::spawn(opamp_listener.run()), tokio::spawn(rest_listener.run())];
        Ok(Running { opamp, rest, stop, listeners, connections, store, depot })
    }
}

impl Running {
    /// Where agents connect.
    #[must_use]
    pub fn opamp_addr(&self) -> SocketAddr {
        self.opamp
    }

    /// Where REST and the page are.
    #[must_use]
    pub fn rest_addr(&self) -> SocketAddr {
        self.rest
    }

    /// Stops accepting, says goodbye to every agent, finishes requests under way, closes the database.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        for listener in &mut self.listeners {
            // A listener that panicked is not listening either.
            let _ = listener.await;
        }
        // Nothing is ever sent: this is `None` once the last connection is gone. A peer that does not read
        // cannot hold the server up for longer than the limit.
        let _ = timeout(STOP_LIMIT, self.connections.recv()).await;
        self.store.close().await;
        self.depot.close();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let fault = |error| StartError::Listen(address, error);
    let socket = TcpListener::bind(address).await.map_err(fault)?;
    let bound = socket.local_addr().map_err(fault)?;
    Ok((socket, bound))
}
