//! Records of the connection. The only place where its secrets are exposed in order to be written.

use core::time::Duration;

use prost::Message;

use super::{Plain, Record};
use crate::agent::connection::memory::{Attempt, Generation, Memory};
use crate::agent::connection::overlay::{Overlay, Own, Proxy, Tls};
use crate::agent::rollout::{self, Parts};
use crate::secret::Secret;
use crate::settings::endpoint::MAX_URL;
use crate::settings::{Endpoint, KeyKind, TlsVersion};
use crate::store::connections::Pending;

/// What it has in common with the life cycle of configurations is written like that.
#[derive(Clone, PartialEq, Message)]
struct ConnectionRecord {
    #[prost(bytes = "vec", tag = "1")]
    life: Vec<u8>,
    /// Seconds since 1970: of the trial.
    #[prost(uint64, tag = "2")]
    since: u64,
    #[prost(uint64, optional, tag = "3")]
    refused_since: Option<u64>,
}

const fn lived(Generation { number, digest }: Generation) -> rollout::Generation {
    rollout::Generation { number, digest, remote: true }
}

const fn generation(lived: rollout::Generation) -> Generation {
    Generation { number: lived.number, digest: lived.digest }
}

impl Record for Memory {
    fn to_payload(&self) -> Vec<u8> {
        let trial = self.trial.as_ref().map(|trial| rollout::Attempt {
            generation: lived(trial.generation),
            parts: Parts { config: Some(trial.hash.clone()), ..Parts::default() },
            number: trial.number,
        });
        let life = rollout::Memory {
            committed: self.committed.map(lived),
            trial,
            received: self.received.clone(),
            outcome: self.outcome.clone(),
            failed: self.failed.clone(),
            ..rollout::Memory::default()
        };
        ConnectionRecord {
            life: life.to_payload(),
            since: self.trial.as_ref().map_or(0, |trial| trial.since),
            refused_since: self.refused_since,
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, String> {
        let record = ConnectionRecord::decode(payload).map_err(|error| error.to_string())?;
        let life = rollout::Memory::from_payload(&record.life)?;
        Ok(Self {
            committed: life.committed.map(generation),
            trial: life.trial.map(|trial| Attempt {
                generation: generation(trial.generation),
                hash: trial.parts.hash(),
                number: trial.number,
                since: record.since,
            }),
            received: life.received,
            outcome: life.outcome,
            failed: life.failed,
            refused_since: record.refused_since,
        })
    }
}

/// What a generation's PEM files do not say: it lies beside them.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(in crate::store) struct OverlayRecord {
    /// What is in the generation, see `connections::digest`.
    #[prost(bytes = "vec", tag = "1")]
    pub(in crate::store) digest: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    endpoint: Option<String>,
    #[prost(bool, tag = "3")]
    has_headers: bool,
    /// Names and values in turn.
    #[prost(string, repeated, tag = "4")]
    headers: Vec<String>,
    #[prost(bool, tag = "5")]
    pub(in crate::store) certificate: bool,
    #[prost(message, optional, tag = "6")]
    tls: Option<TlsRecord>,
    /// URL, then names and values in turn; empty: none.
    #[prost(string, repeated, tag = "7")]
    proxy: Vec<String>,
    /// Milliseconds.
    #[prost(uint64, optional, tag = "8")]
    heartbeat: Option<u64>,
    /// In the order of [`Own`]'s fields.
    #[prost(fixed64, repeated, tag = "9")]
    over: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct TlsRecord {
    #[prost(bool, tag = "1")]
    trust: bool,
    #[prost(bool, tag = "2")]
    include_system_ca_certs_pool: bool,
    #[prost(bool, tag = "3")]
    insecure_skip_verify: bool,
    /// 2 or 3, of 1.2 and 1.3.
    #[prost(uint32, tag = "4")]
    min_version: u32,
    #[prost(uint32, tag = "5")]
    max_version: u32,
    #[prost(string, repeated, tag = "6")]
    cipher_suites: Vec<String>,
}

const fn minor(version: TlsVersion) -> u32 {
    match version {
        TlsVersion::V12 => 2,
        TlsVersion::V13 => 3,
    }
}

fn version(minor: u32) -> Result<TlsVersion, String> {
    match minor {
        2 => Ok(TlsVersion::V12),
        3 => Ok(TlsVersion::V13),
        _ => Err("its TLS version is unknown".to_owned()),
    }
}

fn flat(headers: &[(String, Secret<String>)], flat: &mut Vec<String>) {
    for (name, value) in headers {
        flat.extend([name.clone(), value.expose().clone()]);
    }
}

fn pairs(flat: impl Iterator<Item = String>) -> Vec<(String, Secret<String>)> {
    let mut flat = flat;
    let mut pairs = Vec::new();
    while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
        pairs.push((name, Secret::new(value)));
    }
    pairs
}

impl OverlayRecord {
    /// Without the digest.
    pub(in crate::store) fn new(overlay: &Overlay) -> Self {
        let mut headers = Vec::new();
        flat(overlay.headers.as_deref().unwrap_or_default(), &mut headers);
        let mut proxy = Vec::new();
        if let Some(offered) = &overlay.proxy {
            proxy.push(offered.url.expose().clone());
            flat(&offered.connect_headers, &mut proxy);
        }
        let over = &overlay.over;
        Self {
            digest: Vec::new(),
            endpoint: overlay.endpoint.as_ref().map(ToString::to_string),
            has_headers: overlay.headers.is_some(),
            headers,
            certificate: overlay.certificate,
            tls: overlay.tls.as_ref().map(|tls| TlsRecord {
                trust: tls.trust,
                include_system_ca_certs_pool: tls.include_system_ca_certs_pool,
                insecure_skip_verify: tls.insecure_skip_verify,
                min_version: minor(tls.min_version),
                max_version: minor(tls.max_version),
                cipher_suites: tls.cipher_suites.clone(),
            }),
            proxy,
            heartbeat: overlay
                .heartbeat
                .map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            over: [
                over.endpoint,
                over.headers,
                over.certificate,
                over.tls,
                over.proxy,
                over.heartbeat,
            ]
            .into(),
        }
    }

