//! OpAMP over plain HTTP: one POST at a time, on a connection that is kept while the server allows it.

use core::time::Duration;
use std::io;

use bytes::Bytes;
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::http1::{self, Head, NoHead};
use super::redirect::{Target, is_redirect};
use super::{HEADER, Incoming, LinkError, Outgoing, Plan, Stream, body, open};
use crate::agent::session::LinkErrorKind;
use crate::agent::uid::Uid;
use crate::clock;
use crate::gzip;
use crate::reactor::within;

/// A body of fewer bytes is not worth packing.
const GZIP_FROM: usize = 1024;
/// A body up to this size goes out together with its head.
const JOIN_UP_TO: usize = 16 * 1024;
/// Bytes handed to the network at once; each such part has its own time-out.
const PART: usize = 16 * 1024;
/// One request, with its answer and the connections that it needs, may take so long.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(300);
/// At the end the request under way may take so long, and then the goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(3);
/// Ending TLS in order may take so long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The type of both bodies (opamp-spec L544).
const PROTOBUF: &str = "application/x-protobuf";

/// Runs one link. It is up once the first connection is; whether an OpAMP server answers there, the answer tells.
pub(super) async fn run(
    plan: &Plan,
    outgoing: Receiver<Outgoing>,
    incoming: &Sender<Incoming>,
) -> Result<(), LinkError> {
    enum Turn {
        Answered(Option<Result<Answer, LinkError>>),
        Told(Option<Outgoing>),
    }
    let target = Target::new(plan.server.endpoint.clone());
    let kept = Some(Kept { stream: open(plan, &target).await?, used: false });
    let mut link = Link { plan, target, kept, packs: true };
    link.tell(incoming, Incoming::Up).await?;
    while let Some(message) = link.next(&outgoing).await? {
        let told = {
            let mut posting = Box::pin(link.post(&message));
            let answered = within(EXCHANGE_TIMEOUT, posting.as_mut());
            let answered = async { Turn::Answered(answered.await) };
            let told = async { Turn::Told(outgoing.recv().await.ok()) };
            match smol::future::or(answered, told).await {
                Turn::Answered(answer) => Ok(answer),
                // Who speaks while a request is under way wants to end: so be it, but soon.
                Turn::Told(told) => {
                    let _ = within(GOODBYE_TIMEOUT, posting).await;
                    Err(told)
                }
            }
        };
        let answer = match told {
            Ok(Some(answer)) => answer?,
            Ok(None) => {
                return Err(link.failed(&format!("no whole answer within {EXCHANGE_TIMEOUT:?}")));
            }
            Err(Some(Outgoing::Message { body, uid })) => {
                let last = Message { body, uid };
                let _ = within(GOODBYE_TIMEOUT, Box::pin(link.post(&last))).await;
                break;
            }
            Err(_) => break,
        };
        let came = match answer {
            Answer::Message(bytes) => Incoming::Message(bytes),
            Answer::TooLarge(text) => Incoming::TooLarge(text),
        };
        link.tell(incoming, came).await?;
    }
    link.close().await;
    Ok(())
}

/// What is sent, as [`super::frame`] made it.
struct Message {
    body: Bytes,
    uid: Uid,
}

/// What a server said to a message.
enum Answer {
    Message(Bytes),
    /// 413, in words.
    TooLarge(String),
}

/// A connection between two requests.
struct Kept {
    stream: Stream,
    /// It has carried an answer, so the server may since have tired of it.
    used: bool,
}

struct Link<'a> {
    plan: &'a Plan,
    /// Where redirects have led this link.
    target: Target,
    kept: Option<Kept>,
    /// The server has not refused gzip.
    packs: bool,
}

/// Why an exchange failed.
struct Trouble {
    error: LinkError,
    /// Not a byte of an answer came, and not for want of patience.
    unheard: bool,
}

