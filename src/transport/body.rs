//! The body of an HTTP answer: in parts as it comes, or whole, within its limit, unpacked on the way.

use core::time::Duration;

use smol::io::{AsyncRead, AsyncReadExt};

use super::LinkError;
use super::http1::{Head, MAX_HEAD};
use crate::agent::session::LinkErrorKind;
use crate::gzip;
use crate::reactor::within;

/// Bytes read at once.
const CHUNK: usize = 8 * 1024;
/// Longest line that announces a chunk, bytes: its size and extensions that nobody uses.
const MAX_CHUNK_LINE: usize = 256;
const BAD_CHUNKS: &str = "the chunks of the answer are malformed";

/// Why a body does not come whole.
#[derive(Debug)]
pub enum Fault {
    /// So many bytes came or were announced, more than its limit.
    TooLarge(String),
    /// It is not what HTTP allows: one line.
    Malformed(String),
    /// The connection failed or ended within it: one line.
    Cut(String),
    /// Nothing came for so long. Reading may go on.
    Stalled(Duration),
}

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
    mut head: Head,
    limit: usize,
    stall: Duration,
) -> Result<Body, LinkError> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let rest = core::mem::take(&mut head.rest);
    let mut reader =
        Reader::new(stream, &head, rest, most).map_err(|fault| fault.into_error(limit))?;
    reader.stall = stall;
    let mut sink = Sink::new(&head, limit)?;
    while let Some(part) = reader.part().await.map_err(|fault| fault.into_error(limit))? {
        sink.put(part)?;
    }
    if !reader.source.ready().is_empty() {
        return Err(fault("there are bytes behind the end of the answer"));
    }
    Ok(Body { bytes: sink.finish()?, delimited: reader.end() != End::Close })
}

impl Fault {
    fn into_error(self, limit: usize) -> LinkError {
        match self {
            Self::TooLarge(size) => too_large(&size, limit),
            Self::Malformed(text) => fault(&text),
            Self::Cut(text) => failed(&text),
            Self::Stalled(stall) => {
                failed(&format!("the answer was cut short: nothing came for {stall:?}"))
            }
        }
    }

    fn malformed(text: &str) -> Self {
        Self::Malformed(text.to_owned())
    }
}

/// How the end of a body will be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After so many bytes.
    Length(u64),
    /// By its last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// The bytes of a body as they come, its framing taken off.
#[derive(Debug)]
pub struct Reader<'a, S> {
    source: Source<'a, S>,
    framing: Framing,
    /// How long a read may take.
    pub stall: Duration,
    /// Bytes that may come.
    limit: u64,
    /// Bytes that came.
    taken: u64,
    /// What is left of the length or of the chunk.
    left: u64,
    /// Within the chunks: one has been read to its end, its line end has not.
    behind_chunk: bool,
    /// The last chunk has been read, and what follows it.
    done: bool,
}

impl<'a, S: AsyncRead + Unpin> Reader<'a, S> {
    /// A reader of the body behind `head`, of which `rest` came with it. At most `limit` bytes are let through.
    ///
    /// # Errors
    /// When it says that it is longer, or does not say clearly where it ends.
    pub fn new(stream: &'a mut S, head: &Head, rest: Vec<u8>, limit: u64) -> Result<Self, Fault> {
        let framing = Framing::of(head, limit)?;
        let left = match framing {
            Framing::Length(length) => length,
            Framing::Close => u64::MAX,
            Framing::Empty | Framing::Chunked => 0,
        };
        let source = Source { stream, buffer: rest, at: 0 };
        let stall = Duration::MAX;
        Ok(Self { source, framing, stall, limit, taken: 0, left, behind_chunk: false, done: false })
    }

    /// How its end will be known.
    #[must_use]
    pub const fn end(&self) -> End {
        match self.framing {
            Framing::Empty => End::Length(0),
            Framing::Length(length) => End::Length(length),
            Framing::Chunked => End::Chunked,
            Framing::Close => End::Close,
        }
    }

