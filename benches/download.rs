//! A package of 1 GiB through the static binary, beside `curl && sha256sum && sync` and SWUpdate on the same bytes in
//! one run.
//!
//! `cross/build x86_64 && TMPDIR=/dev/shm cargo bench --bench download`. `CHITON_BENCH_MIB` sets the size. SWUpdate is
//! left out where it is not installed. Nothing is asserted but that each of them ends well: a table is printed.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "a bench"
)]
#![expect(clippy::disallowed_methods, reason = "a bench measures time, in threads of its own")]

#[path = "../tests/common/mod.rs"]
mod common;
mod kit;

use kit::package::{Shelf, chiton, curl, make, swupdate};
use kit::{binary_for, from_environment};

const MIB: u64 = 1 << 20;

fn main() {
    let mib = from_environment("CHITON_BENCH_MIB", 1024);
    let size = mib * MIB;
    let binary = binary_for("x86_64-unknown-linux-musl");
    if !binary.exists() {
        println!("no static binary to measure: run cross/build x86_64 first");
        std::process::exit(1);
    }
    let dir = tempfile::tempdir().unwrap();
    let payload = dir.path().join("payload");
    let digest = make(&payload, size);
    let shelf = Shelf::open(dir.path());
    let mut rows = vec![curl(dir.path(), &shelf)];
    rows.push(chiton(
        "chiton: fetch, verify, install",
        &binary,
        dir.path(),
        &digest,
        size,
        &shelf,
        false,
    ));
    rows.extend(swupdate(dir.path(), &digest, &shelf));
    rows.push(chiton(
        "chiton: killed and cut ten times",
        &binary,
        dir.path(),
        &digest,
        size,
        &shelf,
        true,
    ));
    let base = rows.first().unwrap().seconds;
    println!("\n{mib} MiB over loopback http, below {}", dir.path().parent().unwrap().display());
    println!(
        "{:<42} {:>8} {:>8} {:>10} {:>10} {:>9} {:>9}",
        "what", "s", "MiB/s", "of curl", "peak KiB", "fetched", "written"
    );
    for row in rows {
        let rate = size as f64 / MIB as f64 / row.seconds;
        let fetched = row.fetched as f64 / size as f64;
        println!(
            "{:<42} {:>8.2} {:>8.0} {:>10.2} {:>10} {:>9.3} {:>9.3}",
            row.what,
            row.seconds,
            rate,
            row.seconds / base,
            row.peak,
            fetched,
            row.written as f64 / size as f64
        );
    }
}
