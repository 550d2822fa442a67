//! The bounds of a server's message, tested before it is decoded.
//!
//! Decoding costs memory by the number of sub-messages, not by their bytes: 4 MiB of empty ones become
//! 100 MB of heap. So the received bytes are walked first, tag by tag and without an allocation for each,
//! and what goes over a bound with a name is refused. The walk knows the tree of `ServerToAgent` from a small
//! table; a field that the table does not name is skipped, but counted.
//!
//! A count is that of one list as the decoder will build it: protobuf merges a sub-message that comes twice,
//! so both halves count together, while each entry of a map has lists of its own.

use core::fmt;

/// What one `ServerToAgent` may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the message: `opamp.server.max_message_size`. 4 MiB.
    pub max_message: usize,
    /// Fields of every kind, known or not, at every depth together. 32,768: about 25,000 are in a message
    /// with every list full.
    pub fields: usize,
    /// Messages inside messages, the outermost included. 8.
    pub depth: usize,
    /// Objects in `remote_config`. 32.
    pub config_objects: usize,
    /// Headers in one list (`headers`, `connect_headers`). 64.
    pub headers: usize,
    /// Packages in `packages_available`. 64.
    pub packages: usize,
    /// `connection_settings.other_connections`. 16.
    pub connections: usize,
    /// `other_settings` of one other connection. 64.
    pub other_settings: usize,
    /// `tls.cipher_suites` of one connection. 64.
    pub cipher_suites: usize,
    /// `custom_capabilities.capabilities`. 64.
    pub custom_capabilities: usize,
    /// Bytes of one hash of a server's own making, which is kept and sent back. 1 KiB.
    pub hash: usize,
}

impl Bounds {
    /// The defaults, as each field says.
    pub const DEFAULT: Self = Self {
        max_message: 4 * 1024 * 1024,
        fields: 32_768,
        depth: 8,
        config_objects: 32,
        headers: 64,
        packages: 64,
        connections: 16,
        other_settings: 64,
        cipher_suites: 64,
        custom_capabilities: 64,
        hash: 1024,
    };

    const fn limit(&self, bound: Bound) -> usize {
        match bound {
            Bound::Message => self.max_message,
            Bound::Fields => self.fields,
            Bound::Depth => self.depth,
            Bound::ConfigObjects => self.config_objects,
            Bound::Headers => self.headers,
            Bound::Packages => self.packages,
            Bound::Connections => self.connections,
            Bound::OtherSettings => self.other_settings,
            Bound::CipherSuites => self.cipher_suites,
            Bound::CustomCapabilities => self.custom_capabilities,
            Bound::Hash => self.hash,
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The bounds by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of `Bounds` of that name")]
pub enum Bound {
    Message,
    Fields,
    Depth,
    ConfigObjects,
    Headers,
    Packages,
    Connections,
    OtherSettings,
    CipherSuites,
    CustomCapabilities,
    Hash,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message => "bytes in a message",
            Self::Fields => "fields in a message",
            Self::Depth => "messages inside one another",
            Self::ConfigObjects => "config objects",
            Self::Headers => "headers in a list",
            Self::Packages => "packages",
            Self::Connections => "other connections",
            Self::OtherSettings => "settings of another connection",
            Self::CipherSuites => "cipher suites",
            Self::CustomCapabilities => "custom capabilities",
            Self::Hash => "bytes in a hash",
        })
    }
}

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundExceeded {
    /// More than a bound allows. The walk stops at the first one over, so `seen` is a lower limit of what
    /// the message holds.
    Over {
        /// Which bound.
        bound: Bound,
        /// Its value.
        limit: usize,
        /// What was counted when it was passed.
        seen: usize,
    },
    /// Not protobuf.
    Malformed {
        /// Byte offset of the fault.
        at: usize,
        /// What is wrong there.
        fault: Fault,
    },
}

impl BoundExceeded {
    /// A stable word for machines.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Over { .. } => "over_bound",
            Self::Malformed { .. } => "malformed",
        }
    }
}

