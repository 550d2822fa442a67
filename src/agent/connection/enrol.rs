//! The agent's own wish for a certificate: with none at all, before one ends, and after the uid has changed
//! (opamp-spec L1850, L1880, L1897). The key is made on the device and never leaves it.

use core::time::Duration;

use bytes::Bytes;

use crate::agent::backoff::Jitter;
use crate::agent::uid::Uid;
use crate::clock::{self, Mono, Now};
use crate::credentials::Judged;
use crate::settings::{Enroll, KeyKind};

/// What stands for the uid in `common_name`.
const OWN_NAME: &str = "{instance_uid}";
/// Between looks at the certificate in use.
const LOOK: Duration = Duration::from_secs(24 * 3600);
/// After the server refused a request; doubles.
const REFUSED: Duration = Duration::from_secs(3600);
/// After a key that could not be made or kept.
const DISK_PAUSE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// Make a key and a request for it, or find the pending one. → [`Enrolment::made`]
    Make {
        /// Of the subject.
        common_name: String,
        /// Of the key.
        key: KeyKind,
    },
    /// Send it, if the session can.
    Send(Bytes),
    /// Nothing: what came is wanted anew already. It is asked for again after so long.
    Wait(Duration),
}

/// The state of it.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// As the settings say.
    rules: Option<Enroll>,
    renew_before: Duration,
    /// [`None`]: not known yet.
    certificate: Option<Option<Judged>>,
    /// Another one took its place.
    reading: bool,
    /// It came with an offer.
    offered: bool,
    /// It took the place of another, or of none, and was not looked at.
    fresh: bool,
    request: Request,
    /// Nothing is asked before.
    not_before: Option<Mono>,
    refusals: u32,
    look_at: Option<Mono>,
    jitter: Jitter,
}

#[derive(Clone, Debug)]
enum Request {
    None,
    Making(String),
    Ready(String, Bytes),
}

