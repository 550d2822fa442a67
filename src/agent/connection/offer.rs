//! An offer of OpAMP connection settings: checked as far as that goes without files and without a connection, and
//! laid over what is in force.

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::path::{Path, PathBuf};

use chiton_proto::{
    Headers, OpAmpConnectionSettings, ProxyConnectionSettings, TlsCertificate,
    TlsConnectionSettings,
};

use super::overlay::{CERTIFICATE, KEY, Material, Overlay, Own, Proxy, TRUST, Tls};
use crate::agent::configset::matches;
use crate::secret::Secret;
use crate::settings::{
    self, ClientCertificate, Endpoint, MAX_HEADERS, Server, TlsVersion, check_header, proxy_url,
};

/// Between heartbeats, and between polls.
const HEARTBEAT: core::ops::RangeInclusive<u64> = 1..=86_400;

/// What an offer comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Offered {
    /// What is in force, with the offer over it.
    pub overlay: Overlay,
    /// The files that it brings.
    pub material: Material,
}

/// What offers are measured by.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    /// The settings' own.
    pub own: &'a Server,
    /// What is in force of earlier offers.
    pub base: &'a Overlay,
    /// Why a key would not outlive the next start, if so.
    pub volatile: Option<&'a str>,
}

impl Bench<'_> {
    /// Lays an offer over what is in force.
    ///
    /// # Errors
    /// Which part is not acceptable, and why; values are not repeated.
    pub fn take(&self, offer: &OpAmpConnectionSettings) -> Result<Offered, String> {
        let own = Own::of(self.own);
        let mut overlay = self.base.still_over(&own, self.own);
        let mut material = Material::default();
        let named = !offer.destination_endpoint.is_empty();
        if named {
            let today = overlay.endpoint.as_ref().unwrap_or(&self.own.endpoint);
            overlay.endpoint = Some(self.endpoint(&offer.destination_endpoint, today)?);
            overlay.over.endpoint = own.endpoint;
        }
        if let Some(headers) = &offer.headers {
            overlay.headers = Some(self::headers(headers, "headers")?);
            overlay.over.headers = own.headers;
        }
        if let Some(certificate) = &offer.certificate {
            self.certificate(certificate, &mut material)?;
            overlay.certificate = true;
            overlay.over.certificate = own.certificate;
        }
        if let Some(tls) = &offer.tls {
            overlay.tls = Some(self.tls(tls, overlay.tls.as_ref(), &mut material)?);
            overlay.over.tls = own.tls;
        }
        if let Some(proxy) = &offer.proxy {
            overlay.proxy = Some(self::proxy(proxy)?);
            overlay.over.proxy = own.proxy;
        }
        // Zero is also what an offer says that does not mean it.
        if offer.heartbeat_interval_seconds > 0 || named {
            let seconds = match offer.heartbeat_interval_seconds {
                0 => 0,
                seconds => seconds.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()),
            };
            overlay.heartbeat = Some(Duration::from_secs(seconds));
            overlay.over.heartbeat = own.heartbeat;
        }
        Ok(Offered { overlay, material })
    }

    fn endpoint(&self, url: &str, today: &Endpoint) -> Result<Endpoint, String> {
        let refused = |why: &str| format!("destination_endpoint {why}");
        let endpoint = Endpoint::parse(url).map_err(|why| refused(&why))?;
        if today.scheme.is_secure() && !endpoint.scheme.is_secure() {
            return Err(refused(&format!(
                "is {}://, which has no TLS, and the connection of today has: allowed are wss:// and https://",
                endpoint.scheme.name()
            )));
        }
        let patterns = &self.own.allow_endpoints;
        let allowed = match patterns.is_empty() {
            true => endpoint.host == self.own.endpoint.host,
            false => is_named(patterns, &endpoint),
        };
        if !allowed {
            let host = &endpoint.host;
            return Err(refused(&format!(
                "leads to {host}, which is not allowed: if it is meant, name it in opamp.server.allow_endpoints"
            )));
        }
        Ok(endpoint)
    }

    fn certificate(&self, offered: &TlsCertificate, to: &mut Material) -> Result<(), String> {
        if let Some(volatile) = self.volatile {
            return Err(format!(
                "certificate: the state directory is on {volatile}, and would lose it at the next start"
            ));
        }
        let some = |bytes: &bytes::Bytes| Some(bytes).filter(|bytes| !bytes.is_empty()).cloned();
        to.certificate =
            Some(some(&offered.cert).ok_or("certificate: cert is empty; allowed is a PEM chain")?);
        to.private_key = some(&offered.private_key).map(Secret::new);
        to.issuer = some(&offered.ca_cert);
        Ok(())
    }

    fn tls(
        &self,
        offered: &TlsConnectionSettings,
        before: Option<&Tls>,
        to: &mut Material,
    ) -> Result<Tls, String> {
        let own = &self.own.tls;
        if offered.insecure_skip_verify && !own.insecure_skip_verify {
            return Err(
                "tls.insecure_skip_verify: the server is to be verified; only the settings can say otherwise"
                    .to_owned(),
            );
        }
        let min_version = version(&offered.min_version, "tls.min_version", TlsVersion::V12)?
            .unwrap_or(TlsVersion::V12)
            .max(own.min_version);
        let max_version = version(&offered.max_version, "tls.max_version", TlsVersion::V13)?
            .ok_or("tls.max_version: is below 1.2, the lowest version that Chiton speaks")?;
        if max_version < min_version {
            return Err(
                "tls.max_version: is below min_version, that of the offer or of the settings"
                    .to_owned(),
            );
        }
        let pem = &offered.ca_pem_contents;
        to.trust = (!pem.is_empty()).then(|| pem.clone().into());
        Ok(Tls {
            trust: !pem.is_empty() || before.is_some_and(|before| before.trust),
            include_system_ca_certs_pool: offered.include_system_ca_certs_pool,
            insecure_skip_verify: offered.insecure_skip_verify,
            min_version,
            max_version,
            cipher_suites: offered.cipher_suites.clone(),
        })
    }
}

