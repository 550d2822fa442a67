//! When something is due: a heartbeat or, over plain HTTP, a poll; a ping over WebSocket, and the end of patience.

use core::time::Duration;

use super::{Link, LinkError, LinkErrorKind, Order, Session, Up, Wire};
use crate::clock::{Mono, Now};

/// Between WebSocket pings while heartbeats are off.
const PING_WITHOUT_HEARTBEATS: Duration = Duration::from_secs(300);

impl Session {
    /// When [`Session::tick`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match &self.link {
            Link::Waiting { until } => Some(*until),
            Link::Up(up) => {
                [self.heartbeat_at(up), self.watchdog_at(up)].into_iter().flatten().min()
            }
            Link::Idle | Link::Connecting | Link::Closing { .. } => None,
        }
    }

    /// Does what is due by now, except reports: those are [`Session::flush`]'s.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) {
        match &self.link {
            Link::Waiting { until } if *until <= now.mono => self.connect(out),
            Link::Up(up) if self.watchdog_at(up).is_some_and(|at| at <= now.mono) => {
                if up.pinged.is_some() {
                    let text = format!(
                        "{}: no answer for {:?} and no pong for {:?}: the connection is dead",
                        self.rules.endpoint, self.rules.timeouts.answer, self.rules.timeouts.pong
                    );
                    out.push(Order::Abort);
                    let Link::Up(up) = core::mem::replace(&mut self.link, Link::Idle) else {
                        return;
                    };
                    self.lost(&up, LinkError { text, kind: LinkErrorKind::Failed }, now, out);
                } else {
                    out.push(Order::Ping);
                    if let Link::Up(up) = &mut self.link {
                        up.pinged = Some(now.mono);
                    }
                }
            }
            _ => {}
        }
    }

    /// When the next heartbeat or poll is due, and how far apart they are.
    #[must_use]
    pub fn beat(&self) -> Option<(Mono, Duration)> {
        let Link::Up(up) = &self.link else { return None };
        let period = match self.rules.wire {
            Wire::WebSocket => self.rules.heartbeat?,
            Wire::Http => self.rules.poll,
        };
        Some((self.heartbeat_at(up)?, period))
    }

    /// When the next heartbeat or poll is due, counted from the last message of any kind (opamp-spec L2110).
    pub(super) fn heartbeat_at(&self, up: &Up) -> Option<Mono> {
        let interval = match self.rules.wire {
            Wire::WebSocket => self.rules.heartbeat?,
            Wire::Http if up.unanswered.is_some() => return None,
            Wire::Http => self.rules.poll,
        };
        Some(up.last_sent?.after(interval))
    }

    /// When the silence on the link becomes suspicious, or is taken for death. Plain HTTP has time-outs of its
    /// own on each request.
    fn watchdog_at(&self, up: &Up) -> Option<Mono> {
        if self.is_http() {
            return None;
        }
        if let Some(pinged) = up.pinged {
            return Some(pinged.after(self.rules.timeouts.pong));
        }
        if let Some(unanswered) = up.unanswered {
            return Some(unanswered.after(self.rules.timeouts.answer));
        }
        let idle = up.last_sent.map_or(up.last_heard, |sent| sent.max(up.last_heard));
        self.rules.heartbeat.is_none().then(|| idle.after(PING_WITHOUT_HEARTBEATS))
    }
}
