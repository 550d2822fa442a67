//! The one connection: opens it, carries messages both ways, says how it ended.
//!
//! A transport is one function that runs until its link is over: [`websocket::run`], [`http::run`]. It is given the messages to send and tells what came; what to do about it is the core's business.

mod body;
mod http;
pub mod http1;
pub mod retry_after;
pub mod tls;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncRead, AsyncWrite};

pub use crate::agent::session::LinkError;
use crate::agent::session::LinkErrorKind;
use crate::agent::uid::Uid;
use crate::net;
use crate::reactor::{Io, within};
use crate::settings::{Endpoint, Scheme, Server};

/// What a link has to tell.
#[derive(Debug)]
pub enum Incoming {
    /// It is up.
    Up,
    /// One message, its header taken off.
    Message(Bytes),
    /// Over plain HTTP: the message sent last is too large for the server. The link goes on.
    TooLarge(String),
    /// The peer answered a ping.
    Pong,
    /// Something to log; the link goes on.
    Remark(String),
    /// It is over: with the reason, unless we asked for it.
    Down(Option<LinkError>),
}

/// What a link is told.
#[derive(Debug)]
pub enum Outgoing {
    /// Send a message.
    Message {
        /// The protobuf bytes.
        body: Bytes,
        /// The `instance_uid` in it.
        uid: Uid,
    },
    /// Send a ping.
    Ping,
    /// Close in order, after what was sent before.
    Close,
}

/// Everything that opening a link needs.
pub struct Plan {
    /// Where to and how.
    pub server: Server,
    /// [`None`] for `ws` and `http`.
    pub tls: Option<TlsConnector>,
}

/// Runs one link to its end. `incoming` applies back-pressure: while the core is busy nothing more is read.
pub async fn run(plan: Plan, outgoing: Receiver<Outgoing>, incoming: Sender<Incoming>) {
    let end = match plan.server.endpoint.scheme {
        Scheme::Ws | Scheme::Wss => websocket::run(&plan, outgoing, &incoming).await,
        Scheme::Http | Scheme::Https => http::run(&plan, outgoing, &incoming).await,
    };
    // The receiver is gone only when nobody wants to know.
    let _ = incoming.send(Incoming::Down(end.err())).await;
}

/// A byte stream to the server, with or without TLS.
pub enum Stream {
    /// `ws`, `http`.
    Plain(Io<TcpStream>),
    /// `wss`, `https`.
    Tls(Box<TlsStream<Io<TcpStream>>>),
}

/// Connects and, where the scheme says so, shakes hands.
///
/// # Errors
/// What failed, on which address, why.
pub async fn open(plan: &Plan) -> Result<Stream, LinkError> {
    let endpoint = &plan.server.endpoint;
    let failed = |text: String| LinkError {
        text: format!("{endpoint}: {text}"),
        kind: LinkErrorKind::Failed,
    };
    entropy().map_err(failed)?;
    let timeouts = plan.server.timeouts;
    let addresses = match within(timeouts.connect, net::resolve(&endpoint.host, endpoint.port))
        .await
    {
        Some(Ok(addresses)) => addresses,
        Some(Err(error)) => return Err(failed(format!("looking up {}: {error}", endpoint.host))),
        None => {
            let text =
                format!("looking up {}: no answer within {:?}", endpoint.host, timeouts.connect);
            return Err(failed(text));
        }
    };
    let stream = first_that_answers(&addresses, endpoint, plan).await.map_err(failed)?;
    let Some(connector) = &plan.tls else { return Ok(Stream::Plain(stream)) };
    match within(timeouts.tls, tls::handshake(connector, &endpoint.host, stream)).await {
        Some(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        Some(Err(error)) => Err(failed(format!("TLS: {error}"))),
        None => Err(failed(format!("TLS: no handshake within {:?}", timeouts.tls))),
    }
}

/// Tries the addresses in turn, both families.
async fn first_that_answers(
    addresses: &[SocketAddr],
    endpoint: &Endpoint,
    plan: &Plan,
) -> Result<Io<TcpStream>, String> {
    let mut errors = Vec::new();
    for address in addresses {
        match net::connect(*address, plan.server.timeouts.connect).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                errors.push(format!(
                    "{address}: no connection within {:?}",
                    plan.server.timeouts.connect
                ));
            }
            Err(error) => errors.push(format!("{address}: {error}")),
        }
    }
    if errors.is_empty() {
        errors.push(format!("{} has no address", endpoint.host));
    }
    Err(errors.join("; "))
}

/// TLS and WebSocket masks need random numbers. Early at boot the kernel may have none, and waiting for them
/// would stop everything else: so the attempt fails, and comes again.
fn entropy() -> Result<(), String> {
    match getrandom(&mut [0; 1], GetRandomFlags::NONBLOCK) {
        Err(Errno::AGAIN) => Err("the kernel has no random numbers yet".to_owned()),
        // No getrandom: libraries fall back to /dev/urandom, which never waits.
        _ => Ok(()),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_close(cx),
            Self::Tls(stream) => Pin::new(stream).poll_close(cx),
        }
    }
}