    /// What of it counts as contents: not what the settings said meanwhile.
    pub(in crate::store) fn contents(&self) -> Vec<u8> {
        Self { digest: Vec::new(), over: Vec::new(), ..self.clone() }.encode_to_vec()
    }

    /// Whether trust roots lie beside it.
    pub(in crate::store) fn has_trust(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.trust)
    }

    pub(in crate::store) fn into_overlay(self) -> Result<Overlay, String> {
        let [endpoint, headers, certificate, tls, proxy, heartbeat] =
            self.over.try_into().map_err(|_| "it does not say what it was offered over")?;
        let over = Own { endpoint, headers, certificate, tls, proxy, heartbeat };
        // A path that was left out is written out by now.
        let url = self.endpoint.map(|url| Endpoint::parse_up_to(&url, MAX_URL.saturating_mul(2)));
        let tls = self.tls.map(|tls| {
            Ok::<_, String>(Tls {
                trust: tls.trust,
                include_system_ca_certs_pool: tls.include_system_ca_certs_pool,
                insecure_skip_verify: tls.insecure_skip_verify,
                min_version: version(tls.min_version)?,
                max_version: version(tls.max_version)?,
                cipher_suites: tls.cipher_suites,
            })
        });
        let mut proxy = self.proxy.into_iter();
        let url_of_proxy = proxy.next();
        Ok(Overlay {
            endpoint: url.transpose()?,
            headers: self.has_headers.then(|| pairs(self.headers.into_iter())),
            certificate: self.certificate,
            tls: tls.transpose()?,
            proxy: url_of_proxy
                .map(|url| Proxy { url: Secret::new(url), connect_headers: pairs(proxy) }),
            heartbeat: self.heartbeat.map(Duration::from_millis),
            over,
        })
    }
}

impl Plain for OverlayRecord {}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct PendingRecord {
    #[prost(string, tag = "1")]
    common_name: String,
    #[prost(bool, tag = "2")]
    ed25519: bool,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    csr: Vec<u8>,
}