impl fmt::Display for BoundExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over { bound, limit, seen } => {
                write!(f, "message refused: at least {seen} {bound}, {limit} are allowed")
            }
            Self::Malformed { at, fault } => write!(f, "message malformed at byte {at}: {fault}"),
        }
    }
}

impl core::error::Error for BoundExceeded {}

/// What can be wrong with protobuf's framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A varint of more than ten bytes or more than 64 bits, or a key of more than 32.
    Varint,
    /// It ends inside a field.
    Truncated,
    /// Field number 0.
    FieldZero,
    /// A group (wire types 3 and 4): OpAMP has none, and skipping one takes a stack.
    Group,
    /// Wire type 6 or 7.
    WireType,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Varint => "a number that is too long",
            Self::Truncated => "it ends inside a field",
            Self::FieldZero => "field number 0",
            Self::Group => "a group, which OpAMP does not use",
            Self::WireType => "an unknown wire type",
        })
    }
}

/// Walks an encoded `ServerToAgent` and says whether it may be decoded.
///
/// # Errors
/// The first bound that is passed, or the first place where the bytes are not protobuf.
pub fn count(message: &[u8], bounds: &Bounds) -> Result<(), BoundExceeded> {
    within(bounds, Bound::Message, message.len())?;
    let mut walk = Walk { bounds, total: message.len(), fields: 0 };
    walk.message(message, &SERVER_TO_AGENT, 1, 0, &mut Lists::default())
}

/// A field that the walk knows.
struct Field {
    number: u32,
    /// Counted as an element of this list, where it is one.
    list: Option<Bound>,
    /// Bound of its own length, where it has one.
    length: Option<Bound>,
    /// What is inside; absent: text or bytes.
    inside: Option<&'static [Field]>,
}

const fn message(number: u32, inside: &'static [Field]) -> Field {
    Field { number, list: None, length: None, inside: Some(inside) }
}

const fn list(number: u32, bound: Bound, inside: &'static [Field]) -> Field {
    Field { number, list: Some(bound), length: None, inside: Some(inside) }
}

const fn texts(number: u32, bound: Bound) -> Field {
    Field { number, list: Some(bound), length: None, inside: None }
}

const fn hash(number: u32) -> Field {
    Field { number, list: None, length: Some(Bound::Hash), inside: None }
}

// opamp.proto's messages with the lists in them, and the messages on the way to those; a map is a list of
// messages with the key as field 1 and the value as field 2. Messages without a list inside are `PLAIN`.
// Not one of them can hold itself. Numbers are below 16: `Walk::message` packs a path four bits a step.
static PLAIN: [Field; 0] = [];
static HEADERS: [Field; 1] = [list(1, Bound::Headers, &PLAIN)];
static TLS: [Field; 1] = [texts(6, Bound::CipherSuites)];
static PROXY: [Field; 1] = [message(2, &HEADERS)];
static OPAMP_CONNECTION: [Field; 4] =
    [message(2, &HEADERS), message(3, &PLAIN), message(5, &TLS), message(6, &PROXY)];
static TELEMETRY_CONNECTION: [Field; 4] =
    [message(2, &HEADERS), message(3, &PLAIN), message(4, &TLS), message(5, &PROXY)];