impl Enrolment {
    /// Nothing is known yet.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            rules: None,
            renew_before: Duration::ZERO,
            certificate: None,
            reading: false,
            offered: false,
            fresh: false,
            request: Request::None,
            not_before: None,
            refusals: 0,
            look_at: None,
            jitter: Jitter::new(seed),
        }
    }

    /// By these rules from now on; [`None`]: no certificate is asked for.
    pub fn govern(&mut self, rules: Option<Enroll>, renew_before: Duration) {
        self.rules = rules;
        self.renew_before = renew_before;
        self.look_at = None;
    }

    /// The certificate in use, if there is one; `offered`: it came with an offer.
    pub fn facts(&mut self, certificate: Option<Judged>, offered: bool) {
        if self.certificate.as_ref() != Some(&certificate) {
            self.request = Request::None;
            self.not_before = None;
            self.fresh = certificate.is_some() && self.certificate.is_some();
        }
        self.certificate = Some(certificate);
        self.reading = false;
        self.offered = offered;
        self.look_at = None;
    }

    /// Another one is in use, which is being read: until then nothing is asked for.
    pub fn forget_certificate(&mut self) {
        self.reading = true;
    }

    /// The certificate in use.
    #[must_use]
    pub fn certificate(&self) -> Option<&Judged> {
        self.certificate.as_ref()?.as_ref()
    }

    /// When [`Enrolment::wish`] may have another answer by the mere passing of time.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        self.rules.as_ref()?;
        self.certificate.as_ref().filter(|_| !self.reading)?;
        // What is not asked before is not looked at before.
        self.not_before.or(self.look_at)
    }

    /// What is to be done now. To be asked when a server has answered on the connection.
    pub fn wish(&mut self, uid: Uid, now: Now) -> Option<Wish> {
        let rules = self.rules.as_ref()?;
        let certificate = self.certificate.as_ref().filter(|_| !self.reading)?;
        if self.not_before.is_some_and(|at| at > now.mono) {
            return None;
        }
        self.not_before = None;
        let common_name = rules.common_name.replace(OWN_NAME, &uid.to_string());
        let other_name = |facts: &Judged| {
            self.offered && rules.common_name.contains(OWN_NAME) && facts.common_name != common_name
        };
        let (due, wait) = match certificate {
            None => (true, LOOK),
            Some(facts) => {
                let left = left(facts, self.renew_before, now);
                let due = left.is_zero() || other_name(facts);
                // Once it is due, what changes that is no matter of time.
                (due, if due { LOOK } else { left.min(LOOK) })
            }
        };
        if self.look_at.is_none_or(|at| at <= now.mono) {
            // Not all of a fleet on one day at one time.
            let spread = self.jitter.up_to(wait.checked_div(16).unwrap_or_default());
            let wait = wait.saturating_add(spread).max(Duration::from_secs(1));
            self.look_at = Some(now.mono.after(wait));
        }
        let fresh = core::mem::take(&mut self.fresh);
        if !due {
            self.refusals = 0;
            return None;
        }
        if fresh {
            // Our clock or the authority's is wrong, or it gives other names: no storm of certificates.
            return Some(Wish::Wait(self.refused(now)));
        }
        match &self.request {
            Request::Ready(name, csr) if *name == common_name => Some(Wish::Send(csr.clone())),
            Request::Making(name) if *name == common_name => None,
            _ => {
                let key = rules.key;
                self.request = Request::Making(common_name.clone());
                Some(Wish::Make { common_name, key })
            }
        }
    }

    /// Answers [`Wish::Make`]: the request, PEM.
    pub fn made(
        &mut self,
        common_name: String,
        result: Result<Bytes, String>,
        now: Now,
    ) -> Option<String> {
        // One for another name is of no use any more.
        if !matches!(&self.request, Request::Making(name) if *name == common_name) {
            return None;
        }
        match result {
            Ok(csr) => {
                self.request = Request::Ready(common_name, csr);
                None
            }
            Err(error) => {
                self.request = Request::None;
                self.not_before = Some(now.mono.after(DISK_PAUSE));
                Some(format!("no request for a certificate can be made: {error}"))
            }
        }
    }

    /// What came of the request did not work: no storm of certificates.
    pub fn failed(&mut self, now: Now) {
        if matches!(self.request, Request::Ready(..)) {
            self.refused(now);
        }
    }

    /// The server does not want it. Says when it is asked again.
    pub fn refused(&mut self, now: Now) -> Duration {
        let wait = REFUSED.saturating_mul(1_u32.checked_shl(self.refusals).unwrap_or(u32::MAX));
        let wait = wait.min(LOOK);
        self.refusals = self.refusals.saturating_add(1).min(8);
        self.not_before = Some(now.mono.after(wait));
        wait
    }
}

