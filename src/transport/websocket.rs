//! OpAMP over WebSocket: the upgrade, the frames, the header in front of each message, the end.

use core::time::Duration;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use async_tungstenite::tungstenite::protocol::frame::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Error, Message};
use bytes::{Buf, Bytes};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom, SystemRandom};
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use smol::stream::StreamExt;

use super::http1::{self, Head, NoHead};
use super::redirect::{Target, is_redirect};
use super::{Incoming, LinkError, Outgoing, Plan, Stream, open};
use crate::agent::session::LinkErrorKind;
pub(crate) use crate::base64::base64;
use crate::clock;
use crate::reactor::within;
use crate::settings::Endpoint;

/// Read buffer of the codec; grows to a frame's size while one comes in.
const READ_BUFFER: usize = 4096;
/// Room for the frame header and the message header beside a message of the largest size.
const WRITE_SLACK: usize = 64 * 1024;
/// After a frame of more than this the codec's buffers are given back.
const LARGE_FRAME: usize = 64 * 1024;
/// A message must be taken by the network within so long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The closing handshake that we began may take so long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// After a fault of the peer its bytes are drained for so long, or a reset would eat our Close frame.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// A varint of a u64 has at most so many bytes (opamp-spec L402).
const MAX_HEADER: usize = 10;
/// What the server must hash with our key (RFC 6455 §4.2.2).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

type Socket = WebSocketStream<Metered>;

/// Runs one link.
pub(super) async fn run(
    plan: &Plan,
    outgoing: Receiver<Outgoing>,
    incoming: &Sender<Incoming>,
) -> Result<(), LinkError> {
    let (socket, target) = upgrade(plan).await?;
    let mut link = Link { socket, target, incoming };
    link.tell(Incoming::Up).await?;
    let mut large = false;
    loop {
        enum Next {
            Told(Option<Outgoing>),
            Came(Option<Result<Message, Error>>),
        }
        if large && link.socket.get_ref().between_messages() {
            // Everything that was read has been decoded: a fresh codec loses nothing and frees its buffers.
            link.socket = fresh(link.socket.into_inner(), Vec::new(), plan).await;
            large = false;
        }
        let told = async { Next::Told(outgoing.recv().await.ok()) };
        let came = async { Next::Came(link.socket.next().await) };
        match smol::future::or(told, came).await {
            Next::Told(Some(Outgoing::Message { body, .. })) => {
                large |= body.len() > LARGE_FRAME;
                link.send(Message::Binary(body)).await?;
            }
            Next::Told(Some(Outgoing::Ping)) => link.send(Message::Ping(Bytes::new())).await?,
            Next::Told(Some(Outgoing::Close)) => {
                link.close(CloseCode::Normal, "", CLOSE_TIMEOUT).await;
                return Ok(());
            }
            // The runtime dropped the link.
            Next::Told(None) => return Ok(()),
            Next::Came(Some(Ok(message))) => {
                large |= message.len() > LARGE_FRAME;
                link.received(message).await?;
            }
            Next::Came(Some(Err(error))) => return Err(link.broken(error).await),
            Next::Came(None) => return Err(link.failed("the server closed the connection")),
        }
    }
}

/// An open link.
struct Link<'a> {
    socket: Socket,
    target: Target,
    incoming: &'a Sender<Incoming>,
}

