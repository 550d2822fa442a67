//! What a client of the status socket asks, answered.

use std::fs;
use std::os::unix::net::UnixStream;

use super::{Runtime, now, socket};
use crate::confine;
use crate::json::Json;
use crate::reactor::Io;
use crate::status::{self, Surroundings};

impl Runtime<'_> {
    pub(super) fn asked(&mut self, stream: Io<UnixStream>, request: &str) {
        let document = match request.split_once(' ').unwrap_or((request, "")) {
            ("" | "status", _) => self.status(),
            ("retry", hash) => {
                let hash = Some(hash.trim()).filter(|hash| !hash.is_empty());
                let mut actions = Vec::new();
                let forgotten = self.agent.retry(hash, now(), &mut actions);
                self.carry_out(actions);
                Json::object([("forgotten", Json::Number(forgotten))])
            }
            _ => Json::object([("error", Json::text("this agent does not know that request"))]),
        };
        self.executor.spawn(socket::answer(stream, format!("{document}\n"))).detach();
    }

    fn status(&self) -> Json {
        let now = now();
        let around = Surroundings {
            resident: resident(),
            problems: [&self.bad_settings, &self.deferred, &self.problems]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            notes: self.notes.clone(),
            confinement: confine::report(),
            uptime: now.mono.since(self.started).as_secs(),
        };
        status::document(&self.agent.snapshot(), &around, now)
    }
}

/// Resident memory of this process, bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