/// Until a certificate is to be renewed: `renew_before` its end, or in the last third of its life where that is
/// shorter.
fn left(facts: &Judged, renew_before: Duration, now: Now) -> Duration {
    let life = facts.not_after.saturating_sub(facts.not_before);
    let before = renew_before.as_secs().min(life.checked_div(3).unwrap_or_default());
    let at = Duration::from_secs(facts.not_after.saturating_sub(before));
    at.saturating_sub(clock::trusted_wall(now.wall, 0).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BUILD_TIME, Wall};

    const DAY: u64 = 24 * 3600;
    const HOUR: u64 = 3600;

    /// So many seconds after this was built.
    fn at(seconds: u64) -> Now {
        let time = Duration::from_secs(seconds);
        Now { mono: Mono(time), wall: Wall(time.saturating_add(Duration::from_secs(BUILD_TIME))) }
    }

    fn uid(byte: u8) -> Uid {
        Uid::v7(Wall::default(), [byte; 10])
    }

    /// Valid from the building on, for so many seconds.
    fn certificate(common_name: &str, seconds: u64) -> Option<Judged> {
        let not_after = BUILD_TIME.saturating_add(seconds);
        Some(Judged { not_before: BUILD_TIME, not_after, common_name: common_name.to_owned() })
    }

    fn enrolment(common_name: &str) -> Enrolment {
        let rules = Enroll { common_name: common_name.to_owned(), key: KeyKind::P256 };
        let mut enrolment = Enrolment::new(1);
        enrolment.govern(Some(rules), Duration::from_secs(30 * DAY));
        enrolment
    }

    fn asks(enrolment: &mut Enrolment, now: Now) -> bool {
        matches!(enrolment.wish(uid(1), now), Some(Wish::Make { .. } | Wish::Send(_)))
    }

    const CSR: Bytes = Bytes::from_static(b"csr");

    #[test]
    fn nothing_is_asked_for_without_a_rule_or_before_the_certificate_is_known() {
        let mut enrolment = enrolment(OWN_NAME);
        assert_eq!(enrolment.wish(uid(1), at(0)), None);
        assert_eq!(enrolment.deadline(), None);
        enrolment.facts(None, false);
        enrolment.govern(None, Duration::ZERO);
        assert_eq!(enrolment.wish(uid(1), at(0)), None);
        assert_eq!(enrolment.deadline(), None);
    }

    #[test]
    fn without_a_certificate_one_request_is_made_and_that_one_is_sent() {
        let mut enrolment = enrolment("gateway {instance_uid}");
        enrolment.facts(None, false);
        let common_name = format!("gateway {}", uid(1));
        let make = |common_name| Some(Wish::Make { common_name, key: KeyKind::P256 });
        assert_eq!(enrolment.wish(uid(1), at(0)), make(common_name.clone()));
        assert_eq!(enrolment.wish(uid(1), at(1)), None, "it is being made");
        assert_eq!(enrolment.made(common_name.clone(), Ok(CSR), at(1)), None);
        for seconds in 1..9 {
            assert_eq!(enrolment.wish(uid(1), at(seconds)), Some(Wish::Send(CSR)));
        }
        // Another uid needs another request, and what was made for the former is nobody's.
        let other = format!("gateway {}", uid(2));
        assert_eq!(enrolment.wish(uid(2), at(9)), make(other.clone()));
        assert_eq!(enrolment.made(common_name, Ok(CSR), at(9)), None);
        assert_eq!(enrolment.wish(uid(2), at(9)), None, "that was for the former");
        enrolment.facts(certificate("x", 900 * DAY), false);
        assert_eq!(enrolment.made(other, Ok(CSR), at(9)), None);
        assert_eq!(enrolment.wish(uid(2), at(9)), None);
    }

    #[test]
    fn a_key_that_cannot_be_made_is_said_and_tried_again() {
        let mut enrolment = enrolment("x");
        enrolment.facts(None, false);
        assert!(asks(&mut enrolment, at(0)));
        assert!(enrolment.made("x".to_owned(), Err("disk full".to_owned()), at(0)).is_some());
        assert!(!asks(&mut enrolment, at(59)));
        assert_eq!(enrolment.deadline(), Some(at(60).mono));
        assert!(asks(&mut enrolment, at(60)));
    }

    #[test]
    fn it_is_renewed_in_good_time() {
        for (life, due) in
            [(365 * DAY, 335 * DAY), (3 * DAY, 2 * DAY), (90 * DAY, 60 * DAY), (3, 2)]
        {
            let mut enrolment = enrolment("x");
            enrolment.facts(certificate("x", life), true);
            assert!(!asks(&mut enrolment, at(due.saturating_sub(1))), "{life}");
            assert!(asks(&mut enrolment, at(due)), "{life}");
        }
        // Left alone it wakes for that: soon after, and not all of a fleet at once.
        let mut enrolment = enrolment("x");
        enrolment.facts(certificate("x", 3 * HOUR), true);
        let mut now = at(0);
        while !asks(&mut enrolment, now) {
            now = at(enrolment.deadline().map_or(u64::MAX, |at| at.0.as_secs().saturating_add(1)));
            assert!(now.mono.0.as_secs() < 3 * HOUR - 1800, "too late: {now:?}");
        }
        // No certificate begins or ends at an impossible time.
        let mut enrolment = self::enrolment("x");
        let odd = Judged { not_before: u64::MAX, not_after: 0, common_name: String::new() };
        enrolment.facts(Some(odd), true);
        assert!(asks(&mut enrolment, at(0)));
    }

    #[test]
    fn another_uid_needs_another_certificate() {
        let own = uid(1).to_string();
        for (rule, name, offered, wanted) in [
            (OWN_NAME, uid(2).to_string(), true, true),
            (OWN_NAME, own.clone(), true, false),
            // The settings' own is what it is.
            (OWN_NAME, uid(2).to_string(), false, false),
            ("gateway", own, true, false),
        ] {
            let mut enrolment = enrolment(rule);
            enrolment.facts(certificate(&name, 900 * DAY), offered);
            assert_eq!(asks(&mut enrolment, at(0)), wanted, "{rule} {name} {offered}");
        }
    }

    #[test]
    fn a_server_that_refuses_is_asked_ever_more_seldom() {
        let mut enrolment = enrolment("x");
        enrolment.facts(None, false);
        assert!(asks(&mut enrolment, at(0)));
        assert_eq!(enrolment.made("x".to_owned(), Ok(CSR), at(0)), None);
        let mut now = at(0);
        for hours in [1, 2, 4, 8, 16, 24, 24, 24, 24, 24, 24, 24] {
            assert!(asks(&mut enrolment, now));
            let wait = enrolment.refused(now);
            assert_eq!(wait, Duration::from_secs(hours * HOUR));
            let again = now.mono.0.as_secs().saturating_add(wait.as_secs());
            assert!(!asks(&mut enrolment, at(again.saturating_sub(1))));
            assert_eq!(enrolment.deadline(), Some(at(again).mono));
            now = at(again);
        }
    }

    #[test]
    fn a_certificate_that_is_to_be_renewed_as_it_comes_makes_no_storm() {
        let mut enrolment = enrolment("x");
        enrolment.facts(None, false);
        assert!(asks(&mut enrolment, at(0)));
        for hours in [1, 2, 4] {
            enrolment.forget_certificate();
            assert_eq!(enrolment.wish(uid(1), at(1)), None, "not read yet");
            assert_eq!(enrolment.deadline(), None);
            enrolment.facts(certificate(&hours.to_string(), 0), true);
            let wait = Duration::from_secs(hours * HOUR);
            assert_eq!(enrolment.wish(uid(1), at(1)), Some(Wish::Wait(wait)));
            assert_eq!(enrolment.wish(uid(1), at(1)), None);
        }
    }

    /// Whatever is waited for: at each deadline time has passed, and they are few.
    #[test]
    fn no_busy_loop() {
        for certificate in [
            None,
            certificate("x", 0),
            certificate("x", 10),
            certificate("x", 5 * DAY),
            certificate("x", 900 * DAY),
        ] {
            for refuses in [false, true] {
                let mut enrolment = enrolment("x");
                enrolment.facts(certificate.clone(), true);
                let (mut now, mut times) = (at(0), 0);
                while now.mono < at(60 * DAY).mono {
                    match enrolment.wish(uid(1), now) {
                        Some(Wish::Make { .. }) => {
                            assert_eq!(enrolment.made("x".to_owned(), Ok(CSR), now), None);
                        }
                        Some(Wish::Send(_)) if refuses => {
                            enrolment.refused(now);
                        }
                        _ => {}
                    }
                    times += 1;
                    let next = enrolment.deadline().unwrap_or_default();
                    let case = format!("{certificate:?}, refused {refuses}, at {:?}", now.mono);
                    assert!(next > now.mono, "{case}: {next:?}");
                    assert!(times < 200, "{case}");
                    now = at(next.0.as_secs().saturating_add(1));
                }
            }
        }
    }
}
