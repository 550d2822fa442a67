//! The body of an HTTP answer: whole, within its limit, unpacked on the way.

use core::time::Duration;
use std::io::{self, Write};

use flate2::write::GzDecoder;
use smol::io::{AsyncRead, AsyncReadExt};

use super::LinkError;
use super::http1::{Head, MAX_HEAD};
use crate::agent::session::LinkErrorKind;
use crate::reactor::within;

/// Bytes read at once.
const CHUNK: usize = 8 * 1024;
/// Longest line that announces a chunk, bytes: its size and extensions that nobody uses.
const MAX_CHUNK_LINE: usize = 256;
const BAD_CHUNKS: &str = "the chunks of the answer are malformed";

/// A body that came whole.
#[derive(Debug)]
pub(super) struct Body {
    /// Unpacked.
    pub(super) bytes: Vec<u8>,
    /// Its end is known, so another answer may follow on the connection.
    pub(super) delimited: bool,
}

/// Reads the body behind `head`. `limit` holds for the bytes on the wire and for those unpacked; each read may take
/// `stall`.
///
/// # Errors
/// What was wrong with it, without the endpoint.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    head: Head,
    limit: usize,
    stall: Duration,
) -> Result<Body, LinkError> {
    let framing = Framing::of(&head, limit)?;
    let mut sink = Sink::new(&head, limit)?;
    let mut source = Source { stream, buffer: head.rest, at: 0, stall };
    match framing {
        Framing::Empty => {}
        Framing::Length(length) => source.copy(length, &mut sink).await?,
        Framing::Chunked => loop {
            let size = source.chunk_size().await?;
            if size == 0 {
                source.trailers().await?;
                break;
            }
            sink.expect(size)?;
            source.copy(size, &mut sink).await?;
            if source.line(2).await?.as_slice() != b"\r\n" {
                return Err(fault(BAD_CHUNKS));
            }
        },
        Framing::Close => {
            while source.has_more().await? {
                sink.put(source.ready())?;
                source.take(usize::MAX);
            }
        }
    }
    if !source.ready().is_empty() {
        return Err(fault("there are bytes behind the end of the answer"));
    }
    Ok(Body { bytes: sink.finish()?, delimited: !matches!(framing, Framing::Close) })
}

/// How the end of a body is known (RFC 9112 §6.3).
enum Framing {
    Empty,
    Length(usize),
    Chunked,
    /// The end of the connection.
    Close,
}

impl Framing {
    fn of(head: &Head, limit: usize) -> Result<Self, LinkError> {
        if head.status == 204 {
            return Ok(Self::Empty);
        }
        let codings: Vec<&str> = head.values("Transfer-Encoding").map(str::trim).collect();
        let lengths: Vec<&str> = head.values("Content-Length").map(str::trim).collect();
        match (codings.as_slice(), lengths.as_slice()) {
            ([], []) => Ok(Self::Close),
            ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Self::Chunked),
            ([], [first, more @ ..]) if more.iter().all(|length| length == first) => {
                let digits = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
                if !digits {
                    return Err(fault("the answer's Content-Length is not a number"));
                }
                match first.parse() {
                    Ok(length) if length <= limit => Ok(Self::Length(length)),
                    _ => Err(too_large(first, limit)),
                }
            }
            _ => Err(fault("the answer's Transfer-Encoding or Content-Length is ambiguous")),
        }
    }
}

/// The bytes as they come.
struct Source<'a, S> {
    stream: &'a mut S,
    buffer: Vec<u8>,
    /// What was taken of the buffer.
    at: usize,
    stall: Duration,
}

