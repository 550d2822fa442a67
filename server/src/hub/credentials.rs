//! Certificates, connection settings, rotations and revocations.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use chiton_proto::{AgentCapabilities, ServerToAgent};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Hub, Outgoing, PublishError};
use crate::authority::{self, Authority, Identity, Request};
use crate::clock::Moment;
use crate::connection::Connection;
use crate::credentials::{Decision, Digest, Serial, Verdict};
use crate::fleet::Refusal;
use crate::rotation::{MAX_ROTATIONS, Plan, Rotation};
use crate::selector::Selector;
use crate::store::RotationChanges;
use crate::store::StoreError;
use crate::uid::InstanceUid;

/// Connections with different targets.
const MAX_CONNECTIONS: usize = 256;
/// How often a rotation looks for late agents and for those that came back.
const ROTATION_PAUSE: Duration = Duration::from_millis(500);
/// Certificates that are made before the next look.
const ROTATION_STEP: usize = 32;

/// A rotation as it was begun: its id, and who takes no connection settings.
pub(crate) struct Begun {
    pub(crate) id: u64,
    pub(crate) agents: usize,
    pub(crate) without: Vec<InstanceUid>,
}

fn refused(text: String) -> PublishError {
    PublishError::Refused(text)
}

impl Hub {
    fn authority(&self) -> Result<&Authority, String> {
        let none = || "this server has no certificate authority: start it with --ca-dir".to_owned();
        self.authority.as_deref().ok_or_else(none)
    }

    /// Whether whoever showed this certificate is no longer let in.
    pub(crate) fn is_revoked(&self, identity: Option<&Identity>) -> bool {
        let both = self.authority.as_ref().zip(identity);
        both.is_some_and(|(authority, identity)| authority.is_revoked(identity.serial))
    }

    /// An agent that reports no status shows by its certificate that it took it up.
    pub(super) fn recognise(&self, uid: InstanceUid, identity: Option<&Identity>, now: Moment) {
        let Some(identity) = identity.filter(|identity| identity.uid == Some(uid)) else { return };
        let mut fleet = self.fleet();
        let silent = fleet
            .agents()
            .get(&uid)
            .is_some_and(|agent| !agent.has(AgentCapabilities::ReportsConnectionSettingsStatus));
        if silent {
            let settled = fleet.credentials.shown(uid, identity.serial);
            fleet.note_connection(uid, settled, now);
        }
    }

    /// Takes up a request for a certificate; the answer has the certificate, or says why not.
    pub(super) fn enroll(
        &self,
        uid: InstanceUid,
        pem: &Bytes,
        identity: Option<&Identity>,
        answer: ServerToAgent,
        now: Moment,
    ) -> ServerToAgent {
        match self.judge(uid, pem, identity, now) {
            Ok(()) => {
                let offer = self.fleet().offer_connection(uid);
                ServerToAgent {
                    connection_settings: offer.or(answer.connection_settings),
                    ..answer
                }
            }
            Err(text) => {
                // What stood beside it goes again with the next answer.
                self.fleet().not_delivered(uid);
                self.journal.note(format_args!(
                    "agent {uid} asked for a certificate and gets none: {text:?}"
                ));
                Refusal { uid: Some(uid), text }.to_answer()
            }
        }
    }

    fn judge(
        &self,
        uid: InstanceUid,
        pem: &[u8],
        identity: Option<&Identity>,
        now: Moment,
    ) -> Result<(), String> {
        let authority = self.authority()?;
        let request = authority.read(uid, pem)?;
        let proven =
            !self.asks_certificates || identity.is_some_and(|identity| identity.uid == Some(uid));
        let approval = authority.approval();
        match self.fleet().credentials.request(uid, &request, approval, proven, now) {
            Verdict::Wait => return Ok(()),
            Verdict::Refuse(why) => return Err(why),
            Verdict::Sign => {}
        }
        self.certify(uid, Some(&request), now).map(drop)
    }

    /// Makes a certificate, for the request's key or for a new one, and puts it into the agent's offer.
    fn certify(
        &self,
        uid: InstanceUid,
        request: Option<&Request>,
        now: Moment,
    ) -> Result<Digest, String> {
        let authority = self.authority()?;
        self.fleet().credentials.admits(uid, now)?;
        let signed = match request {
            Some(request) => authority.sign(uid, request, now),
            None => authority.make_pair(uid, now),
        }?;
        Ok(self.fleet().issue(uid, signed, authority.pem(), now))
    }

    /// Makes the next certificate of an agent: for its own key, where it ever asked, else with a new key.
    fn renew(&self, uid: InstanceUid, now: Moment) -> Result<Digest, String> {
        let (request, barred) = {
            let fleet = self.fleet();
            let known = fleet.credentials.get(uid);
            let approved = known.and_then(|known| known.approved.clone());
            (approved, known.is_some_and(|known| known.barred))
        };
        if barred {
            return Err(format!(
                "the certificates of agent {uid} were revoked: approve a new request of it first"
            ));
        }
        let request = request.map(|pem| authority::read(pem.as_bytes())).transpose()?;
        self.certify(uid, request.as_ref(), now)
    }

