//! The way through a proxy: HTTP's CONNECT or SOCKS5, for every scheme, so that a proxy sees host and port and no more
//! where there is TLS.

#[cfg(feature = "socks")]
mod socks;

use std::net::IpAddr;

use smol::io::AsyncWriteExt;

use super::http1::{self, Head};
use super::tls::{Peer, explain};
use super::websocket::base64;
use super::{Plan, Stream};
use crate::agent::configset::matches;
use crate::reactor::within;
use crate::secret::Secret;
#[cfg(feature = "socks")]
use crate::settings::endpoint::SOCKS_PORT;
use crate::settings::endpoint::split_port;
use crate::settings::{Endpoint, Proxy, Server};

/// The proxy that leads to an endpoint, if one does.
pub(super) struct Via<'s> {
    host: String,
    port: u16,
    kind: Kind,
    /// As it stands in the URL.
    user: Option<Secret<String>>,
    settings: &'s Proxy,
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    /// TLS to the proxy.
    Https,
    #[cfg(feature = "socks")]
    Socks,
}

impl<'s> Via<'s> {
    /// [`None`]: the endpoint is reached directly.
    ///
    /// # Errors
    /// The settings let a URL through that is none.
    pub(super) fn to(endpoint: &Endpoint, server: &'s Server) -> Result<Option<Self>, String> {
        let Some(settings) = &server.proxy else { return Ok(None) };
        if is_direct(&settings.no_proxy, &endpoint.host, endpoint.port) {
            return Ok(None);
        }
        let url = settings.url.expose();
        let (scheme, rest) = url.split_once("://").ok_or("the proxy's URL has no scheme")?;
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let (kind, port) = match scheme {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            #[cfg(feature = "socks")]
            "socks5" | "socks5h" => (Kind::Socks, SOCKS_PORT),
            other => return Err(format!("the proxy's URL has the unknown scheme {other}")),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) =
            split_port(authority, port).map_err(|why| format!("the proxy's URL: {why}"))?;
        let user = user.map(|user| Secret::new(user.to_owned()));
        Ok(Some(Self { host, port, kind, user, settings }))
    }

    /// A stream to the endpoint through the proxy.
    ///
    /// # Errors
    /// What failed, on the proxy named, why.
    pub(super) async fn tunnel(&self, plan: &Plan, endpoint: &Endpoint) -> Result<Stream, String> {
        let failed = |why: String| format!("the proxy {}: {why}", hostport(&self.host, self.port));
        let mut stream =
            super::connect(plan, &self.host, self.port, &|_| Ok(())).await.map_err(failed)?;
        if let Kind::Https = self.kind {
            let secured = super::secure(plan, Peer::Proxy, &self.host, stream).await;
            stream = secured.map_err(|error| failed(error.text))?;
        }
        let limit = plan.server.timeouts.connect;
        match within(limit, self.open(&mut stream, endpoint)).await {
            Some(answer) => answer.map_err(failed)?,
            None => return Err(failed(format!("no answer to CONNECT within {limit:?}"))),
        }
        Ok(stream)
    }

    async fn open(&self, stream: &mut Stream, endpoint: &Endpoint) -> Result<(), String> {
        match self.kind {
            Kind::Http | Kind::Https => check(&self.ask(stream, endpoint).await?, endpoint),
            #[cfg(feature = "socks")]
            Kind::Socks => {
                let user = self.user.as_ref().map(|user| user.expose().as_str());
                socks::ask(stream, endpoint, user).await
            }
        }
    }

    async fn ask(&self, stream: &mut Stream, endpoint: &Endpoint) -> Result<Head, String> {
        let to = hostport(&endpoint.host, endpoint.port);
        let given = &self.settings.connect_headers;
        let set = given.iter().any(|(name, _)| name.eq_ignore_ascii_case("Proxy-Authorization"));
        let user = self.user.as_ref().filter(|_| !set).map(|user| basic(user.expose()));
        let own: Vec<_> =
            user.iter().map(|user| ("Proxy-Authorization", user.expose().as_str())).collect();
        let request = http1::request("CONNECT", &to, &to, &own, given);
        let sent = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await
        };
        sent.await.map_err(|error| explain(&error))?;
        http1::read_head(stream, Vec::new()).await.map_err(|none| none.text)
    }
}

/// What the answer to CONNECT must be: 2xx, and then silence, for it is our turn to speak.
fn check(head: &Head, endpoint: &Endpoint) -> Result<(), String> {
    let to = hostport(&endpoint.host, endpoint.port);
    let status = head.status;
    if (200..=299).contains(&status) {
        if head.rest.is_empty() {
            return Ok(());
        }
        return Err(format!(
            "it answered CONNECT with {status} and then spoke itself: is it a proxy?"
        ));
    }
    let advice = match status {
        407 => {
            ": it demands credentials, or other ones; they go into opamp.server.proxy.url or connect_headers".to_owned()
        }
        401 | 403 => format!(": it does not let us through to {to}"),
        400 | 404 | 405 | 501 => ": is it an HTTP proxy, and does it know CONNECT?".to_owned(),
        502..=504 => format!(": it does not reach {to}"),
        300..=399 | 511 => ": a captive portal?".to_owned(),
        _ => String::new(),
    };
    Err(format!("it answered CONNECT with {status}{advice}"))
}

/// `host:port`, always with the port.
fn hostport(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The user information of a URL as a header value (RFC 7617).
fn basic(user: &str) -> Secret<String> {
    let mut plain = decoded(user);
    if !user.contains(':') {
        plain.push(b':');
    }
    Secret::new(format!("Basic {}", base64(&plain)))
}

/// Without the `%` of a URL.
fn decoded(text: &str) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            plain.push(high << 4 | low);
            rest = after;
        } else {
            plain.push(*first);
        }
    }
    plain
}

