//! Agents' certificates and the connection settings that they are offered. No I/O, no clock, no keys but those that
//! are on their way to an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use chiton_proto::{
    ConnectionSettingsOffers, ConnectionSettingsStatus, ConnectionSettingsStatuses,
    OpAmpConnectionSettings, TlsCertificate,
};
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::authority::{Request, Signed};
use crate::clock::Moment;
use crate::config::Approval;
use crate::uid::InstanceUid;

/// Valid certificates of one agent: they must all be known, or they could not be revoked.
const MAX_VALID: usize = 64;
/// Agents with certificates, those included that are known no more.
const MAX_HOLDERS: usize = 100_000;
/// Bytes of an agent's reason that are kept.
const MAX_REASON: usize = 1 << 10;

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest(pub(crate) [u8; 32]);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// A certificate's number. Ours have 16 bytes: a UUIDv7, so 74 of their bits are random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Serial([u8; 16]);

impl Serial {
    pub(crate) fn generate() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }

    /// As a certificate holds it; `None` where it cannot be one of ours.
    pub(crate) fn from_der(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(&[0]).unwrap_or(bytes);
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble =
        |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(nibble(*high)?.checked_mul(16)?.saturating_add(nibble(*low)?)),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

macro_rules! as_hex {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let bytes = unhex(&String::deserialize(from)?).and_then(|b| b.try_into().ok());
                bytes.map(Self).ok_or_else(|| D::Error::custom("not hex of the right length"))
            }
        }
    };
}
as_hex!(Digest);
as_hex!(Serial);

/// What a person or the policy said of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decision {
    /// Nothing yet; why a person is needed.
    Pending(String),
    Approved,
    Rejected(String),
}

/// The newest request of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Requested {
    pub(crate) pem: String,
    pub(crate) key: Digest,
    pub(crate) common_name: String,
    pub(crate) received: Moment,
    pub(crate) decision: Decision,
}

/// A certificate that was made for an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) serial: Serial,
    pub(crate) key: Digest,
    pub(crate) not_after: Moment,
    pub(crate) revoked: bool,
}

/// What became of an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Waiting,
    Applying,
    Applied,
    Failed(String),
}

impl Outcome {
    fn is_settled(&self) -> bool {
        matches!(self, Self::Applied | Self::Failed(_))
    }
}

/// The newest offer to an agent.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) hash: Digest,
    /// OpAMPConnectionSettings, hex. Emptied when it is settled and had a certificate: it may hold a private key.
    settings: String,
    /// Of the certificate in it.
    pub(crate) serial: Option<Serial>,
    /// Of the connection that a person assigned, where there was one.
    basis: Option<Digest>,
    pub(crate) created: Moment,
    /// Agents that report no status are sent it once.
    sent: bool,
    pub(crate) outcome: Outcome,
}

impl fmt::Debug for Offer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, outcome, .. } = self;
        out.debug_struct("Offer")
            .field("hash", hash)
            .field("outcome", outcome)
            .finish_non_exhaustive()
    }
}

/// All of one agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Credential {
    pub(crate) request: Option<Requested>,
    pub(crate) offer: Option<Offer>,
    /// Oldest first.
    pub(crate) certificates: Vec<Certificate>,
    /// The one that it last reported APPLIED.
    pub(crate) current: Option<Serial>,
    /// Its certificates were revoked: the next needs a person.
    pub(crate) barred: bool,
    /// The assigned connection whose offer it answered, well or ill: not repeated beside a certificate.
    answered: Option<Digest>,
    /// The newest request that was approved: its key is signed again when a certificate is rotated.
    pub(crate) approved: Option<String>,
}

impl Credential {
    /// The certificate that it uses, as far as we know.
    pub(crate) fn in_use(&self) -> Option<&Certificate> {
        let current = self.current?;
        self.certificates.iter().find(|certificate| certificate.serial == current)
    }
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Sign it.
    Sign,
    /// A person is to decide, or the answer is on its way.
    Wait,
    /// Tell the agent why not.
    Refuse(String),
}

