//! The download executor against servers that drop, lie, stall and lead astray: real sockets, real TLS, real files.
//!
//! What must never be: a file with another hash than the one asked for, bytes of two versions in one file, a byte more
//! than was allowed, a header or a certificate at another's server, tries without end.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use chiton::packages::fetch::{
    Failure, FailureKind, Limits, Progress, Received, Source, Ways, fetch,
};
use chiton::reactor::block_on;
use chiton::secret::Secret;
use chiton::settings::{Backoff, Server, from_text};
use chiton::transport::Plan;
use common::authority::Authority;
use common::{PATIENCE, Stream, read_head};
use rustls::ServerConfig;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;

/// What a site does with one request: its number from 0, its head, the connection.
type Handler = dyn Fn(usize, &str, &mut Stream) -> io::Result<()> + Send + Sync;

/// Sends a body, framed.
type Sends = fn(&mut Stream, &[u8]) -> io::Result<()>;
/// Sends the head of a part: from where, of how many bytes.
type SendsPart = fn(&mut Stream, usize, usize) -> io::Result<()>;

/// A web server on a port of its own. It lives as long as the test's process.
struct Site {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn new(
        handler: impl Fn(usize, &str, &mut Stream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::by(None, Arc::new(handler))
    }

    fn tls(
        config: Arc<ServerConfig>,
        handler: impl Fn(usize, &str, &mut Stream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::by(Some(config), Arc::new(handler))
    }

    fn by(config: Option<Arc<ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let (handler, seen, config) =
                    (Arc::clone(&handler), Arc::clone(&seen), config.clone());
                thread::spawn(move || {
                    let mut stream = Stream::Plain(stream);
                    if let Some(config) = config {
                        stream = stream.encrypted(&config);
                    }
                    let head = read_head(&mut stream);
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(head.clone());
                        seen.len() - 1
                    };
                    // The client may have had enough.
                    let _ = handler(number, &head, &mut stream).and_then(|()| stream.flush());
                    let _ = stream.tcp().shutdown(Shutdown::Write);
                    // What was not read would take the answer with it.
                    let _ = io::copy(&mut stream, &mut io::sink());
                });
            }
        });
        Self { port, heads }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/package", self.port)
    }

    fn https(&self) -> String {
        format!("https://localhost:{}/package", self.port)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.heads().iter().map(|head| range(head)).collect()
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Where the asked range begins.
fn range(head: &str) -> Option<usize> {
    header(head, "Range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// Bytes that do not repeat.
fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A whole file with a strong ETag.
fn whole(stream: &mut Stream, tag: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nETag: \"{tag}\"\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(body)
}

/// The head of a part that goes on from `from`.
fn part_head(stream: &mut Stream, tag: &str, from: usize, total: usize) -> io::Result<()> {
    let (last, length) = (total - 1, total - from);
    write!(
        stream,
        "HTTP/1.1 206 Partial\r\nETag: \"{tag}\"\r\nContent-Range: bytes {from}-{last}/{total}\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

/// Says nothing more until the client has gone.
fn hold(stream: &mut Stream) -> io::Result<()> {
    stream.flush()?;
    io::copy(stream, &mut io::sink()).map(drop)
}

fn settings(yaml: &str) -> Server {
    let none = std::collections::BTreeMap::<&str, &str>::new();
    from_text(&format!("opamp: {{server: {{{yaml}}}}}"), "test", &none).unwrap().settings.server
}

/// A device that downloads.
struct Device {
    dir: tempfile::TempDir,
    server: Server,
    limits: Limits,
    bandwidth: u64,
}

impl Device {
    /// Its server is on this host, so packages may be there too.
    fn new() -> Self {
        Self::of("endpoint: \"ws://127.0.0.1:1\"")
    }

    fn of(server: &str) -> Self {
        let quick = Duration::from_millis(1);
        let limits =
            Limits { backoff: Backoff { initial: quick, max: quick }, ..Limits::default() };
        let dir = tempfile::tempdir().unwrap();
        Self { dir, server: settings(server), limits, bandwidth: 0 }
    }

    fn ways(&self) -> Ways {
        Ways {
            plan: Plan { server: self.server.clone(), factory: Arc::default() },
            packages_dir: self.dir.path().to_owned(),
            bandwidth: self.bandwidth,
            limits: self.limits,
        }
    }

    fn fetch(&self, source: &Source) -> Result<Received, Failure> {
        self.fetch_telling(source, &mut |_| {})
    }

    fn fetch_telling(
        &self,
        source: &Source,
        told: &mut dyn FnMut(Progress),
    ) -> Result<Received, Failure> {
        block_on(fetch(source, &self.ways(), told)).unwrap()
    }

    /// Fetches what must come, and must be this.
    #[track_caller]
    fn gets(&self, source: &Source, body: &[u8]) {
        let received = self.fetch(source).unwrap();
        assert_eq!(received.size, body.len() as u64);
        assert_eq!(received.sha256, source.sha256);
        let mut got = Vec::new();
        io::Read::read_to_end(&mut (&received.file), &mut got).unwrap();
        assert!(got == body, "the descriptor holds something else");
        assert!(fs::read(self.dir.path().join(&received.path)).unwrap() == body);
    }

    /// Fetches what must not come, with these words.
    #[track_caller]
    fn fails(&self, source: &Source, kind: FailureKind, words: &[&str]) -> Failure {
        let failure = self.fetch(source).unwrap_err();
        assert_eq!(failure.kind, kind, "{}", failure.text);
        for word in words {
            assert!(failure.text.contains(word), "{word}: {}", failure.text);
        }
        assert!(!failure.text.contains("hunter2") && !failure.text.contains('\n'), "{failure:?}");
        failure
    }

    fn part(&self, source: &Source) -> PathBuf {
        let hex: String = source.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.path().join("incoming").join(format!("{hex}.part"))
    }

    fn kept(&self, source: &Source) -> u64 {
        fs::metadata(self.part(source)).map_or(0, |found| found.len())
    }
}

/// The offer of a signed file.
fn source(url: &str, body: &[u8]) -> Source {
    Source {
        url: url.to_owned(),
        headers: Vec::new(),
        sha256: Sha256::digest(body).into(),
        size: Some(body.len() as u64),
        limit: 512 << 20,
        signed: true,
    }
}

/// The same where nobody knows how long it is.
fn sizeless(url: &str, body: &[u8]) -> Source {
    Source { size: None, ..source(url, body) }
}

fn secret_header() -> Vec<(String, Secret<String>)> {
    vec![("Authorization".to_owned(), Secret::new("Bearer hunter2".to_owned()))]
}

fn has_secret(head: &str) -> bool {
    head.contains("hunter2")
}

mod whole_files {
    use super::*;

    #[test]
    fn a_file_comes_by_every_framing() {
        let body = bytes(3 * MIB + 17, 1);
        let device = Device::new();
        let framings: [Sends; 3] = [
            |stream, body| whole(stream, "v1", body),
            |stream, body| {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for part in body.chunks(70_001) {
                    write!(stream, "{:x};x=y\r\n", part.len())?;
                    stream.write_all(part)?;
                    stream.write_all(b"\r\n")?;
                }
                stream.write_all(b"0\r\nX: y\r\n\r\n")
            },
            |stream, body| {
                stream.write_all(b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.0 200 OK\r\n\r\n")?;
                stream.write_all(body)
            },
        ];
        for (number, framing) in framings.into_iter().enumerate() {
            let served = body.clone();
            let site = Site::new(move |_, _, stream| framing(stream, &served));
            device.gets(&source(&site.url(), &body), &body);
            fs::remove_dir_all(device.dir.path().join("incoming")).unwrap();
            let heads = site.heads();
            assert_eq!(heads.len(), 1);
            assert!(heads[0].starts_with("GET /package HTTP/1.1\r\n"), "{}", heads[0]);
            assert_eq!(header(&heads[0], "Accept-Encoding"), Some("identity"));
            assert_eq!(header(&heads[0], "Range"), None);
            if number < 2 {
                device.gets(&sizeless(&site.url(), &body), &body);
                fs::remove_dir_all(device.dir.path().join("incoming")).unwrap();
            }
        }
    }

    #[test]
    fn what_came_whole_before_is_not_asked_for_again() {
        let body = bytes(100_000, 2);
        let served = body.clone();
        let site = Site::new(move |_, _, stream| whole(stream, "v1", &served));
        let device = Device::new();
        device.gets(&source(&site.url(), &body), &body);
        device.gets(&sizeless(&site.url(), &body), &body);
        assert_eq!(site.heads().len(), 1);
    }

    #[test]
    fn an_empty_file_is_a_file() {
        let site = Site::new(|_, _, stream| whole(stream, "v1", b""));
        let device = Device::new();
        device.gets(&source(&site.url(), b""), b"");
        device.gets(&sizeless(&site.url(), b""), b"");
    }

    #[test]
    fn progress_is_told() {
        let body = bytes(MIB, 3);
        let served = body.clone();
        let site = Site::new(move |_, _, stream| whole(stream, "v1", &served));
        let mut told = Vec::new();
        let device = Device::new();
        let source = sizeless(&site.url(), &body);
        device.fetch_telling(&source, &mut |progress| told.push(progress)).unwrap();
        assert!(told.iter().all(|told| told.total == Some(MIB as u64) && told.had > 0), "{told:?}");
        assert!(!told.is_empty());
    }

    #[test]
    fn a_bandwidth_is_no_obstacle() {
        let body = bytes(200_000, 4);
        let served = body.clone();
        let site = Site::new(move |_, _, stream| whole(stream, "v1", &served));
        let device = Device { bandwidth: 400_000, ..Device::new() };
        device.gets(&source(&site.url(), &body), &body);
    }

    #[test]
    fn another_hash_is_refused_and_nothing_of_it_stays() {
        let site = Site::new(|_, _, stream| whole(stream, "v1", b"something else"));
        let device = Device::new();
        let wanted = source(&site.url(), b"what is signed");
        device.fails(&wanted, FailureKind::Refused, &["does not have the expected SHA-256"]);
        assert!(!device.part(&wanted).exists());
        assert_eq!(site.heads().len(), 1);
    }
}

mod resuming {
    use super::*;

    /// Sends the file from where it was asked for, `piece` bytes at a time, and drops the connection.
    fn dropping(body: &[u8], piece: usize) -> Site {
        let body = body.to_vec();
        Site::new(move |_, head, stream| {
            let from = range(head).unwrap_or(0);
            let to = body.len().min(from + piece);
            if from == 0 {
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: {length}\r\n\r\n"
                )?;
            } else {
                assert_eq!(header(head, "If-Range"), Some("\"v1\""));
                part_head(stream, "v1", from, body.len())?;
            }
            stream.write_all(&body[from..to])
        })
    }

    #[test]
    fn ten_drops_cost_no_byte_twice() {
        let body = bytes(11 * 100_000 - 1, 1);
        let site = dropping(&body, 100_000);
        for wanted in [source(&site.url(), &body), sizeless(&site.url(), &body)] {
            let device = Device::new();
            let before = site.heads().len();
            device.gets(&wanted, &body);
            let ranges = &site.ranges()[before..];
            let expected: Vec<_> = (0..11).map(|n| (n > 0).then_some(n * 100_000)).collect();
            assert_eq!(ranges, expected);
        }
    }

    #[test]
    fn what_came_is_gone_on_with_by_the_next_fetch() {
        let body = bytes(300_000, 2);
        let site = dropping(&body, 100_000);
        let mut device = Device::new();
        device.limits.tries = 1;
        device.limits.progress = u64::MAX;
        let wanted = source(&site.url(), &body);
        for kept in [100_000, 200_000] {
            device.fails(&wanted, FailureKind::Transient, &["cut short"]);
            assert_eq!(device.kept(&wanted), kept);
        }
        device.gets(&wanted, &body);
        assert_eq!(site.ranges(), [None, Some(100_000), Some(200_000)]);
    }

    #[test]
    fn damage_on_the_disk_is_found_and_fetched_again() {
        let body = bytes(300_000, 3);
        let site = dropping(&body, 200_000);
        let mut device = Device::new();
        device.limits.tries = 1;
        device.limits.progress = u64::MAX;
        let wanted = source(&site.url(), &body);
        device.fails(&wanted, FailureKind::Transient, &[]);
        let mut part = fs::read(device.part(&wanted)).unwrap();
        part[77] ^= 1;
        fs::write(device.part(&wanted), part).unwrap();
        device.limits.tries = 8;
        let failure = device.fetch(&wanted);
        // It restarts whole, and this site never sends it whole.
        assert!(failure.is_err());
        assert_eq!(site.ranges()[..3], [None, Some(200_000), None]);
        let served = body.clone();
        let honest = Site::new(move |_, _, stream| whole(stream, "v1", &served));
        device.gets(&source(&honest.url(), &body), &body);
    }

    #[test]
    fn a_file_that_changed_is_never_spliced() {
        let (old, new) = (bytes(300_000, 4), bytes(300_000, 5));
        // Honest about it; silent about it; lying about it.
        for honesty in 0..3 {
            let (first, second) = (old.clone(), new.clone());
            let site = Site::new(move |number, head, stream| match (number, range(head)) {
                (0, None) => {
                    let length = first.len();
                    write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: {length}\r\n\r\n"
                    )?;
                    stream.write_all(&first[..150_000])
                }
                (1, Some(from)) => match honesty {
                    0 => whole(stream, "v2", &second),
                    1 => {
                        part_head(stream, "v2", from, second.len())?;
                        stream.write_all(&second[from..])
                    }
                    _ => {
                        part_head(stream, "v1", from, second.len())?;
                        stream.write_all(&second[from..])
                    }
                },
                (2, None) => whole(stream, "v2", &second),
                other => panic!("{other:?}"),
            });
            Device::new().gets(&source(&site.url(), &new), &new);
            assert_eq!(site.heads().len(), if honesty == 0 { 2 } else { 3 });
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_not_taken() {
        let body = bytes(300_000, 6);
        let bad: [SendsPart; 7] = [
            |stream, from, total| part_head(stream, "v1", from - 1, total),
            |stream, from, total| part_head(stream, "v1", from + 1, total),
            |stream, from, total| part_head(stream, "v1", from, total + 1),
            |stream, from, total| part_head(stream, "v1", from, total - 1),
            |stream, _, total| part_head(stream, "v1", 0, total),
            |stream, _, _| {
                stream.write_all(b"HTTP/1.1 206 Partial\r\nContent-Length: 300000\r\n\r\n")
            },
            |stream, _, _| stream.write_all(b"HTTP/1.1 416 Range\r\nContent-Length: 0\r\n\r\n"),
        ];
        for bad in bad {
            let served = body.clone();
            let site = Site::new(move |number, head, stream| match (number, range(head)) {
                (0, None) => {
                    stream.write_all(
                        b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 300000\r\n\r\n",
                    )?;
                    stream.write_all(&served[..100_000])
                }
                (1, Some(from)) => {
                    bad(stream, from, served.len())?;
                    stream.write_all(&served)
                }
                // Nobody asks it for a part again.
                (_, None) => whole(stream, "v1", &served),
                other => panic!("{other:?}"),
            });
            Device::new().gets(&source(&site.url(), &body), &body);
            assert_eq!(site.ranges(), [None, Some(100_000), None]);
        }
    }

    #[test]
    fn without_a_strong_validator_it_begins_anew_and_not_for_ever() {
        let body = bytes(300_000, 7);
        for validator in ["", "ETag: W/\"v1\"\r\n", "Last-Modified: some day\r\n"] {
            let served = body.clone();
            let site = Site::new(move |_, _, stream| {
                write!(stream, "HTTP/1.1 200 OK\r\n{validator}Content-Length: 300000\r\n\r\n")?;
                stream.write_all(&served[..200_000])
            });
            let wanted = source(&site.url(), &body);
            let device = Device::new();
            device.fails(&wanted, FailureKind::Transient, &["600000 bytes came in all"]);
            assert_eq!(site.ranges(), [None, None, None]);
        }
    }
}

mod bounds {
    use super::*;

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn an_endless_stream_ends_at_the_limit() {
        let body = bytes(200_000, 1);
        for chunked in [true, false] {
            let site = Site::new(move |_, _, stream| {
                stream.write_all(if chunked { CHUNKED } else { b"HTTP/1.1 200 OK\r\n\r\n" })?;
                loop {
                    if chunked {
                        stream.write_all(b"1000\r\n")?;
                    }
                    stream.write_all(&[7; 0x1000])?;
                    if chunked {
                        stream.write_all(b"\r\n")?;
                    }
                }
            });
            let device = Device::new();
            let limited = Source { limit: 100_000, ..sizeless(&site.url(), &body) };
            if chunked {
                device.fails(&limited, FailureKind::Refused, &["more than the 100000 bytes"]);
                assert!(device.kept(&limited) <= 100_000);
            } else {
                device.fails(&limited, FailureKind::Refused, &["neither a length nor chunks"]);
                assert_eq!(device.kept(&limited), 0);
            }
            // Signed: not a byte more than that is looked at.
            let signed = source(&site.url(), &body);
            device.fails(&signed, FailureKind::Refused, &[]);
            assert!(device.kept(&signed) <= 200_000);
            assert_eq!(site.heads().len(), 2);
        }
    }

    #[test]
    fn an_announced_size_that_is_wrong_is_refused_before_it_comes() {
        let body = bytes(1000, 2);
        let served = body.repeat(10);
        let site = Site::new(move |_, _, stream| whole(stream, "v1", &served));
        let device = Device::new();
        let words = ["10000 bytes", "1000 are signed"];
        device.fails(&source(&site.url(), &body), FailureKind::Refused, &words);
        let limited = Source { limit: 9999, ..sizeless(&site.url(), &body) };
        device.fails(&limited, FailureKind::Refused, &["10000 bytes", "allows 9999"]);
        let absurd = Source { size: Some(10), limit: 9, ..limited.clone() };
        device.fails(&absurd, FailureKind::Refused, &["max_size"]);
        assert_eq!((site.heads().len(), device.kept(&limited)), (2, 0));
    }

    #[test]
    fn a_chunk_that_is_too_large_is_refused_before_it_comes() {
        let site = Site::new(|_, _, stream| {
            stream.write_all(CHUNKED)?;
            stream.write_all(b"ffffffffffffffff\r\n")?;
            stream.write_all(&[0; 64 * 1024])
        });
        let device = Device::new();
        let wanted = source(&site.url(), &[0; 64 * 1024]);
        device.fails(&wanted, FailureKind::Refused, &["more than the 65536 bytes that are signed"]);
    }

    #[test]
    fn a_file_that_ends_too_early_is_refused_where_the_server_means_it() {
        let site = Site::new(|_, _, stream| {
            stream.write_all(CHUNKED)?;
            stream.write_all(b"3\r\nabc\r\n0\r\n\r\n")
        });
        let device = Device::new();
        let words = ["the server has 3 bytes, and 6 are signed"];
        device.fails(&source(&site.url(), b"abcdef"), FailureKind::Refused, &words);
        assert_eq!(site.heads().len(), 1);
    }

    #[test]
    fn a_disk_without_room_is_told_before_a_byte_is_written() {
        let size = u64::MAX / 2;
        let site = Site::new(move |_, _, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
            stream.write_all(&[0; 1024])
        });
        let device = Device::new();
        let wanted = Source { size: Some(size), limit: size, ..source(&site.url(), b"") };
        let words = ["incoming/", "no space left: 9223372036854775807 bytes more are needed"];
        device.fails(&wanted, FailureKind::Transient, &words);
        assert_eq!((site.heads().len(), device.kept(&wanted)), (1, 0));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told() {
        let device = Device::new();
        fs::write(device.dir.path().join("incoming"), "a file").unwrap();
        let wanted = source("http://127.0.0.1:1/package", b"x");
        device.fails(&wanted, FailureKind::Transient, &["incoming/", "ot a directory"]);
    }

    #[test]
    fn a_packed_answer_is_refused() {
        let site = Site::new(|_, _, stream| {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
            )
        });
        let wanted = source(&site.url(), b"x");
        Device::new().fails(&wanted, FailureKind::Refused, &["gzip"]);
    }
}

mod patience {
    use super::*;

    /// Too impatient for a server that waits.
    fn impatient() -> Device {
        let mut device = Device::new();
        device.limits.window = Duration::from_millis(500);
        device.limits.tries = 2;
        device
    }

    #[test]
    fn a_stall_is_ended_and_what_came_is_kept() {
        let body = bytes(200_000, 1);
        let served = body.clone();
        let site = Site::new(move |number, head, stream| {
            if let Some(from) = range(head) {
                part_head(stream, "v1", from, served.len())?;
                // The last byte does not come.
                let to = if number < 2 { served.len() - 1 } else { served.len() };
                stream.write_all(&served[from..to])?;
            } else {
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 200000\r\n\r\n",
                )?;
                stream.write_all(&served[..100_000])?;
            }
            hold(stream)
        });
        let mut device = impatient();
        device.limits.progress = u64::MAX;
        let wanted = source(&site.url(), &body);
        device.fails(&wanted, FailureKind::Transient, &["too slow", "1024 bytes a second"]);
        assert_eq!(device.kept(&wanted), 199_999);
        device.gets(&wanted, &body);
        assert_eq!(site.ranges(), [None, Some(100_000), Some(199_999)]);
    }

    #[test]
    fn a_trickle_is_ended() {
        let site = Site::new(|_, _, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                stream.flush()?;
                thread::park_timeout(Duration::from_millis(10));
            }
        });
        let wanted = source(&site.url(), &bytes(200_000, 2));
        impatient().fails(&wanted, FailureKind::Transient, &["too slow"]);
        assert_eq!(site.heads().len(), 2);
    }

    #[test]
    fn a_server_that_says_nothing_is_left() {
        let site = Site::new(|_, _, stream| hold(stream));
        let mut device = impatient();
        device.limits.head = Duration::from_millis(50);
        let wanted = source(&site.url(), b"x");
        device.fails(&wanted, FailureKind::Transient, &["no answer within 50ms"]);
        assert_eq!(site.heads().len(), 2);
    }

    #[test]
    fn everything_together_has_an_end() {
        let site = Site::new(|_, _, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")?;
            hold(stream)
        });
        let mut device = Device::new();
        device.limits.total = Duration::from_millis(100);
        let words = ["not whole within 100ms"];
        device.fails(&source(&site.url(), &[0; 9]), FailureKind::Transient, &words);
    }

    #[test]
    fn a_file_that_is_not_there_is_asked_for_three_times() {
        for status in ["404 No", "410 Gone", "403 No", "204 Nothing", "400 Bad"] {
            let site = Site::new(move |_, _, stream| {
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
            });
            let wanted = source(&site.url(), b"x");
            Device::new().fails(
                &wanted,
                FailureKind::Refused,
                &[status.split(' ').next().unwrap()],
            );
            assert_eq!(site.heads().len(), 3, "{status}");
        }
    }

    #[test]
    fn an_overloaded_server_is_asked_eight_times_whatever_it_says_of_waiting() {
        for after in ["0", "-1", "999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"] {
            let site = Site::new(move |_, _, stream| {
                write!(
                    stream,
                    "HTTP/1.1 503 No\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\r\n"
                )
            });
            let mut device = Device::new();
            device.limits.retry_after = Duration::from_millis(5);
            let wanted = source(&site.url(), b"x");
            device.fails(&wanted, FailureKind::Transient, &["503", "overloaded"]);
            assert_eq!(site.heads().len(), 8, "{after}");
        }
    }

    #[test]
    fn the_same_failure_has_the_same_text() {
        let site = Site::new(|_, _, stream| stream.write_all(b"HTTP/1.1 500 No\r\n\r\n"));
        let wanted = source(&site.url(), b"x");
        let device = Device::new();
        let first = device.fails(&wanted, FailureKind::Transient, &[]);
        assert_eq!(device.fails(&wanted, FailureKind::Transient, &[]), first);
        assert_eq!(
            first.text,
            format!("download from http://127.0.0.1:{}: the server answered 500", site.port)
        );
    }

    #[test]
    fn a_port_where_nobody_listens_is_tried_again() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let wanted = source(&format!("http://127.0.0.1:{port}/p"), b"x");
        Device::new().fails(&wanted, FailureKind::Transient, &["refused"]);
    }
}

