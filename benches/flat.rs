//! Flat lines: memory and descriptors over 10^6 server messages, 10^4 reconnects, 10^3 configuration changes.
//!
//! `cross/build x86_64 && cargo bench --bench flat` prints the slopes; `-- --write docs/footprint.md` puts them there, and
//! the plot into `flat.svg` beside it. Takes five minutes or so; `CHITON_BENCH_PART=10` does a tenth of each. Each series runs
//! in a process of its own, over mutual TLS; the first tenth of its samples is warm-up and counts for no slope.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]
#![expect(clippy::disallowed_methods, reason = "a bench measures time, in threads of its own")]

#[path = "../tests/common/mod.rs"]
mod common;
mod kit;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use kit::document::{self, argument, table};
use kit::sample::{self, Sample};
use kit::server::Server;
use kit::{Setup, chiton, from_environment, yaml};

const SAMPLES: usize = 50;
const KIB: f64 = 1024.0;

/// What was seen over a count of something.
struct Series {
    what: &'static str,
    /// How many there had been, and the look.
    seen: Vec<(f64, Sample)>,
    seconds: f64,
    /// Files below the state directory after warm-up and at the end.
    files: (usize, usize),
}

impl Series {
    /// `step` does the next so many.
    fn measure(
        what: &'static str,
        total: usize,
        pid: u32,
        state: &Path,
        mut step: impl FnMut(usize),
    ) -> Self {
        let begun = Instant::now();
        let (mut seen, mut done, mut files) = (Vec::new(), 0, 0);
        for number in 1..=SAMPLES {
            let until = total * number / SAMPLES;
            step(until - done);
            done = until;
            seen.push((done as f64, Sample::of(pid)));
            if number == SAMPLES / 10 {
                files = common::files_with(state, "").len();
            }
        }
        let files = (files, common::files_with(state, "").len());
        let seconds = begun.elapsed().as_secs_f64();
        println!("{total} {what}: {seconds:.0} s");
        Self { what, seen, seconds, files }
    }

    /// The slope of the least squares, after the warm-up.
    fn slope(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        let points: Vec<(f64, f64)> =
            self.seen.iter().skip(SAMPLES / 10).map(|(x, it)| (*x, of(it))).collect();
        let count = points.len() as f64;
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / count;
        let x = mean(&mut points.iter().map(|it| it.0));
        let y = mean(&mut points.iter().map(|it| it.1));
        let along = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum::<f64>();
        along / points.iter().map(|it| (it.0 - x).powi(2)).sum::<f64>()
    }

    fn last(&self) -> (f64, Sample) {
        *self.seen.last().unwrap()
    }
}

fn main() {
    let part = from_environment("CHITON_BENCH_PART", 1).max(1) as usize;
    let (name, triple) = *kit::native_triples().first().unwrap();
    let binary = kit::binary_for(triple);
    if !kit::runs(&binary) {
        document::fail("no static binary to measure: run cross/build first");
    }
    let load = document::load();
    let series = [
        messages(&binary, 1_000_000 / part),
        reconnects(&binary, 10_000 / part),
        changes(&binary, 1_000 / part),
    ];
    let text = report(name, &load, &series);
    println!("{text}");
    if let Some(file) = argument("--write") {
        let file = Path::new(&file);
        document::replace(file, "flat", &text);
        fs::write(file.with_file_name("flat.svg"), plot(&series)).unwrap();
        println!("wrote {} and flat.svg", file.display());
    }
}

fn messages(binary: &Path, total: usize) -> Series {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let process = chiton(binary, home.path(), server.port, &Setup::default());
    server.report();
    let state = home.path().join("state");
    Series::measure("server messages", total, process.pid(), &state, |count| {
        server.tell(move |connection| connection.flood(count));
    })
}

/// The server ends each connection as soon as it has answered the first report.
fn reconnects(binary: &Path, total: usize) -> Series {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start_with(home.path(), kit::server::Connection::cut);
    let process = chiton(binary, home.path(), server.port, &Setup::default());
    let state = home.path().join("state");
    Series::measure("reconnects", total, process.pid(), &state, |count| {
        for _ in 0..count {
            server.report();
        }
    })
}