/// What the assigned connection is for an agent: its settings and their digest.
pub(crate) type Assigned<'a> = Option<(&'a OpAmpConnectionSettings, Digest)>;

/// Of all agents.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    agents: BTreeMap<InstanceUid, Credential>,
    /// Changed and not yet written down.
    dirty: BTreeSet<InstanceUid>,
}

impl Credentials {
    /// From what the store kept.
    pub(crate) fn new(agents: BTreeMap<InstanceUid, Credential>) -> Self {
        Self { agents, dirty: BTreeSet::new() }
    }

    pub(crate) fn get(&self, uid: InstanceUid) -> Option<&Credential> {
        self.agents.get(&uid)
    }

    pub(crate) fn all(&self) -> &BTreeMap<InstanceUid, Credential> {
        &self.agents
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<(InstanceUid, Credential)> {
        let dirty = std::mem::take(&mut self.dirty);
        let known = |uid| Some((uid, self.agents.get(&uid)?.clone()));
        dirty.into_iter().filter_map(known).collect()
    }

    /// These could not be written down.
    pub(crate) fn not_saved(&mut self, uids: impl Iterator<Item = InstanceUid>) {
        self.dirty.extend(uids);
    }

    fn change(&mut self, uid: InstanceUid) -> &mut Credential {
        self.dirty.insert(uid);
        self.agents.entry(uid).or_default()
    }

    /// Every serial that is no longer let in.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = Serial> {
        let all = self.agents.values().flat_map(|credential| &credential.certificates);
        all.filter(|certificate| certificate.revoked).map(|certificate| certificate.serial)
    }

    /// Takes up a request. `proven`: its connection showed that it is this agent, or could not have.
    pub(crate) fn request(
        &mut self,
        uid: InstanceUid,
        request: &Request,
        approval: Approval,
        proven: bool,
        now: Moment,
    ) -> Verdict {
        let known = self.agents.get(&uid);
        let before = known.and_then(|known| known.request.as_ref());
        if let Some(before) = before.filter(|before| before.pem == request.pem) {
            match &before.decision {
                Decision::Rejected(why) => return Verdict::Refuse(why.clone()),
                Decision::Pending(_) => return Verdict::Wait,
                Decision::Approved if known.is_some_and(|known| known.answers(before.key, now)) => {
                    return Verdict::Wait;
                }
                Decision::Approved => {}
            }
        }
        if known.is_none() && self.agents.len() >= MAX_HOLDERS {
            return Verdict::Refuse(format!(
                "{MAX_HOLDERS} agents have certificates, which is the limit"
            ));
        }
        let valid = known.and_then(Credential::in_use).is_some_and(|one| one.is_valid(now));
        let why = match approval {
            _ if known.is_some_and(|known| known.barred) => "its certificates were revoked",
            Approval::Auto if valid && !proven => "it has a valid certificate and did not show it",
            Approval::Auto => "",
            Approval::Manual => "requests are approved by hand",
        };
        let decision =
            if why.is_empty() { Decision::Approved } else { Decision::Pending(why.to_owned()) };
        let verdict = if why.is_empty() { Verdict::Sign } else { Verdict::Wait };
        let credential = self.change(uid);
        if verdict == Verdict::Sign {
            credential.approved = Some(request.pem.clone());
        }
        credential.request = Some(Requested {
            pem: request.pem.clone(),
            key: request.key,
            common_name: request.common_name.clone(),
            received: now,
            decision,
        });
        verdict
    }

    /// What a person said of the pending request. Approving lifts what a revocation barred.
    pub(crate) fn decide(&mut self, uid: InstanceUid, decision: Decision) -> Result<(), String> {
        let pending = self.agents.get(&uid).and_then(|known| known.request.as_ref());
        if !pending.is_some_and(|request| matches!(request.decision, Decision::Pending(_))) {
            return Err(format!("agent {uid} has no request that waits for an answer"));
        }
        let credential = self.change(uid);
        credential.barred &= decision != Decision::Approved;
        if let Some(request) = &mut credential.request {
            if decision == Decision::Approved {
                credential.approved = Some(request.pem.clone());
            }
            request.decision = decision;
        }
        Ok(())
    }