    /// Approves or rejects the request that waits.
    pub(crate) async fn decide(
        &self,
        uid: InstanceUid,
        decision: Decision,
    ) -> Result<(), PublishError> {
        let authority = self.authority().map_err(refused)?;
        let now = Moment::now();
        if decision == Decision::Approved {
            let pem = {
                let fleet = self.fleet();
                let known = fleet.credentials.get(uid).and_then(|known| known.request.as_ref());
                known.map(|request| request.pem.clone())
            };
            let pem = pem.ok_or_else(|| {
                PublishError::Unknown(format!("agent {uid} asked for no certificate"))
            })?;
            let request = authority.read(uid, pem.as_bytes()).map_err(refused)?;
            self.fleet().credentials.admits(uid, now).map_err(refused)?;
            self.fleet().credentials.decide(uid, decision).map_err(refused)?;
            self.certify(uid, Some(&request), now).map_err(refused)?;
        } else {
            self.fleet().credentials.decide(uid, decision).map_err(refused)?;
        }
        self.keep().await.map_err(PublishError::Store)?;
        self.push_to(&[uid]);
        Ok(())
    }

    /// Offers this agent its next certificate.
    pub(crate) async fn renew_one(&self, uid: InstanceUid) -> Result<Digest, PublishError> {
        let known = self
            .fleet()
            .agents()
            .get(&uid)
            .map(|agent| agent.has(AgentCapabilities::AcceptsOpAmpConnectionSettings));
        match known {
            None => return Err(PublishError::Unknown(format!("no agent has the uid {uid}"))),
            Some(false) => {
                return Err(refused(format!("agent {uid} takes no connection settings")));
            }
            Some(true) => {}
        }
        let hash = self.renew(uid, Moment::now()).map_err(refused)?;
        self.keep().await.map_err(PublishError::Store)?;
        self.push_to(&[uid]);
        Ok(hash)
    }

