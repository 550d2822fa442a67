//! Where a redirect leads, whether it may, and what goes there.
//!
//! A redirect holds for the attempt at hand: the next one starts from the endpoint again.

use core::fmt;

use super::http1::Head;
pub use crate::agent::connection::offer::is_named;
use crate::secret::Secret;
use crate::settings::endpoint::MAX_URL;
use crate::settings::{Endpoint, Scheme, Server};

/// Most redirects one attempt follows.
pub const MAX_REDIRECTS: usize = 5;
/// Most bytes of a reason that quotes the server's text.
const MAX_QUOTED: usize = 200;

/// Whether a status sends the client elsewhere. What it does to a POST is for its sender to know.
#[must_use]
pub const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Where an attempt goes: the settings' endpoint, or where redirects have led it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where to now.
    pub endpoint: Endpoint,
    /// Where it began, and every stop since.
    passed: Vec<Endpoint>,
    /// Headers and client certificate go there. Once lost they do not come back: whoever sent us on chose the path.
    trusted: bool,
}

impl Target {
    /// The endpoint of the settings.
    #[must_use]
    pub const fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, passed: Vec::new(), trusted: true }
    }

    /// Whether the credentials of the settings go there.
    #[must_use]
    pub const fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The settings' headers that go there: all or none.
    #[must_use]
    pub fn headers<'s>(&self, server: &'s Server) -> &'s [(String, Secret<String>)] {
        if self.trusted { &server.headers } else { &[] }
    }

    /// Goes where the answer points.
    ///
    /// # Errors
    /// Why not, in words for a person; the target stays.
    pub fn redirect(&mut self, head: &Head, server: &Server) -> Result<(), String> {
        let status = head.status;
        let because = |why: &str| format!("the server redirects ({status}) {why}");
        let Some(location) = head.header("Location") else {
            return Err(because("without saying where to (no Location)"));
        };
        let to = follow(&self.endpoint, location).map_err(|why| {
            let why: String = why.chars().take(MAX_QUOTED).collect();
            because(&format!("to an address that cannot be used: {why}"))
        })?;
        // Its path may hold a token: host and port are enough.
        let place = format!("{}://{}", to.scheme.name(), to.authority());
        if self.endpoint.scheme.is_secure() && !to.scheme.is_secure() {
            return Err(because(&format!("to {place}, which has no TLS: not followed")));
        }
        let start = self.passed.first().unwrap_or(&self.endpoint);
        if to.host != start.host && !is_named(&server.allow_endpoints, &to) {
            return Err(because(&format!(
                "to {place}, another host: is there a captive portal? If it is meant, name the host in \
                 opamp.server.allow_endpoints"
            )));
        }
        if to == self.endpoint || self.passed.contains(&to) {
            return Err(because(&format!("in a circle, back to {place}")));
        }
        if self.passed.len() >= MAX_REDIRECTS {
            return Err(because(&format!("once more, after {MAX_REDIRECTS} times")));
        }
        self.trusted = self.trusted && same_server(start, &to);
        self.passed.push(core::mem::replace(&mut self.endpoint, to));
        Ok(())
    }
}

impl fmt::Display for Target {
    /// The endpoint that a person knows first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.endpoint;
        match self.passed.first() {
            None => write!(f, "{to}"),
            Some(start) => {
                write!(f, "{start} (redirected to {}://{})", to.scheme.name(), to.authority())
            }
        }
    }
}

/// Whether what may be shown to the one may be shown to the other: the same host and port, or the same host from
/// port 80 to TLS on port 443. Another port is another program, perhaps another's.
pub(crate) fn same_server(known: &Endpoint, to: &Endpoint) -> bool {
    let step_up = !known.scheme.is_secure() && to.scheme.is_secure();
    known.host == to.host
        && (known.port == to.port || (step_up && (known.port, to.port) == (80, 443)))
}

/// Where a `Location` points, seen from an endpoint (RFC 9110 §10.2.2, RFC 3986 §5). The transport stays what it is:
/// `https` means `wss` to WebSocket, `wss` means `https` to plain HTTP.
///
/// # Errors
/// What is wrong with it: "has no host".
pub fn follow(from: &Endpoint, location: &str) -> Result<Endpoint, String> {
    follow_up_to(from, location, MAX_URL)
}

