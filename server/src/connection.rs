//! Connection settings that a person offers: endpoint, headers, heartbeat, TLS, proxy.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue, Uri};
use chiton_proto::{
    Header, Headers, OpAmpConnectionSettings, ProxyConnectionSettings, TlsConnectionSettings,
};
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::Moment;
use crate::credentials::Digest;
use crate::selector::Selector;

/// Headers in one list.
const MAX_HEADERS: usize = 64;
/// Bytes of all settings.
const MAX_SETTINGS: usize = 128 << 10;
/// Longest time between heartbeats, seconds.
const MAX_HEARTBEAT: u64 = 86_400;

/// Connection settings and whom they are for.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) target: Selector,
    settings: OpAmpConnectionSettings,
    digest: Digest,
    pub(crate) created: Moment,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connection").field("target", &self.target).finish_non_exhaustive()
    }
}

/// As REST takes it. The names are OpAMP's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewConnection {
    pub(crate) target: Option<String>,
    #[serde(default)]
    destination_endpoint: String,
    headers: Option<BTreeMap<String, OneOrMore>>,
    heartbeat_interval_seconds: Option<u64>,
    tls: Option<NewTls>,
    proxy: Option<NewProxy>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NewTls {
    ca_pem_contents: String,
    include_system_ca_certs_pool: bool,
    insecure_skip_verify: bool,
    min_version: String,
    max_version: String,
    cipher_suites: Vec<String>,
}