    /// Lets an agent's certificates no longer in, and ends the connections that were made with them.
    pub(crate) async fn revoke(&self, uid: InstanceUid) -> Result<Vec<Serial>, PublishError> {
        let authority = self.authority().map_err(refused)?;
        let serials = self.fleet().credentials.revoke(uid).map_err(PublishError::Unknown)?;
        // The safe side first: what cannot be written down is revoked until the next start at least.
        authority.revoke(serials.iter().copied());
        let gone: BTreeSet<_> = serials.iter().copied().collect();
        let open: Vec<_> = self
            .lines()
            .iter()
            .filter(|(_, peer)| peer.serial.is_some_and(|serial| gone.contains(&serial)))
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.send(id, Outgoing::Revoked);
        }
        self.keep().await.map_err(PublishError::Store)?;
        Ok(serials)
    }

    /// Puts connection settings into force; gives the agents that they are for.
    pub(crate) async fn connect(
        &self,
        connection: Connection,
    ) -> Result<Vec<InstanceUid>, PublishError> {
        let _in_order = self.publishing.lock().await;
        let target = connection.target.clone();
        {
            let fleet = self.fleet();
            let known = fleet.connections.iter().any(|other| other.target == target);
            if !known && fleet.connections.len() >= MAX_CONNECTIONS {
                return Err(refused(format!(
                    "{MAX_CONNECTIONS} targets have connection settings already; use the target of one of them"
                )));
            }
        }
        self.store.save_connection(&connection).await.map_err(PublishError::Store)?;
        let matched = {
            let mut fleet = self.fleet();
            fleet.connections.retain(|other| other.target != target);
            fleet.connections.push(connection);
            fleet.matching(&target)
        };
        self.push_to(&matched);
        self.keep_or_note().await;
        Ok(matched)
    }

    /// Offers these settings no longer; agents keep what they took.
    pub(crate) async fn disconnect(&self, target: &Selector) -> Result<(), PublishError> {
        let _in_order = self.publishing.lock().await;
        if !self.fleet().connections.iter().any(|other| other.target == *target) {
            return Err(PublishError::Unknown(format!(
                "no connection settings are offered to {target}"
            )));
        }
        self.store.delete_connection(target).await.map_err(PublishError::Store)?;
        self.fleet().connections.retain(|other| other.target != *target);
        Ok(())
    }

    /// Begins a rotation of the agents that a target means.
    pub(crate) async fn begin(&self, target: &Selector, plan: Plan) -> Result<Begun, PublishError> {
        let _in_order = self.publishing.lock().await;
        self.authority().map_err(refused)?;
        let (begun, forgotten) = {
            let mut fleet = self.fleet();
            if let Some(running) = fleet.rotations.iter().find(|rotation| rotation.is_running()) {
                let id = running.id;
                return Err(refused(format!(
                    "rotation {id} is running: wait for its end, or DELETE it"
                )));
            }
            let takes = |uid: &InstanceUid| {
                let agent = fleet.agents().get(uid);
                agent.is_some_and(|agent| {
                    agent.has(AgentCapabilities::AcceptsOpAmpConnectionSettings)
                })
            };
            let (agents, without): (Vec<_>, Vec<_>) =
                fleet.matching(target).into_iter().partition(takes);
            if agents.is_empty() {
                return Err(refused(format!(
                    "no agent that {target} means takes connection settings"
                )));
            }
            let id = fleet.rotations.last().map_or(1, |last| last.id.saturating_add(1));
            let begun = Begun { id, agents: agents.len(), without };
            fleet.rotations.push(Rotation::new(id, plan, agents));
            let surplus = fleet.rotations.len().saturating_sub(MAX_ROTATIONS);
            let forgotten: Vec<_> = fleet.rotations.drain(..surplus).map(|old| old.id).collect();
            (begun, forgotten)
        };
        for id in forgotten {
            self.store.delete_rotation(id).await.map_err(PublishError::Store)?;
        }
        self.keep().await.map_err(PublishError::Store)?;
        self.rotating.notify_one();
        Ok(begun)
    }

    /// Ends a rotation: who was offered a certificate may still take it.
    pub(crate) async fn cancel(&self, id: u64) -> Result<(), PublishError> {
        {
            let mut fleet = self.fleet();
            let rotation = fleet.rotation(id).filter(|rotation| rotation.is_running());
            let rotation = rotation
                .ok_or_else(|| PublishError::Unknown(format!("no rotation {id} is running")))?;
            rotation.cancel(Moment::now());
        }
        self.keep().await.map_err(PublishError::Store)
    }

    /// Drives rotations until the server stops.
    pub(crate) async fn rotate(&self, mut stop: watch::Receiver<bool>) {
        loop {
            let running = self.rotate_step().await;
            tokio::select! {
                () = self.rotating.notified() => {}
                () = sleep(ROTATION_PAUSE), if running => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Whether there is one that runs.
    async fn rotate_step(&self) -> bool {
        let now = Moment::now();
        let Some((id, mut turns)) = self.fleet().turns(now, self.limits.stale_after) else {
            return false;
        };
        if turns.len() > ROTATION_STEP {
            turns.truncate(ROTATION_STEP);
            self.rotating.notify_one();
        }
        for uid in &turns {
            let made = self.renew(*uid, now);
            let mut fleet = self.fleet();
            let Some(rotation) = fleet.rotation(id) else { continue };
            match made {
                Ok(hash) => rotation.start(*uid, hash, now),
                Err(why) => rotation.give_up(*uid, &why),
            }
        }
        // What is not on record is not sent.
        match self.keep().await {
            Ok(()) => self.push_to(&turns),
            Err(error) => self.note_unsaved(&error),
        }
        true
    }

    fn push_to(&self, agents: &[InstanceUid]) {
        let pushes = self.fleet().pushes(agents);
        self.push(pushes);
    }

    /// Writes down what changed in credentials and rotations.
    async fn keep(&self) -> Result<(), StoreError> {
        let _in_order = self.keeping.lock().await;
        let (credentials, rotations) = {
            let mut fleet = self.fleet();
            let credentials = fleet.credentials.take_changes();
            let changes = |rotation: &mut Rotation| {
                let members = rotation.take_changes();
                RotationChanges { id: rotation.id, plan: rotation.plan.clone(), members }
            };
            let rotations: Vec<_> = fleet
                .rotations
                .iter_mut()
                .filter(|rotation| rotation.is_changed())
                .map(changes)
                .collect();
            (credentials, rotations)
        };
        if credentials.is_empty() && rotations.is_empty() {
            return Ok(());
        }
        if !rotations.is_empty() {
            self.rotating.notify_one();
        }
        let saved = self.store.save_credentials(&credentials, &rotations).await;
        if saved.is_err() {
            let mut fleet = self.fleet();
            fleet.credentials.not_saved(credentials.iter().map(|(uid, _)| *uid));
            for changes in &rotations {
                if let Some(rotation) = fleet.rotation(changes.id) {
                    rotation.not_saved(changes.members.iter().map(|(uid, _)| *uid));
                }
            }
        }
        saved
    }

    pub(super) async fn keep_or_note(&self) {
        if let Err(error) = self.keep().await {
            self.note_unsaved(&error);
        }
    }

    fn note_unsaved(&self, error: &StoreError) {
        self.journal.note(format_args!("certificates cannot be saved: {error}"));
    }
}
