//! The one connection: opens it, carries messages both ways, says how it ended.
//!
//! A transport is one function that runs until its link is over: [`websocket::run`], [`http::run`]. It is given the messages to send and tells what came; what to do about it is the core's business.

pub mod body;
mod http;
pub mod http1;
mod pins;
mod proxy;
pub mod redirect;
pub mod retry_after;
pub mod tls;
mod websocket;

use std::io;
use std::net::{IpAddr, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
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
use proxy::Via;
use redirect::Target;
use tls::{Factory, Peer};
pub(crate) use websocket::base64;

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
        /// As [`frame`] made it.
        body: Bytes,
        /// The `instance_uid` in it.
        uid: Uid,
    },
    /// Send a ping.
    Ping,
    /// Close in order, after what was sent before.
    Close,
}

/// Bytes of the header that [`frame`] puts in front.
pub const HEADER: usize = 1;

/// Encodes a message with WebSocket's header, a varint 0, in front (opamp-spec L389): in one piece, since a
/// message can be large. Plain HTTP has no header and leaves it out.
#[must_use]
pub fn frame(message: &impl chiton_proto::Message) -> Bytes {
    let mut framed = Vec::with_capacity(message.encoded_len().saturating_add(HEADER));
    framed.push(0);
    // A vector grows; there is no way to fail.
    let _ = message.encode(&mut framed);
    framed.into()
}

/// Everything that opening a link needs.
pub struct Plan {
    /// Where to and how.
    pub server: Server,
    /// Makes TLS, where it is needed.
    pub factory: Arc<Mutex<Factory>>,
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

/// A byte stream, with or without TLS; through an `https` proxy it is TLS within TLS.
pub enum Stream {
    /// `ws`, `http`.
    Plain(Io<TcpStream>),
    /// `wss`, `https`.
    Tls(Box<TlsStream<Self>>),
}

/// Connects, through the proxy if there is one, and shakes hands where the scheme says so. A target that is not
/// trusted does not see the client certificate.
///
/// # Errors
/// What failed, on which address, why.
pub async fn open(plan: &Plan, target: &Target) -> Result<Stream, LinkError> {
    let peer = if target.is_trusted() { Peer::Server } else { Peer::Stranger };
    let opened = open_to(plan, &target.endpoint, peer, &|_| Ok(())).await;
    opened.map_err(|error| LinkError { text: format!("{target}: {}", error.text), ..error })
}

/// The same for a place that is not the settings' endpoint. `judge` sees each address before anything goes there;
/// behind a proxy, which looks names up itself, it is not asked.
///
/// # Errors
/// What failed, on which address, why.
pub async fn open_to(
    plan: &Plan,
    endpoint: &Endpoint,
    peer: Peer,
    judge: Judge<'_>,
) -> Result<Stream, LinkError> {
    let stream = reach(plan, endpoint, judge).await.map_err(failed)?;
    if !endpoint.scheme.is_secure() {
        return Ok(stream);
    }
    secure(plan, peer, &endpoint.host, stream).await
}

/// TCP to it, or the proxy's tunnel.
async fn reach(plan: &Plan, endpoint: &Endpoint, judge: Judge<'_>) -> Result<Stream, String> {
    entropy()?;
    match Via::to(endpoint, &plan.server)? {
        Some(via) => via.tunnel(plan, endpoint).await,
        None => connect(plan, &endpoint.host, endpoint.port, judge).await,
    }
}

const fn failed(text: String) -> LinkError {
    LinkError { text, kind: LinkErrorKind::Failed }
}

/// Says of an address why it may not be connected to.
pub type Judge<'j> = &'j dyn Fn(IpAddr) -> Result<(), String>;

/// Whether a proxy leads to an endpoint.
///
/// # Errors
/// The settings let a URL through that is none.
pub fn is_proxied(endpoint: &Endpoint, server: &Server) -> Result<bool, String> {
    Ok(Via::to(endpoint, server)?.is_some())
}

/// TLS over a stream.
async fn secure(plan: &Plan, peer: Peer, host: &str, stream: Stream) -> Result<Stream, LinkError> {
    let (factory, tls) = (Arc::clone(&plan.factory), plan.server.tls.clone());
    let connector = crate::pool::unblock(move || {
        let mut factory = factory.lock().map_err(|_| "an earlier attempt died".to_owned())?;
        factory.connector(&tls, peer)
    });
    let connector = connector.await.map_err(failed)?;
    let limit = plan.server.timeouts.tls;
    match within(limit, tls::handshake(&connector, host, stream)).await {
        Some(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        Some(Err(error)) => Err(LinkError { text: format!("TLS: {}", error.text), ..error }),
        None => Err(failed(format!("TLS: no handshake within {limit:?}"))),
    }
}

/// TCP to a host: its addresses in turn, both families.
async fn connect(plan: &Plan, host: &str, port: u16, judge: Judge<'_>) -> Result<Stream, String> {
    let limit = plan.server.timeouts.connect;
    let addresses = match within(limit, net::resolve(host, port)).await {
        Some(Ok(addresses)) => addresses,
        Some(Err(error)) => return Err(format!("looking up {host}: {error}")),
        None => return Err(format!("looking up {host}: no answer within {limit:?}")),
    };
    let mut errors = Vec::new();
    for address in addresses {
        if let Err(why) = judge(address.ip()) {
            errors.push(format!("{address}: {why}"));
            continue;
        }
        match net::connect(address, limit).await {
            Ok(stream) => return Ok(Stream::Plain(stream)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                errors.push(format!("{address}: no connection within {limit:?}"));
            }
            Err(error) => errors.push(format!("{address}: {error}")),
        }
    }
    if errors.is_empty() {
        errors.push(format!("{host} has no address"));
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

const fn is_gone(why: io::ErrorKind) -> bool {
    matches!(why, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => match Pin::new(stream).poll_write(cx, buf) {
                // Why it does not listen any more may still be there to read: an alert, an answer, a Close.
                Poll::Ready(Err(error)) if is_gone(error.kind()) => Poll::Ready(Ok(buf.len())),
                other => other,
            },
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
