//! The instance uid: found, made or given, and kept.

use core::time::Duration;
use std::rc::Rc;

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Input, Runtime, now};
use crate::agent::identity::{self, Choice, Kept};
use crate::agent::session::Tone;
use crate::agent::uid::Uid;
use crate::clock;
use crate::host;
use crate::reactor::Timer;

/// Without random numbers at boot, ask again after so long.
const ENTROPY_PAUSE: Duration = Duration::from_secs(1);

impl Runtime<'_> {
    /// Finds out which uid to go by, and connects.
    pub(super) fn identify(&mut self) {
        let hardware = host::hardware();
        let settings = Rc::clone(&self.settings);
        let setting = &settings.agent.instance_id;
        let kept = match self.store.uid() {
            Ok(kept) => kept,
            Err(error) => {
                self.problem(format!("{error}; a new instance uid is made"));
                None
            }
        };
        let choice = identity::choose(setting, &host::machine_id(), &hardware, kept.as_ref());
        let given =
            matches!(choice, Choice::Keep(_)) && kept.as_ref().is_some_and(|kept| kept.given);
        let uid = match choice {
            Choice::Keep(uid) => uid,
            Choice::Take(uid) => uid,
            Choice::Make(why) => {
                let mut random = [0; 10];
                if getrandom(&mut random, GetRandomFlags::NONBLOCK).is_err() {
                    self.wait_for_entropy();
                    return;
                }
                let uid = Uid::v7(clock::trusted(now().wall), random);
                self.say(Tone::Info, &format!("made instance uid {uid}: {why}"));
                uid
            }
        };
        let fresh = Kept { uid, configured: identity::configured(setting), hardware, given };
        if kept.as_ref() != Some(&fresh)
            && let Err(error) = self.store.keep_uid(&fresh)
        {
            self.problem(format!("the instance uid could not be kept: {error}"));
        }
        self.kept = Some(fresh);
        let mut actions = Vec::new();
        self.agent.connect(uid, given, now(), &mut actions);
        self.carry_out(actions);
    }

    fn wait_for_entropy(&mut self) {
        let inbox = Rc::clone(&self.inbox);
        let waiting = async move {
            Timer::after(ENTROPY_PAUSE).await;
            inbox.input(Input::Entropy).await;
        };
        self.executor.spawn(waiting).detach();
    }

    /// The record for a uid that the server gave.
    pub(super) fn keep(&mut self, uid: Uid) -> Kept {
        let kept = match self.kept.take() {
            Some(kept) => Kept { uid, given: true, ..kept },
            None => Kept {
                uid,
                given: true,
                configured: identity::configured(&self.settings.agent.instance_id),
                hardware: host::hardware(),
            },
        };
        self.kept = Some(kept.clone());
        kept
    }
}