impl Record for Pending {
    fn to_payload(&self) -> Vec<u8> {
        PendingRecord {
            common_name: self.common_name.clone(),
            ed25519: self.kind == KeyKind::Ed25519,
            key: self.key_pem.expose().clone(),
            csr: self.csr_pem.clone(),
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, String> {
        let record = PendingRecord::decode(payload).map_err(|error| error.to_string())?;
        Ok(Self {
            common_name: record.common_name,
            kind: if record.ed25519 { KeyKind::Ed25519 } else { KeyKind::P256 },
            key_pem: Secret::new(record.key),
            csr_pem: record.csr,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;

    use super::*;
    use crate::agent::rollout::{Failed, Outcome};

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn whole() -> Overlay {
        let headers = vec![("A".to_owned(), secret("1")), ("A".to_owned(), secret(""))];
        Overlay {
            endpoint: Some(Endpoint::parse("wss://[::1]:443?q").unwrap()),
            headers: Some(headers.clone()),
            certificate: true,
            tls: Some(Tls {
                trust: true,
                include_system_ca_certs_pool: false,
                insecure_skip_verify: true,
                min_version: TlsVersion::V12,
                max_version: TlsVersion::V13,
                cipher_suites: vec!["TLS13_AES_128_GCM_SHA256".to_owned()],
            }),
            proxy: Some(Proxy { url: secret("http://u:p@proxy:3128"), connect_headers: headers }),
            heartbeat: Some(Duration::ZERO),
            over: Own {
                endpoint: 1,
                headers: 2,
                certificate: 3,
                tls: 4,
                proxy: 5,
                heartbeat: u64::MAX,
            },
        }
    }

    #[test]
    fn memory_survives() {
        let generation = |number| Generation { number, digest: [7; 32] };
        let memory = Memory {
            committed: Some(generation(3)),
            trial: Some(Attempt {
                generation: generation(4),
                hash: Bytes::from_static(b"next"),
                number: 2,
                since: 1 << 33,
            }),
            received: Some(Bytes::from_static(b"bad")),
            outcome: Outcome::Failed("why".to_owned()),
            failed: [Failed {
                digest: [4; 32],
                reason: "why".to_owned(),
                hash: Bytes::from_static(b"bad"),
            }]
            .into(),
            refused_since: Some(0),
        };
        for memory in [memory, Memory::default()] {
            assert_eq!(Memory::from_payload(&memory.to_payload()).unwrap(), memory);
        }
    }

    #[test]
    fn overlays_survive_and_what_is_empty_is_not_absent() {
        let empty = Overlay { headers: Some(Vec::new()), ..Overlay::default() };
        let bare = Overlay {
            proxy: Some(Proxy { url: secret("http://proxy"), connect_headers: Vec::new() }),
            ..Overlay::default()
        };
        let mut longest = format!("wss://host?{}", "q".repeat(MAX_URL));
        longest.truncate(MAX_URL);
        let long =
            Overlay { endpoint: Some(Endpoint::parse(&longest).unwrap()), ..Overlay::default() };
        for overlay in [whole(), empty, bare, long, Overlay::default()] {
            let payload = OverlayRecord::new(&overlay).to_payload();
            let read = OverlayRecord::from_payload(&payload).unwrap().into_overlay().unwrap();
            assert_eq!(read, overlay);
        }
    }

    #[test]
    fn contents_are_all_but_what_the_settings_said() {
        let record = OverlayRecord::new(&whole());
        let same = Overlay { over: Own::default(), ..whole() };
        assert_eq!(OverlayRecord::new(&same).contents(), record.contents());
        let others = [
            Overlay { endpoint: None, ..whole() },
            Overlay { headers: None, ..whole() },
            Overlay { headers: Some(Vec::new()), ..whole() },
            Overlay { certificate: false, ..whole() },
            Overlay { tls: None, ..whole() },
            Overlay { proxy: None, ..whole() },
            Overlay { heartbeat: None, ..whole() },
        ];
        for other in others {
            assert_ne!(OverlayRecord::new(&other).contents(), record.contents(), "{other:?}");
        }
    }

    #[test]
    fn a_pending_request_survives() {
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let pending = Pending {
                common_name: "device".to_owned(),
                kind,
                key_pem: Secret::new(b"key".to_vec()),
                csr_pem: b"request".to_vec(),
            };
            assert_eq!(Pending::from_payload(&pending.to_payload()).unwrap(), pending);
        }
    }
}