    /// Reads some of it. 0: its end, or no room in `into`.
    ///
    /// # Errors
    /// Why there is no more of it.
    pub async fn read(&mut self, into: &mut [u8]) -> Result<usize, Fault> {
        let run = usize::try_from(self.run().await?).unwrap_or(usize::MAX).min(into.len());
        let Some(space) = into.get_mut(..run) else { return Ok(0) };
        if space.is_empty() {
            return Ok(0);
        }
        if self.source.ready().is_empty() {
            // Straight to where it goes.
            let got = self.source.receive(space, self.stall).await?;
            return if got == 0 { self.ended().map(|()| 0) } else { self.took(got) };
        }
        let count = self.source.ready().len().min(space.len());
        let (space, _) = space.split_at_mut_checked(count).unwrap_or_default();
        space.copy_from_slice(self.source.ready().get(..count).unwrap_or_default());
        self.source.take(count);
        self.took(count)
    }

    /// Reads some of it into the buffer of its own. [`None`]: its end.
    async fn part(&mut self) -> Result<Option<&[u8]>, Fault> {
        let run = usize::try_from(self.run().await?).unwrap_or(usize::MAX);
        if run == 0 {
            return Ok(None);
        }
        if self.source.ready().is_empty() && !self.source.more(self.stall).await? {
            return self.ended().map(|()| None);
        }
        let count = self.took(self.source.ready().len().min(run))?;
        Ok(Some(self.source.taken(count)))
    }

    /// How many bytes come before something else does. 0: the end of the body.
    async fn run(&mut self) -> Result<u64, Fault> {
        if self.left > 0 || self.done || !matches!(self.framing, Framing::Chunked) {
            return Ok(self.left);
        }
        if self.behind_chunk {
            if self.source.line(2, self.stall).await?.as_slice() != b"\r\n" {
                return Err(Fault::malformed(BAD_CHUNKS));
            }
            self.behind_chunk = false;
        }
        let size = self.source.chunk_size(self.stall).await?;
        if size == 0 {
            self.source.trailers(self.stall).await?;
            self.done = true;
            return Ok(0);
        }
        self.room(size)?;
        self.left = size;
        self.behind_chunk = true;
        Ok(size)
    }

    fn took(&mut self, count: usize) -> Result<usize, Fault> {
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        self.taken = self.room(bytes)?;
        if !matches!(self.framing, Framing::Close) {
            self.left = self.left.saturating_sub(bytes);
        }
        Ok(count)
    }

    /// How many bytes it is with so many more.
    fn room(&self, more: u64) -> Result<u64, Fault> {
        let total = self.taken.saturating_add(more);
        if total > self.limit { Err(Fault::TooLarge(total.to_string())) } else { Ok(total) }
    }

    /// The connection has ended.
    fn ended(&self) -> Result<(), Fault> {
        match self.framing {
            Framing::Close => Ok(()),
            _ => Err(Fault::Cut(SHORT.to_owned())),
        }
    }
}

const SHORT: &str = "the answer was cut short: the connection ended within it";

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Debug)]
enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// The end of the connection.
    Close,
}

impl Framing {
    fn of(head: &Head, limit: u64) -> Result<Self, Fault> {
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
                    let text = "the answer's Content-Length is not a number";
                    return Err(Fault::malformed(text));
                }
                match first.parse() {
                    Ok(length) if length <= limit => Ok(Self::Length(length)),
                    _ => Err(Fault::TooLarge((*first).to_owned())),
                }
            }
            _ => Err(Fault::malformed(
                "the answer's Transfer-Encoding or Content-Length is ambiguous",
            )),
        }
    }
}

/// The bytes of the connection as they come.
#[derive(Debug)]
struct Source<'a, S> {
    stream: &'a mut S,
    buffer: Vec<u8>,
    /// What was taken of the buffer.
    at: usize,
}

