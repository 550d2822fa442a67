//! What the server says: each message, and what of it concerns the session itself.

use core::time::Duration;

use chiton_proto::{
    ServerErrorResponse, ServerErrorResponseType, ServerToAgent, ServerToAgentFlags,
    server_error_response::Details,
};

use super::link::connected;
use super::{Link, LinkError, LinkErrorKind, News, Order, Session, Tone, Verdict};
use crate::agent::backoff;
use crate::agent::cut;
use crate::agent::report::Facets;
use crate::agent::uid::Uid;
use crate::clock::Now;

impl Session {
    /// A decoded message came. Takes the parts that concern the session itself.
    pub fn message(
        &mut self,
        number: u64,
        message: &ServerToAgent,
        now: Now,
        out: &mut Vec<Order>,
    ) -> Verdict {
        if number != self.link_number || !matches!(self.link, Link::Up(_)) {
            return Verdict::Ignore;
        }
        // opamp-spec L1011: beside a command every other field is ignored.
        let identification =
            message.agent_identification.as_ref().filter(|_| message.command.is_none());
        let offered =
            identification.map(|identification| Uid::from_slice(&identification.new_instance_uid));
        if !self.addressed_to_us(message, offered.flatten()) {
            self.ignored = self.ignored.saturating_add(1);
            if self.ignored.is_power_of_two() {
                let text =
                    format!("ignored a message for another instance uid ({} so far)", self.ignored);
                out.push(Order::Say(Tone::Peer, text));
            }
            self.unusable(number);
            return Verdict::Ignore;
        }
        if message.instance_uid.as_ref() == self.uid.as_bytes() {
            self.previous_uid = None;
        }
        let http = self.is_http();
        let answered_full = match &mut self.link {
            Link::Up(up) => {
                if http && !up.proven {
                    out.push(connected());
                }
                let answered = up.unanswered.take().is_some();
                up.pinged = None;
                up.last_heard = now.mono;
                up.proven = true;
                if message.capabilities != 0 {
                    up.server_capabilities = message.capabilities;
                }
                answered && up.sent_full
            }
            _ => false,
        };
        self.last_error = None;
        if message.command.is_some() {
            self.ledger.acknowledged();
            self.news.push(News::Proven);
            return Verdict::CommandOnly;
        }
        let asked = match &mut self.link {
            Link::Up(up) => core::mem::take(&mut up.request_open),
            _ => false,
        };
        if let Some(error) = message.error_response.as_ref().filter(|_| asked)
            && error.r#type() == ServerErrorResponseType::BadRequest
        {
            if let Link::Up(up) = &mut self.link {
                up.requested = false;
            }
            self.news.push(News::RequestRefused(cut(error.error_message.clone())));
        }
        let unavailable =
            message.error_response.as_ref().is_some_and(|error| self.told_off(error, now, out));
        if !unavailable {
            self.ledger.acknowledged();
            // Any web server can answer a POST with nothing at all, which is an empty message.
            if !http || *message != ServerToAgent::default() {
                self.news.push(News::Proven);
            }
        }
        if message.flags & flag(ServerToAgentFlags::ReportFullState) != 0 {
            self.full_state_wanted(answered_full);
        }
        if let Some(offered) = offered {
            self.uid_offered(offered, out);
        }
        Verdict::Process
    }

    /// A pong came: the link is alive, whether or not the server answers messages.
    pub fn pong(&mut self, number: u64, now: Now) {
        if let (true, Link::Up(up)) = (number == self.link_number, &mut self.link) {
            up.last_heard = now.mono;
            up.pinged = None;
            up.unanswered = None;
            // Some servers never answer.
            if up.last_sent.is_some() {
                self.news.push(News::Proven);
            }
        }
    }

    /// What came on link `number` is of no use. Over plain HTTP it was the answer nevertheless: no other will come,
    /// so the next request is due at its time.
    pub fn unusable(&mut self, number: u64) {
        let http = self.is_http();
        if let (true, true, Link::Up(up)) = (http, number == self.link_number, &mut self.link) {
            up.unanswered = None;
        }
    }

