//! An offer is taken up: paced, measured, placed; or noted without a trial.

use bytes::Bytes;
use chiton_proto::ConnectionSettingsOffers;

use super::memory::{Attempt, Memory};
use super::offer::{Bench, Offered};
use super::overlay::{Candidate, Material, Overlay, Staged};
use super::{Connections, DISK_PAUSE, OFFER_EVERY, OFFERS_AT_ONCE, Order, Phase, Way, Why};
use crate::agent::cut;
use crate::agent::rollout::{self, Outcome};
use crate::agent::session::Tone;
use crate::clock::{self, Now};
use crate::settings::{Connection, connection_of};

impl Connections {
    /// An offer came.
    pub fn offered(&mut self, offers: ConnectionSettingsOffers, now: Now, out: &mut Vec<Order>) {
        let others = offers.own_metrics.is_some()
            || offers.own_traces.is_some()
            || offers.own_logs.is_some()
            || !offers.other_connections.is_empty();
        if offers.opamp.is_none() && others {
            let text = "ignored offered connections that are none of OpAMP: not accepted";
            out.push(Order::Say(Tone::Peer, text.to_owned()));
            return;
        }
        if self.unreadable {
            let text = "ignored offered connection settings: those in the state directory could not be read at the start";
            return out.push(Order::Say(Tone::Peer, text.to_owned()));
        }
        let hash = &offers.hash;
        if let Some((refused, _, until)) = &self.unplaced
            && refused == hash
            && now.mono < *until
        {
            return;
        }
        let known = |other: Option<&Bytes>| !hash.is_empty() && other == Some(hash);
        if known(self.under_way()) || self.is_idle() {
            // This one is newer.
            self.waiting = None;
        }
        if known(self.under_way()) {
            // Nothing new.
        } else if !matches!(self.phase, Phase::Idle) {
            self.waiting = Some(Box::new(offers));
        } else if known(self.memory.received.as_ref()) && !self.is_fallback() {
            self.unplaced = None;
        } else {
            self.begin(&offers, now, out);
        }
    }

    /// Whether one more offer may be taken up.
    fn allows(&mut self, now: Now) -> bool {
        let (left, counted) = self.allowance;
        let steps =
            now.mono.since(counted).as_secs().checked_div(OFFER_EVERY.as_secs()).unwrap_or(0);
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let left = left.saturating_add(steps).min(OFFERS_AT_ONCE);
        let counted = counted.after(OFFER_EVERY.saturating_mul(steps));
        self.allowance = (left.saturating_sub(1), counted);
        left > 0
    }

    fn begin(&mut self, offers: &ConnectionSettingsOffers, now: Now, out: &mut Vec<Order>) {
        if !self.allows(now) {
            let text = format!(
                "ignored offered connection settings: they come too often, {OFFERS_AT_ONCE} at once and one each {OFFER_EVERY:?}"
            );
            // No report: it would only be answered with the next.
            return out.push(Order::Say(Tone::Peer, text));
        }
        self.unplaced = None;
        self.old = self.way;
        let hash = offers.hash.clone();
        // Over the settings' own, after what is committed was refused for long, an offer begins anew.
        let base = match self.way {
            Way::Own => None,
            Way::Committed | Way::Candidate => self.memory.committed,
        };
        let none = Overlay::default();
        let below = if base.is_some() { &self.committed } else { &none };
        let bench = Bench { own: &self.rules.own, base: below, volatile: self.volatile };
        let taken = match &offers.opamp {
            Some(opamp) => bench.take(opamp),
            None => Ok(Offered { overlay: below.clone(), material: Material::default() }),
        };
        let Offered { overlay, material } = match taken {
            Ok(offered) => offered,
            Err(reason) => return self.note(hash, Outcome::Failed(cut(reason)), now, out),
        };
        let now_in_use = self.server();
        let laid = overlay.lay_over(&self.rules.own, &self.files_of(base));
        let same_files = material == Material::default();
        if same_files && laid == now_in_use {
            return self.note(hash, Outcome::Applied, now, out);
        }
        let quiet = same_files && connection_of(&now_in_use, &laid) == Connection::Kept;
        let in_use = base.iter();
        let known = in_use.map(|generation| generation.digest);
        let known = known.chain(self.memory.failed.iter().map(|failed| failed.digest)).collect();
        let candidate = Candidate { overlay: overlay.clone(), material, base };
        self.phase = Phase::Staging { hash, overlay: Box::new(overlay), quiet };
        out.push(Order::Stage(Box::new(candidate), known));
    }

    /// Answers [`Order::Stage`].
    pub fn staged(&mut self, staged: Staged, now: Now, out: &mut Vec<Order>) {
        let Phase::Staging { hash, overlay, quiet } =
            core::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        match staged {
            Staged::Ready(generation) if quiet => {
                self.candidate = Some(*overlay);
                let mut next = self.memory.clone();
                next.committed = Some(generation);
                next.received = Some(hash);
                next.outcome = Outcome::Applied;
                self.write(Why::Beat, next, out);
            }
            Staged::Ready(generation) => {
                self.candidate = Some(*overlay);
                let since = clock::trusted_wall(now.wall, 0).0.as_secs();
                let trial = Some(Attempt { generation, hash, number: 1, since });
                let next = Memory { trial, ..self.memory.clone() };
                self.write(Why::Arm, next, out);
            }
            Staged::Known(digest) => {
                let failed = rollout::failure_in(&self.memory.failed, &digest);
                let outcome = match failed {
                    Some(failed) => Outcome::Failed(failed.reason.clone()),
                    None => Outcome::Applied,
                };
                self.note(hash, outcome, now, out);
            }
            Staged::Refused(reason) => {
                self.note(hash, Outcome::Failed(cut(reason)), now, out);
            }
            Staged::Failed(reason) => {
                let text = format!("offered connection settings were not kept: {reason}");
                out.push(Order::Say(Tone::Warning, text));
                self.unplaced = Some((hash, cut(reason), now.mono.after(DISK_PAUSE)));
                self.next(now, out);
            }
        }
    }

    /// An outcome without a trial.
    fn note(&mut self, hash: Bytes, outcome: Outcome, now: Now, out: &mut Vec<Order>) {
        if let Outcome::Failed(reason) = &outcome {
            let text = format!("refused offered connection settings: {reason}");
            out.push(Order::Say(Tone::Peer, text));
        }
        if self.memory.received.as_ref() == Some(&hash) && self.memory.outcome == outcome {
            self.phase = Phase::Idle;
            return self.next(now, out);
        }
        let next = Memory { received: Some(hash), outcome, ..self.memory.clone() };
        self.write(Why::Note, next, out);
    }

    /// Whatever came meanwhile.
    pub(super) fn next(&mut self, now: Now, out: &mut Vec<Order>) {
        if let Some(offers) = self.waiting.take() {
            self.offered(*offers, now, out);
        }
    }
}