mod astray {
    use super::*;

    fn redirecting(to: impl Fn(usize) -> String + Send + Sync + 'static) -> Site {
        Site::new(move |number, _, stream| {
            let to = to(number);
            write!(stream, "HTTP/1.1 302 Off\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
        })
    }

    #[test]
    fn redirects_that_are_not_followed() {
        for (to, word) in [
            ("file:///etc/passwd", "cannot be used"),
            ("ftp://127.0.0.1/x", "cannot be used"),
            ("ws://127.0.0.1/x", "cannot be used"),
            ("http://user:hunter2@127.0.0.1/x", "user information"),
            ("http://169.254.169.254/latest/meta-data?token=hunter2", "link-local"),
            ("http://[::ffff:169.254.169.254]/", "link-local"),
            ("http://[fe80::1]/", "link-local"),
            ("http://0.0.0.0/", "nobody's"),
            ("http://224.0.0.1/", "nobody's"),
            ("http://2852039166/", "unusual form"),
            ("/package", "circle"),
        ] {
            let site = redirecting(move |_| to.to_owned());
            let wanted = source(&site.url(), b"x");
            Device::new().fails(&wanted, FailureKind::Refused, &[word]);
            assert_eq!(site.heads().len(), 1, "{to}");
        }
    }

    #[test]
    fn five_redirects_are_followed_and_no_more() {
        let site = redirecting(|number| format!("/{number}"));
        let wanted = source(&site.url(), b"x");
        Device::new().fails(&wanted, FailureKind::Refused, &["after 5 times"]);
        assert_eq!(site.heads().len(), 6);
        let body = bytes(1000, 1);
        let served = body.clone();
        let site = Site::new(move |number, _, stream| match number {
            0..5 => write!(stream, "HTTP/1.1 307 Off\r\nLocation: /{number}\r\n\r\n"),
            _ => whole(stream, "v1", &served),
        });
        Device::new().gets(&source(&site.url(), &body), &body);
    }

    #[test]
    fn a_server_in_the_world_does_not_lead_into_the_device() {
        let site = Site::new(|_, _, stream| whole(stream, "v1", b"x"));
        let far = Device::of("endpoint: \"wss://203.0.113.7\"");
        let wanted = source(&site.url(), b"x");
        far.fails(&wanted, FailureKind::Refused, &["127.0.0.1 is a private address"]);
        // By a name, too.
        let named = source(&format!("http://localhost:{}/p", site.port), b"x");
        far.fails(&named, FailureKind::Refused, &["is a private address", "allow_endpoints"]);
        assert_eq!(site.heads().len(), 0);
        // Unless it is meant.
        let meant = Device::of("endpoint: \"wss://203.0.113.7\", allow_endpoints: [localhost]");
        meant.gets(&named, b"x");
        meant.fails(&wanted, FailureKind::Refused, &["allow_endpoints does not name"]);
        let broad = Device::of("endpoint: \"wss://203.0.113.7\", allow_endpoints: [\"*\"]");
        broad.fails(&wanted, FailureKind::Refused, &["private"]);
        assert_eq!(site.heads().len(), 1);
    }

    #[test]
    fn without_tls_only_what_is_signed_comes_and_no_header_goes() {
        let site = Site::new(|_, _, stream| whole(stream, "v1", b"x"));
        let device = Device::new();
        let unsigned = Source { signed: false, ..source(&site.url(), b"x") };
        device.fails(&unsigned, FailureKind::Refused, &["no TLS"]);
        let wanted = Source { headers: secret_header(), ..source(&site.url(), b"x") };
        device.gets(&wanted, b"x");
        assert!(site.heads().iter().all(|head| !has_secret(head)));
        assert_eq!(site.heads().len(), 1);
        let bad = vec![("X\r\nY".to_owned(), Secret::new("hunter2".to_owned()))];
        let wanted = Source { headers: bad, ..wanted };
        device.fails(&wanted, FailureKind::Refused, &["header"]);
    }
}

mod tls {
    use super::*;

