//! One agent's WebSocket connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chiton_proto::ServerToAgent;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::authority::Identity;
use crate::fleet::Refusal;
use crate::frame;
use crate::hub::{Hub, Line, Outgoing};

/// The first message must follow the upgrade within this time.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is pinged after this time.
const PING_AFTER: Duration = Duration::from_secs(60);
/// A pinged connection that stays silent for so long is dead.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that does not read is dropped after this time.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long our Close waits for the peer's.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages that cannot be decoded before the connection is closed.
const MAX_MALFORMED: u32 = 8;
/// Probes that wait for the same peer at once.
const MAX_PROBES: usize = 8;
/// The read buffer of one connection; larger messages grow their own.
const READ_BUFFER: usize = 4 << 10;
/// Room beside the largest message in the write buffer: headers, pings, a Close.
const WRITE_SLACK: usize = 64 << 10;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Why the server ends a connection.
struct Goodbye(CloseCode, &'static str);

/// How a conversation ended.
enum End {
    /// The peer is gone, or so lost that a Close would not reach it.
    Gone,
    /// We close.
    Close(Goodbye),
    /// A message was over the limit, and the rest of it is still on its way.
    TooLarge,
}

/// Serves the connection until either side ends it.
pub(crate) async fn serve(
    upgraded: Upgraded,
    hub: Arc<Hub>,
    base: Option<Arc<str>>,
    identity: Option<Identity>,
    stop: watch::Receiver<bool>,
) {
    let limit = hub.limits.max_message_size;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(limit.saturating_add(WRITE_SLACK))
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let mut conversation =
        Conversation { socket, stop, waiting: Vec::new(), pinged: false, malformed: 0 };
    let end = conversation.run(&hub, base, identity).await;
    match end {
        End::Gone => {}
        End::Close(goodbye) => conversation.close(goodbye).await,
        End::TooLarge => conversation.close_and_drain(limit).await,
    }
}

struct Conversation {
    socket: Socket,
    stop: watch::Receiver<bool>,
    /// Those who want to know whether the peer lives.
    waiting: Vec<oneshot::Sender<()>>,
    pinged: bool,
    malformed: u32,
}

impl Conversation {
    async fn run(&mut self, hub: &Hub, base: Option<Arc<str>>, identity: Option<Identity>) -> End {
        let (mut line, mut outgoing) = hub.enter(base, identity);
        let mut deadline = after(FIRST_MESSAGE_TIMEOUT);
        let mut spoken = false;
        loop {
            let step = tokio::select! {
                frame = self.socket.next() => {
                    self.pinged = false;
                    // Before the first report a ping is no sign of an agent.
                    if spoken || matches!(frame, Some(Ok(Message::Binary(_)))) {
                        spoken = true;
                        deadline = after(PING_AFTER);
                    }
                    self.receive(frame, &mut line).await
                }
                Some(task) = outgoing.recv() => self.obey(task).await,
                () = sleep_until(deadline) => {
                    if self.pinged || !spoken {
                        Err(End::Close(Goodbye(CloseCode::Policy, "silent for too long")))
                    } else {
                        self.pinged = true;
                        deadline = after(PONG_TIMEOUT);
                        self.send(Message::Ping(Bytes::new())).await
                    }
                }
                () = stopped(&mut self.stop) => {
                    Err(End::Close(Goodbye(CloseCode::Away, "the server is stopping")))
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn receive(
        &mut self,
        frame: Option<Result<Message, Error>>,
        line: &mut Line<'_>,
    ) -> Result<(), End> {
        // Whatever it is, it came from a live peer; whoever gave up waiting does not mind.
        if matches!(frame, Some(Ok(_))) {
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(());
            }
        }
        match frame {
            Some(Ok(Message::Binary(message))) => self.answer(message, line).await,
            Some(Ok(Message::Text(_))) => {
                Err(End::Close(Goodbye(CloseCode::Unsupported, "OpAMP messages are binary")))
            }
            // tungstenite answers pings and Closes itself; the end follows as `None` or an error.
            Some(Ok(
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_),
            )) => Ok(()),
            Some(Err(Error::Capacity(_))) => Err(End::TooLarge),
            Some(Err(Error::Protocol(_) | Error::Utf8(_))) => {
                Err(End::Close(Goodbye(CloseCode::Protocol, "not a WebSocket frame")))
            }
            Some(Err(_)) | None => Err(End::Gone),
        }
    }

    async fn answer(&mut self, message: Bytes, line: &mut Line<'_>) -> Result<(), End> {
        let body = match frame::strip_header(message) {
            Ok(body) => body,
            Err(error) => {
                let refusal = Refusal { uid: None, text: error.text().to_owned() };
                self.reply(&refusal.to_answer()).await?;
                return Err(End::Close(Goodbye(CloseCode::Protocol, "bad message header")));
            }
        };
        match line.answer(body).await {
            Ok(answer) => self.reply(&answer).await,
            Err(refusal) => {
                self.reply(&refusal.to_answer()).await?;
                self.malformed = self.malformed.saturating_add(1);
                if self.malformed < MAX_MALFORMED {
                    return Ok(());
                }
                Err(End::Close(Goodbye(CloseCode::Policy, "too many malformed messages")))
            }
        }
    }

    async fn obey(&mut self, task: Outgoing) -> Result<(), End> {
        match task {
            Outgoing::Push(message) => self.reply(&message).await,
            Outgoing::Probe(answer) => {
                if self.waiting.len() < MAX_PROBES {
                    self.waiting.push(answer);
                }
                self.send(Message::Ping(Bytes::new())).await
            }
            Outgoing::Drop => Err(End::Gone),
            Outgoing::Revoked => Err(End::Close(Goodbye(CloseCode::Policy, "certificate revoked"))),
        }
    }

    async fn reply(&mut self, message: &ServerToAgent) -> Result<(), End> {
        self.send(Message::Binary(frame::encode(message))).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(SEND_TIMEOUT, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // The peer's Close was answered before: what is left is its end of the stream.
            Ok(Err(Error::ConnectionClosed | Error::Protocol(_))) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    /// Sends a Close and waits a little for the peer's.
    async fn close(&mut self, goodbye: Goodbye) {
        let handshake = async {
            let frame = CloseFrame { code: goodbye.0, reason: goodbye.1.into() };
            if self.socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // Beyond the time it ends without the peer's consent.
        let _ = timeout(CLOSE_TIMEOUT, handshake).await;
    }

    /// Sends Close 1009. The rest of the message is read and thrown away: closing a socket with unread bytes
    /// resets it, and the peer would never see why.
    async fn close_and_drain(&mut self, limit: usize) {
        let goodbye = async {
            let reason = format!("a message may have at most {limit} bytes");
            let frame = CloseFrame { code: CloseCode::Size, reason: reason.into() };
            if self.socket.close(Some(frame)).await.is_ok() {
                let mut scrap = vec![0; READ_BUFFER];
                while matches!(self.socket.get_mut().read(&mut scrap).await, Ok(1..)) {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

/// Until the server is told to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}