/// The same for a URL of at most `most` bytes.
///
/// # Errors
/// As [`follow`].
pub fn follow_up_to(from: &Endpoint, location: &str, most: usize) -> Result<Endpoint, String> {
    let location = location.split('#').next().unwrap_or_default().trim();
    let scheme = from.scheme.name();
    let url = if has_scheme(location) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else {
        format!("{scheme}://{}{}", from.authority(), relative(&from.path, location))
    };
    let parsed = Endpoint::parse_up_to(&url, most)?;
    let scheme = match (from.scheme, parsed.scheme.is_secure()) {
        (Scheme::Ws | Scheme::Wss, false) => Scheme::Ws,
        (Scheme::Ws | Scheme::Wss, true) => Scheme::Wss,
        (Scheme::Http | Scheme::Https, false) => Scheme::Http,
        (Scheme::Http | Scheme::Https, true) => Scheme::Https,
    };
    // A server says what it means: no default path.
    Ok(Endpoint { scheme, path: path_of(&url), ..parsed })
}

/// Whether it begins with `letters:` (RFC 3986 §3.1).
fn has_scheme(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(legal)
    })
}

fn path_of(url: &str) -> String {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    match rest.find(['/', '?']).and_then(|at| rest.get(at..)) {
        None => "/".to_owned(),
        Some(query) if query.starts_with('?') => format!("/{query}"),
        Some(path) => path.to_owned(),
    }
}