    fn write(device: &Device, name: &str, text: &str) -> PathBuf {
        let path = device.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A device with a client certificate, whose server is at this port.
    fn device(port: u16, authority: &Authority, more: &str) -> Device {
        let mut device = Device::new();
        let ca = write(&device, "ca.pem", &authority.pem());
        let (cert, key) = authority.issue("agent", |_| {});
        let (cert, key) = (write(&device, "cert.pem", &cert), write(&device, "key.pem", &key));
        let show = |path: &Path| path.display().to_string();
        device.server = settings(&format!(
            "endpoint: \"wss://localhost:{port}\", tls: {{ca_file: \"{}\", cert_file: \"{}\", \
             key_file: \"{}\"{more}}}",
            show(&ca),
            show(&cert),
            show(&key)
        ));
        device
    }

    /// Answers with the file, and notes whether a client certificate was shown.
    fn curious(authority: &Authority, body: &[u8]) -> (Site, Arc<Mutex<Vec<bool>>>) {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (noted, body) = (Arc::clone(&shown), body.to_vec());
        let config = authority.serve_curious("localhost", authority);
        let site = Site::tls(config, move |_, _, stream| {
            let certificate = stream.shaken()?.peer_certificates().is_some();
            noted.lock().unwrap().push(certificate);
            whole(stream, "v1", &body)
        });
        (site, shown)
    }

    #[test]
    fn the_client_certificate_is_shown_to_the_own_server_only() {
        let authority = Authority::new("test");
        let body = bytes(500_000, 1);
        let (own, shown) = curious(&authority, &body);
        let device = device(own.port, &authority, "");
        device.gets(&source(&own.https(), &body), &body);
        assert_eq!(*shown.lock().unwrap(), [true]);
        let other_body = bytes(500_000, 2);
        let (other, shown) = curious(&authority, &other_body);
        device.gets(&source(&other.https(), &other_body), &other_body);
        assert_eq!(*shown.lock().unwrap(), [false]);
    }

    #[test]
    fn pins_are_for_the_own_server() {
        let authority = Authority::new("test");
        let (site, _) = curious(&authority, b"x");
        let nobody = ", pinned_spki_sha256: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]";
        let mut own = device(site.port, &authority, nobody);
        own.limits.tries = 1;
        own.fails(&source(&site.https(), b"x"), FailureKind::Transient, &["pinned"]);
        device(1, &authority, nobody).gets(&source(&site.https(), b"x"), b"x");
    }

    #[test]
    fn headers_stay_with_their_origin() {
        let authority = Authority::new("test");
        let config = authority.serve("localhost", |_| {}, None);
        let (last, _) = curious(&authority, b"x");
        let on = last.https();
        let back = Arc::new(Mutex::new(String::new()));
        let led = Arc::clone(&back);
        let foreign = Site::tls(Arc::clone(&config), move |_, _, stream| {
            let to = led.lock().unwrap().clone();
            write!(stream, "HTTP/1.1 302 Off\r\nLocation: {to}\r\n\r\n")
        });
        let to = foreign.https();
        // Asked, it first redirects within its own origin, then to the stranger, who leads back.
        let first = Site::tls(config, move |_, head, stream| {
            let to = match head.split(' ').nth(1) {
                Some("/package") => "/second".to_owned(),
                Some("/second") => to.clone(),
                _ => on.clone(),
            };
            write!(stream, "HTTP/1.1 302 Off\r\nLocation: {to}\r\n\r\n")
        });
        *back.lock().unwrap() = format!("https://localhost:{}/back", first.port);
        let device = device(1, &authority, "");
        let wanted = Source { headers: secret_header(), ..source(&first.https(), b"x") };
        device.gets(&wanted, b"x");
        let secrets =
            |site: &Site| -> Vec<bool> { site.heads().iter().map(|h| has_secret(h)).collect() };
        assert_eq!(secrets(&first), [true, true, false]);
        assert_eq!(secrets(&foreign), [false]);
        assert_eq!(secrets(&last), [false]);
    }

    #[test]
    fn no_redirect_leads_out_of_tls() {
        let authority = Authority::new("test");
        let clear = Site::new(|_, _, stream| whole(stream, "v1", b"x"));
        let to = clear.url();
        let config = authority.serve("localhost", |_| {}, None);
        let site = Site::tls(config, move |_, _, stream| {
            write!(stream, "HTTP/1.1 302 Off\r\nLocation: {to}\r\n\r\n")
        });
        let wanted = Source { headers: secret_header(), ..source(&site.https(), b"x") };
        device(1, &authority, "").fails(
            &wanted,
            FailureKind::Refused,
            &["has no TLS: not followed"],
        );
        assert_eq!(clear.heads().len(), 0);
    }

    #[test]
    fn a_server_that_nobody_vouches_for_gets_no_request() {
        let config = Authority::new("other").serve("localhost", |_| {}, None);
        let site = Site::tls(config, |_, _, stream| whole(stream, "v1", b"x"));
        let mut device = device(1, &Authority::new("test"), "");
        device.limits.tries = 1;
        device.fails(&source(&site.https(), b"x"), FailureKind::Transient, &["unknown issuer"]);
        assert_eq!(site.heads().len(), 0);
    }
}
