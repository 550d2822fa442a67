//! Where a download goes, whether it may, and what is shown there.

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::secret::Secret;
use crate::settings::{Endpoint, Scheme, Server, check_header};
use crate::transport::http1::Head;
use crate::transport::redirect::{MAX_REDIRECTS, follow_up_to, is_named, same_server};
use crate::transport::tls::Peer;

/// Longest URL, bytes: signed ones are long.
pub const MAX_URL: usize = 8 * 1024;
/// Most bytes of a reason that quotes what came from outside.
const MAX_QUOTED: usize = 200;
/// Headers that a download writes itself, beside those of every request.
const OWN_HEADERS: [&str; 6] = ["Accept-Encoding", "If-Range", "Range", "TE", "Trailer", "Expect"];

/// A place that may be gone to.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Where to now.
    pub(super) at: Endpoint,
    /// Where it began, and every stop since.
    passed: Vec<Endpoint>,
    /// No stop so far was another origin: the offered headers go there.
    same_origin: bool,
    /// No stop so far was another server than the settings' endpoint: the client certificate goes there.
    own_server: bool,
}

impl Place {
    /// Where the URL of an offer leads.
    ///
    /// # Errors
    /// Why not there; what is secret in the URL is not repeated.
    pub(super) fn parse(url: &str, server: &Server, signed: bool) -> Result<Self, String> {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        let https = Endpoint {
            scheme: Scheme::Https,
            host: String::new(),
            port: 443,
            path: "/".to_owned(),
        };
        let at = match scheme.as_deref() {
            Some("http" | "https") => follow_up_to(&https, url, MAX_URL),
            _ => Err("allowed are http:// and https://".to_owned()),
        };
        let at = at.map_err(|why| {
            let why: String = why.chars().take(MAX_QUOTED).collect();
            format!("the download URL cannot be used: {why}")
        })?;
        let why = |why| format!("the download URL leads to {}, {why}", origin(&at));
        may(&at, server, signed).map_err(why)?;
        let own_server = is_own(server, &at);
        Ok(Self { at, passed: Vec::new(), same_origin: true, own_server })
    }

    /// Goes where the answer points.
    ///
    /// # Errors
    /// Why not; the place stays.
    pub(super) fn redirect(
        &mut self,
        head: &Head,
        server: &Server,
        signed: bool,
    ) -> Result<(), String> {
        let status = head.status;
        let because = |why: &str| format!("the server redirects ({status}) {why}");
        let Some(location) = head.header("Location") else {
            return Err(because("without saying where to (no Location)"));
        };
        let to = follow_up_to(&self.at, location, MAX_URL)
            .and_then(|to| match is_web(location) {
                true => Ok(to),
                false => Err("allowed are http:// and https://".to_owned()),
            })
            .map_err(|why| {
                let why: String = why.chars().take(MAX_QUOTED).collect();
                because(&format!("to an address that cannot be used: {why}"))
            })?;
        let place = origin(&to);
        if self.at.scheme.is_secure() && !to.scheme.is_secure() {
            return Err(because(&format!("to {place}, which has no TLS: not followed")));
        }
        may(&to, server, signed).map_err(|why| because(&format!("to {place}, {why}")))?;
        if to == self.at || self.passed.contains(&to) {
            return Err(because(&format!("in a circle, back to {place}")));
        }
        if self.passed.len() >= MAX_REDIRECTS {
            return Err(because(&format!("once more, after {MAX_REDIRECTS} times")));
        }
        let start = self.passed.first().unwrap_or(&self.at);
        self.same_origin = self.same_origin && origin(start) == origin(&to);
        self.own_server = self.own_server && is_own(server, &to);
        self.passed.push(core::mem::replace(&mut self.at, to));
        Ok(())
    }

    /// The offered headers that go there: all or none, and never without TLS.
    pub(super) fn headers<'h>(
        &self,
        offered: &'h [(String, Secret<String>)],
    ) -> &'h [(String, Secret<String>)] {
        if self.same_origin && self.at.scheme.is_secure() { offered } else { &[] }
    }

    /// Where it has come to, where that is somewhere else.
    pub(super) fn detour(&self) -> Option<String> {
        let start = self.passed.first().unwrap_or(&self.at);
        let here = origin(&self.at);
        (origin(start) != here).then(|| format!("redirected to {here}"))
    }

    /// What it must prove, and what it is shown.
    pub(super) fn peer(&self, server: &Server) -> Peer {
        match (self.own_server, is_own(server, &self.at)) {
            (true, _) => Peer::Server,
            (false, true) => Peer::Stranger,
            (false, false) => Peer::Foreign,
        }
    }
}

impl fmt::Display for Place {
    /// Where it began, without the path: that may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&origin(self.passed.first().unwrap_or(&self.at)))
    }
}

