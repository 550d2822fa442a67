//! The store's work, one piece at a time, off the main thread.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use smol::channel::Receiver;

use super::{Inbox, Input, credentials};
use crate::agent::Event;
use crate::agent::connection;
use crate::agent::identity::Kept;
use crate::agent::rollout::{Candidate, Digest, Generation, Memory};
use crate::agent::session::Tone;
use crate::agent::uid::Uid;
use crate::settings::{KeyKind, Server};
use crate::store::Store;

/// One piece of work.
pub(super) enum Job {
    KeepUid(Kept),
    Stage {
        candidate: Candidate,
        known: Vec<Digest>,
        write: bool,
    },
    Arm {
        memory: Box<Memory>,
        after_going_back: Box<Memory>,
    },
    StageConnection {
        candidate: Box<connection::overlay::Candidate>,
        known: Vec<Digest>,
        own: Box<Server>,
        directory: PathBuf,
        uid: Option<Uid>,
    },
    RememberConnection(Box<connection::memory::Memory>),
    MakeRequest {
        common_name: String,
        key: KeyKind,
    },
    Substitute(PathBuf),
    Activate(Option<Generation>),
    Remember(Box<Memory>),
    KeepSettings {
        file: PathBuf,
        text: String,
    },
    /// What follows is done by other rules.
    Govern(Arc<Store>),
}

/// Works until the runtime is gone. The order of the jobs is the order on the disk.
pub(super) async fn work(mut store: Arc<Store>, jobs: Receiver<Job>, inbox: Rc<Inbox>) {
    while let Ok(job) = jobs.recv().await {
        if let Job::Govern(other) = job {
            store = other;
            continue;
        }
        let store = Arc::clone(&store);
        if let Some(input) = crate::pool::unblock(move || carry_out(&store, job)).await {
            inbox.input(input).await;
        }
    }
}

fn carry_out(store: &Store, job: Job) -> Option<Input> {
    let event = match job {
        Job::KeepUid(kept) => Event::UidKept { uid: kept.uid, error: store.keep_uid(&kept).err() },
        Job::Stage { candidate, known, write } => {
            Event::Staged(store.stage(&candidate, &known, write))
        }
        Job::Arm { memory, after_going_back } => {
            Event::Armed(store.arm(&memory, &after_going_back))
        }
        Job::StageConnection { candidate, known, own, directory, uid } => {
            let staged = credentials::stage(store, &candidate, &known, &own, &directory, uid);
            Event::ConnectionStaged(staged)
        }
        Job::RememberConnection(memory) => {
            Event::ConnectionRemembered(store.remember_connection(&memory))
        }
        Job::MakeRequest { common_name, key } => {
            let result = credentials::request(store, &common_name, key);
            Event::RequestMade { common_name, result }
        }
        Job::Substitute(file) => Event::Substituted(store.substitute(&file)),
        Job::Activate(generation) => Event::Activated(store.activate(generation)),
        Job::Remember(memory) => Event::Remembered(store.remember(&memory)),
        Job::KeepSettings { file, text } => {
            let error = store.keep_settings(&file, text).err()?;
            let text =
                format!("the settings could not be kept for the day the file is bad: {error}");
            return Some(Input::Log(Tone::Warning, text));
        }
        Job::Govern(_) => return None,
    };
    Some(Input::Event(event))
}
