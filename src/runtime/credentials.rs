//! The connection's credentials: read, judged, asked for, and placed for others.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use smol::lock::Semaphore;

use super::commands::{COMMAND_TIMEOUT, outcome};
use super::link::Links;
use super::{Runtime, disk};
use crate::agent::Event;
use crate::agent::connection::overlay::{Candidate, Staged};
use crate::agent::connection::{DIRECTORY, Way};
use crate::agent::rollout::Digest;
use crate::agent::session::Tone;
use crate::agent::uid::Uid;
use crate::clock::{self, Wall};
use crate::credentials::{judge, request};
use crate::settings::{Connection, KeyKind, Server, connection_of};
use crate::store::Store;
use crate::store::connections::{Files, Pending, export};
use crate::transport::tls::{self, Factory};
use crate::workload::command;
use crate::workload::spawn::Spec;

/// One at a time, in their order: the last one is what stays.
static EXPORT: Semaphore = Semaphore::new(1);

impl Runtime<'_> {
    /// Makes the links what the connection that is gone by needs.
    pub(super) fn refresh_links(&mut self) {
        let (server, way) = self.agent.server();
        if self.links.server == server && self.links.way == way {
            return;
        }
        // A factory keeps sessions to resume: none of other credentials, and none for a candidate, which is to be
        // accepted by itself.
        let same =
            self.links.way == way && connection_of(&self.links.server, &server) == Connection::Kept;
        let factory = match (same, way) {
            (true, _) => Arc::clone(&self.links.factory),
            (false, Way::Candidate) => Arc::new(Factory::without_resumption().into()),
            (false, _) => Arc::new(Factory::default().into()),
        };
        self.links = Rc::new(Links {
            server,
            way,
            store: Rc::clone(&self.links.store),
            factory,
            inbox: Rc::clone(&self.inbox),
        });
    }

    /// What stages a candidate.
    pub(super) fn stage_connection(&mut self, candidate: Box<Candidate>, known: Vec<Digest>) {
        self.job(disk::Job::StageConnection {
            candidate,
            known,
            own: Box::new(self.settings.server.clone()),
            directory: self.settings.state_dir.join(DIRECTORY),
            uid: self.kept.as_ref().map(|kept| kept.uid),
        });
    }

    /// Reads the certificate in use, and places what is committed for others.
    pub(super) fn use_credentials(&mut self) {
        let client = self.agent.server().0.tls.client;
        let inbox = Rc::clone(&self.inbox);
        let reading = async move {
            let certificate = match client {
                Some(client) => {
                    let read = move || tls::certificate(&client.cert_file).ok();
                    crate::pool::unblock(read).await
                }
                None => None,
            };
            inbox.put(Event::Certificate(certificate)).await;
        };
        self.executor.spawn(reading).detach();
        self.export();
    }

    /// Keeps the credentials in force at stable paths, and tells who asked to be told; at the start too, since a crash may
    /// have come between the two.
    fn export(&mut self) {
        let (server, way) = self.agent.server();
        // Nothing that is only tried, be it new or the settings' own once more.
        let committed = self.agent.connections().committed().is_some();
        if way == Way::Candidate || committed != (way == Way::Committed) {
            return;
        }
        let first = !core::mem::replace(&mut self.exported, true);
        let Some(directory) = self.settings.credentials.export.clone() else { return };
        let tls = server.tls;
        let words = self.settings.credentials.on_change.clone();
        let spec = (!words.is_empty()).then(|| {
            self.running_spec(&words).map(|spec| Spec {
                // It is the device's own, not the workload's.
                user: None,
                ..spec
            })
        });
        let inbox = Rc::clone(&self.inbox);
        let exporting = async move {
            let _turn = EXPORT.acquire().await;
            let shown = directory.display().to_string();
            let exported = crate::pool::unblock(move || export(&tls, &directory)).await;
            let result = match (exported.map(|changed| changed || first), spec) {
                (Err(error), _) => Err(error),
                (Ok(true), Some(Ok(spec))) => {
                    let ran = command::run(&spec, COMMAND_TIMEOUT).await;
                    outcome(&spec, &ran).map_err(|why| format!("on_change: {why}"))
                }
                (Ok(true), Some(Err(why))) => Err(format!("on_change: {why}")),
                (Ok(_), _) => Ok(()),
            };
            if let Err(error) = result {
                let text = format!("opamp.credentials: {shown}: {error}");
                inbox.log(Tone::Warning, text).await;
            }
        };
        self.executor.spawn(exporting).detach();
    }

    pub(super) fn make_request(&mut self, common_name: String, key: KeyKind) {
        self.job(disk::Job::MakeRequest { common_name, key });
    }
}

/// Places a candidate, once all that can be known without a connection speaks for it.
pub(super) fn stage(
    store: &Store,
    candidate: &Candidate,
    known: &[Digest],
    own: &Server,
    directory: &Path,
    uid: Option<Uid>,
) -> Staged {
    // What is in use already was judged when it came, and is what the server knows.
    let is_new = candidate.material.certificate.is_some();
    let judging = |files: &Files<'_>| match (files.certificate.filter(|_| is_new), &files.key) {
        (Some(certificate), Some(key)) => {
            let judged = judge::judge(certificate, key.expose(), files.issuer, seconds())?;
            for_us(&judged.common_name, uid)
        }
        _ => Ok(()),
    };
    let staged = store.stage_connection(candidate, known, &judging);
    if let Staged::Ready(generation) = &staged {
        let files = directory.join(generation.number.to_string());
        if let Err(why) = tls::check(&candidate.overlay.lay_over(own, &files).tls) {
            store.unstage_connection(*generation);
            return Staged::Refused(why);
        }
    }
    staged
}

/// A certificate that names another agent is not ours (HOSTILE C2).
fn for_us(common_name: &str, uid: Option<Uid>) -> Result<(), String> {
    const LENGTH: usize = 36;
    let starts = 0..=common_name.len().saturating_sub(LENGTH);
    let parts = starts.filter_map(|at| common_name.get(at..at.saturating_add(LENGTH)));
    match (parts.filter_map(Uid::parse).next(), uid) {
        (Some(other), Some(uid)) if other != uid => {
            Err(format!("the certificate is for another agent, {other}"))
        }
        _ => Ok(()),
    }
}

/// The pending request for this name, or a new one.
pub(super) fn request(store: &Store, common_name: &str, key: KeyKind) -> Result<Bytes, String> {
    let pending = store.pending().ok().flatten();
    if let Some(pending) = pending
        && pending.common_name == common_name
        && pending.kind == key
    {
        return Ok(pending.csr_pem.into());
    }
    let made = request::make(key, common_name)?;
    let pending = Pending {
        common_name: common_name.to_owned(),
        kind: key,
        key_pem: made.key_pem,
        csr_pem: made.csr_pem,
    };
    store.keep_pending(&pending)?;
    Ok(pending.csr_pem.into())
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
fn seconds() -> u64 {
    let Wall(now) = clock::trusted(clock::now().wall);
    now.as_secs()
}
