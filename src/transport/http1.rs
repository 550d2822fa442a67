//! HTTP/1.1 heads: a request's out, a response's in, within bounds.
//!
//! hyper would bring tokio into the tree (its `sync` half), so only the grammar is a library's: httparse.

use core::fmt::Write as _;

use smol::io::{AsyncRead, AsyncReadExt};

use super::LinkError;
use crate::agent::session::LinkErrorKind;
use crate::clock::Wall;
use crate::secret::Secret;
use crate::transport::retry_after;

/// Largest response head, bytes.
pub const MAX_HEAD: usize = 16 * 1024;
/// Most headers in a response.
pub const MAX_HEADERS: usize = 64;
/// Heads of the kind "100 Continue" in front of an answer.
const MAX_INTERIM: usize = 8;
/// Bytes read at once while looking for the end of a head.
const CHUNK: usize = 1024;

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    /// 100 to 999.
    pub status: u16,
    /// HTTP/1.0 or 1.1: 0 or 1.
    minor: u8,
    headers: Vec<(String, String)>,
    /// Bytes that came behind the head.
    pub rest: Vec<u8>,
}

impl Head {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// All headers of that name.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let of_that_name = move |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().filter(of_that_name).map(|(_, value)| value.as_str())
    }

    /// Whether the server lets the connection live behind this answer (RFC 9112 §9.3).
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let close = self.has_token("Connection", "close");
        !close && (self.minor == 1 || self.has_token("Connection", "keep-alive"))
    }

    /// Whether a header that is a list of tokens holds this one, in any of its lines: proxies join and split them.
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        let mut tokens = self.values(name).flat_map(|value| value.split(','));
        tokens.any(|found| found.trim().eq_ignore_ascii_case(token))
    }

    /// HTML instead of what was asked for.
    fn is_web_page(&self) -> bool {
        let kind = self.header("Content-Type").unwrap_or_default();
        kind.get(..9).is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"))
    }

    /// Whether a web server says, as nginx and Go do, that plain HTTP came to its TLS port.
    fn wants_tls(&self) -> bool {
        self.rest.windows(5).any(|word| word == b"HTTPS")
    }

    /// The error for a status that is not the one hoped for: says what a person should look at, and keeps what
    /// the server asked of the next attempt.
    #[must_use]
    pub fn refusal(&self, of: &str, now: Wall) -> LinkError {
        let advice = match self.status {
            200..=299 if self.is_web_page() => {
                " with a web page: is there a captive portal, or a web server in its place?"
            }
            301 | 302 | 303 | 307 | 308 => " (a redirect)",
            400 if self.wants_tls() => ": it wants TLS on this port; use wss:// or https://",
            401 => ": the credentials are missing or wrong; look at opamp.server.headers",
            403 => ": the credentials are not allowed to connect",
            404 => ": the path of the endpoint is wrong",
            407 => ": a proxy demands credentials",
            413 => ": the message is larger than the server takes",
            426 => ": the server does not take this transport",
            429 => ": too many requests",
            503 => ": the server is overloaded",
            511 => ": a captive portal wants somebody to log in",
            _ => "",
        };
        let asked = self.header("Retry-After").and_then(|value| retry_after::parse(value, now));
        let kind = match self.status {
            429 | 503 => LinkErrorKind::Throttled(asked),
            401 | 403 => LinkErrorKind::Refused,
            _ => LinkErrorKind::Failed,
        };
        LinkError { text: format!("{of}: the server answered {}{advice}", self.status), kind }
    }
}

/// A request head. The values of `headers` have been checked by the settings.
#[must_use]
pub fn request(
    method: &str,
    target: &str,
    host: &str,
    own: &[(&str, &str)],
    headers: &[(String, Secret<String>)],
) -> String {
    let mut head = String::new();
    // Writing to a String cannot fail.
    let _ = write!(head, "{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    let _ = write!(head, "User-Agent: chiton/{}\r\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in own {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {}\r\n", value.expose());
    }
    head.push_str("\r\n");
    head
}

/// Why there is no head.
#[derive(Debug)]
pub struct NoHead {
    /// One line: too long, not HTTP, or the connection ended.
    pub text: String,
    /// Not a byte came.
    pub silent: bool,
    /// Whether the server refused us, as TLS 1.3 does behind our handshake.
    pub kind: LinkErrorKind,
}

/// Reads a head, and whatever came in the same bytes. `bytes` is what was read before.
///
/// # Errors
/// When there is none.
pub async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
) -> Result<Head, NoHead> {
    loop {
        let failed = |text, silent| Err(NoHead { text, silent, kind: LinkErrorKind::Failed });
        match parse(&bytes) {
            Ok(Some(head)) => return Ok(head),
            Ok(None) => {}
            Err(text) => return failed(text, false),
        }
        let start = bytes.len();
        if start >= MAX_HEAD {
            let text = format!("the head of the answer is longer than {MAX_HEAD} bytes");
            return failed(text, false);
        }
        bytes.resize(start.saturating_add(CHUNK), 0);
        let space = bytes.get_mut(start..).unwrap_or_default();
        match stream.read(space).await {
            Ok(0) => return failed("the connection ended before an answer".to_owned(), start == 0),
            Ok(got) => bytes.truncate(start.saturating_add(got)),
            Err(error) => {
                let LinkError { text, kind } = super::tls::failure(&error);
                return Err(NoHead { text, silent: start == 0, kind });
            }
        }
    }
}

