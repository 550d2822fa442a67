//! As `crash.rs`, for the connection: a client certificate in place of another. The real binary is killed before each
//! step that changes the disk: once, twice, and at every start for ten starts. Then left alone, it must be taken by the
//! server, by the new certificate or by the old one, and say which.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::fs;
use std::process::Command;
use std::sync::Arc;

use chiton_proto::{ConnectionSettingsStatuses, ServerToAgent};
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{accepting, certificate, connection, generation, mutual};
use common::hub::Hub;
use common::{Home, eventually};
use rustls::{ALL_VERSIONS, ServerConfig};

/// Trials that may be interrupted.
const ATTEMPTS: usize = 3;
/// More steps than any change takes: beyond it, the test itself is wrong.
const MOST_STEPS: u64 = 200;

/// A device that lives by an offered certificate, and is offered the next one.
struct Device {
    home: Home,
    hub: Hub,
    old: String,
    new: String,
    offer: ServerToAgent,
    /// Whether the server takes the new one.
    good: bool,
}

impl Device {
    fn new(good: bool) -> Self {
        let home = Home::new();
        let (trust, olds, news) =
            (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
        let server =
            |clients: &[&Authority]| -> Arc<ServerConfig> { mutual(&trust, clients, ALL_VERSIONS) };
        let hub = Hub::new(&if good { server(&[&olds, &news]) } else { server(&[&olds]) });
        let (first, first_key) = olds.issue("device", |_| {});
        let tls = bootstrap(&home, &trust, Some((&first, &first_key)));
        home.settings(&hub.wss(), &accepting(&[&tls]));
        let offered = |hash: &str, by: &Authority| {
            let (cert, key) = by.issue("device", |_| {});
            let offer = connection(hash, |opamp| {
                opamp.certificate = Some(certificate(&cert, &key, &by.pem()));
            });
            (offer, cert)
        };
        let (committed, old) = offered("c1", &olds);
        let (offer, new) = offered("c2", &news);
        hub.offers(&committed);
        let agent = home.start();
        eventually("the old one is applied", || hub.outcome("c1"));
        agent.stop();
        let device = Self { home, hub, old, new, offer, good };
        device.copy("state", "base");
        device
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.home.path(from), self.home.path(to));
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }

    /// As it was before the offer.
    fn restore(&self) {
        fs::remove_dir_all(self.home.path("state")).unwrap();
        self.copy("base", "state");
    }

    /// One start that is killed before its n-th step; false: it got through.
    fn is_killed(&self, step: u64) -> bool {
        self.hub.offers(&self.offer);
        let agent = self.home.start_with(&[("CHITON_DIE_AT", &step.to_string())]);
        eventually("it dies, or gets through", || {
            if agent.is_over() {
                return Some(true);
            }
            self.hub.outcome("c2").map(|_| false)
        })
    }

    /// Left alone, it ends well, and stays so. Whether with the new one.
    fn recovers(&self, may_give_up: bool) -> bool {
        self.hub.offers(&self.offer);
        let agent = self.home.start();
        let told = eventually("the offer has an outcome", || self.hub.outcome("c2"));
        let applied = told.status == ConnectionSettingsStatuses::Applied;
        assert!(applied || !self.good || may_give_up, "given up:\n{}", agent.log());
        assert!(!applied || self.good, "what nobody takes is APPLIED");
        let taken = if applied { &self.new } else { &self.old };
        assert!(told.by.shows(taken), "told by another certificate than by the one in use");
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        generation(&self.home);
        agent.stop();

        let (refused, calls) = (self.hub.refused(), self.hub.calls_with(taken));
        self.hub.offers(&self.offer);
        let agent = self.home.start();
        eventually("what is in use is told again", || self.hub.outcome("c2"));
        assert_eq!(self.hub.calls_with(taken), calls + 1, "it began with another one");
        assert_eq!(self.hub.refused(), refused, "what failed was tried again");
        agent.stop();
        applied
    }
}

/// Kills it at each step in turn, `times` times each. How many steps there were.
fn killed_at_every_step(good: bool, times: usize) -> u64 {
    let device = Device::new(good);
    for step in 1..MOST_STEPS {
        device.restore();
        let before = device.hub.calls_with(&device.new);
        let mut deaths = 0;
        for _ in 0..times {
            deaths += u32::from(device.is_killed(step));
        }
        let tried = device.hub.calls_with(&device.new) - before;
        let applied = device.recovers(times >= ATTEMPTS);
        assert!(applied || tried <= ATTEMPTS, "tried {tried} times");
        if deaths == 0 {
            eprintln!("killed {times} times before each of {} steps", step - 1);
            return step - 1;
        }
    }
    panic!("it never gets through");
}

#[test]
fn killed_once_at_every_step_of_a_good_offer() {
    assert!(killed_at_every_step(true, 1) > 15, "an offer has more steps");
}

#[test]
fn killed_once_at_every_step_of_a_bad_offer() {
    assert!(killed_at_every_step(false, 1) > 15, "an offer has more steps");
}

#[test]
fn killed_twice_at_every_step() {
    killed_at_every_step(true, 2);
}

/// The loop breaker: after three interrupted trials it gives up, and lives on by the old one.
#[test]
fn killed_at_every_start_for_ten_starts() {
    killed_at_every_step(true, 10);
}

/// Killed while the candidate is tried, each time: it is given up, and says why.
#[test]
fn killed_in_each_trial_it_is_given_up() {
    let device = Device::new(true);
    let was_tried = |times| device.hub.calls_with(&device.new) >= times;
    device.hub.offers(&device.offer);
    // The new one is never answered, so it is never committed.
    let (offer, new) = (device.offer.clone(), device.new.clone());
    device.hub.answers_if(move |caller, _| {
        if caller.shows(&new) {
            return None;
        }
        Some(if caller.knows == b"c2" { ServerToAgent::default() } else { offer.clone() })
    });
    for times in 1..=ATTEMPTS {
        let agent = device.home.start();
        eventually("it is tried", || was_tried(times).then_some(()));
        drop(agent);
    }
    let agent = device.home.start();
    let told = eventually("it is given up", || device.hub.outcome("c2"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Failed);
    assert!(told.error.contains("interrupted 3 times"), "{}", told.error);
    assert!(told.by.shows(&device.old));
    assert!(!was_tried(ATTEMPTS + 1), "tried once more");
    agent.stop();
}