/// Whether a list of host patterns names this host, alone or with its port.
#[must_use]
pub fn is_named(patterns: &[String], endpoint: &Endpoint) -> bool {
    let Endpoint { host, port, .. } = endpoint;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let with_port = format!("{bracketed}:{port}");
    patterns.iter().map(|pattern| pattern.to_ascii_lowercase()).any(|pattern| {
        [host, &bracketed, &with_port].into_iter().any(|name| matches(&pattern, name))
    })
}

/// [`None`]: below 1.2.
fn version(text: &str, key: &str, default: TlsVersion) -> Result<Option<TlsVersion>, String> {
    let number = ["TLSv", "TLS"].iter().find_map(|prefix| text.strip_prefix(prefix));
    match number.unwrap_or(text).trim() {
        "" => Ok(Some(default)),
        "1.3" => Ok(Some(TlsVersion::V13)),
        "1.2" => Ok(Some(TlsVersion::V12)),
        "1" | "1.0" | "1.1" => Ok(None),
        _ => Err(format!("{key}: is no version of TLS; allowed are 1.2 and 1.3")),
    }
}

fn headers(offered: &Headers, key: &str) -> Result<Vec<(String, Secret<String>)>, String> {
    let mut bytes = 0_usize;
    let mut headers = Vec::with_capacity(offered.headers.len());
    for header in &offered.headers {
        check_header(&header.key, &header.value).map_err(|why| format!("{key}: a name {why}"))?;
        bytes = bytes.saturating_add(header.key.len()).saturating_add(header.value.len());
        headers.push((header.key.clone(), Secret::new(header.value.clone())));
    }
    if bytes > MAX_HEADERS {
        return Err(format!("{key}: {bytes} bytes together; allowed are {MAX_HEADERS}"));
    }
    Ok(headers)
}

fn proxy(offered: &ProxyConnectionSettings) -> Result<Proxy, String> {
    if offered.url.is_empty() {
        return Err("proxy.url: is empty".to_owned());
    }
    let url = proxy_url(&offered.url).map_err(|why| format!("proxy.url: {why}"))?;
    let connect_headers = match &offered.connect_headers {
        Some(offered) => headers(offered, "proxy.connect_headers")?,
        None => Vec::new(),
    };
    Ok(Proxy { url: Secret::new(url), connect_headers })
}