/// The head that counts: those that only say "go on" are passed over.
///
/// # Errors
/// When there is none.
pub async fn final_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Head, NoHead> {
    let mut head = read_head(stream, Vec::new()).await?;
    let mut interim = 0_usize;
    while (100..=199).contains(&head.status) && head.status != 101 {
        interim = interim.saturating_add(1);
        if interim > MAX_INTERIM {
            let text = format!("more than {MAX_INTERIM} heads came and no answer");
            return Err(NoHead { text, silent: false, kind: LinkErrorKind::Failed });
        }
        let heard = |none: NoHead| NoHead { silent: false, ..none };
        head = read_head(stream, head.rest).await.map_err(heard)?;
    }
    Ok(head)
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("the answer is not HTTP{} ({error})", instead(bytes))),
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers =
        response.headers.iter().map(|header| (header.name.to_owned(), text(header.value)));
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        minor: response.version.unwrap_or_default(),
        headers: headers.collect(),
        rest: bytes.get(length..).unwrap_or_default().to_vec(),
    }))
}

/// What a first answer that is not HTTP looks like.
const fn instead(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'S', b'S', b'H', b'-', ..] => ", it comes from an SSH server: is the port right?",
        [b'2', b'2', b'0', b' ' | b'-', ..] => {
            ", it comes from a mail or FTP server: is the port right?"
        }
        // A record of TLS: an alert or a handshake.
        [0x15 | 0x16, 3, ..] => ", it is TLS: use wss:// or https://",
        _ => ": is the port right?",
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use core::time::Duration;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Head, String> {
        let mut stream = smol::io::Cursor::new(bytes.to_vec());
        smol::future::block_on(read_head(&mut stream, Vec::new())).map_err(|none| none.text)
    }

    #[test]
    fn reads_a_head_and_keeps_what_follows() {
        let head = read(b"HTTP/1.1 101 Switching\r\nUpgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n\r\n\x82\x00")
            .unwrap();
        assert_eq!((head.status, head.rest.as_slice()), (101, &b"\x82\x00"[..]));
        assert!(head.has_token("Connection", "upgrade"));
        assert!(!head.has_token("Connection", "close"));
        assert_eq!(head.header("upgrade"), Some("WebSocket"));
    }

    #[test]
    fn refuses_what_is_no_head() {
        assert!(read(b"").unwrap_err().contains("ended"));
        assert!(read(b"HTTP/1.1 200 OK\r\nA: b").unwrap_err().contains("ended"));
        assert!(read(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").unwrap_err().contains("not HTTP"));
        let long = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &vec![b'x'; 2 * MAX_HEAD]].concat();
        assert!(read(&long).unwrap_err().contains("longer than"));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(read(many.as_bytes()).is_err());
    }

    #[test]
    fn a_refusal_keeps_what_the_server_asked_for() {
        let head = read(b"HTTP/1.1 503 No\r\nRetry-After: 90\r\n\r\n").unwrap();
        let refusal = head.refusal("ws://x", Wall::default());
        assert_eq!(refusal.kind, LinkErrorKind::Throttled(Some(Duration::from_secs(90))));
        for (status, kind) in [
            (401, LinkErrorKind::Refused),
            (403, LinkErrorKind::Refused),
            (404, LinkErrorKind::Failed),
            (407, LinkErrorKind::Failed),
            (500, LinkErrorKind::Failed),
        ] {
            let head = read(format!("HTTP/1.1 {status} No\r\n\r\n").as_bytes()).unwrap();
            assert_eq!(head.refusal("ws://x", Wall::default()).kind, kind, "{status}");
        }
    }
}