impl Link<'_> {
    async fn tell(&self, incoming: Incoming) -> Result<(), LinkError> {
        self.incoming.send(incoming).await.map_err(|_| self.failed("nobody listens any more"))
    }

    async fn received(&mut self, message: Message) -> Result<(), LinkError> {
        match message {
            Message::Binary(mut bytes) => match take_header(&mut bytes) {
                Ok(()) => self.tell(Incoming::Message(bytes)).await,
                Err(why) => {
                    self.tell(Incoming::Remark(format!(
                        "ignored a message with a bad header: {why}"
                    )))
                    .await
                }
            },
            Message::Pong(_) => self.tell(Incoming::Pong).await,
            Message::Text(_) => {
                // opamp-spec L373: binary messages only.
                self.close(CloseCode::Unsupported, "binary messages only", DRAIN_TIMEOUT).await;
                Err(self.fault("the server sent a text message, which OpAMP does not have"))
            }
            Message::Close(frame) => {
                let why = frame.map_or_else(String::new, |frame| {
                    format!(" (code {}: {:.200})", u16::from(frame.code), frame.reason.as_str())
                });
                // Reading on lets the codec answer the Close.
                let _ = within(CLOSE_TIMEOUT, self.drain()).await;
                Err(self.failed(&format!("the server closed the connection{why}")))
            }
            // The codec has queued the pong; the next read sends it.
            Message::Ping(_) | Message::Frame(_) => Ok(()),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), LinkError> {
        match within(WRITE_TIMEOUT, self.socket.send(message)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.failed(&format!("sending: {error}"))),
            None => Err(self.failed(&format!("the network took no message for {WRITE_TIMEOUT:?}"))),
        }
    }

    /// What a failed read means; says goodbye in the protocol's words where the peer is at fault.
    async fn broken(&mut self, error: Error) -> LinkError {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
                // opamp-spec L448: close with 1009.
                self.close(CloseCode::Size, "message too large", DRAIN_TIMEOUT).await;
                self.fault(&format!(
                    "a message of {size} bytes exceeds max_message_size ({max_size})"
                ))
            }
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                self.failed("the connection was cut")
            }
            Error::Protocol(why) => {
                self.close(CloseCode::Protocol, "", DRAIN_TIMEOUT).await;
                self.fault(&format!("the server broke the WebSocket protocol: {why}"))
            }
            Error::ConnectionClosed | Error::AlreadyClosed => {
                self.failed("the server closed the connection")
            }
            Error::Io(error) => {
                let error = super::tls::failure(&error);
                self.error(&error.text, error.kind)
            }
            other => {
                self.close(CloseCode::Protocol, "", DRAIN_TIMEOUT).await;
                self.fault(&other.to_string())
            }
        }
    }

    /// Sends Close, then reads until the peer has closed too, or `patience` ends.
    async fn close(&mut self, code: CloseCode, reason: &'static str, patience: Duration) {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = within(patience, async {
            let _ = self.socket.close(Some(frame)).await;
            self.drain().await;
        })
        .await;
    }

    /// Reads what comes, without decoding it once it is broken, until the peer is done.
    async fn drain(&mut self) {
        while let Some(Ok(_)) = self.socket.next().await {}
        let _ = smol::io::copy(self.socket.get_mut(), smol::io::sink()).await;
    }

    fn failed(&self, text: &str) -> LinkError {
        self.error(text, LinkErrorKind::Failed)
    }

    fn fault(&self, text: &str) -> LinkError {
        self.error(text, LinkErrorKind::Fault)
    }

    fn error(&self, text: &str, kind: LinkErrorKind) -> LinkError {
        LinkError { text: format!("{}: {text}", self.target), kind }
    }
}

/// Connects and upgrades, where redirects lead.
async fn upgrade(plan: &Plan) -> Result<(Socket, Target), LinkError> {
    let mut target = Target::new(plan.server.endpoint.clone());
    loop {
        let (stream, head, key) = ask(plan, &target).await?;
        if !is_redirect(head.status) {
            check_upgrade(&head, &key, &target.to_string())?;
            return Ok((fresh(Metered::new(stream), head.rest, plan).await, target));
        }
        if let Err(why) = target.redirect(&head, &plan.server) {
            let text = format!("{target}: {why}");
            return Err(LinkError { text, kind: LinkErrorKind::Failed });
        }
    }
}

