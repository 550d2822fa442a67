//! Fetching one file of a package: from a URL into `packages_dir/incoming/`, over as many tries as it takes.
//!
//! The server is not trusted with anything: not with the size, not with the rate, not with where to go on. What comes
//! out is a file that was hashed while it was written, with the hash that was asked for.

mod answer;
mod pace;
mod place;
mod sink;

use core::cell::Cell;
use core::fmt;
use core::time::Duration;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use rustix::rand::{GetRandomFlags, getrandom};
use smol::io::AsyncWriteExt;

use crate::agent::backoff::{Jitter, full_jitter};
use crate::clock::{self, Now};
use crate::net;
use crate::reactor::{Timer, within};
use crate::secret::Secret;
use crate::settings::{Backoff, Endpoint};
use crate::store::incoming::Mark;
pub use crate::store::incoming::Received;
use crate::transport::body::{End, Fault, Reader};
use crate::transport::http1::{self, Head};
use crate::transport::redirect::is_redirect;
use crate::transport::{Plan, Stream, is_proxied, open_to};
use answer::{Asked, Body, NoBody};
use pace::{Brake, Window};
pub use place::MAX_URL;
use place::{Place, Reach};
use sink::{BUFFER, Sink};

/// Time between two words on progress, and the longest that read bytes wait to be written.
const TICK: Duration = Duration::from_secs(1);

/// What is fetched.
#[derive(Clone, Debug)]
pub struct Source {
    /// `http` or `https`.
    pub url: String,
    /// The headers of the offer: for this URL's own origin, over TLS.
    pub headers: Vec<(String, Secret<String>)>,
    /// What it must hash to.
    pub sha256: [u8; 32],
    /// Bytes that it must have, where that is signed.
    pub size: Option<u64>,
    /// Bytes that it may have: `packages.max_size`.
    pub limit: u64,
    /// Its signature has been checked: it may come without TLS.
    pub signed: bool,
}

/// How it is fetched.
pub struct Ways {
    /// The settings of the server (its headers are not sent) and what makes TLS.
    pub plan: Plan,
    /// Where packages lie.
    pub packages_dir: PathBuf,
    /// Bytes a second; 0: unlimited.
    pub bandwidth: u64,
    /// For tests.
    pub limits: Limits,
}

/// The patience of a download.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All tries together. 24 h.
    pub total: Duration,
    /// From the request to the head of the answer. 30 s.
    pub head: Duration,
    /// Bytes a second that must come, over each window. 1 KiB.
    pub least_rate: u64,
    /// 30 s.
    pub window: Duration,
    /// Tries in a row that gain nothing to speak of. 8.
    pub tries: u32,
    /// Tries where the server says that there is no such file. 3.
    pub missing: u32,
    /// Bytes that are something to speak of. 64 KiB.
    pub progress: u64,
    /// Between tries: 1 s to 5 min.
    pub backoff: Backoff,
    /// Longest wait that a server may impose. 1 h.
    pub retry_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(24 * 3600),
            head: Duration::from_secs(30),
            least_rate: 1024,
            window: Duration::from_secs(30),
            tries: 8,
            missing: 3,
            progress: 64 * 1024,
            backoff: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(300) },
            retry_after: Duration::from_secs(3600),
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub had: u64,
    /// Bytes of the whole, where known.
    pub total: Option<u64>,
}

/// Why there is no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One line: what, where, why. The same failure has the same text.
    pub text: String,
    /// Whether it may work another time.
    pub kind: FailureKind,
}

/// Whether it may work another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The network, the server or the disk: perhaps later. What has come is kept.
    Transient,
    /// This offer is wrong: not worth another try.
    Refused,
}