    /// Whether one more certificate may be made for this agent; forgets those that have expired.
    pub(crate) fn admits(&mut self, uid: InstanceUid, now: Moment) -> Result<(), String> {
        if !self.agents.contains_key(&uid) && self.agents.len() >= MAX_HOLDERS {
            return Err(format!("{MAX_HOLDERS} agents have certificates, which is the limit"));
        }
        let Some(known) = self.agents.get_mut(&uid) else { return Ok(()) };
        known.certificates.retain(|one| one.not_after > now || Some(one.serial) == known.current);
        if known.certificates.len() < MAX_VALID {
            return Ok(());
        }
        Err(format!("agent {uid} has {MAX_VALID} certificates that are valid, which is the limit"))
    }

    /// Offers a certificate that was made; gives the offer's hash.
    pub(crate) fn issue(
        &mut self,
        uid: InstanceUid,
        signed: Signed,
        authority: &str,
        assigned: Assigned<'_>,
        now: Moment,
    ) -> Digest {
        let certificate = TlsCertificate {
            cert: signed.cert.into(),
            private_key: signed.private_key.map(Bytes::from).unwrap_or_default(),
            ca_cert: Bytes::copy_from_slice(authority.as_bytes()),
        };
        let credential = self.change(uid);
        let Signed { serial, key, not_after, .. } = signed;
        credential.certificates.push(Certificate { serial, key, not_after, revoked: false });
        credential.make_offer(Some((certificate, serial)), assigned, now)
    }

    /// What this agent is to be offered now; `reported` is the hash in its last status.
    pub(crate) fn due(
        &mut self,
        uid: InstanceUid,
        assigned: Assigned<'_>,
        reported: Option<&Bytes>,
        reports: bool,
        now: Moment,
    ) -> Option<ConnectionSettingsOffers> {
        if assigned.is_none() && !self.agents.contains_key(&uid) {
            return None;
        }
        let knows = |offer: &Offer| reported.is_some_and(|hash| *hash == offer.hash.0[..]);
        let offer = self.agents.get(&uid).and_then(|known| known.offer.as_ref());
        let basis = assigned.map(|(_, digest)| digest);
        let stale = match offer {
            None => basis.is_some(),
            // What was taken back is not undone.
            Some(offer) if offer.basis != basis => basis.is_some() || !offer.outcome.is_settled(),
            // It lost what it had.
            Some(offer) => {
                offer.outcome == Outcome::Applied && reports && basis.is_some() && !knows(offer)
            }
        };
        if stale {
            let credential = self.change(uid);
            let certificate = credential.offer.take().and_then(Offer::into_certificate);
            if certificate.is_some() || assigned.is_some() {
                credential.make_offer(certificate, assigned, now);
            }
        }
        let offer = self.agents.get(&uid)?.offer.as_ref()?;
        if offer.outcome.is_settled() || knows(offer) || (offer.sent && !reports) {
            return None;
        }
        let due = offer.to_wire();
        if !reports && let Some(offer) = &mut self.change(uid).offer {
            offer.sent = true;
        }
        due
    }

    /// An agent's status; gives what became of the newest offer, where that is new.
    pub(crate) fn report(
        &mut self,
        uid: InstanceUid,
        status: &ConnectionSettingsStatus,
    ) -> Option<(Digest, Outcome)> {
        let offer = self.agents.get(&uid)?.offer.as_ref()?;
        if status.last_connection_settings_hash != offer.hash.0[..] || offer.outcome.is_settled() {
            return None;
        }
        let outcome = match status.status() {
            ConnectionSettingsStatuses::Unset => return None,
            ConnectionSettingsStatuses::Applying => Outcome::Applying,
            ConnectionSettingsStatuses::Applied => Outcome::Applied,
            ConnectionSettingsStatuses::Failed => {
                Outcome::Failed(status.error_message.chars().take(MAX_REASON).collect())
            }
        };
        (outcome != offer.outcome).then(|| self.settle(uid, outcome)).flatten()
    }

