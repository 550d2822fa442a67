//! Messages of the server, and what they offer.

use bytes::Bytes;
use chiton_proto::{AgentCapabilities, AgentRemoteConfig, CommandType, Message, ServerToAgent};

use super::managed::Managed;
use super::packages::{Taken, Wanted};
use super::rollout::{self, Offer, Packaged};
use super::session::{Tone, Verdict};
use super::{Action, Agent, bounds, capabilities};
use crate::clock::{self, Now};

impl Agent {
    /// A message: counted against the bounds, decoded, and given to whom it concerns.
    pub(super) fn received(
        &mut self,
        link: u64,
        bytes: &Bytes,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Err(error) = bounds::count(bytes, &self.state.config.bounds) {
            actions.push(Action::Log(
                Tone::Peer,
                format!("refused a message from the server: {error}"),
            ));
            self.on_session(actions, |session, _| session.unusable(link));
            return;
        }
        let message = match ServerToAgent::decode(bytes.clone()) {
            Ok(message) => message,
            Err(error) => {
                let text = format!("ignored a malformed message from the server: {error}");
                actions.push(Action::Log(Tone::Peer, text));
                self.on_session(actions, |session, _| session.unusable(link));
                return;
            }
        };
        let mut verdict = Verdict::Ignore;
        self.on_session(actions, |session, out| {
            verdict = session.message(link, &message, now, out);
        });
        match verdict {
            Verdict::Ignore => {}
            Verdict::CommandOnly => self.command(&message, now, actions),
            Verdict::Process => self.offers(message, now, actions),
        }
    }

    pub(super) fn command(&mut self, message: &ServerToAgent, now: Now, actions: &mut Vec<Action>) {
        let known = message.command.as_ref().map(|command| CommandType::try_from(command.r#type));
        let accepted =
            capabilities::has(self.capabilities(), AgentCapabilities::AcceptsRestartCommand);
        match known {
            Some(Ok(CommandType::Restart)) if accepted => self.restart(now, actions),
            _ => {
                let text = "ignored a command that is unknown or not accepted".to_owned();
                actions.push(Action::Log(Tone::Peer, text));
            }
        }
    }

    pub(super) fn offers(&mut self, message: ServerToAgent, now: Now, actions: &mut Vec<Action>) {
        // opamp-spec L665: what we have no capability for is ignored.
        let accepts = |bit| capabilities::has(self.capabilities(), bit);
        let config_too = accepts(AgentCapabilities::AcceptsRemoteConfig);
        let packages_too = accepts(AgentCapabilities::AcceptsPackages);
        if message.remote_config.is_some() && !config_too {
            let text = "ignored a remote configuration: accepts_remote_config is off, or there is no usable trusted key";
            actions.push(Action::Log(Tone::Peer, text.to_owned()));
        }
        if message.packages_available.is_some() && !packages_too {
            let text =
                "ignored packages: accepts_packages is off, or there is no usable trusted key";
            actions.push(Action::Log(Tone::Peer, text.to_owned()));
        }
        if let Some(offers) = message.connection_settings {
            self.connections_offered(offers, now, actions);
        }
        let packages = message.packages_available.filter(|_| packages_too);
        let rollout = &self.state.rollout;
        let config = message.remote_config.filter(|_| config_too).map(|mut offer| {
            // Before its signature is taken out.
            offer.config_hash = rollout::known_by(&offer);
            offer
        });
        let config = config.filter(|offer| !rollout.knows(&offer.config_hash, packages.is_some()));
        let config = config.map(|offer| self.judge(offer, now));
        let refusal = config.as_ref().and_then(Offer::refusal).map(str::to_owned);
        if let Some(reason) = &refusal {
            let text = format!("refused a remote configuration: {reason}");
            actions.push(Action::Log(Tone::Peer, text));
        }
        let Some(packages) = packages else {
            return self.on_packages(Taken::Ignored, config, now, actions);
        };
        let mut orders = Vec::new();
        let Managed { rollout, packages: own, config: rules, .. } = &mut self.state;
        let taken = match &refusal {
            None => own.offered(&packages, &rules.needs_packages, rollout, now, &mut orders),
            Some(reason) => own.refused(&packages, reason, rollout, now),
        };
        let again = matches!(taken, Taken::Working) && orders.is_empty();
        if !again && taken != Taken::Ignored {
            self.state.rollout.forsake_packages();
            actions.push(Action::Prepare { keep: self.state.packages.awaited() });
        }
        self.obtain(orders, actions);
        self.on_packages(taken, config, now, actions);
    }

    /// What the signature of an offered configuration comes to.
    pub(super) fn judge(&self, offer: AgentRemoteConfig, now: Now) -> Offer {
        let Packaged { floors, seen, .. } = &self.state.rollout.memory().packages;
        let seconds = clock::trusted_wall(now.wall, *seen).0.as_secs();
        self.state.config.seals.judge(offer, floors, seconds)
    }

    /// What an offer of packages came to, and the configuration that came with it.
    pub(super) fn on_packages(
        &mut self,
        taken: Taken,
        config: Option<Offer>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some(text) = self.state.packages.says(&taken) {
            actions.push(Action::Log(Tone::Peer, text));
        }
        self.on_rollout(now, actions, |rollout, out| match (taken, config) {
            (Taken::Ignored, None) | (Taken::Working, None) => false,
            (Taken::Ignored, Some(config)) => rollout.offered(config, now, out),
            (Taken::Working, Some(config)) => rollout.held(config),
            (Taken::Ready(plan), config) => {
                let changed = config.is_some_and(|config| rollout.held(config));
                rollout.packages_ready(plan, now, out);
                changed
            }
            (Taken::Concluded(outcome), config) => {
                let changed = config.is_some_and(|config| rollout.held(config));
                rollout.packages_concluded(outcome, now, out) || changed
            }
        });
    }

    pub(super) fn obtain(&self, orders: Vec<Wanted>, actions: &mut Vec<Action>) {
        actions.extend(orders.into_iter().map(|wanted| Action::Obtain(Box::new(wanted))));
    }
}
