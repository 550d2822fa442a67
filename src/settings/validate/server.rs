//! `opamp.server`.

use core::time::Duration;
use std::net::IpAddr;

use super::super::endpoint::{MAX_URL, SOCKS_PORT, split_port};
use super::super::environment::Environment;
use super::super::model::{
    ClientCertificate, Endpoint, Enroll, KeyKind, Proxy, Scheme, Server, Timeouts, Tls, TlsVersion,
};
use super::super::problem::shorten;
use super::super::units::{Span, base64_digest};
use super::super::walker::{Section, Wants};
use super::common::{BEAT, DAY, HOUR, MINUTE, SECOND, SHORTEST, backoff};
use crate::secret::Secret;

/// Bytes of all header values together; servers take about so much.
pub const MAX_HEADERS: usize = 16 << 10;
/// Largest message, bytes: from what a status report needs to what a device can hold three times.
const MESSAGE_SIZE: core::ops::RangeInclusive<u64> = (1 << 10)..=(64 << 20);
/// Headers that the transport writes itself.
const OWN_HEADERS: [&str; 10] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn server(section: &mut Section<'_, '_, '_>, environment: &dyn Environment) -> Server {
    let endpoint = endpoint(section);
    let headers = headers(section, "headers");
    let tls = section.within("tls", tls);
    let proxy = proxy(section, environment, endpoint.scheme);
    let poll = Span::new(BEAT, DAY);
    let size = section.size("max_message_size", &MESSAGE_SIZE, 4 << 20);
    Server {
        endpoint,
        headers,
        tls,
        proxy,
        heartbeat_interval: section.duration(
            "heartbeat_interval",
            heartbeat_span(),
            SECOND.saturating_mul(30),
        ),
        poll_interval: section.duration("poll_interval", poll, SECOND.saturating_mul(30)),
        reconnect: section
            .within("reconnect", |own| backoff(own, SECOND.saturating_mul(5), MINUTE)),
        timeouts: section.within("timeouts", timeouts),
        max_message_size: usize::try_from(size).unwrap_or(usize::MAX),
        allow_endpoints: section.list("allow_endpoints", "a list of host patterns", host_pattern),
        unusable: None,
    }
}

/// What heartbeats may be apart.
pub(super) const fn heartbeat_span() -> Span {
    Span::new(BEAT, DAY).or_zero("off")
}

fn endpoint(section: &mut Section<'_, '_, '_>) -> Endpoint {
    let before = section.problems();
    let parsed = section.parsed("endpoint", Wants::Text("a URL"), Endpoint::parse);
    if parsed.is_none() && section.problems() == before && !section.is_broken() {
        section.report(
            "endpoint",
            "is missing; allowed is a URL such as wss://opamp.example.com:4320/v1/opamp",
        );
    }
    // Never connected to: there is a problem, and where it is a deferred one `unusable` says so.
    parsed.unwrap_or_else(|| Endpoint {
        scheme: Scheme::Wss,
        host: "endpoint.invalid".to_owned(),
        port: 443,
        path: "/v1/opamp".to_owned(),
    })
}

/// Headers: text or a list of texts for each name. Values are never shown.
fn headers(section: &mut Section<'_, '_, '_>, key: &'static str) -> Vec<(String, Secret<String>)> {
    let headers = section.map(key, Wants::Text("text or a list of texts"), true, |name, value| {
        header(name, value).map(|()| Secret::new(value.to_owned()))
    });
    let total: usize =
        headers.iter().map(|(name, value)| name.len().saturating_add(value.expose().len())).sum();
    if total > MAX_HEADERS {
        section.report(key, format!("{total} bytes together; allowed are {MAX_HEADERS}"));
    }
    headers
}

/// Whether a header can be sent beside those that Chiton writes itself.
///
/// # Errors
/// What is wrong with it; the value is not repeated.
pub fn header(name: &str, value: &str) -> Result<(), String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        return Err(
            "is not a header name; allowed are letters, digits and !#$%&'*+-.^_`|~".to_owned()
        );
    }
    if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Err("is written by Chiton itself; leave it out".to_owned());
    }
    if !value.chars().all(|c| c == '\t' || c == ' ' || c.is_ascii_graphic()) {
        return Err("the value has line ends, control characters or letters beyond ASCII in it; allowed are \
                    visible ASCII, spaces and tabs"
            .to_owned());
    }
    Ok(())
}