    /// Over plain HTTP: the last message is too large for the server (413) or for ourselves, and must not go again as
    /// it is (opamp-spec L573). The effective config is left out first, else all that was in it, until they change.
    pub fn refused(&mut self, number: u64, text: String, now: Now, out: &mut Vec<Order>) {
        let Link::Up(up) = &mut self.link else { return };
        if number != self.link_number {
            return;
        }
        up.unanswered = None;
        let sent = up.sent;
        if sent.is_empty() {
            // It cannot be said with less.
            out.push(Order::Abort);
            if let Link::Up(up) = core::mem::replace(&mut self.link, Link::Idle) {
                self.lost(&up, LinkError { text, kind: LinkErrorKind::Fault }, now, out);
            }
            return;
        }
        let (large, name) = if sent.contains(Facets::EFFECTIVE_CONFIG) {
            (Facets::EFFECTIVE_CONFIG, "the effective config")
        } else {
            (sent, "what was in it")
        };
        self.too_large |= large;
        self.ledger.returned();
        let told = format!("{text}; {name} is not sent again until it changes");
        out.push(Order::Say(Tone::Warning, told));
        self.last_error = Some(text);
    }

    /// Whether a message is for us: our uid, none, the one we just gave up, or the one it gives us.
    fn addressed_to_us(&self, message: &ServerToAgent, offered: Option<Uid>) -> bool {
        let to = message.instance_uid.as_ref();
        to.is_empty()
            || to == self.uid.as_bytes()
            || self.previous_uid.is_some_and(|uid| to == uid.as_bytes())
            || offered.is_some_and(|uid| to == uid.as_bytes())
    }

    /// The server's error_response. True: it is unavailable, and the link is being closed.
    fn told_off(&mut self, error: &ServerErrorResponse, now: Now, out: &mut Vec<Order>) -> bool {
        let text = cut(error.error_message.clone());
        if error.r#type() != ServerErrorResponseType::Unavailable {
            // Not sent again (opamp-spec L3471, P654): it would be refused again.
            out.push(Order::Say(Tone::Peer, format!("the server refused a report: {text}")));
            self.last_error = Some(format!("the server refused a report: {text}"));
            return false;
        }
        let asked = error.details.as_ref().map(|details| match details {
            Details::RetryInfo(info) => Duration::from_nanos(info.retry_after_nanoseconds),
        });
        let wait = backoff::throttled(asked, &mut self.jitter);
        self.throttled = true;
        self.last_error = Some(format!("the server is unavailable: {text}"));
        let text = format!("the server is unavailable ({text}); trying again in {wait:.1?}");
        out.push(Order::Say(Tone::Warning, text));
        self.news.push(News::Failed(LinkError {
            text: self.last_error.clone().unwrap_or_default(),
            kind: LinkErrorKind::Throttled(asked),
        }));
        let then = now.mono.after(wait);
        if self.is_http() {
            // Nothing is open that would want a goodbye, and a request less is what the server needs.
            out.push(Order::Abort);
            self.ledger.returned();
            self.wait(then);
        } else {
            self.close(then, out);
        }
        true
    }

    /// ReportFullState. In answer to a full report it waits for the next heartbeat: a server that always asks
    /// must not make us talk for ever.
    fn full_state_wanted(&mut self, answered_full: bool) {
        match &mut self.link {
            Link::Up(up) if answered_full => up.full_at_heartbeat = true,
            _ => self.ledger.changed(Facets::ALL),
        }
    }

    fn uid_offered(&mut self, offered: Option<Uid>, out: &mut Vec<Order>) {
        let Link::Up(up) = &mut self.link else { return };
        let Some(uid) = offered else {
            let text = "ignored a new instance uid that is not 16 bytes, or all zero";
            out.push(Order::Say(Tone::Peer, text.to_owned()));
            return;
        };
        if uid == self.uid {
            // Ours is as good as one of its own: that is kept too.
            if core::mem::take(&mut self.wants_uid) {
                out.push(Order::KeepUid(uid));
            }
        } else if up.uid_changed {
            let text = format!("ignored a second new instance uid ({uid}) on one connection");
            out.push(Order::Say(Tone::Peer, text));
        } else {
            up.uid_changed = true;
            out.push(Order::KeepUid(uid));
        }
    }

    /// The offered uid was written (or not: `error`); it is ours from now on either way (opamp-spec L891).
    pub fn uid_kept(&mut self, uid: Uid, error: Option<&str>, out: &mut Vec<Order>) {
        if let Some(error) = error {
            let text = format!("instance uid {uid} is in use but could not be kept: {error}");
            out.push(Order::Say(Tone::Warning, text));
        }
        if uid == self.uid {
            return;
        }
        out.push(Order::Say(Tone::Info, format!("instance uid is now {uid}")));
        self.previous_uid = Some(core::mem::replace(&mut self.uid, uid));
        self.wants_uid = false;
        self.ledger.changed(Facets::ALL);
    }
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn flag(bit: ServerToAgentFlags) -> u64 {
    bit as i32 as u64
}
