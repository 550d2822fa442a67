//! The connection, model-checked: stateright walks the shipping core (`Agent`, with `agent::connection` in it) through
//! every order of offers, changes of the server's mind, outages, full disks, crashes and restarts that the budgets
//! below allow, and from every state it is run forward: whatever is accepted from then on, the agent finds it.
//!
//! The disk and the network are abstract. What is not abstract is who decides.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    reason = "tests"
)]

#[path = "connection_model/device.rs"]
mod device;
#[expect(dead_code, reason = "another test needs the rest")]
#[path = "simulation/random.rs"]
mod random;
#[path = "connection_model/world.rs"]
mod world;
#[path = "connection_model/year.rs"]
mod year;

use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use stateright::{Checker, HasDiscoveries, Model, Property};

use self::device::{BAD, Flaw, GOOD, OTHER, OWN, Offer, Pass};
use self::world::{
    ALL, APPLIED, Act, Budgets, COUNTED, DAY, FAILED, FILES, HOUR, NO_LOOP, Network, OUTAGE,
    PROVEN, Plan, REACHES, TOLD, World,
};
use self::year::Tally;

impl Model for Plan {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self, 1)]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.broken.is_empty() || !self.forward {
            world.acts(self, acts);
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut world = world.clone();
        world.act(self, &act);
        world.know();
        if self.forward
            && let Err((name, _)) = world.ends_well()
        {
            world.broken.insert(name);
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! properties {
            ($($index:literal)*) => {
                vec![$(Property::always(ALL[$index], |_, world: &World| {
                    !world.broken.contains(ALL[$index])
                })),*]
            };
        }
        properties!(0 1 2 3 4 5 6 7 8 9 10)
    }
}