fn tls(section: &mut Section<'_, '_, '_>) -> Tls {
    let versions = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
    let ca_file = section.path_of("ca_file");
    let client = client(section);
    let min_version = section.word("min_version", &versions, TlsVersion::V12);
    let max_version = section.word("max_version", &versions, TlsVersion::V13);
    if min_version > max_version {
        section
            .report("min_version", "is above max_version; allowed are 1.2 and 1.3, in this order");
    }
    if section.truth("insecure", false) {
        section.report(
            "insecure",
            "true is refused: whether there is TLS is the endpoint's scheme. For none use ws:// or http:// in \
             opamp.server.endpoint; to skip verification only, insecure_skip_verify; allowed is false",
        );
    }
    Tls {
        ca_file,
        client,
        include_system_ca_certs_pool: section.truth("include_system_ca_certs_pool", false),
        min_version,
        max_version,
        pinned_spki_sha256: section.list("pinned_spki_sha256", "a list of digests in base64", pin),
        insecure_skip_verify: section.truth("insecure_skip_verify", false),
        cipher_suites: Vec::new(),
        enroll: enroll(section),
        renew_before: section.duration(
            "renew_before",
            Span::new(HOUR, DAY.saturating_mul(365)),
            DAY.saturating_mul(30),
        ),
    }
}

fn client(section: &mut Section<'_, '_, '_>) -> Option<ClientCertificate> {
    let before = section.problems();
    let files = (section.path_of("cert_file"), section.path_of("key_file"));
    let complete = section.problems() == before;
    match files {
        (Some(cert_file), Some(key_file)) => {
            return Some(ClientCertificate { cert_file, key_file });
        }
        (Some(_), None) if complete => {
            section.report("cert_file", "needs key_file beside it: both, or neither");
        }
        (None, Some(_)) if complete => {
            section.report("key_file", "needs cert_file beside it: both, or neither");
        }
        _ => {}
    }
    None
}

fn pin(text: &str) -> Result<[u8; 32], String> {
    base64_digest(text).ok_or_else(|| {
        format!(
            "{:?} is not allowed; allowed is the base64 of a SHA-256 (44 letters)",
            shorten(text)
        )
    })
}

fn enroll(section: &mut Section<'_, '_, '_>) -> Option<Enroll> {
    /// The longest common name that X.509 allows, characters.
    const MAX_COMMON_NAME: usize = 64;
    const OWN_NAME: &str = "{instance_uid}";
    let mut section = section.section("enroll");
    let common_name = section.parsed("common_name", Wants::Text("text"), |text| {
        let characters = text.chars().count();
        if (1..=MAX_COMMON_NAME).contains(&characters) {
            return Ok(text.to_owned());
        }
        Err(format!("has {characters} characters; allowed are 1 to {MAX_COMMON_NAME}"))
    });
    let key = section.word(
        "key",
        &[("p256", KeyKind::P256), ("ed25519", KeyKind::Ed25519)],
        KeyKind::P256,
    );
    section
        .is_there()
        .then(|| Enroll { common_name: common_name.unwrap_or_else(|| OWN_NAME.to_owned()), key })
}

fn timeouts(section: &mut Section<'_, '_, '_>) -> Timeouts {
    let span = Span::new(SHORTEST, MINUTE.saturating_mul(10));
    let (long, short) = (SECOND.saturating_mul(30), SECOND.saturating_mul(10));
    let mut timeout = |name, default: Duration| section.duration(name, span, default);
    Timeouts {
        connect: timeout("connect", long),
        tls: timeout("tls", long),
        answer: timeout("answer", short),
        pong: timeout("pong", short),
    }
}

/// A host with `*` for any run of characters, perhaps with a port.
fn host_pattern(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "*?.:-_[]".contains(c);
    if !text.is_empty() && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{:?} is not allowed; allowed is a host name, * in it for any run of characters: *.example.com",
        shorten(text)
    ))
}

