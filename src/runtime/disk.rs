//! The store's work, one piece at a time, off the main thread.

use std::rc::Rc;
use std::sync::Arc;

use chiton_proto::AgentConfigMap;
use smol::channel::Receiver;

use super::Inbox;
use crate::agent::Event;
use crate::agent::identity::Kept;
use crate::agent::rollout::{Digest, Generation, Memory};
use crate::store::Store;

/// One piece of work.
pub(super) enum Job {
    KeepUid(Kept),
    Stage { offer: Option<AgentConfigMap>, known: Vec<Digest>, write: bool },
    Arm { memory: Box<Memory>, after_going_back: Box<Memory> },
    Activate(Option<Generation>),
    Remember(Box<Memory>),
}

/// Works until the runtime is gone. The order of the jobs is the order on the disk.
pub(super) async fn work(store: Arc<Store>, jobs: Receiver<Job>, inbox: Rc<Inbox>) {
    while let Ok(job) = jobs.recv().await {
        let store = Arc::clone(&store);
        let event = crate::pool::unblock(move || carry_out(&store, job)).await;
        inbox.put(event).await;
    }
}

fn carry_out(store: &Store, job: Job) -> Event {
    match job {
        Job::KeepUid(kept) => Event::UidKept { uid: kept.uid, error: store.keep_uid(&kept).err() },
        Job::Stage { offer, known, write } => {
            Event::Staged(store.stage(offer.as_ref(), &known, write))
        }
        Job::Arm { memory, after_going_back } => {
            Event::Armed(store.arm(&memory, &after_going_back))
        }
        Job::Activate(generation) => Event::Activated(store.activate(generation)),
        Job::Remember(memory) => Event::Remembered(store.remember(&memory)),
    }
}