/// Whether a list of hosts, as NO_PROXY has them, names this one: `*`; `example.com` and what is below it;
/// `.example.com`, what is below it only; an address; a network such as `10.0.0.0/8`; each perhaps with a port; and
/// patterns with `*` in them.
#[must_use]
pub(super) fn is_direct(list: &[String], host: &str, port: u16) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    list.iter().any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        if entry.is_empty() {
            return false;
        }
        if let Some((network, length)) = entry.split_once('/') {
            return address.is_some_and(|address| is_within(address, network, length));
        }
        // An IPv6 address without brackets has no port.
        let (name, wanted) = match entry.parse::<IpAddr>() {
            Ok(_) => (entry.as_str(), None),
            Err(_) => split_entry(&entry),
        };
        if wanted.is_some_and(|wanted| wanted != port) {
            return false;
        }
        if let Ok(named) = name.parse::<IpAddr>() {
            return address == Some(named);
        }
        if name.contains(['*', '?']) {
            return matches(name, &host);
        }
        let below = name.strip_prefix('.');
        let suffix = below.unwrap_or(name);
        let suffix = suffix.strip_suffix('.').unwrap_or(suffix);
        match host.strip_suffix(suffix) {
            Some("") => below.is_none(),
            Some(front) => address.is_none() && front.ends_with('.'),
            None => false,
        }
    })
}

/// `name`, `name:port`, `[v6]`, `[v6]:port`; a port that is none fits nothing.
fn split_entry(entry: &str) -> (&str, Option<u16>) {
    let port = |text: &str| Some(text.parse().unwrap_or_default());
    if let Some((address, rest)) = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':').and_then(port));
    }
    match entry.rsplit_once(':') {
        Some((name, text)) => (name, port(text)),
        None => (entry, None),
    }
}

fn is_within(address: IpAddr, network: &str, length: &str) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    let Some(host_bits) = u32::checked_sub(width, length) else { return false };
    // All bits are the host's where the length is 0 of 128.
    (address ^ network).checked_shr(host_bits).unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn hosts_that_are_reached_directly() {
        for (entry, host, port, direct) in [
            ("*", "anything", 1, true),
            ("example.com", "example.com", 443, true),
            ("Example.COM", "a.example.com", 443, true),
            ("example.com.", "example.com", 443, true),
            ("example.com", "example.com.", 443, true),
            ("example.com", "notexample.com", 443, false),
            ("example.com", "example.com.evil", 443, false),
            (".example.com", "a.example.com", 443, true),
            (".example.com", "example.com", 443, false),
            ("*.example.com", "a.b.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("edge-*", "edge-7", 443, true),
            ("example.com:8443", "example.com", 8443, true),
            ("example.com:8443", "example.com", 443, false),
            ("example.com:http", "example.com", 80, false),
            ("localhost", "LOCALHOST", 80, true),
            ("10.1.2.3", "10.1.2.3", 80, true),
            ("10.1.2.3:80", "10.1.2.3", 80, true),
            ("10.1.2.3:80", "10.1.2.3", 81, false),
            ("2.3", "10.1.2.3", 80, false),
            ("10.0.0.0/8", "10.255.0.1", 80, true),
            ("10.0.0.0/8", "11.0.0.1", 80, false),
            ("10.1.2.3/32", "10.1.2.3", 80, true),
            ("10.1.2.3/32", "10.1.2.2", 80, false),
            ("0.0.0.0/0", "10.1.2.3", 80, true),
            ("0.0.0.0/0", "::1", 80, false),
            ("10.0.0.0/33", "10.0.0.0", 80, false),
            ("10.0.0.0/x", "10.0.0.0", 80, false),
            ("10.0.0.0/8", "ten.example", 80, false),
            ("::1", "::1", 80, true),
            ("[::1]", "0:0::1", 80, true),
            ("[::1]:80", "::1", 80, true),
            ("[::1]:80", "::1", 81, false),
            ("fd00::/8", "fd12::1", 80, true),
            ("fd00::/8", "fe80::1", 80, false),
            ("::/0", "fe80::1", 80, true),
            ("", "example.com", 443, false),
            (" , ", "example.com", 443, false),
        ] {
            assert_eq!(
                is_direct(&[entry.to_owned()], host, port),
                direct,
                "{entry}: {host}:{port}"
            );
        }
        assert!(!is_direct(&[], "example.com", 443));
        assert!(is_direct(&["a".to_owned(), "b".to_owned()], "b", 443));
    }

    #[test]
    fn user_information_becomes_a_header() {
        for (user, plain) in [
            ("user:pass", "dXNlcjpwYXNz"),
            ("us%40er:p%3Ass", "dXNAZXI6cDpzcw=="),
            ("user", "dXNlcjo="),
            ("a%zz%4", "YSV6eiU0Og=="),
        ] {
            assert_eq!(basic(user).expose(), &format!("Basic {plain}"), "{user}");
        }
    }

    #[test]
    fn answers_that_are_no_tunnel_say_what_to_look_at() {
        let endpoint = Endpoint::parse("wss://opamp.example/").unwrap();
        for (answer, word) in [
            ("407 Auth", "connect_headers"),
            ("403 No", "opamp.example:443"),
            ("405 No", "CONNECT?"),
            ("502 No", "does not reach"),
            ("302 Found", "captive"),
            ("599 Odd", "599"),
        ] {
            let text = format!("HTTP/1.1 {answer}\r\n\r\n");
            let mut text = smol::io::Cursor::new(text.into_bytes());
            let head =
                smol::future::block_on(http1::read_head(&mut text, Vec::new())).ok().unwrap();
            assert!(check(&head, &endpoint).unwrap_err().contains(word), "{answer}");
        }
    }
}
