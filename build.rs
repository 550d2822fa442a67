//! Fixes the build time (promise 10) and the target's name in the binary.
//!
//! `SOURCE_DATE_EPOCH` makes builds reproducible; otherwise it is the time of the build.

#![expect(clippy::disallowed_types, reason = "runs on the builder, not on a device")]

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let time = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| build_day().to_string());
    println!("cargo::rustc-env=CHITON_BUILD_TIME={time}");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=CHITON_TARGET={target}");
}

/// Midnight of today, so that a rebuild within a day changes nothing.
#[expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "runs on the builder, not on a device"
)]
fn build_day() -> u64 {
    const DAY: u64 = 86_400;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    now.saturating_sub(now % DAY)
}
