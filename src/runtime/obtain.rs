//! Has the file of a package here: found, or fetched, verified and unpacked.

use std::rc::Rc;
use std::sync::Arc;

use super::{Input, Runtime};
use crate::agent::Event;
use crate::agent::packages::{Unobtained, Wanted};
use crate::agent::rollout::Digest;
use crate::packages::fetch::{self, FailureKind, Limits, Source, Ways};
use crate::packages::install;
use crate::store::incoming::sweep;
use crate::store::{Store, VerifiedPackage};
use crate::transport::Plan;

impl Runtime<'_> {
    /// Another offer: what was asked for an older one is dropped.
    pub(super) fn prepare(&mut self, keep: Vec<Digest>) {
        self.obtaining = None;
        self.store.forget_obtained();
        let directory = self.settings.packages_dir.clone();
        self.executor
            .spawn(async move { crate::pool::unblock(move || sweep(&directory, &keep)).await })
            .detach();
    }

    pub(super) fn obtain(&mut self, wanted: Wanted) {
        let packages = &self.settings.packages;
        let warrant = wanted.warrant;
        let source = Source {
            url: wanted.url,
            headers: wanted.headers,
            sha256: warrant.member().sha256,
            size: warrant.size(),
            limit: packages.max_size,
            signed: warrant.is_signed(),
        };
        let ways = Ways {
            plan: Plan {
                server: self.links.server.clone(),
                factory: Arc::clone(&self.links.factory),
            },
            packages_dir: self.settings.packages_dir.clone(),
            bandwidth: packages.bandwidth,
            limits: limits(),
        };
        let store = Arc::clone(&self.store);
        let inbox = Rc::clone(&self.inbox);
        let round = wanted.round;
        let obtaining = async move {
            let mut tell = |progress: fetch::Progress| {
                let fetch::Progress { had, total } = progress;
                let event = Event::Progress { round, had, total };
                // Another one comes soon.
                let _ = inbox.inputs.try_send(Input::Event(event));
            };
            let result = have(&store, warrant, &source, &ways, &mut tell).await;
            inbox.put(Event::Obtained { round, result }).await;
        };
        self.obtaining = Some(self.executor.spawn(obtaining));
    }
}

#[cfg(not(debug_assertions))]
fn limits() -> Limits {
    Limits::default()
}

/// In debug builds less patience, where `CHITON_FETCH_HASTE` is set: for tests.
#[cfg(debug_assertions)]
fn limits() -> Limits {
    let limits = Limits::default();
    if std::env::var_os("CHITON_FETCH_HASTE").is_none() {
        return limits;
    }
    let ms = core::time::Duration::from_millis;
    Limits {
        window: ms(400),
        backoff: crate::settings::Backoff { initial: ms(10), max: ms(100) },
        retry_after: ms(1000),
        ..limits
    }
}

async fn have(
    store: &Arc<Store>,
    warrant: crate::agent::packages::policy::Warrant,
    source: &Source,
    ways: &Ways,
    tell: &mut dyn FnMut(fetch::Progress),
) -> Result<(), Unobtained> {
    let looking = Arc::clone(store);
    let member = warrant.member().clone();
    if crate::pool::unblock(move || looking.has_tree(&member)).await {
        return Ok(());
    }
    let received = fetch::fetch(source, ways, tell).await.map_err(|failure| Unobtained {
        transient: failure.kind == FailureKind::Transient,
        text: failure.text,
    })?;
    let store = Arc::clone(store);
    let installing = move || {
        let refused = |text| Unobtained { text, transient: false };
        let package = VerifiedPackage::new(received, &warrant).map_err(refused)?;
        install::install(&store, package)
    };
    crate::pool::unblock(installing).await
}