/// Fetches a file. `progress` is called at most once a second.
///
/// # Errors
/// Why not.
pub async fn fetch(
    source: &Source,
    ways: &Ways,
    progress: &mut dyn FnMut(Progress),
) -> Result<Received, Failure> {
    let refused = |text| Failure { text, kind: FailureKind::Refused };
    let server = &ways.plan.server;
    let start = Place::parse(&source.url, server, source.signed).map_err(refused)?;
    place::check_headers(&source.headers).map_err(refused)?;
    let place = start.to_string();
    if let Some(size) = source.size.filter(|size| *size > source.limit) {
        let limit = source.limit;
        return Err(refused(format!(
            "the file at {place} has {size} bytes; opamp.packages.max_size allows {limit}"
        )));
    }
    let total = ways.limits.total;
    let fetching = Box::pin(all_tries(source, ways, start, progress));
    let fetched = within(total, fetching).await;
    fetched.unwrap_or_else(|| Err(Trouble::again(format!("not whole within {total:?}")))).map_err(
        |trouble| Failure {
            text: format!("download from {place}: {}", trouble.text),
            kind: match trouble.then {
                Then::Never => FailureKind::Refused,
                _ => FailureKind::Transient,
            },
        },
    )
}

/// Why a try came to nothing.
#[derive(Debug)]
struct Trouble {
    text: String,
    then: Then,
}

/// What to do about it.
#[derive(Debug)]
enum Then {
    /// Try again, after so long at least.
    Again(Option<Duration>),
    /// Try again a few times only.
    AFewTimes,
    /// Try again from the first byte on, at once.
    Restart,
    /// Nothing now: the disk, or more bytes than the file is worth.
    NotNow,
    /// Nothing, ever.
    Never,
}

impl Trouble {
    fn again(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), then: Then::Again(None) }
    }

    fn never(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), then: Then::Never }
    }

    fn restart(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), then: Then::Restart }
    }
}

impl From<io::Error> for Trouble {
    /// The disk's: with the network's errors it has come to words already.
    fn from(error: io::Error) -> Self {
        Self { text: error.to_string(), then: Then::NotNow }
    }
}

async fn all_tries(
    source: &Source,
    ways: &Ways,
    start: Place,
    progress: &mut dyn FnMut(Progress),
) -> Result<Received, Trouble> {
    let (sink, found) = Sink::open(&ways.packages_dir, source.sha256).await?;
    let now = now();
    let mut download = Download {
        source,
        ways,
        start,
        own: None,
        sink,
        had: found.size,
        mark: found.mark,
        pieced: found.size > 0,
        resumes: true,
        wire: 0,
        brake: Brake::new(ways.bandwidth, now.mono),
        told: None,
        progress,
    };
    let (mut idle, mut missing) = (0_u32, 0_u32);
    let mut best = download.had;
    let mut jitter = Jitter::new(seed(now));
    let limits = ways.limits;
    download.clear_useless().await?;
    loop {
        // Boxed: the futures of connections are large.
        let trouble = match Box::pin(download.attempt()).await {
            Ok(()) if download.sink.is_expected().await? => {
                return Ok(download.sink.finish().await?);
            }
            Ok(()) => match download.pieced {
                true => Trouble::restart("what came in parts does not have the expected SHA-256"),
                false => {
                    download.sink.discard().await;
                    return Err(Trouble::never("the file does not have the expected SHA-256"));
                }
            },
            Err(trouble) => trouble,
        };
        if let Then::NotNow = trouble.then {
            return Err(trouble);
        }
        // What came is on the disk before anything is decided: a disk that fails ends it here.
        download.sink.settle().await?;
        // Further than ever: who lets us begin anew each time gets no more tries for it.
        idle = match download.had.saturating_sub(best) >= limits.progress {
            true => 0,
            false => idle.saturating_add(1),
        };
        best = best.max(download.had);
        let asked = match trouble.then {
            Then::Never => {
                download.sink.discard().await;
                return Err(trouble);
            }
            Then::NotNow => return Err(trouble),
            Then::AFewTimes => {
                missing = missing.saturating_add(1);
                if missing >= limits.missing {
                    download.sink.discard().await;
                    return Err(Trouble::never(trouble.text));
                }
                None
            }
            Then::Restart if download.resumes => {
                // Whoever gets it wrong once is not asked for a part again.
                download.resumes = false;
                download.reset().await?;
                continue;
            }
            Then::Restart => {
                download.reset().await?;
                None
            }
            Then::Again(asked) => asked,
        };
        if idle >= limits.tries {
            return Err(trouble);
        }
        let pause = full_jitter(limits.backoff, idle.saturating_sub(1), &mut jitter);
        let asked = asked.unwrap_or_default().min(limits.retry_after);
        let spread = asked.checked_div(4).unwrap_or_default();
        let asked = asked.saturating_add(jitter.up_to(spread)).min(limits.retry_after);
        Timer::after(pause.max(asked)).await;
    }
}