impl<S: AsyncRead + Unpin> Source<'_, S> {
    fn ready(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.buffer.len());
    }

    /// Reads more behind what is ready. False: the connection has ended.
    async fn more(&mut self) -> Result<bool, LinkError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let start = self.buffer.len();
        self.buffer.resize(start.saturating_add(CHUNK), 0);
        let space = self.buffer.get_mut(start..).unwrap_or_default();
        let got = match within(self.stall, self.stream.read(space)).await {
            Some(Ok(got)) => got,
            Some(Err(error)) => {
                let why = super::tls::explain(&error);
                return Err(failed(&format!("the answer was cut short: {why}")));
            }
            None => {
                let text = format!("the answer was cut short: nothing came for {:?}", self.stall);
                return Err(failed(&text));
            }
        };
        self.buffer.truncate(start.saturating_add(got));
        Ok(got > 0)
    }

    /// Whether there is something ready, now or after a wait. False: the connection has ended.
    async fn has_more(&mut self) -> Result<bool, LinkError> {
        Ok(!self.ready().is_empty() || self.more().await?)
    }

    async fn wait(&mut self) -> Result<(), LinkError> {
        if self.more().await? {
            Ok(())
        } else {
            Err(failed("the answer was cut short: the connection ended within it"))
        }
    }

    async fn copy(&mut self, length: usize, sink: &mut Sink) -> Result<(), LinkError> {
        let mut left = length;
        while left > 0 {
            if self.ready().is_empty() {
                self.wait().await?;
            }
            let part = self.ready().get(..left).unwrap_or_else(|| self.ready());
            let count = part.len();
            sink.put(part)?;
            self.take(count);
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    /// The next line with its end, at most `most` bytes.
    async fn line(&mut self, most: usize) -> Result<Vec<u8>, LinkError> {
        loop {
            let end = self.ready().iter().take(most).position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let length = end.saturating_add(1);
                let line = self.ready().get(..length).unwrap_or_default().to_vec();
                self.take(length);
                return Ok(line);
            }
            if self.ready().len() >= most {
                return Err(fault(BAD_CHUNKS));
            }
            self.wait().await?;
        }
    }

    async fn chunk_size(&mut self) -> Result<usize, LinkError> {
        let line = self.line(MAX_CHUNK_LINE).await?;
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) => {
                // What does not fit into memory is over the limit too.
                Ok(usize::try_from(size).unwrap_or(usize::MAX))
            }
            _ => Err(fault(BAD_CHUNKS)),
        }
    }

    /// Headers behind the last chunk: nothing in them concerns us.
    async fn trailers(&mut self) -> Result<(), LinkError> {
        let mut left = MAX_HEAD;
        loop {
            let line = self.line(left).await?;
            if line == b"\r\n" {
                return Ok(());
            }
            left = left.saturating_sub(line.len());
        }
    }
}

/// Where the bytes go: bounded, whatever they unpack to.
struct Sink {
    limit: usize,
    /// Bytes that came in.
    taken: usize,
    unpacked: Unpacked,
}

enum Unpacked {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

impl Sink {
    fn new(head: &Head, limit: usize) -> Result<Self, LinkError> {
        let bounded = Bounded { bytes: Vec::new(), limit, over: false };
        let unpacked = match head.header("Content-Encoding").map(str::trim) {
            None | Some("") => Unpacked::Plain(bounded),
            Some(coding) if coding.eq_ignore_ascii_case("identity") => Unpacked::Plain(bounded),
            Some(coding) if ["gzip", "x-gzip"].iter().any(|g| coding.eq_ignore_ascii_case(g)) => {
                Unpacked::Gzip(Box::new(GzDecoder::new(bounded)))
            }
            Some(coding) => {
                let text =
                    format!("the answer's Content-Encoding is {coding:.40?}; gzip is wanted");
                return Err(fault(&text));
            }
        };
        Ok(Self { limit, taken: 0, unpacked })
    }

    /// Refuses so many bytes more before they come.
    fn expect(&self, count: usize) -> Result<(), LinkError> {
        let total = self.taken.saturating_add(count);
        if total > self.limit { Err(too_large(&total.to_string(), self.limit)) } else { Ok(()) }
    }

    fn put(&mut self, mut data: &[u8]) -> Result<(), LinkError> {
        self.expect(data.len())?;
        self.taken = self.taken.saturating_add(data.len());
        while !data.is_empty() {
            let (written, over) = match &mut self.unpacked {
                Unpacked::Plain(plain) => (plain.write(data), plain.over),
                Unpacked::Gzip(gzip) => (gzip.write(data), gzip.get_ref().over),
            };
            match written {
                Ok(0) => return Err(fault("there are bytes behind the end of the answer's gzip")),
                Ok(count) => data = data.get(count..).unwrap_or_default(),
                Err(_) if over => return Err(too_large("more", self.limit)),
                Err(_) => return Err(fault("the answer says that it is gzip, and is not")),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, LinkError> {
        match self.unpacked {
            Unpacked::Plain(plain) => Ok(plain.bytes),
            Unpacked::Gzip(_) if self.taken == 0 => Ok(Vec::new()),
            Unpacked::Gzip(mut gzip) => match gzip.try_finish() {
                Ok(()) => Ok(core::mem::take(&mut gzip.get_mut().bytes)),
                Err(_) if gzip.get_ref().over => Err(too_large("more", self.limit)),
                Err(_) => Err(fault("the answer's gzip is cut short or damaged")),
            },
        }
    }
}

/// Bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    over: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len().saturating_add(data.len());
        if length > self.limit {
            self.over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if length > self.bytes.capacity() {
            let wanted = length.max(self.bytes.len().saturating_mul(2)).min(self.limit);
            self.bytes.reserve_exact(wanted.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large(size: &str, limit: usize) -> LinkError {
    fault(&format!("an answer of {size:.20} bytes exceeds max_message_size ({limit})"))
}

fn failed(text: &str) -> LinkError {
    LinkError { text: text.to_owned(), kind: LinkErrorKind::Failed }
}

fn fault(text: &str) -> LinkError {
    LinkError { text: text.to_owned(), kind: LinkErrorKind::Fault }
}
