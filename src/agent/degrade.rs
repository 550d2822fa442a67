//! What a device does by itself where its workload takes too much or crashes again and again
//! (`opamp.workload.degrade`).

use std::collections::VecDeque;

use super::health::CheckResult;
use crate::clock::{Mono, Now};
use crate::settings::{CrashLoop, Degrade, DegradeAction, DegradeWhen};

/// The rules, and when each was last followed.
#[derive(Clone, Debug)]
pub struct Degrading {
    rules: Vec<(Degrade, Option<Mono>)>,
    limit: CrashLoop,
    /// The last crashes, the newest first; no more than `limit.crashes`.
    crashes: VecDeque<Mono>,
}

impl Degrading {
    /// None of the rules has been followed yet. What a crash loop is, `rollback.crash_loop` says.
    #[must_use]
    pub fn new(rules: &[Degrade], limit: CrashLoop) -> Self {
        Self {
            rules: rules.iter().cloned().map(|rule| (rule, None)).collect(),
            limit,
            crashes: VecDeque::new(),
        }
    }

    /// The workload died by itself: what is to be done, and why.
    pub fn crashed(&mut self, text: &str, now: Now) -> Option<(DegradeAction, String)> {
        let most = usize::try_from(self.limit.crashes).unwrap_or(usize::MAX).max(1);
        self.crashes.push_front(now.mono);
        self.crashes.truncate(most);
        let oldest = self.crashes.get(most.saturating_sub(1))?;
        if now.mono.since(*oldest) > self.limit.within {
            return None;
        }
        let action = self.take(DegradeWhen::CrashLoop, now)?;
        self.crashes.clear();
        Some((action, format!("it crashed {most} times within {:?}: {text}", self.limit.within)))
    }

    /// A round of checks, as they are reported: a single peak is no reason. What is to be done, and why.
    pub fn checked<'a>(
        &mut self,
        results: impl Iterator<Item = &'a CheckResult>,
        now: Now,
    ) -> Option<(DegradeAction, String)> {
        let failed = results.filter_map(|check| Some((check, check.failure.as_ref()?)));
        for (check, why) in failed {
            let when = if check.name.starts_with("memory_max") {
                DegradeWhen::MemoryMax
            } else if check.name.starts_with("cpu_max") {
                DegradeWhen::CpuMax
            } else {
                continue;
            };
            if let Some(action) = self.take(when, now) {
                return Some((action, format!("check {} failed: {why}", check.name)));
            }
        }
        None
    }

    /// The first rule for this that is not in its cooldown.
    fn take(&mut self, when: DegradeWhen, now: Now) -> Option<DegradeAction> {
        let free = |rule: &Degrade, last: &Option<Mono>| {
            rule.when == when && last.is_none_or(|last| now.mono.since(last) >= rule.cooldown)
        };
        let (rule, last) = self.rules.iter_mut().find(|(rule, last)| free(rule, last))?;
        *last = Some(now.mono);
        Some(rule.action.clone())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(Duration::from_secs(seconds)), ..Now::default() }
    }

    fn degrading(when: DegradeWhen) -> Degrading {
        let rule = |action| Degrade { when, action, cooldown: Duration::from_secs(100) };
        let rules = [rule(DegradeAction::Restart), rule(DegradeAction::Use("/small".into()))];
        Degrading::new(&rules, CrashLoop { crashes: 3, within: Duration::from_secs(60) })
    }

    #[test]
    fn rules_are_taken_in_turn_and_each_rests() {
        let mut degrading = degrading(DegradeWhen::MemoryMax);
        let failure = Some("memory 300 MiB".to_owned());
        let name = || "memory_max 256MiB".to_owned();
        let bad = [CheckResult { name: name(), failure, ..CheckResult::default() }];
        let mut acts =
            |seconds| degrading.checked(bad.iter(), at(seconds)).map(|(action, _)| action);
        assert_eq!(acts(0), Some(DegradeAction::Restart));
        assert_eq!(acts(10), Some(DegradeAction::Use("/small".into())));
        assert_eq!(acts(20), None, "both rest");
        assert_eq!(acts(100), Some(DegradeAction::Restart));
        let good = [CheckResult { name: name(), ..CheckResult::default() }];
        assert!(degrading.checked(good.iter(), at(1000)).is_none());
    }

    #[test]
    fn a_crash_loop_is_many_crashes_in_a_short_time() {
        let mut degrading = degrading(DegradeWhen::CrashLoop);
        for seconds in [0, 40, 80, 120] {
            assert!(degrading.crashed("exited", at(seconds)).is_none(), "they are far apart");
        }
        assert!(degrading.crashed("exited", at(130)).is_some());
        assert!(degrading.crashed("exited", at(131)).is_none(), "the count begins anew");
    }
}