/// One download, through all its tries.
struct Download<'a> {
    source: &'a Source,
    ways: &'a Ways,
    /// Where the offer's URL leads.
    start: Place,
    /// How near the settings' endpoint is, once it was looked up.
    own: Option<Reach>,
    sink: Sink,
    /// Bytes that are there, or handed to the sink.
    had: u64,
    /// What they belong to.
    mark: Mark,
    /// They come from more than one answer.
    pieced: bool,
    /// Parts may be asked for.
    resumes: bool,
    /// Bytes of bodies that came over the wire.
    wire: u64,
    brake: Brake,
    /// When progress was last told.
    told: Option<clock::Mono>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Download<'_> {
    /// Bytes that the file may have.
    fn most(&self) -> u64 {
        self.source.size.unwrap_or(self.source.limit)
    }

    fn total(&self) -> Option<u64> {
        self.source.size.or(self.mark.total)
    }

    fn is_whole(&self) -> bool {
        self.total() == Some(self.had)
    }

    /// Bytes that may come over the wire in all, over all tries: a file that comes twice and is still not there is
    /// somebody's mistake or malice.
    fn allowance(&self) -> u64 {
        self.total().unwrap_or(self.source.limit).saturating_mul(2).max(1)
    }

    /// Drops what is there where nothing can be made of it.
    async fn clear_useless(&mut self) -> Result<(), Trouble> {
        if self.had == 0 {
            return Ok(());
        }
        let fits = self.source.size.is_none_or(|size| self.had <= size) && self.had <= self.most();
        if fits && self.sink.is_expected().await? {
            // It had come whole.
            self.mark.total = Some(self.had);
            return Ok(());
        }
        let same = self.mark.total.is_none_or(|total| {
            self.had < total && total <= self.most() && self.source.size.is_none_or(|s| s == total)
        });
        let unfinished = self.source.size.is_none_or(|size| self.had < size);
        if fits && same && unfinished && !self.mark.validator.is_empty() {
            return Ok(());
        }
        self.reset().await
    }

    async fn reset(&mut self) -> Result<(), Trouble> {
        self.sink.reset().await?;
        self.mark = Mark::default();
        self.had = 0;
        self.pieced = false;
        Ok(())
    }

    /// One try. Done: the file is whole, as far as sizes tell.
    async fn attempt(&mut self) -> Result<(), Trouble> {
        if self.had > 0 && self.is_whole() {
            return Ok(());
        }
        if self.had > 0 && (!self.resumes || self.mark.validator.is_empty()) {
            self.reset().await?;
        }
        let mut place = self.start.clone();
        self.request(&mut place).await.map_err(|trouble| match place.detour() {
            Some(detour) => Trouble { text: format!("{detour}: {}", trouble.text), ..trouble },
            None => trouble,
        })
    }

    /// One request, with what redirects make of it, and its body.
    async fn request(&mut self, place: &mut Place) -> Result<(), Trouble> {
        let (mut stream, mut head) = loop {
            let (stream, head) = self.exchange(place).await?;
            if !is_redirect(head.status) {
                break (stream, head);
            }
            let server = &self.ways.plan.server;
            place.redirect(&head, server, self.source.signed).map_err(Trouble::never)?;
        };
        let asked = Asked {
            had: self.had,
            mark: &self.mark,
            size: self.source.size,
            limit: self.source.limit,
        };
        let body = answer::judge(&head, asked, now().wall).map_err(|none| match none {
            NoBody::Restart(text) => Trouble::restart(text),
            NoBody::Later(text, after) => Trouble { text, then: Then::Again(after) },
            NoBody::Missing(text) => Trouble { text, then: Then::AFewTimes },
            NoBody::Wrong(text) => Trouble::never(text),
        })?;
        let limit = match &body {
            Body::Whole { .. } => self.most(),
            Body::Rest { length, .. } => *length,
        };
        let rest = core::mem::take(&mut head.rest);
        let reader = Reader::new(&mut stream, &head, rest, limit);
        let mut reader = reader.map_err(|fault| self.fault(fault))?;
        match body {
            Body::Whole { mark } => self.begin(mark, reader.end()).await?,
            Body::Rest { total, .. } => {
                self.mark.total = Some(total);
                self.pieced = true;
            }
        }
        let more = self.total().unwrap_or(self.had).saturating_sub(self.had);
        self.sink.reserve(more).await?;
        self.take(&mut reader, limit).await
    }

    /// The whole file comes: what was there goes.
    async fn begin(&mut self, mark: Mark, end: End) -> Result<(), Trouble> {
        self.reset().await?;
        if end == End::Close && self.source.size.is_none() {
            return Err(Trouble::never(
                "the answer has neither a length nor chunks: nobody could tell where the file ends",
            ));
        }
        let total = match end {
            End::Length(length) => Some(length),
            End::Chunked | End::Close => self.source.size,
        };
        let mark = Mark { total, ..mark };
        self.sink.begin(mark.clone()).await?;
        self.mark = mark;
        Ok(())
    }

    /// Opens a connection, asks, and reads the head of the answer.
    async fn exchange(&mut self, place: &Place) -> Result<(Stream, Head), Trouble> {
        let plan = &self.ways.plan;
        let own = self.own_reach().await;
        let judge = |address: IpAddr| place::judge(address, &place.at, &plan.server, own);
        if let Ok(address) = place.at.host.parse::<IpAddr>() {
            judge(address).map_err(|why| Trouble::never(format!("{address} {why}")))?;
        }
        let forbidden = Cell::new(false);
        let watched = |address: IpAddr| judge(address).inspect_err(|_| forbidden.set(true));
        let opened = open_to(plan, &place.at, place.peer(&plan.server), &watched).await;
        let mut stream = opened.map_err(|error| Trouble {
            text: error.text,
            then: if forbidden.get() { Then::AFewTimes } else { Then::Again(None) },
        })?;
        let request = self.head(place);
        let limit = self.ways.limits.head;
        let answer = async {
            stream.write_all(request.as_bytes()).await.map_err(Trouble::again)?;
            stream.flush().await.map_err(Trouble::again)?;
            http1::final_head(&mut stream).await.map_err(|none| Trouble::again(none.text))
        };
        match within(limit, answer).await {
            Some(head) => head.map(|head| (stream, head)),
            None => Err(Trouble::again(format!("no answer within {limit:?}"))),
        }
    }

    fn head(&self, place: &Place) -> String {
        let range = format!("bytes={}-", self.had);
        let mut own = vec![("Accept-Encoding", "identity"), ("Connection", "close")];
        if self.had > 0 {
            own.push(("Range", &range));
            own.push(("If-Range", &self.mark.validator));
        }
        let Endpoint { path, .. } = &place.at;
        http1::request(
            "GET",
            path,
            &place.at.authority(),
            &own,
            place.headers(&self.source.headers),
        )
    }

    /// How near the endpoint of the settings is. Behind a proxy nobody knows, so it is far.
    async fn own_reach(&mut self) -> Reach {
        if let Some(known) = self.own {
            return known;
        }
        let server = &self.ways.plan.server;
        let Endpoint { host, port, .. } = &server.endpoint;
        let own = match host.parse::<IpAddr>() {
            Ok(address) => Reach::of(address),
            Err(_) if is_proxied(&server.endpoint, server).unwrap_or(true) => Reach::Public,
            Err(_) => {
                let found = within(server.timeouts.connect, net::resolve(host, *port)).await;
                let Some(Ok(addresses)) = found else { return Reach::Public };
                let reaches = addresses.iter().map(|address| Reach::of(address.ip()));
                reaches.min().unwrap_or(Reach::Public)
            }
        };
        self.own = Some(own);
        own
    }

    /// Takes the body, at most `limit` bytes of it.
    async fn take(&mut self, reader: &mut Reader<'_, Stream>, limit: u64) -> Result<(), Trouble> {
        let limits = self.ways.limits;
        let least = match self.ways.bandwidth {
            0 => limits.least_rate,
            // We may be the slow ones.
            rate => limits.least_rate.min(rate / 2),
        };
        let mut window = Window::new(least, limits.window, now().mono);
        let mut left = limit;
        loop {
            let since = now().mono;
            let mut buffer = self.sink.buffer().await?;
            window.pause(since, now().mono);
            let (filled, end) = self.fill(reader, &mut buffer, left, &mut window).await;
            let count = u64::try_from(filled).unwrap_or(u64::MAX);
            self.had = self.had.saturating_add(count);
            left = left.saturating_sub(count);
            self.sink.write(buffer, filled).await?;
            self.tell();
            if let Some(end) = end {
                end?;
                return self.ended(reader.end());
            }
            if self.is_whole() {
                return Ok(());
            }
            // Where bytes come as fast as they are written, nobody else would have a turn.
            smol::future::yield_now().await;
        }
    }

    /// Fills a buffer, or what came within a tick. How much it holds, and how the body ended.
    async fn fill(
        &mut self,
        reader: &mut Reader<'_, Stream>,
        buffer: &mut [u8],
        left: u64,
        window: &mut Window,
    ) -> (usize, Option<Result<(), Trouble>>) {
        let mut filled = 0_usize;
        let begun = now().mono;
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
        loop {
            if filled >= room && room > 0 {
                return (filled, None);
            }
            let spare = usize::try_from(self.allowance().saturating_sub(self.wire));
            let most = spare.unwrap_or(usize::MAX).min(self.brake.most());
            if most == 0 {
                return (filled, Some(Err(self.too_often())));
            }
            // At the limit one byte more is asked for: there must be none.
            let end = filled.saturating_add(most).min(room.max(1));
            let space = buffer.get_mut(filled..end).unwrap_or_default();
            reader.stall = window.left(now().mono);
            let got = match reader.read(space).await {
                Ok(0) => return (filled, Some(Ok(()))),
                Ok(_) if room == 0 => {
                    return (filled, Some(Err(self.fault(Fault::TooLarge("more".to_owned())))));
                }
                Ok(got) => got,
                Err(Fault::Stalled(_)) => 0,
                Err(fault) => return (filled, Some(Err(self.fault(fault)))),
            };
            filled = filled.saturating_add(got);
            let count = u64::try_from(got).unwrap_or(u64::MAX);
            self.wire = self.wire.saturating_add(count);
            let read = now().mono;
            if !window.came(count, read) {
                let Limits { least_rate, window, .. } = self.ways.limits;
                let text =
                    format!("too slow: less than {least_rate} bytes a second for {window:?}");
                return (filled, Some(Err(Trouble::again(text))));
            }
            if let Some(pause) = self.brake.took(count, read) {
                Timer::after(pause).await;
                window.pause(read, now().mono);
            }
            if read.since(begun) >= TICK {
                return (filled, None);
            }
        }
    }

    /// The body has ended as its framing says.
    fn ended(&self, end: End) -> Result<(), Trouble> {
        let had = self.had;
        match self.total() {
            Some(total) if had == total => Ok(()),
            // The server meant it so.
            Some(total) if end == End::Chunked && !self.pieced => {
                Err(Trouble::never(format!("the server has {had} bytes, and {total} are signed")))
            }
            Some(total) => Err(Trouble::again(format!("{had} of {total} bytes came"))),
            None => Ok(()),
        }
    }

    fn too_often(&self) -> Trouble {
        let allowance = self.allowance();
        let text = format!("{allowance} bytes came in all, twice the file, and it is not whole");
        Trouble { text, then: Then::NotNow }
    }

    fn fault(&self, fault: Fault) -> Trouble {
        match fault {
            Fault::TooLarge(_) if self.pieced => {
                Trouble::restart("the server sends more than the part that was asked for")
            }
            Fault::TooLarge(_) => match self.source.size {
                Some(size) => Trouble::never(format!(
                    "the server sends more than the {size} bytes that are signed"
                )),
                None => Trouble::never(format!(
                    "the server sends more than the {} bytes that opamp.packages.max_size allows",
                    self.source.limit
                )),
            },
            Fault::Malformed(text) | Fault::Cut(text) => Trouble::again(text),
            Fault::Stalled(stall) => Trouble::again(format!("nothing came for {stall:?}")),
        }
    }

    fn tell(&mut self) {
        let now = now().mono;
        if self.told.is_none_or(|told| now.since(told) >= TICK) {
            self.told = Some(now);
            let progress = Progress { had: self.had, total: self.total() };
            (self.progress)(progress);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
fn now() -> Now {
    clock::now()
}

/// What the jitter starts from: nothing secret hangs on it.
fn seed(now: Now) -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes) ^ now.wall.unix_nanos()
}
