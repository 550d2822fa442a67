//! The life cycle of a configuration, model-checked: stateright walks the shipping transition function
//! (`agent::rollout`) through every order of events, faults, crashes and restarts that the budgets below allow.
//!
//! The disk is abstract: what `store` does is one step here, done or not done (its own steps are crashed one by one
//! in `store/crash.rs`). What is not abstract is who decides: [`Rollout`] itself is the state.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

#[path = "model/device.rs"]
mod device;
#[path = "model/world.rs"]
mod world;

use std::time::Instant;

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
            Property::always("what failed never runs again", |_, world: &World| !world.ran_what_failed()),
            Property::always("one candidate at most", |_, world: &World| world.candidates() <= 1),
            Property::always("attempts are counted", World::attempts_are_counted),
            Property::always("applied is durable", |_, world: &World| world.applied_is_durable()),
            Property::always("without faults it ends well", |plan, world: &World| {
                world.ends_well(plan).is_ok()
            }),
        ]
    }
}

/// Walks all of a plan. The names of the properties that do not hold, with the shortest way there.
fn walk(name: &str, plan: Plan) -> Vec<(&'static str, String)> {
    let begun = Instant::now();
    let checker = plan.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    eprintln!(
        "{name}: {} states, {} transitions, {} steps deep, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
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
    broken.sort_unstable();
    broken
}

fn holds(name: &str, plan: Plan) {
    let broken = walk(name, plan);
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
fn good_and_bad_offers() {
    holds("good and bad offers", PLAN);
}

/// The test itself: each of these stores must be caught.
#[test]
fn broken_stores_are_caught() {
    for (flaw, property) in [
        (Flaw::ArmsLate, "what runs is on record"),
    ] {
        let broken = walk(&format!("{flaw:?}"), Plan { flaw: Some(flaw), ..PLAN });
        assert!(
            broken.iter().any(|(name, _)| *name == property),
            "{flaw:?}: {property} was to be broken, not {broken:?}"
        );
    }
}
