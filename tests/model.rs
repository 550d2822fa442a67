//! The life cycle of a configuration, model-checked: stateright walks the shipping transition function
//! (`agent::rollout`) through every order of events, faults, crashes and restarts that the budgets below allow.
//!
//! The disk is abstract: what `store` does is one step here, done or not done (its own steps are crashed one by one
//! in `store/crash.rs`). What is not abstract is who decides: [`Rollout`] itself is the state.
#![expect(clippy::arithmetic_side_effects, clippy::print_stderr, reason = "tests")]

#[path = "model/device.rs"]
mod device;
#[path = "model/world.rs"]
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};

use self::device::{Flaw, Kind};
use self::world::{Act, Budgets, Plan, World};

impl Model for Plan {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        world.acts(self, acts);
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut world = world.clone();
        world.act(self, act);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never neither", |_, world: &World| world.never_neither()),
            Property::always("what runs is on record", |_, world: &World| world.is_on_record()),
            Property::always("what failed never runs again", |_, world: &World| {
                !world.ran_what_failed()
            }),
            Property::always("one candidate at most", |_, world: &World| world.candidates() <= 1),
            Property::always("attempts are counted", World::attempts_are_counted),
            Property::always("applied is durable", |_, world: &World| world.applied_is_durable()),
            Property::always("without faults it ends well", |plan, world: &World| {
                world.ends_well(plan).is_ok()
            }),
        ]
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
            let end = path.last_state().clone();
            let mut text = format!("{:?}", path.into_actions());
            if let Err(why) = end.ends_well(checker.model()) {
                text = format!("{text}: {why}");
            }
            (property, format!("{text}\n{}", end.tell()))
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

const PLAN: Plan = Plan {
    offers: &[Kind::Good, Kind::Bad],
    local: false,
    validates: false,
    paced: false,
    budgets: Budgets { offers: 2, restarts: 1, faults: 1, crashes: 0 },
    flaw: None,
};

#[test]
fn a_fault_and_a_power_cut() {
    holds("a fault and a power cut", PLAN);
}

#[test]
fn one_offer_cut_again_and_again() {
    let budgets = Budgets { offers: 1, restarts: 4, faults: 1, crashes: 0 };
    holds("one offer, cut again and again", Plan { budgets, ..PLAN });
}

#[test]
fn a_disk_that_is_full_again_and_again() {
    let budgets = Budgets { offers: 2, restarts: 0, faults: 3, crashes: 0 };
    holds("a disk that is full again and again", Plan { budgets, local: true, ..PLAN });
}

#[test]
fn offers_that_overtake_one_another() {
    let offers = &[Kind::Good, Kind::Other];
    let budgets = Budgets { offers: 3, restarts: 1, faults: 0, crashes: 0 };
    holds("offers that overtake one another", Plan { offers, budgets, ..PLAN });
}

#[test]
fn a_workload_that_crashes() {
    let offers = &[Kind::Good, Kind::Other];
    let budgets = Budgets { offers: 2, restarts: 1, faults: 0, crashes: 2 };
    holds("a workload that crashes", Plan { offers, budgets, local: true, ..PLAN });
}

#[test]
fn a_late_rollback_on_a_full_disk() {
    let offers = &[Kind::Good];
    let budgets = Budgets { offers: 1, restarts: 1, faults: 2, crashes: 1 };
    holds("a late rollback on a full disk", Plan { offers, budgets, local: true, ..PLAN });
}

#[test]
fn contents_that_are_known_or_not_valid() {
    let offers = &[Kind::Good, Kind::Same, Kind::Invalid, Kind::Sick];
    let budgets = Budgets { offers: 2, restarts: 1, faults: 0, crashes: 1 };
    holds("known or not valid", Plan { offers, budgets, validates: true, ..PLAN });
}

#[test]
fn trials_kept_apart() {
    let offers = &[Kind::Good, Kind::Other];
    let budgets = Budgets { offers: 3, restarts: 0, faults: 1, crashes: 0 };
    holds("trials kept apart", Plan { offers, budgets, paced: true, ..PLAN });
}

/// What the walks found once, as they found it.
#[test]
fn what_was_found() {
    use Act::{Crash, Do, Fail, Kill, Offer, Wait};
    use Kind::{Bad, Good, Other};
    let killed = Kill { done: false };
    let found: &[(&str, &[Act])] = &[
        (
            "the disk refused it, then a restart: the same offer counted as old, and was never tried again",
            &[Do, Offer(Good), Do, Fail, Do, killed],
        ),
        (
            "a newer offer waited while the disk refused a trial: it was lost, or undone by the older",
            &[Do, Offer(Good), Do, Kill { done: true }, Do, Offer(Bad), Fail],
        ),
        (
            "superseded, then a restart: the same offer counted as old, and was never tried again",
            &[Do, Offer(Other), Do, Do, Do, Do, Offer(Good), Do, Offer(Other), killed],
        ),
        (
            "a crash while the commit is written, then a full disk: it never went back",
            &[Do, Do, Do, Do, Offer(Good), Do, Do, Do, Do, Wait, Do, Crash, Do, Do, Fail],
        ),
    ];
    let mut again = Vec::new();
    for (what, acts) in found {
        let plan = Plan { local: acts.contains(&Crash), ..PLAN };
        let mut world = World::new(&plan);
        for act in *acts {
            world.act_freely(&plan, *act);
        }
        again.extend(world.ends_well(&plan).err().map(|why| format!("{what}: {why}")));
    }
    assert!(again.is_empty(), "{again:#?}");
}

/// The test itself: each of these stores must be caught.
#[test]
fn broken_stores_are_caught() {
    let restarts = Budgets { offers: 1, restarts: 3, faults: 0, crashes: 0 };
    let offers = Budgets { offers: 3, restarts: 1, faults: 0, crashes: 0 };
    let caught: &[(Flaw, &str, Budgets)] = &[
        (Flaw::ArmsLate, "what runs is on record", PLAN.budgets),
        (Flaw::NeverArms, "without faults it ends well", PLAN.budgets),
        (Flaw::CountsNothing, "attempts are counted", restarts),
        (Flaw::LosesCommits, "applied is durable", PLAN.budgets),
        (Flaw::ForgetsFailures, "what failed never runs again", offers),
        (Flaw::StaysAtTheStart, "never neither", PLAN.budgets),
    ];
    for (flaw, property, budgets) in caught {
        let plan = Plan { flaw: Some(*flaw), budgets: *budgets, ..PLAN };
        let broken = walk(&format!("{flaw:?}"), plan, Some(property));
        assert!(!broken.is_empty(), "{flaw:?}: {property} was to be broken");
    }
}
