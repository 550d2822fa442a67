//! A year of one device: the server rotates credentials every few days and revokes the old ones, and in the midst of a
//! rotation one step in twenty goes wrong.

use core::fmt;
use core::ops::AddAssign;
use core::time::Duration;
use std::collections::BTreeSet;

use chiton_proto::ConnectionSettingsStatuses as Status;

use super::device::{BAD, OWN, Offer, Pass};
use super::random::Random;
use super::world::{Act, DAY, HOUR, Network, Plan, SECOND, World};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Steps in a hundred of a rotation that go wrong.
const FAULTS: u64 = 5;
/// Without more faults each rotation has its end within this.
const IN_TIME: Duration = Duration::from_secs(24 * 3600);

/// What happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    rotations: u64,
    applied: u64,
    failed: u64,
    /// Good ones that a fault cost.
    unlucky: u64,
    faults: u64,
    crashes: u64,
    attempts: u64,
    events: u64,
    /// The longest time between an offer and its outcome.
    longest: Duration,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.rotations += other.rotations;
        self.applied += other.applied;
        self.failed += other.failed;
        self.unlucky += other.unlucky;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.attempts += other.attempts;
        self.events += other.events;
        self.longest = self.longest.max(other.longest);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rotations,
            applied,
            failed,
            unlucky,
            faults,
            crashes,
            attempts,
            events,
            longest,
        } = self;
        write!(
            f,
            "{rotations} rotations, {applied} applied, {failed} failed ({unlucky} good ones for a fault's sake), {faults} faults, {crashes} of \
             them crashes, {attempts} attempts to connect, {events} events, longest rotation {longest:.0?}"
        )
    }
}

struct Year {
    world: World,
    plan: Plan,
    random: Random,
    /// What is in use, as far as the server knows.
    current: Pass,
    newest: Pass,
    tally: Tally,
}

/// What is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    /// The server never takes it.
    Bad,
    /// Its files are no good.
    Broken,
    /// The interval alone.
    Beat,
}

pub(crate) fn year(plan: &Plan, seed: u64, verbose: bool) -> Tally {
    let mut world = World::new(plan, seed);
    world.verbose = verbose;
    let random = Random::new(seed);
    let plan = plan.clone();
    let mut year = Year { world, plan, random, current: OWN, newest: 100, tally: Tally::default() };
    while year.world.now.mono.0 < YEAR {
        let days = year.random.between(DAY, DAY * 13);
        year.world.pass(days);
        assert!(year.world.is_calm(), "at rest: {:?}", year.world);
        year.rotation();
    }
    let Year { world, mut tally, current, .. } = year;
    assert!(world.is_connected() && world.connects_to() == Some(current), "{world:?}");
    tally.events = world.events;
    tally.attempts = world.attempts.values().map(|count| u64::from(*count)).sum();
    tally
}

impl Year {
    fn rotation(&mut self) {
        self.newest += 1;
        self.tally.rotations += 1;
        let kind = match self.random.below(20) {
            0 | 1 => Kind::Bad,
            2 => Kind::Broken,
            3 => Kind::Beat,
            _ => Kind::Good,
        };
        let pass = if kind == Kind::Bad { BAD + 1000 + self.newest } else { self.newest };
        let mut offer = Offer::new(self.newest, pass);
        match kind {
            Kind::Broken => offer.broken = true,
            Kind::Beat => {
                offer.pass = None;
                offer.beat = 80_000 + u64::from(self.newest);
            }
            Kind::Good | Kind::Bad => {}
        }
        self.world.accepts = [self.current, self.newest].into();
        let began = self.world.now.mono;
        self.world.offer(&offer);
        self.go_wrong();
        let end = self.world.now.mono.after(IN_TIME);
        while !self.world.is_calm() {
            assert!(self.world.step(end), "{kind:?} has no end: {:?}", self.world);
        }
        let world = &self.world;
        assert!(world.broken.is_empty(), "{:?}: {world:?}", world.broken);
        let time = world.now.mono.since(began);
        self.tally.longest = self.tally.longest.max(time);
        // Each status has reached the server.
        let told = |status: Status| world.statuses.contains(&(offer.hash.clone(), status.into()));
        let (applied, failed) = (told(Status::Applied), told(Status::Failed));
        let tried = matches!(kind, Kind::Good | Kind::Bad);
        assert!(!tried || told(Status::Applying) || failed, "APPLYING was lost: {world:?}");
        let (_, outcome) = world.heard.clone().unwrap();
        match outcome {
            Status::Applied => {
                assert!(applied && matches!(kind, Kind::Good | Kind::Beat), "{kind:?}: {world:?}");
                self.tally.applied += 1;
                if kind == Kind::Good {
                    self.current = self.newest;
                }
            }
            _ => {
                // What was good fails only where it was cut off again and again, or not kept, or could not be reached while
                // the old one could.
                let why = format!("{:?}", world.disk.record.outcome);
                let just = tried && kind == Kind::Bad || kind == Kind::Broken;
                let cut = why.contains("interrupted") || world.was_refused;
                assert!(failed && (just || cut), "{kind:?}: {why}, {world:?}");
                self.tally.failed += 1;
                self.tally.unlucky += u64::from(!just);
            }
        }
        // What is not in use any more is revoked.
        self.world.accepts = [self.current].into();
        self.world.was_refused = false;
        self.world.statuses.clear();
    }

    /// Some steps, and what may go wrong at each.
    fn go_wrong(&mut self) {
        let both: BTreeSet<Pass> = self.world.accepts.clone();
        for _ in 0..40 {
            if self.random.percent(FAULTS) {
                self.fault();
            }
            let end = self.world.now.mono.after(HOUR);
            if !self.world.step(end) {
                break;
            }
        }
        self.world.refuses = false;
        self.world.network = Network::Fine;
        self.world.accepts = both;
    }

    fn fault(&mut self) {
        self.tally.faults += 1;
        let short = self.random.between(SECOND, HOUR * 3);
        let which = self.random.below(8);
        self.world.say(|| format!("FAULT {which}"));
        self.world.was_refused |= matches!(which, 4 | 5 | 7);
        match which {
            0 | 1 => {
                self.tally.crashes += 1;
                let done = self.random.percent(50);
                self.world.act_freely(&self.plan, &Act::Crash { done });
            }
            2 => self.world.act_freely(&self.plan, &Act::Restart),
            3 => self.world.refuses = !self.world.refuses,
            4 => {
                self.world.network = Network::Down;
                self.world.pass(short);
            }
            5 => {
                self.world.network = Network::Hangs;
                self.world.pass(short);
            }
            6 => self.world.network = Network::Fine,
            // A server in trouble knows nobody.
            _ => {
                let accepts = core::mem::take(&mut self.world.accepts);
                self.world.pass(SECOND * 10);
                self.world.accepts = accepts;
            }
        }
    }
}
