//! The agent's core, simulated: against a model server, for a month, under every fault that we could think of.
//!
//! Nothing here is real but the core: time is a number, the network, the disk, the workload and the server are
//! queues of events, and one seed decides everything. A seed that fails is printed and replays:
//! `CHITON_SIM_SEED=<seed> cargo test --test simulation` runs that one and tells what happens.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_sign_loss,
    clippy::print_stderr,
    reason = "tests"
)]

#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/world.rs"]
mod world;

use core::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use self::world::{Profile, Tally, World};

/// Runs seeds until one fails; that one is printed.
fn run(test: &str, seeds: Range<u64>, profile: impl Fn(u64) -> Profile) {
    let chosen: Option<u64> =
        std::env::var("CHITON_SIM_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = chosen.map_or(seeds, |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let mut total = Tally::default();
    for seed in seeds {
        let profile = Profile { verbose: chosen.is_some(), ..profile(seed) };
        let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, profile).run()));
        match outcome {
            Ok(tally) => total.add(&tally),
            Err(panic) => {
                eprintln!(
                    "replay: CHITON_SIM_SEED={seed} cargo test --test simulation {test} -- \
                     --nocapture"
                );
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{test}: {count} seeds, {total}");
}

/// Promise of the core: sequence and state stay right for a simulated month. With the next, 1,000 seeds: two
/// halves, for two cores.
#[test]
fn a_month_of_faults() {
    run("a_month_of_faults", 0..500, Profile::month);
}

/// The other half.
#[test]
fn another_month_of_faults() {
    run("another_month_of_faults", 500..1_000, Profile::month);
}

/// Whatever happened, once the faults stop the server's newest good configuration runs, and what the server
/// believes is so.
#[test]
fn eventual_consistency() {
    run("eventual_consistency", 0..300, |_| Profile::stormy());
}

/// The running generation's number rises, but for a rollback that is on record: no agent goes back to an older
/// offer by itself.
#[test]
fn monotonic_versions() {
    run("monotonic_versions", 0..300, |_| Profile::offers());
}
