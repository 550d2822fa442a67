//! What the workload uses and does: for the checks that are limits, and for the figures that are reported.

use core::cell::RefCell;
use std::rc::Rc;

use super::{Runtime, now};
use crate::agent::Event;
use crate::agent::metrics::Figures;
use crate::agent::session::Tone;
use crate::clock::Mono;
use crate::settings::HttpTarget;
use crate::workload::check::Load;
use crate::workload::scrape::{self, Scraped};
use crate::workload::usage::{Meter, Target};

/// What was measured before: most figures are differences.
#[derive(Default)]
pub(super) struct Measures {
    /// For the checks, from one to the next.
    checks: Meter,
    /// For the reports, from one to the next.
    reports: Meter,
    scrapes: Rc<RefCell<Scrapes>>,
}

/// The last scrape, and of what.
#[derive(Default)]
struct Scrapes {
    of: Option<(HttpTarget, Target)>,
    last: Option<(Mono, Scraped)>,
    /// Why it failed: said once.
    error: Option<String>,
}

impl Runtime<'_> {
    /// Whose use is measured; [`None`] while nothing runs.
    fn target(&self) -> Option<Target> {
        match (&self.child, &self.external) {
            (Some(child), _) => Some(Target::Group(child.pid())),
            (None, Some(external)) => external.target(),
            (None, None) => None,
        }
    }

    /// What limits are to be compared with.
    pub(super) fn load(&mut self) -> Option<Result<Load, String>> {
        let target = self.target()?;
        let load = target.usage().map_err(|error| format!("its use cannot be read: {error}"));
        Some(load.map(|usage| Load {
            memory: usage.rss_bytes,
            cores: self.measures.checks.cores(&target, usage.cpu, now().mono),
        }))
    }

    /// A process has just begun: from now on its CPU time and its counters grow from nothing.
    pub(super) fn measure_from_the_start(&mut self) {
        let Some(target) = self.target() else { return };
        let now = now().mono;
        self.measures.reports = Meter::default();
        self.measures.reports.cores(&target, core::time::Duration::ZERO, now);
        let of = self.settings.health.scrape.clone().map(|scrape| (scrape, target));
        let last = Some((now, Scraped::default()));
        *self.measures.scrapes.borrow_mut() = Scrapes { of, last, error: None };
    }

    /// A process that somebody else started is there: what it has used so far is not of now.
    pub(super) fn measure_from_here(&mut self) {
        self.measures.reports = Meter::default();
        self.measures.scrapes.take();
        if let Some(target) = self.target()
            && !self.settings.health.metrics.is_empty()
            && let Ok(usage) = target.usage()
        {
            self.measures.reports.cores(&target, usage.cpu, now().mono);
        }
    }

    pub(super) fn measure(&mut self, round: u64) {
        let wanted =
            |name: &str| self.settings.health.metrics.iter().any(|metric| metric.as_str() == name);
        let mut figures = Figures::default();
        let Some(target) = self.target() else {
            return self.aftermath.push_back(Event::Measured { round, figures });
        };
        let (cpu, memory) = (wanted("cpu_usage"), wanted("memory_usage"));
        let rest = ["goroutines", "spans_rate", "export_latency"].map(wanted);
        if cpu || memory {
            match target.usage() {
                Ok(usage) => {
                    let cores = self.measures.reports.cores(&target, usage.cpu, now().mono);
                    figures.cpu_usage = cores.filter(|_| cpu);
                    figures.memory_usage = memory.then_some(usage.rss_bytes);
                }
                Err(error) => {
                    self.say(Tone::Debug, &format!("the workload's use cannot be read: {error}"));
                }
            }
        }
        let scrape = self.settings.health.scrape.clone().filter(|_| rest.contains(&true));
        let Some(from) = scrape else {
            return self.aftermath.push_back(Event::Measured { round, figures });
        };
        let scrapes = Rc::clone(&self.measures.scrapes);
        let inbox = Rc::clone(&self.inbox);
        let scraping = async move {
            let answer = scrape::scrape(&from, scrape::TIMEOUT).await;
            let news = scrapes.borrow_mut().take((from, target), answer, &mut figures, now().mono);
            if let Some(news) = news {
                inbox.log(Tone::Warning, news).await;
            }
            let [goroutines, spans, latency] = rest;
            figures.goroutines = figures.goroutines.filter(|_| goroutines);
            figures.spans_rate = figures.spans_rate.filter(|_| spans);
            figures.export_latency = figures.export_latency.filter(|_| latency);
            inbox.put(Event::Measured { round, figures }).await;
        };
        self.executor.spawn(scraping).detach();
    }
}