impl Link<'_> {
    async fn tell(&self, to: &Sender<Incoming>, what: Incoming) -> Result<(), LinkError> {
        to.send(what).await.map_err(|_| self.failed("nobody listens any more"))
    }

    /// The next message; meanwhile a connection that the server ends is let go. [`None`]: it is time to end.
    ///
    /// # Errors
    /// The server refuses us: TLS 1.3 says so behind our handshake, perhaps before there is a message.
    async fn next(&mut self, outgoing: &Receiver<Outgoing>) -> Result<Option<Message>, LinkError> {
        enum Turn {
            Told(Option<Outgoing>),
            Gone(io::Result<usize>),
        }
        loop {
            let kept = self.kept.as_mut();
            let told = async { Turn::Told(outgoing.recv().await.ok()) };
            let gone = async {
                match kept {
                    // Whatever it says unasked, the next answer could not be told from it.
                    Some(kept) => Turn::Gone(kept.stream.read(&mut [0]).await),
                    None => core::future::pending().await,
                }
            };
            match smol::future::or(told, gone).await {
                Turn::Told(Some(Outgoing::Message { body, uid })) => {
                    return Ok(Some(Message { body, uid }));
                }
                // Pings are WebSocket's.
                Turn::Told(Some(Outgoing::Ping)) => {}
                Turn::Told(Some(Outgoing::Close) | None) => return Ok(None),
                Turn::Gone(came) => {
                    self.kept = None;
                    let error = came.map_err(|error| super::tls::failure(&error)).err();
                    if let Some(error) = error.filter(|e| e.kind == LinkErrorKind::Refused) {
                        return Err(self.error(&error.text, error.kind));
                    }
                }
            }
        }
    }

    /// Sends a message and takes the answer.
    async fn post(&mut self, message: &Message) -> Result<Answer, LinkError> {
        loop {
            let plain = message.body.slice(HEADER.min(message.body.len())..);
            let packed = if self.packs { pack(&plain).await } else { None };
            let packs = packed.is_some();
            let head = self.head(message.uid, packed.as_ref().unwrap_or(&plain).len(), packs);
            let body = packed.unwrap_or(plain);
            let (mut stream, answer) = self.exchange(&head, &body).await?;
            if answer.status == 415 && packs {
                // A server without gzip, against opamp-spec L550.
                self.packs = false;
                continue;
            }
            // The message goes again as it is, also where browsers make a GET of it; but "see other" (303) means one.
            if is_redirect(answer.status) && answer.status != 303 {
                let led = self.target.redirect(&answer, &self.plan.server);
                led.map_err(|why| self.failed(&why))?;
                continue;
            }
            if answer.status == 413 {
                return Ok(Answer::TooLarge(answer.refusal(&self.endpoint(), now()).text));
            }
            self.check(&answer)?;
            let keeps = answer.keeps_alive();
            let limit = self.plan.server.max_message_size;
            let body = body::read(&mut stream, answer, limit, self.patience())
                .await
                .map_err(|error| self.error(&error.text, error.kind))?;
            if keeps && body.delimited {
                self.kept = Some(Kept { stream, used: true });
            }
            return Ok(Answer::Message(body.bytes.into()));
        }
    }

    fn head(&self, uid: Uid, length: usize, packed: bool) -> String {
        let server = &self.plan.server;
        let (length, uid) = (length.to_string(), uid.to_string());
        let mut own = vec![
            ("Content-Type", PROTOBUF),
            ("Content-Length", length.as_str()),
            ("Accept-Encoding", "gzip"),
            ("OpAMP-Instance-UID", uid.as_str()),
        ];
        if packed {
            own.push(("Content-Encoding", "gzip"));
        }
        let endpoint = &self.target.endpoint;
        let headers = self.target.headers(server);
        http1::request("POST", &endpoint.path, &endpoint.authority(), &own, headers)
    }

    /// Sends a request and reads the head of the answer. A kept connection that the server has closed meanwhile is
    /// replaced, once: then the request cannot have been answered.
    async fn exchange(&mut self, head: &str, body: &[u8]) -> Result<(Stream, Head), LinkError> {
        loop {
            let kept = match self.kept.take() {
                Some(kept) => kept,
                None => Kept { stream: open(self.plan, &self.target).await?, used: false },
            };
            let Kept { mut stream, used } = kept;
            match self.ask(&mut stream, head, body).await {
                Ok(head) => return Ok((stream, head)),
                Err(trouble) if trouble.unheard && used => {}
                Err(trouble) => return Err(trouble.error),
            }
        }
    }

    async fn ask(&self, stream: &mut Stream, head: &str, body: &[u8]) -> Result<Head, Trouble> {
        let patience = self.patience();
        // A server that does not want a long message may answer before it has read all of it, and close.
        let unsent = send(stream, head, body, patience).await.err();
        match within(patience, http1::final_head(stream)).await {
            Some(Ok(head)) => Ok(head),
            Some(Err(NoHead { text, silent, kind })) => {
                // Where TLS says why, sending failed for that reason.
                let unsent = unsent.filter(|_| kind == LinkErrorKind::Failed);
                let text = unsent.map_or(text, |error| format!("sending: {error}"));
                Err(Trouble { error: self.error(&text, kind), unheard: silent })
            }
            None => {
                let text = match unsent {
                    Some(error) => format!("sending: {error}"),
                    None => format!("no answer within {patience:?}"),
                };
                Err(Trouble { error: self.failed(&text), unheard: false })
            }
        }
    }

    /// Whether the answer holds a message: its status and its type say so.
    fn check(&self, head: &Head) -> Result<(), LinkError> {
        let kind = head.header("Content-Type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (head.status, kind.as_str()) {
            // Servers put their reason into an OpAMP error_response.
            (200..=299 | 400, PROTOBUF) => Ok(()),
            (200..=299, "" | "application/protobuf" | "application/octet-stream") => Ok(()),
            (204, _) => Ok(()),
            (200..=299, _) if head.header("Content-Length") == Some("0") => Ok(()),
            (200..=299, "text/html") => Err(self.failed(
                "the answer is a web page (text/html), not OpAMP: a captive portal or a proxy stands in between, or \
                 the endpoint is a website's",
            )),
            (200..=299, kind) => Err(self.failed(&format!(
                "the answer is {kind:.60?}, not {PROTOBUF}: is the endpoint an OpAMP server's?"
            ))),
            _ => Err(head.refusal(&self.endpoint(), now())),
        }
    }

    /// How long a server may be silent: as long as over WebSocket, where a ping is asked in between.
    fn patience(&self) -> Duration {
        let timeouts = self.plan.server.timeouts;
        timeouts.answer.saturating_add(timeouts.pong)
    }

    async fn close(&mut self) {
        if let Some(mut kept) = self.kept.take() {
            let _ = within(CLOSE_TIMEOUT, kept.stream.close()).await;
        }
    }

    fn endpoint(&self) -> String {
        self.target.to_string()
    }

    fn failed(&self, text: &str) -> LinkError {
        self.error(text, LinkErrorKind::Failed)
    }

    fn error(&self, text: &str, kind: LinkErrorKind) -> LinkError {
        LinkError { text: format!("{}: {text}", self.target), kind }
    }
}

/// The body as gzip, where that makes it smaller. On the pool: a large one takes a while.
async fn pack(body: &Bytes) -> Option<Bytes> {
    if body.len() < GZIP_FROM {
        return None;
    }
    let plain = body.clone();
    let packed = crate::pool::unblock(move || gzip::pack(&plain)).await;
    (packed.len() < body.len()).then(|| packed.into())
}

async fn send(stream: &mut Stream, head: &str, body: &[u8], stall: Duration) -> io::Result<()> {
    let joined;
    let parts: [&[u8]; 2] = if body.len() <= JOIN_UP_TO {
        joined = [head.as_bytes(), body].concat();
        [&joined, &[]]
    } else {
        [head.as_bytes(), body]
    };
    for part in parts.into_iter().flat_map(|part| part.chunks(PART)) {
        let written = within(stall, stream.write_all(part)).await;
        written.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    }
    within(stall, stream.flush()).await.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock, for a Retry-After date")]
fn now() -> clock::Wall {
    clock::now().wall
}