/// Asks for the upgrade: the stream, the answer, and the key that it must prove to have read.
async fn ask(plan: &Plan, target: &Target) -> Result<(Stream, Head, String), LinkError> {
    let failed =
        |text: String| LinkError { text: format!("{target}: {text}"), kind: LinkErrorKind::Failed };
    let mut stream = open(plan, target).await?;
    let mut key = [0; 16];
    SystemRandom::new().fill(&mut key).map_err(|_| failed("no random numbers".to_owned()))?;
    let key = base64(&key);
    let own = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key.as_str()),
    ];
    let Endpoint { path, .. } = &target.endpoint;
    let host = target.endpoint.authority();
    let request = http1::request("GET", path, &host, &own, target.headers(&plan.server));
    let exchange = async {
        let sent = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await
        };
        let sent = sent.await;
        // Also where nothing could be sent: what TLS 1.3 has to say against us comes behind the handshake.
        let read = http1::read_head(&mut stream, Vec::new()).await;
        read.map_err(|NoHead { text, kind, .. }| match sent {
            Err(error) if kind == LinkErrorKind::Failed => super::tls::failure(&error),
            _ => LinkError { text, kind },
        })
    };
    let limit = plan.server.timeouts.tls;
    match within(limit, exchange).await {
        Some(Ok(head)) => Ok((stream, head, key)),
        Some(Err(error)) => Err(LinkError { text: format!("{target}: {}", error.text), ..error }),
        None => Err(failed(format!("no answer to the WebSocket upgrade within {limit:?}"))),
    }
}

/// RFC 6455 §4.1: what the server's answer must be.
fn check_upgrade(head: &Head, key: &str, endpoint: &str) -> Result<(), LinkError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge reads the clock, for a Retry-After date"
    )]
    let now = clock::now().wall;
    if head.status != 101 {
        return Err(head.refusal(endpoint, now));
    }
    let input = [key.as_bytes(), ACCEPT_SUFFIX].concat();
    let expected = base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, &input).as_ref());
    let problem =
        if !head.has_token("Upgrade", "websocket") || !head.has_token("Connection", "upgrade") {
            "it does not upgrade to WebSocket"
        } else if head.header("Sec-WebSocket-Accept") != Some(expected.as_str()) {
            "its Sec-WebSocket-Accept is wrong"
        } else if head.header("Sec-WebSocket-Extensions").is_some() {
            "it uses an extension that was not asked for"
        } else if head.header("Sec-WebSocket-Protocol").is_some() {
            "it uses a subprotocol that was not asked for"
        } else {
            return Ok(());
        };
    let text = format!("{endpoint}: the server answered 101, but {problem}");
    Err(LinkError { text, kind: LinkErrorKind::Failed })
}

async fn fresh(mut stream: Metered, rest: Vec<u8>, plan: &Plan) -> Socket {
    stream.meter.pass(&rest);
    let limit = plan.server.max_message_size;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(limit.saturating_add(WRITE_SLACK))
        .max_message_size(Some(limit.saturating_add(MAX_HEADER)))
        .max_frame_size(Some(limit.saturating_add(MAX_HEADER)));
    WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await
}

/// Takes the header off: a varint of 1 to 10 bytes whose value is 0 (opamp-spec L402–L413).
fn take_header(bytes: &mut Bytes) -> Result<(), &'static str> {
    for _ in 0..MAX_HEADER {
        let Some(byte) = bytes.first().copied() else { return Err("it ends within its header") };
        bytes.advance(1);
        if byte & 0x7f != 0 {
            return Err("its header is not 0");
        }
        if byte & 0x80 == 0 {
            return Ok(());
        }
    }
    Err("its header is longer than 10 bytes")
}

/// The stream under the codec, which follows the frames that pass so as to know when none is half read.
///
/// The codec keeps the capacity of the largest frame for ever, and does not tell whether its buffer is empty. A
/// byte count of frames tells: between messages a new codec can take over without losing a byte.
struct Metered {
    stream: Stream,
    meter: Meter,
}

/// Where in the sequence of frames the last byte read lies.
#[derive(Default)]
struct Meter {
    header: Vec<u8>,
    /// Payload bytes that the present frame still lacks.
    payload: u64,
    /// A message began in a frame that was not its last.
    fragmented: bool,
}

/// FIN bit and opcode, then mask bit and length: two bytes at least, fourteen at most (RFC 6455 §5.2).
const LONGEST_FRAME_HEADER: usize = 14;