impl Overlay {
    /// What of it counts: a part that the settings say otherwise by now is theirs again. That they say nothing of it any
    /// more, or that a variable is missing, is no other word: bootstrap credentials are taken away when they have served.
    #[must_use]
    pub fn still_over(&self, own: &Own, server: &Server) -> Self {
        let mut left = self.clone();
        if server.unusable.is_some() {
            return left;
        }
        let over = self.over;
        if over.endpoint != own.endpoint {
            left.endpoint = None;
        }
        if over.headers != own.headers && !server.headers.is_empty() {
            left.headers = None;
        }
        if over.certificate != own.certificate && server.tls.client.is_some() {
            left.certificate = false;
        }
        if over.tls != own.tls {
            left.tls = None;
        }
        if over.proxy != own.proxy && server.proxy.is_some() {
            left.proxy = None;
        }
        if over.heartbeat != own.heartbeat {
            left.heartbeat = None;
        }
        left
    }

    /// The connection that it makes of the settings' own; its files are in `directory`.
    #[must_use]
    pub fn lay_over(&self, own: &Server, directory: &Path) -> Server {
        let of = self.still_over(&Own::of(own), own);
        let mut server = own.clone();
        // What is missing there may be what was offered since: an attempt tells.
        server.unusable = None;
        if let Some(endpoint) = of.endpoint {
            server.endpoint = endpoint;
        }
        if let Some(headers) = of.headers {
            server.headers = headers;
        }
        let file = |name: &str| -> PathBuf { directory.join(name) };
        if of.certificate {
            server.tls.client =
                Some(ClientCertificate { cert_file: file(CERTIFICATE), key_file: file(KEY) });
        }
        if let Some(tls) = of.tls {
            let to = &mut server.tls;
            if tls.trust {
                to.ca_file = Some(file(TRUST));
            }
            to.include_system_ca_certs_pool = tls.include_system_ca_certs_pool;
            to.insecure_skip_verify = tls.insecure_skip_verify && own.tls.insecure_skip_verify;
            to.min_version = tls.min_version.max(own.tls.min_version);
            to.max_version = tls.max_version.max(to.min_version);
            to.cipher_suites = tls.cipher_suites;
        }
        if let Some(Proxy { url, connect_headers }) = of.proxy {
            let no_proxy = own.proxy.as_ref().map(|proxy| proxy.no_proxy.clone());
            let no_proxy = no_proxy.unwrap_or_default();
            server.proxy = Some(settings::Proxy { url, connect_headers, no_proxy });
        }
        if let Some(interval) = of.heartbeat {
            server.heartbeat_interval = interval;
            // Plain HTTP has to poll (opamp-spec L2105).
            if !interval.is_zero() {
                server.poll_interval = interval;
            }
        }
        server
    }
}

impl Own {
    /// Of these settings.
    #[must_use]
    pub fn of(server: &Server) -> Self {
        let tls = &server.tls;
        let mut endpoint = Fnv::new();
        endpoint.text(&server.endpoint.to_string());
        let mut headers = Fnv::new();
        headers.headers(&server.headers);
        let mut certificate = Fnv::new();
        if let Some(client) = &tls.client {
            certificate.path(&client.cert_file);
            certificate.path(&client.key_file);
        }
        let mut rest = Fnv::new();
        rest.path(tls.ca_file.as_deref().unwrap_or(Path::new("")));
        rest.bytes(&[
            u8::from(tls.include_system_ca_certs_pool),
            u8::from(tls.insecure_skip_verify),
            u8::from(tls.min_version == TlsVersion::V13),
            u8::from(tls.max_version == TlsVersion::V13),
        ]);
        let mut proxy = Fnv::new();
        if let Some(own) = &server.proxy {
            proxy.text(own.url.expose());
            proxy.headers(&own.connect_headers);
        }
        let mut heartbeat = Fnv::new();
        heartbeat.bytes(&server.heartbeat_interval.as_nanos().to_be_bytes());
        heartbeat.bytes(&server.poll_interval.as_nanos().to_be_bytes());
        Self {
            endpoint: endpoint.0,
            headers: headers.0,
            certificate: certificate.0,
            tls: rest.0,
            proxy: proxy.0,
            heartbeat: heartbeat.0,
        }
    }
}

/// FNV-1a: tells whether settings are the same as before. Nothing secret hangs on it, but it lies beside secrets.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }

    fn path(&mut self, path: &Path) {
        self.bytes(path.as_os_str().as_encoded_bytes());
        self.bytes(&[0]);
    }

    fn headers(&mut self, headers: &[(String, Secret<String>)]) {
        for (name, value) in headers {
            self.text(name);
            self.text(value.expose());
        }
    }
}