/// Each is staged, armed, tried by a restarted workload and a gate of one success, and committed.
fn changes(binary: &Path, total: usize) -> Series {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let process = chiton(binary, home.path(), server.port, &Setup::default());
    server.report();
    let state = home.path().join("state");
    let mut number = 0;
    Series::measure("configuration changes", total, process.pid(), &state, |count| {
        for _ in 0..count {
            number += 1;
            let hash = number.to_string();
            server.offer(&hash, yaml(number, 4 << 10));
            server.applied(&hash);
        }
        assert_eq!(sample::children(process.pid()).len(), 1, "one workload");
    })
}

fn report(name: &str, load: &str, series: &[Series]) -> String {
    let text = format!(
        "Made by `cargo bench --bench flat -- --write docs/footprint.md` ({:.0} s; {name}; {SAMPLES} samples of each; load average {load};\n{}).\n\
         Slopes are those of the least squares, without the first tenth of the samples, in bytes for each one. RSS moves in pages of 4096 bytes; PSS also rises when another process with the same file ends.\n\n\
         ![memory and descriptors over messages, reconnects and changes](flat.svg)\n\n",
        series.iter().map(|it| it.seconds).sum::<f64>(),
        document::machine().join("; "),
    );
    let head = [
        "over",
        "RSS, bytes each",
        "PSS, bytes each",
        "descriptors each",
        "RSS at the end, KiB",
        "growth after the warm-up, KiB",
        "files in state_dir",
    ];
    let rows: Vec<Vec<String>> = series
        .iter()
        .map(|it| {
            let (count, last) = it.last();
            let early = it.seen.get(SAMPLES / 10).map_or(0.0, |it| it.1.rss);
            vec![
                format!("{count:.0} {}", it.what),
                format!("{:.4}", it.slope(|it| it.rss)),
                format!("{:.4}", it.slope(|it| it.pss)),
                format!("{:.6}", it.slope(|it| it.fds)),
                format!("{:.0}", last.rss / KIB),
                format!("{:.0}", (last.rss - early) / KIB),
                format!("{} → {}", it.files.0, it.files.1),
            ]
        })
        .collect();
    text + table(&head, &rows).trim_end()
}

/// Three panels, one below the other.
fn plot(series: &[Series]) -> String {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 190.0;
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 60.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 36.0;
    let tall = HEIGHT * series.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {tall}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{tall}\" fill=\"#fff\"/>\n"
    );
    for (at, series) in series.iter().enumerate() {
        let top = HEIGHT * at as f64;
        let (count, _) = series.last();
        let most = series.seen.iter().map(|it| it.1.rss.max(it.1.pss) / KIB).fold(0.0, f64::max);
        let full = (most / 500.0).ceil().max(1.0) * 500.0;
        let most_fds = series.seen.iter().map(|it| it.1.fds).fold(0.0, f64::max);
        let full_fds = (most_fds / 10.0).ceil().max(1.0) * 10.0;
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / count;
        let y = |part: f64| top + HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"14\" fill=\"#222\">{count:.0} {}</text>",
            top + 20.0,
            series.what
        );
        for step in 0..=4 {
            let part = f64::from(step) / 4.0;
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"#555\">{4:.0}</text>\
                 <text x=\"{5}\" y=\"{3:.1}\" fill=\"#555\">{6:.0}</text>\
                 <text x=\"{7:.1}\" y=\"{8:.1}\" text-anchor=\"middle\" fill=\"#555\">{9:.0}</text>",
                y(part),
                WIDTH - RIGHT,
                LEFT - 6.0,
                y(part) + 4.0,
                full * part,
                WIDTH - RIGHT + 6.0,
                full_fds * part,
                x(count * part),
                y(0.0) + 16.0,
                count * part
            );
        }
        let mut line = |colour: &str, name: &str, place: f64, of: &dyn Fn(&Sample) -> f64| {
            let points: Vec<String> = series
                .seen
                .iter()
                .map(|(n, it)| format!("{:.1},{:.1}", x(*n), y(of(it))))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
                points.join(" ")
            );
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                WIDTH - RIGHT - place,
                top + 20.0
            );
        };
        line("#1f6fb4", "VmRSS, KiB", 210.0, &|it| it.rss / KIB / full);
        line("#2b8a3e", "PSS, KiB", 130.0, &|it| it.pss / KIB / full);
        line("#c2410c", "descriptors (right)", 0.0, &|it| it.fds / full_fds);
    }
    svg + "</svg>\n"
}