impl Scrapes {
    /// Puts a scrape beside the one before; says what is worth a line of the log.
    fn take(
        &mut self,
        of: (HttpTarget, Target),
        answer: Result<Scraped, crate::workload::check::Why>,
        figures: &mut Figures,
        now: Mono,
    ) -> Option<String> {
        if self.of.as_ref() != Some(&of) {
            *self = Self::default();
        }
        let scraped = match answer {
            Ok(scraped) => scraped,
            Err(why) => {
                let text = format!("opamp.health.scrape {}: {why}", of.0);
                self.of = Some(of);
                let known = self.error.as_ref() == Some(&text);
                self.error = Some(text);
                return self.error.clone().filter(|_| !known);
            }
        };
        self.of = Some(of);
        self.error = None;
        figures.goroutines = scraped.goroutines.map(whole);
        let before = self.last.replace((now, scraped));
        if let Some((at, before)) = before {
            let more = |now: Option<f64>, before: Option<f64>| {
                // Counters that fell began anew.
                let before = before.unwrap_or(0.0);
                now.map(|now| if now < before { now } else { now - before })
            };
            let elapsed = now.since(at).as_secs_f64();
            let spans = more(scraped.spans, before.spans).filter(|_| elapsed > 0.0);
            figures.spans_rate = spans.map(|spans| spans / elapsed);
            let seconds = more(scraped.seconds, before.seconds);
            let requests = more(scraped.requests, before.requests).filter(|count| *count > 0.0);
            figures.export_latency =
                seconds.zip(requests).map(|(seconds, requests)| seconds / requests);
        }
        None
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
const fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use core::time::Duration;

    use super::*;
    use crate::workload::check::Why;

    #[test]
    fn rates_are_differences_and_an_error_is_said_once() {
        let url = |path: &str| HttpTarget { host: "h".to_owned(), port: 1, path: path.to_owned() };
        let mut scrapes = Scrapes::default();
        let mut take = |path, group, seconds, answer: Result<Scraped, Why>| {
            let mut figures = Figures::default();
            let now = Mono(Duration::from_secs(seconds));
            let said = scrapes.take((url(path), Target::Group(group)), answer, &mut figures, now);
            (figures.spans_rate, figures.export_latency, said)
        };
        let found = |spans, seconds, requests| {
            let (spans, seconds, requests) = (Some(spans), Some(seconds), Some(requests));
            Ok(Scraped { goroutines: None, spans, seconds, requests })
        };
        assert_eq!(take("/", 7, 0, found(100.0, 5.0, 10.0)), (None, None, None));
        assert_eq!(take("/", 7, 10, found(150.0, 6.0, 12.0)), (Some(5.0), Some(0.5), None));
        assert_eq!(take("/", 7, 20, found(150.0, 6.0, 12.0)), (Some(0.0), None, None), "idle");
        let (_, _, said) = take("/", 7, 30, Err(Why::NotHttp));
        assert!(said.unwrap().starts_with("opamp.health.scrape http://h:1/: "));
        assert_eq!(take("/", 7, 40, Err(Why::NotHttp)), (None, None, None), "said already");
        assert_eq!(take("/", 7, 50, found(300.0, 6.0, 12.0)).0, Some(5.0), "over all that time");
        assert_eq!(take("/", 7, 60, found(20.0, 1.0, 1.0)), (Some(2.0), Some(1.0), None), "reset");
        assert_eq!(take("/", 8, 70, found(90.0, 9.0, 9.0)), (None, None, None), "another process");
        assert_eq!(take("/x", 8, 80, found(90.0, 9.0, 9.0)), (None, None, None), "another place");
    }
}