impl Meter {
    /// These bytes went to the codec.
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let take = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload = self.payload.saturating_sub(u64::try_from(take).unwrap_or(u64::MAX));
                bytes = bytes.get(take..).unwrap_or_default();
                continue;
            }
            if self.header.len() < LONGEST_FRAME_HEADER {
                self.header.push(*first);
            }
            bytes = rest;
            self.end_of_header();
        }
    }

    fn end_of_header(&mut self) {
        let [first, second, more @ ..] = self.header.as_slice() else { return };
        let length = match (second & 0x7f, more) {
            (126, [a, b, ..]) => u64::from(u16::from_be_bytes([*a, *b])),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])
            }
            (126 | 127, _) => return,
            (length, _) => u64::from(length),
        };
        let is_control = first & 0x08 != 0;
        if !is_control {
            self.fragmented = first & 0x80 == 0;
        }
        // A masked frame from a server is an error that the codec reports; its mask is payload to us.
        self.payload = length;
        self.header.clear();
    }

    const fn between_messages(&self) -> bool {
        self.header.is_empty() && self.payload == 0 && !self.fragmented
    }
}

impl Metered {
    fn new(stream: Stream) -> Self {
        Self { stream, meter: Meter::default() }
    }

    const fn between_messages(&self) -> bool {
        self.meter.between_messages()
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let read = Pin::new(&mut me.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(got)) = &read {
            me.meter.pass(buf.get(..*got).unwrap_or_default());
        }
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, clippy::type_complexity, reason = "tests")]

    use super::*;

    #[test]
    fn the_header_is_a_varint_zero_of_one_to_ten_bytes() {
        let cases: [(&[u8], Result<&[u8], &str>); 7] = [
            (&[0, 7, 8], Ok(&[7, 8])),
            (&[0], Ok(&[])),
            (&[0x80, 0x80, 0, 7], Ok(&[7])),
            (&[], Err("ends")),
            (&[0x80], Err("ends")),
            (&[1, 7], Err("not 0")),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0], Err("longer")),
        ];
        for (input, expected) in cases {
            let mut bytes = Bytes::copy_from_slice(input);
            match (take_header(&mut bytes), expected) {
                (Ok(()), Ok(rest)) => assert_eq!(bytes.as_ref(), rest, "{input:?}"),
                (Err(error), Err(word)) => assert!(error.contains(word), "{input:?}: {error}"),
                (got, expected) => panic!("{input:?}: {got:?}, expected {expected:?}"),
            }
        }
        let message = chiton_proto::ServerToAgent { capabilities: 7, ..Default::default() };
        let mut framed = super::super::frame(&message);
        take_header(&mut framed).unwrap();
        assert_eq!(chiton_proto::Message::decode(framed), Ok(message));
    }

    #[test]
    fn the_meter_knows_when_no_frame_is_half_read() {
        let long = [&[0x82, 127][..], &70_000_u64.to_be_bytes(), &vec![1; 70_000]].concat();
        let frames: [(&[u8], bool); 7] = [
            (&[0x82, 3, 1, 2, 3], true),
            (&[0x82, 0], true),
            (&[0x82, 126, 0, 4, 1, 2, 3, 4], true),
            (&long, true),
            (&[0x02, 1, 9], false),
            (&[0x89, 1, 9], false),
            (&[0x80, 1, 9], true),
        ];
        let mut meter = Meter::default();
        for (frame, whole) in frames {
            for (at, byte) in frame.iter().enumerate() {
                meter.pass(&[*byte]);
                if at + 1 < frame.len() {
                    assert!(!meter.between_messages(), "within {:?}", frame.get(..8));
                }
            }
            assert_eq!(meter.between_messages(), whole, "after {:?}", frame.get(..8));
        }
        // All at once is the same as byte by byte.
        let mut meter = Meter::default();
        meter
            .pass(&frames.iter().flat_map(|(frame, _)| frame.iter().copied()).collect::<Vec<u8>>());
        assert!(meter.between_messages());
    }
}