static OTHER_CONNECTION: [Field; 5] = [
    message(2, &HEADERS),
    message(3, &PLAIN),
    list(4, Bound::OtherSettings, &PLAIN),
    message(5, &TLS),
    message(6, &PROXY),
];
static OTHER_CONNECTION_ENTRY: [Field; 1] = [message(2, &OTHER_CONNECTION)];
static CONNECTION_SETTINGS: [Field; 6] = [
    hash(1),
    message(2, &OPAMP_CONNECTION),
    message(3, &TELEMETRY_CONNECTION),
    message(4, &TELEMETRY_CONNECTION),
    message(5, &TELEMETRY_CONNECTION),
    list(6, Bound::Connections, &OTHER_CONNECTION_ENTRY),
];
static FILE: [Field; 1] = [message(4, &HEADERS)];
static PACKAGE: [Field; 2] = [message(3, &FILE), hash(4)];
static PACKAGE_ENTRY: [Field; 1] = [message(2, &PACKAGE)];
static PACKAGES_AVAILABLE: [Field; 2] = [list(1, Bound::Packages, &PACKAGE_ENTRY), hash(2)];
static CONFIG_ENTRY: [Field; 1] = [message(2, &PLAIN)];
static CONFIG_MAP: [Field; 1] = [list(1, Bound::ConfigObjects, &CONFIG_ENTRY)];
static REMOTE_CONFIG: [Field; 2] = [message(1, &CONFIG_MAP), hash(2)];
static CUSTOM_CAPABILITIES: [Field; 1] = [texts(1, Bound::CustomCapabilities)];
static ERROR_RESPONSE: [Field; 1] = [message(3, &PLAIN)];
static SERVER_TO_AGENT: [Field; 8] = [
    message(2, &ERROR_RESPONSE),
    message(3, &REMOTE_CONFIG),
    message(4, &CONNECTION_SETTINGS),
    message(5, &PACKAGES_AVAILABLE),
    message(8, &PLAIN),
    message(9, &PLAIN),
    message(10, &CUSTOM_CAPABILITIES),
    message(11, &PLAIN),
];

/// The lists of one message or map entry, and of the single messages inside it, with what each holds so far.
/// A list is known by its path from there. The table has 15 of them at most in one place.
#[derive(Default)]
struct Lists(Vec<(u32, usize)>);

impl Lists {
    /// One more element in the list at `path`: how many it has now.
    fn add(&mut self, path: u32) -> usize {
        if let Some((_, seen)) = self.0.iter_mut().find(|(known, _)| *known == path) {
            *seen = seen.saturating_add(1);
            return *seen;
        }
        self.0.push((path, 1));
        1
    }
}

struct Walk<'a> {
    bounds: &'a Bounds,
    /// Length of the whole message, to say where a fault is.
    total: usize,
    fields: usize,
}

impl Walk<'_> {
    /// One message. The recursion is as deep as the table, and no deeper than `bounds.depth`.
    fn message(
        &mut self,
        bytes: &[u8],
        schema: &[Field],
        depth: usize,
        path: u32,
        lists: &mut Lists,
    ) -> Result<(), BoundExceeded> {
        within(self.bounds, Bound::Depth, depth)?;
        let end = self.total;
        let mut wire = Wire { rest: bytes, end };
        while !wire.rest.is_empty() {
            self.fields = self.fields.saturating_add(1);
            within(self.bounds, Bound::Fields, self.fields)?;
            let Some((number, payload)) = wire.field()? else { continue };
            let Some(field) = schema.iter().find(|field| field.number == number) else { continue };
            let here = (path << 4) | number;
            if let Some(bound) = field.list {
                within(self.bounds, bound, lists.add(here))?;
            }
            if let Some(bound) = field.length {
                within(self.bounds, bound, payload.len())?;
            }
            let Some(inside) = field.inside else { continue };
            // Offsets in a fault are those of the whole message.
            self.total = wire.offset();
            let deeper = depth.saturating_add(1);
            if field.list.is_some() {
                self.message(payload, inside, deeper, 0, &mut Lists::default())?;
            } else {
                self.message(payload, inside, deeper, here, lists)?;
            }
            self.total = end;
        }
        Ok(())
    }
}

fn within(bounds: &Bounds, bound: Bound, seen: usize) -> Result<(), BoundExceeded> {
    let limit = bounds.limit(bound);
    if seen > limit { Err(BoundExceeded::Over { bound, limit, seen }) } else { Ok(()) }
}

/// Reads fields off the front of a message.
struct Wire<'a> {
    rest: &'a [u8],
    /// Offset in the whole message of this one's end.
    end: usize,
}

