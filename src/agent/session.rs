//! The session: one connection to one server, what was said on it and what is due to be said.
//!
//! It knows reports only as [`Facets`]; what is in them is asked of [`Reportable`] when one is composed. The same
//! rules serve both transports: over plain HTTP a *link* is a series of polls that succeed, one at a time.

mod link;
mod receiving;
mod sending;
mod timing;
mod types;

pub use self::types::{
    LinkError, LinkErrorKind, LinkState, News, Order, Outgoing, Reportable, Rules, Tone, Verdict,
    Wire,
};
use super::backoff::Jitter;
use super::report::{Facets, Ledger};
use super::uid::Uid;
use crate::clock::{Mono, Now};
use crate::settings::Connection;

/// The state of the session.
#[derive(Clone, Debug)]
pub struct Session {
    rules: Rules,
    uid: Uid,
    /// The uid before the last change: replies in flight carry it.
    previous_uid: Option<Uid>,
    sequence: u64,
    ledger: Ledger,
    /// Too large for the server, as they are: not sent until they change.
    too_large: Facets,
    link: Link,
    link_number: u64,
    failures: u32,
    jitter: Jitter,
    wants_uid: bool,
    ignored: u64,
    stopping: bool,
    /// The server asked for the wait that is under way.
    throttled: bool,
    last_error: Option<String>,
    news: Vec<News>,
}

#[derive(Clone, Debug)]
enum Link {
    /// Not started, or ended for good.
    Idle,
    Waiting {
        until: Mono,
    },
    Connecting,
    Up(Up),
    /// Goodbye was said; when the transport is done: wait until then.
    Closing {
        then: Mono,
    },
}

#[derive(Clone, Debug)]
struct Up {
    since: Mono,
    /// [`None`]: nothing yet, so the first report is due.
    last_sent: Option<Mono>,
    last_heard: Mono,
    /// Since when a message of ours is unanswered.
    unanswered: Option<Mono>,
    pinged: Option<Mono>,
    /// A valid ServerToAgent has come.
    proven: bool,
    /// What was in the last message sent.
    sent: Facets,
    /// That was a full report.
    sent_full: bool,
    /// A full report waits for the next heartbeat.
    full_at_heartbeat: bool,
    uid_changed: bool,
    server_capabilities: u64,
    /// A request for a certificate went out.
    requested: bool,
    /// Nothing has come since.
    request_open: bool,
}

impl Session {
    /// A session that has not begun. `seed` feeds the jitter.
    #[must_use]
    pub const fn new(rules: Rules, uid: Uid, seed: u64) -> Self {
        Self {
            wants_uid: rules.request_uid,
            rules,
            uid,
            previous_uid: None,
            sequence: 0,
            ledger: Ledger::full(),
            too_large: Facets::NONE,
            link: Link::Idle,
            link_number: 0,
            failures: 0,
            jitter: Jitter::new(seed),
            ignored: 0,
            stopping: false,
            throttled: false,
            last_error: None,
            news: Vec::new(),
        }
    }

    /// Opens the first link.
    pub fn start(&mut self, out: &mut Vec<Order>) {
        if matches!(self.link, Link::Idle) && !self.stopping {
            self.connect(out);
        }
    }

    /// Says goodbye and ends for good. Over when [`Session::is_over`].
    pub fn stop(&mut self, now: Now, out: &mut Vec<Order>) {
        self.stopping = true;
        match self.link {
            Link::Up(_) => self.close(now.mono, out),
            Link::Closing { .. } => {}
            Link::Connecting => {
                out.push(Order::Abort);
                self.link = Link::Idle;
            }
            Link::Idle | Link::Waiting { .. } => self.link = Link::Idle,
        }
    }

    /// Goes on by other rules, over a new connection where the settings of the old one have changed.
    pub fn govern(&mut self, rules: Rules, connection: Connection, now: Now, out: &mut Vec<Order>) {
        if rules.capabilities != self.rules.capabilities {
            self.ledger.changed(Facets::ALL);
        }
        self.rules = rules;
        match connection {
            Connection::Kept => return,
            Connection::Renewed => {}
            Connection::Moved => {
                self.ledger = Ledger::full();
                self.throttled = false;
            }
        }
        self.failures = 0;
        match &self.link {
            Link::Up(_) => self.close(now.mono, out),
            Link::Connecting => {
                out.push(Order::Abort);
                self.wait(now.mono);
            }
            Link::Waiting { .. } if !self.throttled => self.wait(now.mono),
            Link::Closing { .. } if !self.throttled => {
                self.link = Link::Closing { then: now.mono };
            }
            Link::Waiting { .. } | Link::Closing { .. } | Link::Idle => {}
        }
    }

    /// The next attempts go another way: a server there has heard nothing of us yet. At once, over an orderly end of
    /// what is open; or, where nothing is open, when the next attempt is due anyway.
    pub fn travel(&mut self, rules: Rules, at_once: bool, now: Now, out: &mut Vec<Order>) {
        // A server that asked for time is given it; another one did not ask.
        let connection = match rules.endpoint == self.rules.endpoint {
            true => Connection::Renewed,
            false => Connection::Moved,
        };
        self.ledger = Ledger::full();
        // What is open goes the old way: its answers must not count for the new one.
        if at_once || self.is_connecting() {
            return self.govern(rules, connection, now, out);
        }
        self.rules = rules;
    }

    /// What was learnt since this was last asked.
    pub fn take_news(&mut self) -> Vec<News> {
        core::mem::take(&mut self.news)
    }

    /// Whether an attempt to connect is under way, or its first answer is awaited.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        matches!(&self.link, Link::Connecting | Link::Up(_))
    }

    /// Whether a server has answered on this connection.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.proven)
    }

    /// Whether it has ended after [`Session::stop`].
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.stopping && matches!(self.link, Link::Idle)
    }

    /// The uid in use.
    #[must_use]
    pub const fn uid(&self) -> Uid {
        self.uid
    }

    /// How the connection is.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        match &self.link {
            Link::Idle => LinkState::Idle,
            Link::Waiting { .. } => LinkState::Waiting,
            Link::Connecting => LinkState::Connecting,
            // Over plain HTTP a TCP connection says nothing yet about who answers there.
            Link::Up(up) if self.is_http() && !up.proven => LinkState::Connecting,
            Link::Up(up) => LinkState::Up(up.since),
            Link::Closing { .. } => LinkState::Closing,
        }
    }

    /// Why the connection last failed; [`None`] once a server has answered since.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// The sequence number that the next message will carry.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.sequence
    }

    fn is_http(&self) -> bool {
        self.rules.wire == Wire::Http
    }
}