/// A reference without scheme and host, seen from a path.
fn relative(base: &str, reference: &str) -> String {
    let base = base.split('?').next().unwrap_or_default();
    if reference.is_empty() || reference.starts_with('?') {
        return format!("{base}{reference}");
    }
    let at = reference.find('?').unwrap_or(reference.len());
    let (path, query) = reference.split_at_checked(at).unwrap_or((reference, ""));
    let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    let mut kept = Vec::new();
    let mut segments = whole.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            ".." => {
                kept.pop();
            }
            "." => {}
            name => {
                kept.push(name);
                continue;
            }
        }
        if last {
            kept.push("");
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::settings::from_text;

    fn server(yaml: &str) -> Server {
        let text = format!("opamp: {{server: {{{yaml}}}}}");
        let none = std::collections::BTreeMap::<&str, &str>::new();
        from_text(&text, "test", &none).unwrap().settings.server
    }

    fn head(location: &str) -> Head {
        let text = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n");
        let mut text = smol::io::Cursor::new(text.into_bytes());
        smol::future::block_on(super::super::http1::read_head(&mut text, Vec::new())).ok().unwrap()
    }

    #[test]
    fn locations_of_every_form() {
        for (from, location, to) in [
            ("ws://a/v1/opamp", "ws://b:1/x?y=1", "ws://b:1/x?y=1"),
            ("ws://a/v1/opamp", "http://b/x", "ws://b/x"),
            ("ws://a/v1/opamp", "https://b/x", "wss://b/x"),
            ("wss://a/v1/opamp", "HTTPS://B", "wss://b/"),
            ("http://a/v1/opamp", "wss://b/x", "https://b/x"),
            ("https://a/v1/opamp", "ws://b:443/x", "http://b:443/x"),
            ("wss://a:4320/v1/opamp", "//b/x#y", "wss://b/x"),
            ("wss://a:4320/v1/opamp", "/x/", "wss://a:4320/x/"),
            ("wss://a:4320/v1/opamp", "/", "wss://a:4320/"),
            ("wss://a/v1/opamp?k=v", "x", "wss://a/v1/x"),
            ("wss://a/v1/opamp", "../../../x/./y", "wss://a/x/y"),
            ("wss://a/v1/opamp", "..", "wss://a/"),
            ("wss://a/v1/opamp", "/x/../y?z=../w", "wss://a/y?z=../w"),
            ("wss://a/v1/opamp?k=v", "?z", "wss://a/v1/opamp?z"),
            ("wss://a/v1/opamp?k=v", "#z", "wss://a/v1/opamp"),
            ("ws://[::1]:80/a", "b", "ws://[::1]/b"),
            ("ws://a", "//[::1]:8080", "ws://[::1]:8080/"),
        ] {
            let from = Endpoint::parse(from).unwrap();
            assert_eq!(follow(&from, location).unwrap().to_string(), to, "{from} {location}");
        }
        let from = Endpoint::parse("wss://a/v1/opamp").unwrap();
        for (location, word) in [
            ("ftp://b/x", "unknown"),
            ("mailto:root", "scheme"),
            ("javascript:alert(1)", "scheme"),
            ("https:///x", "no host"),
            ("https://user:hunter2@b/", "user information"),
            ("https://b:0/", "port"),
            ("/a b", "white space"),
            ("/a\u{1}b", "control"),
            ("//", "no host"),
        ] {
            let error = follow(&from, location).unwrap_err();
            assert!(error.contains(word), "{location}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(follow(&from, &"x".repeat(4096)).unwrap_err().contains("longer"));
    }

    proptest! {
        /// Whatever a server writes, what comes of it is one word of a request line and a host.
        #[test]
        fn no_location_reaches_beyond_its_place(
            location in "(https?:|wss?:)?(//)?[a-c:@\\[\\]0-9./?#%\\\\ \\t\u{0}\u{85}é]{0,24}",
            base in "/[a-c/?.]{0,8}",
        ) {
            let from = Endpoint::parse(&format!("wss://a:4320{base}")).unwrap();
            if let Ok(to) = follow(&from, &location) {
                prop_assert!(to.path.starts_with('/') && !to.host.is_empty());
                prop_assert!(!to.path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#'));
                let again = Endpoint::parse(&to.to_string()).unwrap();
                prop_assert_eq!((again.host, again.port), (to.host, to.port));
            }
        }
    }

    #[test]
    fn credentials_go_to_their_own_server_only() {
        for (from, location, trusted) in [
            ("wss://a/x", "/y", true),
            ("wss://a/x", "https://A:443/y", true),
            ("ws://a/x", "https://a/y", true),
            ("ws://a:4320/x", "wss://a:4320/y", true),
            ("wss://a/x", "wss://a:4320/y", false),
            ("ws://a:8080/x", "wss://a/y", false),
            ("ws://a/x", "wss://a:4443/y", false),
            ("wss://a/x", "wss://b/y", false),
            ("wss://a/x", "wss://a.b/y", false),
            ("wss://b.a/x", "wss://a/y", false),
            ("wss://a/x", "wss://a./y", false),
        ] {
            let server = server(&format!(
                "endpoint: \"{from}\", headers: {{A: b}}, allow_endpoints: [\"*\"]"
            ));
            let mut target = Target::new(server.endpoint.clone());
            assert_eq!(target.headers(&server).len(), 1);
            target.redirect(&head(location), &server).unwrap();
            assert_eq!(target.is_trusted(), trusted, "{from} {location}");
            assert_eq!(target.headers(&server).is_empty(), !trusted);
        }
    }

    #[test]
    fn credentials_once_withheld_stay_so() {
        let server = server("endpoint: \"wss://a/x\", headers: {A: b}, allow_endpoints: [b]");
        let mut target = Target::new(server.endpoint.clone());
        target.redirect(&head("wss://b/"), &server).unwrap();
        target.redirect(&head("wss://a/elsewhere"), &server).unwrap();
        assert!(!target.is_trusted());
        assert_eq!(target.to_string(), "wss://a/x (redirected to wss://a)");
    }

    #[test]
    fn what_is_not_followed() {
        let server = server("endpoint: \"wss://a/x\", allow_endpoints: [\"*.good\", \"c:8443\"]");
        let mut target = Target::new(server.endpoint.clone());
        for (location, word) in [
            ("ws://a/x", "no TLS"),
            ("http://a/x", "no TLS"),
            ("https://login.example/?token=hunter2", "captive portal"),
            ("https://c/", "allow_endpoints"),
            ("https://good/", "allow_endpoints"),
            ("https://x.good.example/", "allow_endpoints"),
            ("wss://a/x", "circle"),
            ("ftp://a", "cannot be used: scheme"),
        ] {
            let error = target.redirect(&head(location), &server).unwrap_err();
            assert!(error.contains(word), "{location}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
            assert_eq!((&target.endpoint, target.is_trusted()), (&server.endpoint, true));
        }
        for location in ["https://x.good/", "https://c:8443/", "wss://a/", "/1", "/2"] {
            target.redirect(&head(location), &server).unwrap();
        }
        assert!(target.redirect(&head("/3"), &server).unwrap_err().contains("after 5 times"));
        assert!(target.redirect(&head("wss://a/x"), &server).unwrap_err().contains("circle"));
        let mut nowhere = smol::io::Cursor::new(b"HTTP/1.1 307 Off\r\n\r\n".to_vec());
        let nowhere =
            smol::future::block_on(super::super::http1::read_head(&mut nowhere, Vec::new()))
                .ok()
                .unwrap();
        assert!(target.redirect(&nowhere, &server).unwrap_err().contains("no Location"));
    }
}
