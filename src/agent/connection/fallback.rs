//! Where what is committed is not taken for long, the settings' own stand in for it.

use core::time::Duration;

use super::memory::Memory;
use super::{Connections, FALLBACK, NOTED_AFTER, NOTED_AT_START, Order, Phase, Way, Why};
use crate::clock::{self, Now};

impl Connections {
    /// Whether the settings' own stand in for what is committed.
    pub(super) fn is_fallback(&self) -> bool {
        self.way == Way::Own && self.memory.committed.is_some()
    }

    /// What is committed was not taken once more.
    pub(super) fn count_refusal(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.way != Way::Committed {
            return;
        }
        let since = *self.untaken.get_or_insert(now.mono);
        let long = now.mono.since(since);
        let noted_after = if self.taken { NOTED_AFTER } else { NOTED_AT_START };
        if long >= noted_after
            && self.memory.refused_since.is_none()
            && matches!(self.phase, Phase::Idle)
        {
            let wall = clock::trusted_wall(now.wall, 0).0.saturating_sub(long).as_secs();
            let next = Memory { refused_since: Some(wall), ..self.memory.clone() };
            self.write(Why::Note, next, out);
        }
    }

    pub(super) fn falls_back(&self, now: Now) -> bool {
        let here = self.untaken.map_or(Duration::ZERO, |since| now.mono.since(since));
        let wall = clock::trusted_wall(now.wall, 0).0.as_secs();
        let noted = self.memory.refused_since.map_or(0, |since| wall.saturating_sub(since));
        here >= FALLBACK || noted >= FALLBACK.as_secs()
    }
}
