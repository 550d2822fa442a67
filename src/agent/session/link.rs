//! The link: opened, up, closed in order or lost, and when the next attempt is.

use core::time::Duration;

use chiton_proto::{AgentDisconnect, AgentToServer};

use super::{Link, LinkError, LinkErrorKind, News, Order, Outgoing, Session, Tone, Up};
use crate::agent::backoff;
use crate::agent::report::Facets;
use crate::clock::{Mono, Now};

/// A connection that lived so long may be replaced at once when it drops, and ends a series of failures.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

impl Session {
    /// Link `number` is up.
    pub fn link_up(&mut self, number: u64, now: Now, out: &mut Vec<Order>) {
        if number != self.link_number || !matches!(self.link, Link::Connecting) {
            return;
        }
        if !self.is_http() {
            out.push(connected());
        }
        self.link = Link::Up(Up {
            since: now.mono,
            last_sent: None,
            last_heard: now.mono,
            unanswered: None,
            pinged: None,
            proven: false,
            sent: Facets::NONE,
            sent_full: false,
            full_at_heartbeat: false,
            uid_changed: false,
            server_capabilities: 0,
            requested: false,
            request_open: false,
        });
    }

    /// Link `number` could not be opened, was lost, or has finished closing.
    pub fn link_down(
        &mut self,
        number: u64,
        error: Option<LinkError>,
        now: Now,
        out: &mut Vec<Order>,
    ) {
        if number != self.link_number {
            return;
        }
        match core::mem::replace(&mut self.link, Link::Idle) {
            Link::Closing { then } => self.wait(then),
            Link::Up(up) => {
                let error = error.unwrap_or_else(|| LinkError {
                    text: "the server closed the connection".to_owned(),
                    kind: LinkErrorKind::Failed,
                });
                self.lost(&up, error, now, out);
            }
            Link::Connecting => {
                let error = error.unwrap_or_else(|| LinkError {
                    text: "the attempt to connect ended without a reason".to_owned(),
                    kind: LinkErrorKind::Failed,
                });
                let wait = self.next_wait(error.kind);
                self.fail(error, now.mono.after(wait), wait, out);
            }
            other @ (Link::Idle | Link::Waiting { .. }) => self.link = other,
        }
    }

    pub(super) fn connect(&mut self, out: &mut Vec<Order>) {
        self.link_number = self.link_number.wrapping_add(1);
        self.link = Link::Connecting;
        self.throttled = false;
        out.push(Order::Connect { link: self.link_number });
    }

    /// Says goodbye (opamp-spec L765: in the last message) and closes; afterwards waits until `then`.
    pub(super) fn close(&mut self, then: Mono, out: &mut Vec<Order>) {
        let message = AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..self.bare() };
        out.push(Order::Send(Box::new(Outgoing { message, effective_config: false })));
        out.push(Order::Close);
        self.ledger.returned();
        self.link = Link::Closing { then };
    }

    pub(super) fn lost(&mut self, up: &Up, error: LinkError, now: Now, out: &mut Vec<Order>) {
        self.ledger.returned();
        let settled = now.mono.since(up.since) >= SETTLED_AFTER;
        if settled && up.proven {
            self.failures = 0;
        }
        // opamp-spec L3416: reconnect at once, but never in a loop.
        let wait = match error.kind {
            LinkErrorKind::Failed | LinkErrorKind::Refused if settled => Duration::ZERO,
            kind => self.next_wait(kind),
        };
        self.fail(error, now.mono.after(wait), wait, out);
    }

    fn fail(&mut self, error: LinkError, until: Mono, wait: Duration, out: &mut Vec<Order>) {
        let text = &error.text;
        out.push(Order::Say(Tone::Warning, format!("{text}; trying again in {wait:.1?}")));
        self.last_error = Some(text.clone());
        self.news.push(News::Failed(error));
        self.wait(until);
    }

    fn next_wait(&mut self, kind: LinkErrorKind) -> Duration {
        if let LinkErrorKind::Throttled(asked) = kind {
            self.throttled = true;
            return backoff::throttled(asked, &mut self.jitter);
        }
        let attempt = self.failures;
        self.failures = self.failures.saturating_add(1);
        backoff::full_jitter(self.rules.reconnect, attempt, &mut self.jitter)
    }

    pub(super) const fn wait(&mut self, until: Mono) {
        self.link = if self.stopping { Link::Idle } else { Link::Waiting { until } };
    }
}

pub(super) fn connected() -> Order {
    Order::Say(Tone::Info, "connected to the OpAMP server".to_owned())
}