impl<S: AsyncRead + Unpin> Source<'_, S> {
    fn ready(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.buffer.len());
    }

    /// Takes so many, and shows them.
    fn taken(&mut self, count: usize) -> &[u8] {
        let start = self.at;
        self.take(count);
        self.buffer.get(start..self.at).unwrap_or_default()
    }

    /// Reads more behind what is ready. False: the connection has ended.
    async fn more(&mut self, stall: Duration) -> Result<bool, Fault> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let mut buffer = core::mem::take(&mut self.buffer);
        let start = buffer.len();
        buffer.resize(start.saturating_add(CHUNK), 0);
        let got = self.receive(buffer.get_mut(start..).unwrap_or_default(), stall).await;
        buffer.truncate(start.saturating_add(*got.as_ref().unwrap_or(&0)));
        self.buffer = buffer;
        Ok(got? > 0)
    }

    /// One read. 0: the connection has ended.
    async fn receive(&mut self, space: &mut [u8], stall: Duration) -> Result<usize, Fault> {
        match within(stall, self.stream.read(space)).await {
            Some(Ok(got)) => Ok(got),
            Some(Err(error)) => {
                let why = super::tls::explain(&error);
                Err(Fault::Cut(format!("the answer was cut short: {why}")))
            }
            None => Err(Fault::Stalled(stall)),
        }
    }

    async fn wait(&mut self, stall: Duration) -> Result<(), Fault> {
        if self.more(stall).await? { Ok(()) } else { Err(Fault::Cut(SHORT.to_owned())) }
    }

    /// The next line with its end, at most `most` bytes.
    async fn line(&mut self, most: usize, stall: Duration) -> Result<Vec<u8>, Fault> {
        loop {
            let end = self.ready().iter().take(most).position(|byte| *byte == b'\n');
            if let Some(end) = end {
                return Ok(self.taken(end.saturating_add(1)).to_vec());
            }
            if self.ready().len() >= most {
                return Err(Fault::malformed(BAD_CHUNKS));
            }
            self.wait(stall).await?;
        }
    }

    async fn chunk_size(&mut self, stall: Duration) -> Result<u64, Fault> {
        let line = self.line(MAX_CHUNK_LINE, stall).await?;
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) => Ok(size),
            _ => Err(Fault::malformed(BAD_CHUNKS)),
        }
    }

    /// Headers behind the last chunk: nothing in them concerns us.
    async fn trailers(&mut self, stall: Duration) -> Result<(), Fault> {
        let mut left = MAX_HEAD;
        loop {
            let line = self.line(left, stall).await?;
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
    Gzip(gzip::Decoder, Bounded),
}

impl Sink {
    fn new(head: &Head, limit: usize) -> Result<Self, LinkError> {
        let bounded = Bounded { bytes: Vec::new(), limit };
        let unpacked = match head.header("Content-Encoding").map(str::trim) {
            None | Some("") => Unpacked::Plain(bounded),
            Some(coding) if coding.eq_ignore_ascii_case("identity") => Unpacked::Plain(bounded),
            Some(coding) if ["gzip", "x-gzip"].iter().any(|g| coding.eq_ignore_ascii_case(g)) => {
                Unpacked::Gzip(gzip::Decoder::new(false), bounded)
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
        let (gzip, plain) = match &mut self.unpacked {
            Unpacked::Plain(plain) => return plain.put(data),
            Unpacked::Gzip(gzip, plain) => (gzip, plain),
        };
        let mut unpacked = [0; CHUNK];
        loop {
            let step = gzip.step(data, &mut unpacked);
            let (taken, given) = step.map_err(|why| {
                fault(&format!("the answer says that it is gzip, and is none or is damaged: {why}"))
            })?;
            plain.put(unpacked.get(..given).unwrap_or_default())?;
            data = data.get(taken..).unwrap_or_default();
            if taken == 0 && given == 0 {
                break;
            }
        }
        if data.is_empty() {
            return Ok(());
        }
        Err(fault("there are bytes behind the end of the answer's gzip"))
    }

    fn finish(self) -> Result<Vec<u8>, LinkError> {
        match self.unpacked {
            Unpacked::Gzip(gzip, _) if self.taken > 0 && !gzip.is_whole() => {
                Err(fault("the answer's gzip is cut short"))
            }
            Unpacked::Plain(plain) | Unpacked::Gzip(_, plain) => Ok(plain.bytes),
        }
    }
}

/// Bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Bounded {
    fn put(&mut self, data: &[u8]) -> Result<(), LinkError> {
        let length = self.bytes.len().saturating_add(data.len());
        if length > self.limit {
            return Err(too_large("more", self.limit));
        }
        if length > self.bytes.capacity() {
            let wanted = length.max(self.bytes.len().saturating_mul(2)).min(self.limit);
            self.bytes.reserve_exact(wanted.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(data);
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