/// Whether the headers of an offer can be sent.
///
/// # Errors
/// Which cannot, and why; no value is repeated.
pub(super) fn check_headers(headers: &[(String, Secret<String>)]) -> Result<(), String> {
    for (name, value) in headers {
        let own = OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name));
        let checked = match own {
            true => Err("is written by Chiton itself".to_owned()),
            false => check_header(name, value.expose()),
        };
        checked.map_err(|why| format!("the offered header {name:.60?}: {why}"))?;
    }
    Ok(())
}

fn origin(at: &Endpoint) -> String {
    format!("{}://{}", at.scheme.name(), at.authority())
}

/// A relative reference, or `http`, or `https`: never a WebSocket's.
fn is_web(location: &str) -> bool {
    let location = location.trim().to_ascii_lowercase();
    !(location.starts_with("ws:") || location.starts_with("wss:"))
}

/// What the settings say of a place, whatever its addresses.
fn may(at: &Endpoint, server: &Server, signed: bool) -> Result<(), String> {
    let own = at.host == server.endpoint.host;
    if !own && !server.allow_endpoints.is_empty() && !is_named(&server.allow_endpoints, at) {
        return Err("which opamp.server.allow_endpoints does not name".to_owned());
    }
    if !at.scheme.is_secure() && !signed {
        return Err("which has no TLS, for a package that is not signed".to_owned());
    }
    // `127.1`, `0x7f000001`: resolvers take them for addresses, and nobody else does.
    let last = at.host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if number && at.host.parse::<IpAddr>().is_err() {
        return Err("which is an address in an unusual form".to_owned());
    }
    Ok(())
}

/// The very server of the settings: its client certificate and pins are meant for this host and port, over TLS.
fn is_own(server: &Server, at: &Endpoint) -> bool {
    let secure = server.endpoint.scheme.is_secure() && at.scheme.is_secure();
    secure && same_server(&server.endpoint, at)
}

/// How near an address is. The order is that of what it takes to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Anywhere in the world.
    Public,
    /// This device, its site, its provider.
    Private,
    /// This link only; where clouds keep their metadata.
    Link,
    /// No one peer: multicast, broadcast, "this network", reserved.
    Nobody,
}

impl Reach {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Public => "a public address",
            Self::Private => "a private address",
            Self::Link => "a link-local address",
            Self::Nobody => "an address of nobody's",
        }
    }
}

fn of_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        [0 | 224..=255, ..] => Reach::Nobody,
        [169, 254, ..] => Reach::Link,
        [10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] => Reach::Private,
        // Carrier-grade NAT; benchmarks; protocol assignments.
        [100, 64..=127, ..] | [198, 18 | 19, ..] | [192, 0, 0, _] => Reach::Private,
        _ => Reach::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Reach {
    let [first, second, third, _, _, _, high, low] = address.segments();
    let v4 =
        |high: u16, low: u16| of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Reach::Nobody,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Private,
        // IPv4 in IPv6: mapped, translated, compatible.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => {
            v4(high, low)
        }
        // NAT64, 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => v4(high, low),
        [0x64, 0xff9b, 1, ..] => v4(high, low).max(Reach::Private),
        [0x2002, ..] => v4(second, third),
        // The metadata of a cloud, in the range of private networks.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Reach::Link,
        _ => match first {
            0xfe80..=0xfebf => Reach::Link,
            0xfc00..=0xfdff | 0xfec0..=0xfeff => Reach::Private,
            0xff00..=0xffff => Reach::Nobody,
            _ => Reach::Public,
        },
    }
}

/// Whether such an address may be connected to. `own` is how near the settings' endpoint is: a server in the world has
/// no business inside the device's network.
///
/// # Errors
/// Why not.
pub(super) fn judge(
    address: IpAddr,
    at: &Endpoint,
    server: &Server,
    own: Reach,
) -> Result<(), String> {
    let reach = Reach::of(address);
    let allowed = match reach {
        Reach::Public => true,
        Reach::Nobody => false,
        Reach::Private | Reach::Link => {
            at.host == server.endpoint.host || reach <= own || is_spelt(server, at)
        }
    };
    if allowed {
        return Ok(());
    }
    let advice = match reach {
        Reach::Nobody => "",
        _ => "; if it is meant, name the host in opamp.server.allow_endpoints",
    };
    Err(format!("is {}: not allowed{advice}", reach.name()))
}

