//! What /proc says of a process.

use std::fs;

/// One look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Bytes.
    pub rss: f64,
    /// Bytes; 0 where the kernel does not tell.
    pub pss: f64,
    /// Bytes: the most since the start, or since [`forget_peak`].
    pub peak: f64,
    pub threads: f64,
    /// Voluntary switches of all threads: each is a wake-up.
    pub wakes: f64,
    /// Milliseconds on a CPU.
    pub cpu: f64,
    /// Bytes sent to a disk.
    pub written: f64,
    pub fds: f64,
}

impl Sample {
    pub fn of(pid: u32) -> Self {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let status = read("status");
        let (mut wakes, mut cpu) = (0.0, 0.0);
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let of = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            wakes += field(&of("status"), "voluntary_ctxt_switches:");
            let nanos = of("schedstat");
            cpu +=
                nanos.split(' ').next().and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0) / 1e6;
        }
        let kib = |name| field(&status, name) * 1024.0;
        Self {
            rss: kib("VmRSS:"),
            pss: field(&read("smaps_rollup"), "Pss:") * 1024.0,
            peak: kib("VmHWM:"),
            threads: field(&status, "Threads:"),
            wakes,
            cpu,
            written: field(&read("io"), "write_bytes:"),
            fds: fs::read_dir(format!("/proc/{pid}/fd")).map_or(0.0, |fds| fds.count() as f64),
        }
    }
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0)
}

/// Begins the peak anew.
pub fn forget_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// The processes that it has started.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