impl Default for NewTls {
    fn default() -> Self {
        Self {
            ca_pem_contents: String::new(),
            include_system_ca_certs_pool: false,
            insecure_skip_verify: false,
            min_version: "1.2".to_owned(),
            max_version: String::new(),
            cipher_suites: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewProxy {
    url: String,
    #[serde(default)]
    connect_headers: BTreeMap<String, OneOrMore>,
}

impl NewConnection {
    /// Checks it. The error is for the person who wrote it.
    pub(crate) fn check(self, target: Selector, now: Moment) -> Result<Connection, String> {
        let endpoint = &self.destination_endpoint;
        if !endpoint.is_empty() {
            url("destination_endpoint", endpoint, &["ws", "wss", "http", "https"])?;
        }
        let heartbeat = self.heartbeat_interval_seconds.unwrap_or(0);
        if heartbeat > MAX_HEARTBEAT {
            return Err(format!(
                "heartbeat_interval_seconds: {heartbeat}; at most {MAX_HEARTBEAT} are allowed"
            ));
        }
        if self.heartbeat_interval_seconds == Some(0) && endpoint.is_empty() {
            return Err(
                "heartbeat_interval_seconds: 0 (none) counts only beside destination_endpoint"
                    .to_owned(),
            );
        }
        if endpoint.is_empty()
            && heartbeat == 0
            && self.headers.is_none()
            && self.tls.is_none()
            && self.proxy.is_none()
        {
            return Err("it offers nothing".to_owned());
        }
        let settings = OpAmpConnectionSettings {
            headers: self.headers.map(|given| headers("headers", given)).transpose()?,
            certificate: None,
            heartbeat_interval_seconds: heartbeat,
            tls: self.tls.map(NewTls::check).transpose()?,
            proxy: self.proxy.map(NewProxy::check).transpose()?,
            destination_endpoint: self.destination_endpoint,
        };
        if settings.encoded_len() > MAX_SETTINGS {
            return Err(format!(
                "{} bytes in all, at most {MAX_SETTINGS} are allowed",
                settings.encoded_len()
            ));
        }
        Ok(Connection::new(target, settings, now))
    }
}

impl NewTls {
    fn check(self) -> Result<TlsConnectionSettings, String> {
        for (name, version) in
            [("min_version", &self.min_version), ("max_version", &self.max_version)]
        {
            if !matches!(version.trim_start_matches("TLSv"), "" | "1.0" | "1.1" | "1.2" | "1.3") {
                return Err(format!("tls.{name}: {version:?}; allowed are 1.2 and 1.3"));
            }
        }
        Ok(TlsConnectionSettings {
            ca_pem_contents: self.ca_pem_contents,
            include_system_ca_certs_pool: self.include_system_ca_certs_pool,
            insecure_skip_verify: self.insecure_skip_verify,
            min_version: self.min_version,
            max_version: self.max_version,
            cipher_suites: self.cipher_suites,
        })
    }
}

impl NewProxy {
    fn check(self) -> Result<ProxyConnectionSettings, String> {
        url("proxy.url", &self.url, &["http", "https", "socks5", "socks5h"])?;
        let connect_headers = Some(self.connect_headers).filter(|given| !given.is_empty());
        let connect_headers = connect_headers.map(|given| headers("proxy.connect_headers", given));
        Ok(ProxyConnectionSettings { url: self.url, connect_headers: connect_headers.transpose()? })
    }
}

fn url(name: &str, text: &str, schemes: &[&str]) -> Result<(), String> {
    let uri: Option<Uri> = text.parse().ok();
    let scheme = uri.as_ref().and_then(Uri::scheme_str).unwrap_or_default();
    if schemes.contains(&scheme)
        && uri.as_ref().and_then(Uri::host).is_some_and(|host| !host.is_empty())
    {
        return Ok(());
    }
    // It may hold a password: it is not repeated.
    Err(format!(
        "{name}: it must be a URL with a host and one of the schemes {}",
        schemes.join(", ")
    ))
}

fn headers(name: &str, given: BTreeMap<String, OneOrMore>) -> Result<Headers, String> {
    let mut headers = Vec::new();
    for (key, values) in given {
        if HeaderName::from_bytes(key.as_bytes()).is_err() {
            return Err(format!("{name}: {key:?} is no name of a header"));
        }
        let values = match values {
            OneOrMore::One(value) => vec![value],
            OneOrMore::More(values) => values,
        };
        for value in values {
            if HeaderValue::from_str(&value).is_err() {
                return Err(format!(
                    "{name}: the value of {key:?} has bytes that a header cannot have"
                ));
            }
            headers.push(Header { key: key.clone(), value });
        }
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!(
            "{name}: {} of them, at most {MAX_HEADERS} are allowed",
            headers.len()
        ));
    }
    Ok(Headers { headers })
}

impl Connection {
    pub(crate) fn new(
        target: Selector,
        settings: OpAmpConnectionSettings,
        created: Moment,
    ) -> Self {
        let digest = Digest::of(&settings.encode_to_vec());
        Self { target, settings, digest, created }
    }

    pub(crate) fn settings(&self) -> &OpAmpConnectionSettings {
        &self.settings
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Without the values of headers and without a proxy's password.
    pub(crate) fn view(&self) -> Value {
        let names = |headers: &Headers| -> Vec<String> {
            headers.headers.iter().map(|header| header.key.clone()).collect()
        };
        let OpAmpConnectionSettings {
            destination_endpoint,
            headers,
            heartbeat_interval_seconds,
            tls,
            proxy,
            ..
        } = &self.settings;
        let place = |url: &str| {
            let uri: Option<Uri> = url.parse().ok();
            uri.and_then(|uri| {
                let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
                Some(format!("{}://{}{port}", uri.scheme_str()?, uri.host()?))
            })
        };
        json!({
            "target": self.target.to_string(),
            "created": self.created.to_string(),
            "destination_endpoint": destination_endpoint,
            "headers": headers.as_ref().map(names),
            "heartbeat_interval_seconds": heartbeat_interval_seconds,
            "tls": tls.as_ref().map(|tls| json!({
                "ca_pem_contents": !tls.ca_pem_contents.is_empty(),
                "include_system_ca_certs_pool": tls.include_system_ca_certs_pool,
                "insecure_skip_verify": tls.insecure_skip_verify,
                "min_version": tls.min_version,
                "max_version": tls.max_version,
                "cipher_suites": tls.cipher_suites,
            })),
            "proxy": proxy.as_ref().map(|proxy| json!({
                "url": place(&proxy.url),
                "connect_headers": proxy.connect_headers.as_ref().map(names),
            })),
        })
    }
}