/// Whether `allow_endpoints` spells this host out: a pattern that also fits it does not mean it.
fn is_spelt(server: &Server, at: &Endpoint) -> bool {
    let spelt = |pattern: &&String| !pattern.contains(['*', '?']);
    server.allow_endpoints.iter().filter(spelt).any(|one| is_named(core::slice::from_ref(one), at))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::settings::from_text;

    fn server(endpoint: &str, more: &str) -> Server {
        let text = format!("opamp: {{server: {{endpoint: \"{endpoint}\"{more}}}}}");
        let none = std::collections::BTreeMap::<&str, &str>::new();
        from_text(&text, "test", &none).unwrap().settings.server
    }

    fn head(location: &str) -> Head {
        let text = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n");
        let mut text = smol::io::Cursor::new(text.into_bytes());
        let head = crate::transport::http1::read_head(&mut text, Vec::new());
        smol::future::block_on(head).ok().unwrap()
    }

    #[test]
    fn urls_that_may_be_gone_to_and_that_may_not() {
        let any = server("wss://opamp.example", "");
        let some = server(
            "wss://opamp.example",
            ", allow_endpoints: [\"*.cdn.example\", \"10.0.0.1:8443\"]",
        );
        for (url, server, signed, refusal) in [
            ("https://elsewhere.example/p?sig=1", &any, false, ""),
            ("HTTPS://elsewhere.example", &any, false, ""),
            ("http://elsewhere.example/p", &any, true, ""),
            ("http://elsewhere.example/p", &any, false, "no TLS"),
            ("http://opamp.example/p", &some, true, ""),
            ("http://opamp.example/p", &some, false, "no TLS"),
            ("https://opamp.example:9999/p", &some, false, ""),
            ("https://a.cdn.example/p", &some, false, ""),
            ("https://10.0.0.1:8443/p", &some, false, ""),
            ("https://10.0.0.1/p", &some, false, "allow_endpoints"),
            ("https://cdn.example/p", &some, false, "allow_endpoints"),
            ("https://cdn.example.evil/p", &some, false, "allow_endpoints"),
            ("file:///etc/passwd", &any, true, "allowed are"),
            ("ftp://x/y", &any, true, "allowed are"),
            ("ws://x/y", &any, true, "allowed are"),
            ("/p", &any, true, "allowed are"),
            ("", &any, true, "allowed are"),
            ("https://user:hunter2@x/p", &any, true, "user information"),
            ("https://good\\@evil/p", &any, true, "user information"),
            ("https://x/a b", &any, true, "white space"),
            ("https://x/a\r\nRange: y", &any, true, "white space"),
            ("https:///p", &any, true, "no host"),
            ("https://127.1/p", &any, true, "unusual"),
            ("https://2130706433/p", &any, true, "unusual"),
            ("https://0x7f000001/p", &any, true, "unusual"),
            ("https://1.0x7f./p", &any, true, "unusual"),
        ] {
            match Place::parse(url, server, signed) {
                Ok(place) => {
                    assert!(refusal.is_empty(), "{url} is not refused");
                    assert!(place.at.path.starts_with('/'));
                }
                Err(why) => {
                    assert!(!refusal.is_empty() && why.contains(refusal), "{url}: {why}");
                    assert!(!why.contains("hunter2"), "{why}");
                }
            }
        }
        let long = format!("https://x/{}", "y".repeat(4096));
        assert_eq!(Place::parse(&long, &any, true).unwrap().at.path.len(), 4097);
        assert!(Place::parse(&long.repeat(2), &any, true).unwrap_err().contains("longer"));
    }

    #[test]
    fn redirects_that_are_followed_and_that_are_not() {
        let server = server("wss://opamp.example", ", allow_endpoints: [a, b, \"c:8443\"]");
        let mut place = Place::parse("https://a/x", &server, true).unwrap();
        for (location, word) in [
            ("http://a/x", "no TLS"),
            ("http://b/x", "no TLS"),
            ("file:///etc/passwd", "cannot be used"),
            ("wss://a/y", "cannot be used"),
            ("https://user@a/y", "cannot be used"),
            ("https://c/y?token=hunter2", "allow_endpoints"),
            ("https://a/x", "circle"),
        ] {
            let error = place.redirect(&head(location), &server, true).unwrap_err();
            assert!(error.contains(word), "{location}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for location in ["https://b/1", "/2", "https://c:8443/3", "https://opamp.example/4", "5"] {
            place.redirect(&head(location), &server, true).unwrap();
        }
        assert!(place.redirect(&head("/6"), &server, true).unwrap_err().contains("after 5 times"));
        assert_eq!(place.to_string(), "https://a");
        assert_eq!(place.detour().as_deref(), Some("redirected to https://opamp.example"));
    }

    #[test]
    fn headers_and_certificate_go_to_their_own_place_only_and_never_come_back() {
        let server = server("wss://opamp.example:4320", "");
        let offered = vec![("A".to_owned(), Secret::new("b".to_owned()))];
        let mut place = Place::parse("https://opamp.example:4320/p", &server, true).unwrap();
        assert_eq!((place.headers(&offered).len(), place.peer(&server)), (1, Peer::Server));
        place.redirect(&head("/q"), &server, true).unwrap();
        assert_eq!((place.headers(&offered).len(), place.peer(&server)), (1, Peer::Server));
        place.redirect(&head("https://opamp.example/p"), &server, true).unwrap();
        assert_eq!((place.headers(&offered).len(), place.peer(&server)), (0, Peer::Foreign));
        place.redirect(&head("https://opamp.example:4320/r"), &server, true).unwrap();
        assert_eq!((place.headers(&offered).len(), place.peer(&server)), (0, Peer::Stranger));
        let elsewhere = Place::parse("https://b/", &server, true).unwrap();
        assert_eq!(
            (elsewhere.headers(&offered).len(), elsewhere.peer(&server)),
            (1, Peer::Foreign)
        );
        let mut clear = Place::parse("http://b/", &server, true).unwrap();
        assert_eq!(clear.headers(&offered).len(), 0);
        clear.redirect(&head("https://b/"), &server, true).unwrap();
        assert_eq!(clear.headers(&offered).len(), 0);
    }

    #[test]
    fn offered_headers_cannot_change_the_request() {
        let header =
            |name: &str, value: &str| vec![(name.to_owned(), Secret::new(value.to_owned()))];
        check_headers(&header("Authorization", "Bearer hunter2")).unwrap();
        check_headers(&header("Accept", "application/octet-stream")).unwrap();
        for (name, value) in [
            ("Range", "bytes=0-"),
            ("if-range", "x"),
            ("Accept-Encoding", "gzip"),
            ("Host", "evil"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "7"),
            ("X", "hunter2\r\nRange: y"),
            ("X: y\r\nZ", "hunter2"),
            ("", "hunter2"),
        ] {
            let error = check_headers(&header(name, value)).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn how_near_addresses_are() {
        use Reach::{Link, Nobody, Private, Public};
        for (address, reach) in [
            ("93.184.216.34", Public),
            ("127.0.0.1", Private),
            ("127.8.9.1", Private),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("172.32.0.1", Public),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("100.100.100.200", Private),
            ("100.128.0.1", Public),
            ("198.18.0.1", Private),
            ("169.254.169.254", Link),
            ("0.0.0.0", Nobody),
            ("0.1.2.3", Nobody),
            ("224.0.0.1", Nobody),
            ("255.255.255.255", Nobody),
            ("240.0.0.1", Nobody),
            ("2606:4700::1111", Public),
            ("::1", Private),
            ("::", Nobody),
            ("fd12::1", Private),
            ("fec0::1", Private),
            ("fe80::1", Link),
            ("fd00:ec2::254", Link),
            ("ff02::1", Nobody),
            ("::ffff:169.254.169.254", Link),
            ("::ffff:10.0.0.1", Private),
            ("::ffff:8.8.8.8", Public),
            ("::ffff:0:127.0.0.1", Private),
            ("::127.0.0.1", Private),
            ("64:ff9b::a9fe:a9fe", Link),
            ("64:ff9b::808:808", Public),
            ("64:ff9b:1::808:808", Private),
            ("2002:a9fe:a9fe::1", Link),
            ("2002:7f00:1::", Private),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }

    #[test]
    fn near_addresses_are_for_a_near_server_or_for_hosts_that_are_spelt_out() {
        let plain = server("wss://opamp.example", "");
        let spelt = server("wss://opamp.example", ", allow_endpoints: [mirror, meta, \"*\"]");
        for (address, host, server, own, allowed) in [
            ("8.8.8.8", "x", &plain, Reach::Public, true),
            ("10.0.0.1", "x", &plain, Reach::Public, false),
            ("10.0.0.1", "x", &plain, Reach::Private, true),
            ("127.0.0.1", "x", &plain, Reach::Private, true),
            ("169.254.169.254", "x", &plain, Reach::Private, false),
            ("169.254.169.254", "x", &plain, Reach::Link, true),
            ("10.0.0.1", "opamp.example", &plain, Reach::Public, true),
            ("10.0.0.1", "mirror", &spelt, Reach::Public, true),
            ("169.254.169.254", "meta", &spelt, Reach::Public, true),
            ("169.254.169.254", "x", &spelt, Reach::Public, false),
            ("10.0.0.1", "x", &spelt, Reach::Public, false),
            ("0.0.0.0", "mirror", &spelt, Reach::Link, false),
            ("224.0.0.1", "opamp.example", &spelt, Reach::Link, false),
        ] {
            let at = Place::parse(&format!("https://{host}/p"), server, true).unwrap().at;
            let judged = judge(address.parse().unwrap(), &at, server, own);
            assert_eq!(judged.is_ok(), allowed, "{address} {host} {judged:?}");
        }
    }
}