/// Walks all of a plan, or until a property (any, or this one) does not hold: its name, and the way there.
fn walk(name: &str, plan: Plan, only: Option<&'static str>) -> Vec<(&'static str, String)> {
    let until = only.map_or(HasDiscoveries::AnyFailures, |one| HasDiscoveries::AllOf([one].into()));
    let checker = plan.checker().threads(1).finish_when(until).spawn_bfs().join();
    eprintln!(
        "{name}: {} states, {} transitions, {} steps deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    let mut broken: Vec<_> = checker
        .discoveries()
        .into_iter()
        .map(|(property, path)| {
            let mut end = path.last_state().clone();
            let mut text = format!("{:?}\n  {end:?}", path.into_actions());
            end.broken.clear();
            if let Err((_, why)) = end.ends_well() {
                text = format!("{text}\n  {why}");
            }
            (property, text)
        })
        .collect();
    broken.retain(|(property, _)| only.is_none_or(|only| only == *property));
    broken.sort_unstable();
    broken
}

fn holds(name: &str, plan: Plan) {
    let broken = walk(name, plan, None);
    for (property, path) in &broken {
        eprintln!("NOT HELD: {property}\n  {path}");
    }
    assert!(broken.is_empty(), "{name}: see above");
}

fn minds(minds: &[&[Pass]]) -> Vec<BTreeSet<Pass>> {
    minds.iter().map(|mind| mind.iter().copied().collect()).collect()
}

fn good() -> Offer {
    Offer::new(1, GOOD)
}

fn bad() -> Offer {
    Offer::new(9, BAD)
}

fn plan() -> Plan {
    Plan {
        offers: vec![good(), bad()],
        minds: minds(&[&[OWN], &[GOOD], &[OWN, GOOD], &[]]),
        late: false,
        rotated: false,
        budgets: Budgets { offers: 1, restarts: 1, faults: 0, changes: 1, passes: 0 },
        forward: true,
        flaw: None,
    }
}

fn rotated() -> Plan {
    Plan { rotated: true, minds: minds(&[&[7], &[GOOD], &[7, GOOD], &[]]), ..plan() }
}

#[test]
fn a_server_that_changes_its_mind() {
    holds("a server that changes its mind", plan());
}

#[test]
fn refused_after_the_handshake() {
    let minds = minds(&[&[7], &[GOOD], &[]]);
    let budgets = Budgets { offers: 1, restarts: 0, faults: 0, changes: 2, passes: 0 };
    holds("refused after the handshake", Plan { minds, budgets, late: true, ..rotated() });
}

#[test]
fn cut_again_and_again() {
    let budgets = Budgets { offers: 1, restarts: 4, faults: 0, changes: 0, passes: 0 };
    let minds = minds(&[&[7, GOOD]]);
    holds("cut again and again", Plan { budgets, minds, ..rotated() });
}

#[test]
fn a_disk_that_is_full_again_and_again() {
    let budgets = Budgets { offers: 1, restarts: 1, faults: 2, changes: 0, passes: 0 };
    let minds = minds(&[&[7, GOOD]]);
    holds("a disk that is full again and again", Plan { budgets, minds, ..rotated() });
}

#[test]
fn a_day_without_a_server() {
    let minds = minds(&[&[7], &[], &[OWN]]);
    let budgets = Budgets { offers: 1, restarts: 0, faults: 0, changes: 1, passes: 2 };
    holds("a day without a server", Plan { minds, budgets, ..rotated() });
}

#[test]
fn offers_that_overtake_one_another() {
    let budgets = Budgets { offers: 2, restarts: 0, faults: 1, changes: 0, passes: 0 };
    let overtake = Plan { minds: minds(&[&[7, GOOD, OTHER]]), budgets, ..rotated() };
    let offers = vec![good(), Offer::new(2, GOOD), bad()];
    holds("offers that overtake one another", Plan { offers, ..overtake });
}

#[test]
fn offers_of_every_kind() {
    let budgets = Budgets { offers: 2, restarts: 0, faults: 0, changes: 0, passes: 0 };
    let every = Plan { minds: minds(&[&[7, GOOD, OTHER]]), budgets, ..rotated() };
    let beat = Offer { pass: None, beat: 7, ..Offer::new(3, OWN) };
    let unnamed = Offer { hash: Bytes::new(), ..Offer::new(0, OTHER) };
    let broken = Offer { broken: true, ..Offer::new(4, OTHER) };
    let offers = vec![Offer::new(7, 7), beat, unnamed, broken];
    holds("offers of every kind", Plan { offers, ..every });
}

/// What wider walks found once, as they found it.
#[test]
fn what_was_found() {
    use Act::{Do, Net, Offer as Offers, Refuse, Wait};
    let beat = Offer { pass: None, beat: 7, ..Offer::new(3, OWN) };
    let offers = vec![Offer::new(7, 7), bad(), beat];
    let plan = Plan { minds: minds(&[&[7]]), offers, ..rotated() };
    let found: &[(&str, &[Act])] = &[
        (
            "the disk refused an offer, the former came again: its outcome was never told",
            &[Offers(1), Refuse, Net, Offers(0)],
        ),
        (
            "a new interval after a trial: the day after which the settings' own are tried began anew",
            &[Offers(1), Wait, Net, Offers(2)],
        ),
        (
            "the disk refused a new interval for ever, and with it the way back",
            &[Offers(2), Do, Refuse],
        ),
    ];
    let mut again = Vec::new();
    for (what, acts) in found {
        let mut world = World::new(&plan, 1);
        for act in *acts {
            world.act_freely(&plan, act);
        }
        world.know();
        again.extend(world.ends_well().err().map(|why| format!("{what}: {why:?}")));
    }
    assert!(again.is_empty(), "{again:#?}");
}

/// After a day without a server that takes it, both are tried: what is committed, and the settings' own. However short
/// the agent lives.
#[test]
fn after_a_day_the_settings_own_are_tried_too() {
    let nobody = Plan { minds: minds(&[&[]]), ..rotated() };
    let tried = |plan: &Plan, life: Duration| {
        let mut world = World::new(plan, 1);
        for _ in 0..(DAY.as_secs() / life.as_secs() + 1) {
            world.pass(life);
            if life < DAY {
                world.act_freely(plan, &Act::Crash { done: true });
            }
        }
        world.attempts.clear();
        world.pass(9 * HOUR);
        assert!(world.broken.is_empty(), "{:?}", world.broken);
        world.attempts.keys().copied().collect::<Vec<_>>()
    };
    for life in [2 * DAY, HOUR * 2, HOUR / 2, HOUR / 12] {
        assert_eq!(tried(&nobody, life), [OWN, 7], "it lives {life:?}");
    }
    let flawed = Plan { flaw: Some(Flaw::ForgetsRefusals), ..nobody };
    assert_eq!(tried(&flawed, HOUR / 2), [7], "a store that forgets it was to be caught");
}

/// From the settings' own the way leads back to what is committed, though they work.
#[test]
fn what_is_committed_is_tried_from_the_settings_own() {
    let plan = Plan { minds: minds(&[&[OWN]]), ..rotated() };
    let mut world = World::new(&plan, 1);
    world.pass(DAY * 2);
    assert_eq!(world.connects_to(), Some(OWN), "{world:?}");
    world.act_freely(&plan, &Act::Accept([OWN, 7].into()));
    world.pass(DAY);
    assert_eq!(world.connects_to(), Some(7), "{world:?}");
    assert!(world.broken.is_empty(), "{:?}", world.broken);
}

/// The power is cut again and again while nothing can be reached: that says nothing against the candidate.
#[test]
fn power_cuts_in_an_outage() {
    let mut world = World::new(&rotated(), 1);
    world.offer(&good());
    world.act_freely(&rotated(), &Act::Network(Network::Down));
    for _ in 0..7 {
        world.until_tried();
        world.pass(HOUR / 6);
        world.act_freely(&rotated(), &Act::Crash { done: false });
    }
    world.act_freely(&rotated(), &Act::Accept([GOOD].into()));
    world.act_freely(&rotated(), &Act::Network(Network::Fine));
    world.pass(DAY / 2);
    assert!(world.is_calm() && world.connects_to() == Some(GOOD), "{world:?}");
}

/// What the walks cannot afford to find.
#[test]
fn attempts_are_counted_on_a_full_disk() {
    let plan = rotated();
    let mut world = World::new(&plan, 1);
    world.offer(&bad());
    for _ in 0..3 {
        world.until_tried();
        world.act_freely(&plan, &Act::Crash { done: false });
    }
    for _ in 0..3 {
        world.act_freely(&plan, &Act::Refuse);
        world.act_freely(&plan, &Act::Restart);
    }
    world.until_tried();
    world.act_freely(&plan, &Act::Crash { done: false });
    assert!(world.broken.is_empty(), "{:?}", world.broken);
}

/// The test itself: each of these must be caught.
#[test]
fn broken_executors_are_caught() {
    let again = Plan { offers: vec![bad(), Offer::new(8, BAD)], ..plan() };
    let again = Plan { budgets: Budgets { offers: 2, restarts: 1, ..Budgets::default() }, ..again };
    let crashes = Budgets { offers: 1, restarts: 5, ..Budgets::default() };
    let caught: [(Flaw, &str, Plan); 9] = [
        (Flaw::RemembersNothing, APPLIED, plan()),
        (Flaw::CommitsTrials, PROVEN, plan()),
        (Flaw::PrunesTheOld, FILES, rotated()),
        (Flaw::ForgetsFailures, FAILED, again),
        (Flaw::CountsNothing, COUNTED, Plan { budgets: crashes, ..plan() }),
        (Flaw::SwallowsAnswers, TOLD, plan()),
        (Flaw::NeverDown, REACHES, plan()),
        (Flaw::Stranger, OUTAGE, plan()),
        (Flaw::NoTimer, NO_LOOP, plan()),
    ];
    for (flaw, property, plan) in caught {
        let forward = [TOLD, REACHES, OUTAGE].contains(&property);
        let plan = Plan { flaw: Some(flaw), forward, ..plan };
        let broken = walk(&format!("{flaw:?}"), plan, Some(property));
        assert!(!broken.is_empty(), "{flaw:?}: {property} was to be broken");
    }
}

/// Runs a year of each seed until one fails; that one is printed.
fn years(test: &str, seeds: Range<u64>) {
    let chosen: Option<u64> =
        std::env::var("CHITON_SIM_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = chosen.map_or(seeds, |seed| seed..seed + 1);
    let plan = Plan { minds: minds(&[&[OWN]]), ..plan() };
    let mut total = Tally::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let late = seed % 2 == 1;
        let plan = Plan { late, ..plan.clone() };
        let run = AssertUnwindSafe(|| year::year(&plan, seed, chosen.is_some()));
        match catch_unwind(run) {
            Ok(tally) => total += tally,
            Err(panic) => {
                eprintln!(
                    "replay: CHITON_SIM_SEED={seed} cargo test --test connection_model {test} -- --nocapture"
                );
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{test}: {count} years, {total}");
}

/// Rotations every few days for a year, one step in twenty of them with a fault: always connected at the end, and no
/// report is lost. With the next, 1,000 seeds: two halves, for two cores.
#[test]
fn a_year_of_rotations() {
    years("a_year_of_rotations", 0..500);
}

/// The other half.
#[test]
fn another_year_of_rotations() {
    years("another_year_of_rotations", 500..1_000);
}