    /// It came with this certificate: an agent that reports no status has taken the offer up.
    pub(crate) fn shown(&mut self, uid: InstanceUid, serial: Serial) -> Option<(Digest, Outcome)> {
        let offer = self.agents.get(&uid)?.offer.as_ref()?;
        let new = offer.serial == Some(serial) && !offer.outcome.is_settled();
        new.then(|| self.settle(uid, Outcome::Applied)).flatten()
    }

    fn settle(&mut self, uid: InstanceUid, outcome: Outcome) -> Option<(Digest, Outcome)> {
        let credential = self.change(uid);
        let offer = credential.offer.as_mut()?;
        offer.outcome = outcome.clone();
        if outcome.is_settled() {
            credential.answered = offer.basis;
        }
        if outcome == Outcome::Applied && offer.serial.is_some() {
            credential.current = offer.serial;
        }
        if outcome.is_settled() && offer.serial.is_some() {
            offer.settings.clear();
        }
        Some((offer.hash, outcome))
    }

    /// Revokes every certificate of an agent and takes back the one that is on its way.
    pub(crate) fn revoke(&mut self, uid: InstanceUid) -> Result<Vec<Serial>, String> {
        if self.agents.get(&uid).is_none_or(|known| known.certificates.is_empty()) {
            return Err(format!("no certificate was made for agent {uid}"));
        }
        let credential = self.change(uid);
        credential.barred = true;
        credential.approved = None;
        credential.certificates.iter_mut().for_each(|certificate| certificate.revoked = true);
        if credential.offer.as_ref().is_some_and(|offer| offer.serial.is_some()) {
            credential.offer = None;
        }
        if let Some(request) = &mut credential.request
            && request.decision == Decision::Approved
        {
            request.decision = Decision::Rejected("its certificates were revoked".to_owned());
        }
        Ok(credential.certificates.iter().map(|certificate| certificate.serial).collect())
    }
}

impl Certificate {
    pub(crate) fn is_valid(&self, now: Moment) -> bool {
        !self.revoked && self.not_after > now
    }
}

impl Credential {
    /// Whether a certificate for this key is on its way.
    fn answers(&self, key: Digest, now: Moment) -> bool {
        let offer = self.offer.as_ref().filter(|offer| !offer.outcome.is_settled());
        let serial = offer.and_then(|offer| offer.serial);
        let mut all = self.certificates.iter();
        all.any(|one| Some(one.serial) == serial && one.key == key && one.is_valid(now))
    }

    fn make_offer(
        &mut self,
        certificate: Option<(TlsCertificate, Serial)>,
        assigned: Assigned<'_>,
        now: Moment,
    ) -> Digest {
        let serial = certificate.as_ref().map(|(_, serial)| *serial);
        let beside = |(_, digest): &(_, Digest)| serial.is_none() || self.answered != Some(*digest);
        let settings = OpAmpConnectionSettings {
            certificate: certificate.map(|(certificate, _)| certificate),
            ..assigned.filter(beside).map(|(settings, _)| settings.clone()).unwrap_or_default()
        };
        let settings = settings.encode_to_vec();
        let hash = Digest::of(&settings);
        self.offer = Some(Offer {
            hash,
            settings: hex(&settings),
            serial,
            basis: assigned.map(|(_, digest)| digest),
            created: now,
            sent: false,
            outcome: Outcome::Waiting,
        });
        hash
    }
}

impl Offer {
    fn to_wire(&self) -> Option<ConnectionSettingsOffers> {
        Some(ConnectionSettingsOffers {
            hash: Bytes::copy_from_slice(&self.hash.0),
            opamp: Some(self.decoded()?),
            ..ConnectionSettingsOffers::default()
        })
    }

    fn decoded(&self) -> Option<OpAmpConnectionSettings> {
        OpAmpConnectionSettings::decode(Bytes::from(unhex(&self.settings)?)).ok()
    }

    /// The certificate, where it is still to be delivered.
    fn into_certificate(self) -> Option<(TlsCertificate, Serial)> {
        let serial = self.serial.filter(|_| !self.outcome.is_settled())?;
        Some((self.decoded()?.certificate?, serial))
    }
}
