//! An endpoint URL, parsed once.

use core::fmt;

use super::model::{Endpoint, HttpTarget, Scheme};

/// Longest URL, bytes.
pub const MAX_URL: usize = 2048;
/// The path where the URL has none (opamp-spec L330).
pub const DEFAULT_PATH: &str = "/v1/opamp";
/// The port of a SOCKS proxy where its URL has none.
pub const SOCKS_PORT: u16 = 1080;

impl Scheme {
    /// The scheme's name, as in a URL.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether TLS carries it.
    #[must_use]
    pub const fn is_secure(self) -> bool {
        matches!(self, Self::Wss | Self::Https)
    }

    const fn default_port(self) -> u16 {
        if self.is_secure() { 443 } else { 80 }
    }
}

impl Endpoint {
    /// Parses `scheme://host[:port][/path]`.
    ///
    /// # Errors
    /// What is wrong and what is allowed, in one line that does not repeat the URL (it may hold a password).
    pub fn parse(url: &str) -> Result<Self, String> {
        Self::parse_up_to(url, MAX_URL)
    }

    /// The same for a URL of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Endpoint::parse`].
    pub fn parse_up_to(url: &str, most: usize) -> Result<Self, String> {
        if url.len() > most {
            return Err(format!("longer than {most} bytes"));
        }
        if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("has white space or control characters in it".to_owned());
        }
        let allowed = "allowed are ws://, wss://, http:// and https://";
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| format!("has no scheme; {allowed}"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => return Err(format!("scheme {other:?} is unknown; {allowed}")),
        };
        let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(split).unwrap_or((rest, ""));
        if path.contains('#') {
            return Err("has a fragment (#…), which a server never sees".to_owned());
        }
        if authority.contains('@') {
            return Err(
                "has user information in it; set opamp.server.headers instead, for example \
                        Authorization"
                    .to_owned(),
            );
        }
        let (host, port) = split_port(authority, scheme.default_port())?;
        let path = match path {
            "" | "/" => DEFAULT_PATH.to_owned(),
            query if query.starts_with('?') => format!("{DEFAULT_PATH}{query}"),
            path => path.to_owned(),
        };
        Ok(Self { scheme, host, port, path })
    }

    /// `host:port` as it stands in a `Host` header: the port only where it is not the scheme's own.
    #[must_use]
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == self.scheme.default_port() { host } else { format!("{host}:{}", self.port) }
    }
}

/// `host:port`, with the brackets of IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a>(pub &'a str, pub u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]:{}", self.0, self.1)
        } else {
            write!(f, "{}:{}", self.0, self.1)
        }
    }
}

impl fmt::Display for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", Authority(&self.host, self.port), self.path)
    }
}

/// Splits `host[:port]`, `[v6][:port]`.
///
/// # Errors
/// What is wrong with it.
pub fn split_port(authority: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or("has a [ without a ]")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("{host:?} in brackets is not an IPv6 address"));
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err("has something other than :port behind the ]".to_owned()),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address must stand in [brackets]".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("has no host".to_owned());
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if !host.chars().all(valid) {
        return Err(format!("host {host:?} has characters that a host name cannot have"));
    }
    let port = match port {
        None => default,
        Some(text) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("port {text:?} is not a number from 1 to 65535")),
        },
    };
    Ok((host.to_ascii_lowercase(), port))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn good_urls_print_canonically() {
        for (url, printed) in [
            ("wss://opamp.example.com:4320/v1/opamp", "wss://opamp.example.com:4320/v1/opamp"),
            ("ws://127.0.0.1:4320", "ws://127.0.0.1:4320/v1/opamp"),
            ("HTTPS://Example.COM/", "https://example.com/v1/opamp"),
            ("http://[::1]:8080/x?y=1", "http://[::1]:8080/x?y=1"),
            ("wss://host:443/a", "wss://host/a"),
            ("ws://h?token=1", "ws://h/v1/opamp?token=1"),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().to_string(), printed, "{url}");
        }
    }

    #[test]
    fn bad_urls_say_why_and_never_repeat_a_password() {
        for (url, word) in [
            ("", "scheme"),
            ("opamp.example.com:4320", "scheme"),
            ("ftp://x", "unknown"),
            ("ws://", "no host"),
            ("ws:///path", "no host"),
            ("ws://host:0", "port"),
            ("ws://host:65536", "port"),
            ("ws://host:http", "port"),
            ("ws://user:hunter2@host", "headers"),
            ("ws://::1:80", "brackets"),
            ("ws://[::1", "]"),
            ("ws://[nonsense]", "IPv6"),
            ("ws://ho st", "white space"),
            ("ws://host/\r\nX: y", "white space"),
            ("ws://host/a#b", "fragment"),
            ("ws://h\u{f6}st", "host name"),
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("hunter2"));
        }
        assert!(
            Endpoint::parse(&format!("ws://{}", "x".repeat(MAX_URL)))
                .unwrap_err()
                .contains("longer")
        );
    }
}