impl<'a> Wire<'a> {
    /// The next field: its number and, where it has a length, its bytes.
    fn field(&mut self) -> Result<Option<(u32, &'a [u8])>, BoundExceeded> {
        let start = self.rest;
        let key =
            u32::try_from(self.varint()?).map_err(|_too_big| self.fault(start, Fault::Varint))?;
        let number = key >> 3;
        if number == 0 {
            return Err(self.fault(start, Fault::FieldZero));
        }
        match key & 7 {
            0 => {
                self.varint()?;
                Ok(None)
            }
            1 => self.take(8).map(|_skipped| None),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length)
                    .map_err(|_too_big| self.fault(start, Fault::Truncated))?;
                Ok(Some((number, self.take(length)?)))
            }
            5 => self.take(4).map(|_skipped| None),
            3 | 4 => Err(self.fault(start, Fault::Group)),
            _ => Err(self.fault(start, Fault::WireType)),
        }
    }

    fn varint(&mut self) -> Result<u64, BoundExceeded> {
        let start = self.rest;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return Err(self.fault(start, Fault::Truncated));
            };
            self.rest = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(self.fault(start, Fault::Varint));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fault(start, Fault::Varint))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], BoundExceeded> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.fault(self.rest, Fault::Truncated));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The offset at which the payload just taken ends.
    const fn offset(&self) -> usize {
        self.end.saturating_sub(self.rest.len())
    }

    /// A fault where `at` begins.
    const fn fault(&self, at: &[u8], fault: Fault) -> BoundExceeded {
        BoundExceeded::Malformed { at: self.end.saturating_sub(at.len()), fault }
    }
}