/// The same, or a network: 10.0.0.0/8.
fn host_or_network(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((network, length))
            if network.parse::<IpAddr>().is_ok() && length.parse::<u8>().is_ok() =>
        {
            Ok(text.to_owned())
        }
        _ => host_pattern(text),
    }
}

/// `proxy`, or where it is absent what the environment says. An empty `url` means none, whatever that says.
fn proxy(
    section: &mut Section<'_, '_, '_>,
    environment: &dyn Environment,
    scheme: Scheme,
) -> Option<Proxy> {
    if !section.has("proxy") {
        return proxy_of(environment, scheme).unwrap_or_else(|(name, error)| {
            section.report_missing("proxy", format!("the variable {name}: {error}"));
            None
        });
    }
    let mut section = section.section("proxy");
    let before = section.problems();
    let url = section.parsed("url", Wants::Text("a URL"), |url| match url {
        "" => Ok(String::new()),
        url => proxy_url(url),
    });
    if url.is_none() && section.problems() == before && !section.is_broken() {
        section.report(
            "url",
            "is missing; allowed is a URL such as http://proxy:3128, or \"\" for no proxy",
        );
    }
    let connect_headers = headers(&mut section, "connect_headers");
    let no_proxy = section.list("no_proxy", "a list of hosts", host_or_network);
    let url = url.filter(|url| !url.is_empty())?;
    if url.starts_with("socks") && !connect_headers.is_empty() {
        section
            .report("connect_headers", "are for http and https proxies; a SOCKS proxy takes none");
    }
    Some(Proxy { url: Secret::new(url), connect_headers, no_proxy })
}

/// What a proxy of the environment is not for.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.0/8", "::1"];

fn proxy_of(
    environment: &dyn Environment,
    scheme: Scheme,
) -> Result<Option<Proxy>, (&'static str, String)> {
    let set = |names: [&'static str; 2]| {
        let variable = |name: &'static str| {
            let value = environment.variable(name)?;
            Some((name, value)).filter(|(_, value)| !value.trim().is_empty())
        };
        names.into_iter().find_map(variable)
    };
    let names = if scheme.is_secure() {
        ["https_proxy", "HTTPS_PROXY"]
    } else {
        ["http_proxy", "HTTP_PROXY"]
    };
    let Some((name, url)) = set(names) else { return Ok(None) };
    let url = url.trim();
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let url = proxy_url(&url).map_err(|error| (name, error))?;
    let direct = set(["no_proxy", "NO_PROXY"]).map(|(_, hosts)| hosts).unwrap_or_default();
    // Such a proxy is the whole host's: it is never the way to the host itself.
    let no_proxy = direct
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty() && !LOCAL.contains(host))
        .chain(LOCAL)
        .map(str::to_owned)
        .collect();
    Ok(Some(Proxy { url: Secret::new(url), connect_headers: Vec::new(), no_proxy }))
}

/// Checks the URL of a proxy, which may hold a password: it is not shown.
///
/// # Errors
/// What is wrong with it.
pub fn proxy_url(url: &str) -> Result<String, String> {
    const ALLOWED: &str = if cfg!(feature = "socks") {
        "allowed is a URL such as http://proxy:3128, with http, https, socks5 or socks5h"
    } else {
        "allowed is a URL such as http://proxy:3128, with http or https"
    };
    if url.len() > MAX_URL {
        return Err(format!("longer than {MAX_URL} bytes"));
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("has white space or control characters in it; {ALLOWED}"));
    }
    let (scheme, rest) =
        url.split_once("://").ok_or_else(|| format!("has no scheme; {ALLOWED}"))?;
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        "socks5" | "socks5h" if cfg!(feature = "socks") => SOCKS_PORT,
        "socks5" | "socks5h" => {
            return Err(format!(
                "is a SOCKS proxy, for which this Chiton was not built (cargo build --features socks); {ALLOWED}"
            ));
        }
        _ => return Err(format!("has an unknown scheme; {ALLOWED}")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let authority = rest.rsplit_once('@').map_or(rest, |(_, authority)| authority);
    if authority.contains(['/', '?', '#']) {
        return Err(format!("has a path; {ALLOWED}"));
    }
    split_port(authority, default).map_err(|_| format!("has no good host and port; {ALLOWED}"))?;
    Ok(url.to_owned())
}