#[cfg(test)]
#[expect(clippy::panic, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use chiton_proto::{
        AgentConfigMap, AgentConfigObject, AgentRemoteConfig, ConnectionSettingsOffers,
        CustomCapabilities, DownloadableFile, Header, Headers, Message as _,
        OpAmpConnectionSettings, OtherConnectionSettings, PackageAvailable, PackagesAvailable,
        ProxyConnectionSettings, ServerToAgent, TelemetryConnectionSettings, TlsConnectionSettings,
    };
    use proptest::prelude::*;

    use super::*;

    fn headers(n: usize) -> Option<Headers> {
        let header = |i| Header { key: format!("k{i}"), value: "v".into() };
        Some(Headers { headers: (0..n).map(header).collect() })
    }

    fn tls(n: usize) -> Option<TlsConnectionSettings> {
        Some(TlsConnectionSettings { cipher_suites: vec!["c".into(); n], ..Default::default() })
    }

    fn proxy(n: usize) -> Option<ProxyConnectionSettings> {
        Some(ProxyConnectionSettings { url: "u".into(), connect_headers: headers(n) })
    }

    fn map<V: Clone>(n: usize, value: &V) -> BTreeMap<String, V> {
        (0..n).map(|i| (format!("n{i}"), value.clone())).collect()
    }

    /// A message whose every list has as many elements as the bounds say.
    fn full(b: &Bounds) -> ServerToAgent {
        let telemetry = TelemetryConnectionSettings {
            headers: headers(b.headers),
            tls: tls(b.cipher_suites),
            proxy: proxy(b.headers),
            ..Default::default()
        };
        let other = OtherConnectionSettings {
            headers: headers(b.headers),
            other_settings: map(b.other_settings, &"v".to_owned()),
            tls: tls(b.cipher_suites),
            proxy: proxy(b.headers),
            ..Default::default()
        };
        let package = PackageAvailable {
            file: Some(DownloadableFile { headers: headers(b.headers), ..Default::default() }),
            ..Default::default()
        };
        ServerToAgent {
            instance_uid: vec![7; 16].into(),
            remote_config: Some(AgentRemoteConfig {
                config: Some(AgentConfigMap {
                    config_map: map(b.config_objects, &AgentConfigObject::default()),
                }),
                config_hash: "h".into(),
            }),
            connection_settings: Some(ConnectionSettingsOffers {
                opamp: Some(OpAmpConnectionSettings {
                    headers: headers(b.headers),
                    tls: tls(b.cipher_suites),
                    proxy: proxy(b.headers),
                    ..Default::default()
                }),
                own_metrics: Some(telemetry.clone()),
                own_traces: Some(telemetry.clone()),
                own_logs: Some(telemetry),
                other_connections: map(b.connections, &other),
                ..Default::default()
            }),
            packages_available: Some(PackagesAvailable {
                packages: map(b.packages, &package),
                ..Default::default()
            }),
            custom_capabilities: Some(CustomCapabilities {
                capabilities: vec!["org.example".into(); b.custom_capabilities],
            }),
            ..Default::default()
        }
    }

    fn over(message: &[u8], bounds: &Bounds) -> Bound {
        match count(message, bounds) {
            Err(BoundExceeded::Over { bound, limit, seen }) => {
                assert!(seen > limit);
                bound
            }
            other => panic!("{other:?}"),
        }
    }

    fn fault(message: &[u8]) -> (usize, Fault) {
        match count(message, &Bounds::DEFAULT) {
            Err(BoundExceeded::Malformed { at, fault }) => (at, fault),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_at_its_bound_passes_and_one_more_does_not() {
        let b = Bounds::DEFAULT;
        let message = full(&b).encode_to_vec();
        assert_eq!(count(&message, &b), Ok(()));
        // One over, list by list: the same message against a bound lowered by one.
        for (bound, lowered) in [
            (Bound::Message, Bounds { max_message: message.len() - 1, ..b }),
            (Bound::ConfigObjects, Bounds { config_objects: b.config_objects - 1, ..b }),
            (Bound::Headers, Bounds { headers: b.headers - 1, ..b }),
            (Bound::Packages, Bounds { packages: b.packages - 1, ..b }),
            (Bound::Connections, Bounds { connections: b.connections - 1, ..b }),
            (Bound::OtherSettings, Bounds { other_settings: b.other_settings - 1, ..b }),
            (Bound::CipherSuites, Bounds { cipher_suites: b.cipher_suites - 1, ..b }),
            (
                Bound::CustomCapabilities,
                Bounds { custom_capabilities: b.custom_capabilities - 1, ..b },
            ),
            (Bound::Depth, Bounds { depth: 6, ..b }),
            (Bound::Fields, Bounds { fields: 20_000, ..b }),
        ] {
            assert_eq!(over(&message, &lowered), bound);
        }
    }

    #[test]
    fn a_hash_that_is_kept_is_short() {
        let hash = bytes::Bytes::from(vec![7; Bounds::DEFAULT.hash + 1]);
        let remote = AgentRemoteConfig { config_hash: hash.clone(), ..Default::default() };
        let settings = ConnectionSettingsOffers { hash: hash.clone(), ..Default::default() };
        let packages = PackagesAvailable { all_packages_hash: hash.clone(), ..Default::default() };
        let package = PackageAvailable { hash, ..Default::default() };
        let one =
            PackagesAvailable { packages: [("p".into(), package)].into(), ..Default::default() };
        for message in [
            ServerToAgent { remote_config: Some(remote), ..Default::default() },
            ServerToAgent { connection_settings: Some(settings), ..Default::default() },
            ServerToAgent { packages_available: Some(packages), ..Default::default() },
            ServerToAgent { packages_available: Some(one), ..Default::default() },
        ] {
            assert_eq!(over(&message.encode_to_vec(), &Bounds::DEFAULT), Bound::Hash);
        }
    }

    /// Every list is counted wherever it stands: each in turn holds one more than the others may.
    #[test]
    fn every_list_of_the_tree_is_counted() {
        let b = Bounds::DEFAULT;
        let settings = |c| ServerToAgent { connection_settings: Some(c), ..Default::default() };
        let opamp = |c| settings(ConnectionSettingsOffers { opamp: Some(c), ..Default::default() });
        let logs =
            |c| settings(ConnectionSettingsOffers { own_logs: Some(c), ..Default::default() });
        let other = |c| {
            let other_connections = map(1, &c);
            settings(ConnectionSettingsOffers { other_connections, ..Default::default() })
        };
        let (h, c) = (b.headers + 1, b.cipher_suites + 1);
        for (bound, message) in [
            (
                Bound::Headers,
                opamp(OpAmpConnectionSettings { headers: headers(h), ..Default::default() }),
            ),
            (
                Bound::Headers,
                opamp(OpAmpConnectionSettings { proxy: proxy(h), ..Default::default() }),
            ),
            (
                Bound::CipherSuites,
                opamp(OpAmpConnectionSettings { tls: tls(c), ..Default::default() }),
            ),
            (
                Bound::Headers,
                logs(TelemetryConnectionSettings { headers: headers(h), ..Default::default() }),
            ),
            (
                Bound::Headers,
                logs(TelemetryConnectionSettings { proxy: proxy(h), ..Default::default() }),
            ),
            (
                Bound::CipherSuites,
                logs(TelemetryConnectionSettings { tls: tls(c), ..Default::default() }),
            ),
            (
                Bound::Headers,
                other(OtherConnectionSettings { headers: headers(h), ..Default::default() }),
            ),
            (
                Bound::Headers,
                other(OtherConnectionSettings { proxy: proxy(h), ..Default::default() }),
            ),
            (
                Bound::CipherSuites,
                other(OtherConnectionSettings { tls: tls(c), ..Default::default() }),
            ),
        ] {
            assert_eq!(over(&message.encode_to_vec(), &b), bound);
        }
    }

    #[test]
    fn a_sub_message_that_repeats_counts_as_the_decoder_merges_it() {
        let b = Bounds::DEFAULT;
        let half = ServerToAgent {
            remote_config: Some(AgentRemoteConfig {
                config: Some(AgentConfigMap { config_map: map(20, &AgentConfigObject::default()) }),
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec();
        assert_eq!(count(&half, &b), Ok(()));
        assert_eq!(over(&[half.clone(), half].concat(), &b), Bound::ConfigObjects);
        let offer = |n| {
            let opamp = Some(OpAmpConnectionSettings { headers: headers(n), ..Default::default() });
            let settings = ConnectionSettingsOffers { opamp, ..Default::default() };
            ServerToAgent { connection_settings: Some(settings), ..Default::default() }
                .encode_to_vec()
        };
        assert_eq!(count(&[offer(32), offer(32)].concat(), &b), Ok(()));
        assert_eq!(over(&[offer(32), offer(33)].concat(), &b), Bound::Headers);
    }

    #[test]
    fn four_mebibytes_of_empty_sub_messages_are_refused_after_the_bound() {
        let b = Bounds::DEFAULT;
        // Empty error_response, again and again: no list, so the bound on fields holds.
        let flood: Vec<u8> = [0x12, 0].into_iter().cycle().take(b.max_message).collect();
        assert_eq!(
            count(&flood, &b),
            Err(BoundExceeded::Over { bound: Bound::Fields, limit: b.fields, seen: b.fields + 1 })
        );
        // Empty config objects inside one config map.
        let inner = b.max_message - 10;
        let mut flood = vec![0x1a];
        prost::encoding::encode_varint((inner + 5) as u64, &mut flood);
        flood.push(0x0a);
        prost::encoding::encode_varint(inner as u64, &mut flood);
        flood.extend([0x0a, 0].into_iter().cycle().take(inner));
        assert_eq!(over(&flood, &b), Bound::ConfigObjects);
        // Unknown fields count too.
        let flood: Vec<u8> = [0xf8, 0x07, 0].into_iter().cycle().take(3 * 40_000).collect();
        assert_eq!(over(&flood, &b), Bound::Fields);
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut message = full(&Bounds::DEFAULT).encode_to_vec();
        // 127: varint, fixed64, bytes, fixed32.
        message.extend([0xf8, 0x07, 0x96, 0x01]);
        message.extend([0xf9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8]);
        message.extend([0xfa, 0x07, 2, 0xff, 0xff]);
        message.extend([0xfd, 0x07, 1, 2, 3, 4]);
        assert_eq!(count(&message, &Bounds::DEFAULT), Ok(()));
        assert!(ServerToAgent::decode(&message[..]).is_ok());
        assert_eq!(count(&[], &Bounds::DEFAULT), Ok(()));
    }

    #[test]
    fn malformed_bytes_are_refused_with_their_place() {
        assert_eq!(
            fault(&[0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]),
            (1, Fault::Varint)
        );
        assert_eq!(fault(&[0x80; 11]), (0, Fault::Varint));
        assert_eq!(fault(&[0xff, 0xff, 0xff, 0xff, 0x7f, 0]), (0, Fault::Varint));
        assert_eq!(fault(&[0x30, 1, 0x30, 0x80]), (3, Fault::Truncated));
        assert_eq!(fault(&[0x0a, 5, 1]), (2, Fault::Truncated));
        assert_eq!(
            fault(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).1,
            Fault::Truncated
        );
        assert_eq!(fault(&[0x05, 0, 0, 0, 0]), (0, Fault::FieldZero));
        assert_eq!(fault(&[0x0b]), (0, Fault::Group));
        assert_eq!(fault(&[0x0c]), (0, Fault::Group));
        assert_eq!(fault(&[0x0e]), (0, Fault::WireType));
        // Inside: remote_config { config: a length that leaves it }; the place is the whole message's.
        assert_eq!(fault(&[0x30, 1, 0x1a, 3, 0x0a, 9, 0]), (6, Fault::Truncated));
    }

    #[test]
    fn a_refusal_says_which_bound_its_value_and_what_was_seen() {
        let refused = BoundExceeded::Over { bound: Bound::ConfigObjects, limit: 32, seen: 33 };
        assert_eq!(
            refused.to_string(),
            "message refused: at least 33 config objects, 32 are allowed"
        );
        let refused = BoundExceeded::Malformed { at: 7, fault: Fault::Group };
        assert_eq!(
            refused.to_string(),
            "message malformed at byte 7: a group, which OpAMP does not use"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_encoded_message_within_the_bounds_passes(
            config_objects in 0..=32_usize, h in 0..=64_usize, packages in 0..=8_usize,
            connections in 0..=16_usize, other_settings in 0..=64_usize, cipher_suites in 0..=64_usize,
            custom_capabilities in 0..=64_usize,
        ) {
            let sizes = Bounds {
                config_objects, headers: h, packages, connections, other_settings, cipher_suites,
                custom_capabilities, ..Bounds::DEFAULT
            };
            prop_assert_eq!(count(&full(&sizes).encode_to_vec(), &Bounds::DEFAULT), Ok(()));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _verdict = count(&bytes, &Bounds::DEFAULT);
        }

        /// A real message with bytes changed: what the walk accepts, and the decoder too, holds no list over
        /// its bound.
        #[test]
        fn what_is_accepted_decodes_within_the_bounds(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        ) {
            let small = Bounds {
                config_objects: 3, headers: 2, packages: 2, connections: 2, other_settings: 2, cipher_suites: 2,
                custom_capabilities: 2, ..Bounds::DEFAULT
            };
            let mut message = full(&small).encode_to_vec();
            for (index, byte) in changes {
                let at = index.index(message.len());
                message[at] = byte;
            }
            if count(&message, &small).is_ok() && let Ok(decoded) = ServerToAgent::decode(&message[..]) {
                let objects = decoded.remote_config.and_then(|c| c.config).map_or(0, |c| c.config_map.len());
                prop_assert!(objects <= small.config_objects);
                let packages = decoded.packages_available.map_or_else(BTreeMap::new, |p| p.packages);
                prop_assert!(packages.len() <= small.packages);
                for package in packages.into_values() {
                    let headers = package.file.and_then(|f| f.headers).map_or(0, |h| h.headers.len());
                    prop_assert!(headers <= small.headers);
                }
                let offers = decoded.connection_settings.unwrap_or_default();
                prop_assert!(offers.other_connections.len() <= small.connections);
                for other in offers.other_connections.into_values() {
                    prop_assert!(other.other_settings.len() <= small.other_settings);
                    prop_assert!(other.headers.map_or(0, |h| h.headers.len()) <= small.headers);
                }
            }
        }
    }
}
