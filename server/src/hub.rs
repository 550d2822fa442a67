//! Joins the fleet, the store and the live connections: what both transports and REST call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chiton_proto::{
    AgentCapabilities, AgentToServer, AgentToServerFlags, ServerCapabilities, ServerToAgent,
};
use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::authority::{Authority, Identity};
use crate::clock::Moment;
use crate::config::{Config, Limits, RestExposure};
use crate::credentials::{Credentials, Serial};
use crate::depot::{Depot, DepotError, Incoming};
use crate::fleet::{self, Agent, ConnectionId, Fleet, Link, Offers, Refusal};
use crate::journal::Journal;
use crate::package::{Catalog, FileHash, Kind, Package, PackageId};
use crate::selector::Selector;
use crate::store::{Store, StoreError};
use crate::uid::InstanceUid;

mod credentials;

/// Messages that wait for one connection; beyond it an offer waits for the agent's next report.
const OUTGOING_QUEUE: usize = 16;

/// What a connection's task is asked to do.
pub(crate) enum Outgoing {
    /// Send this.
    Push(Box<ServerToAgent>),
    /// Prove that the peer is alive, then say so. Dropping the sender says that it is not.
    Probe(oneshot::Sender<()>),
    /// The peer did not answer a probe: end the connection.
    Drop,
    /// The peer's certificate was revoked: say so and end the connection.
    Revoked,
}

/// A WebSocket connection's place in the hub; leaving it marks its agents as disconnected.
pub(crate) struct Line<'hub> {
    hub: &'hub Hub,
    base: Option<Arc<str>>,
    identity: Option<Identity>,
    id: ConnectionId,
    /// The uid that each claimed or temporary uid was replaced by on this connection.
    renamed: BTreeMap<InstanceUid, InstanceUid>,
}

/// Uids that one connection may have replaced.
const MAX_RENAMED: usize = 64;

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.hub.lines().remove(&self.id);
        self.hub.fleet().disconnect(self.id);
    }
}

/// The sending end of a WebSocket connection, and this server's address as it is seen from there.
#[derive(Clone)]
struct Peer {
    sender: mpsc::Sender<Outgoing>,
    base: Option<Arc<str>>,
    serial: Option<Serial>,
}

/// An offer that was taken.
pub(crate) struct Published {
    pub(crate) matched: Vec<InstanceUid>,
    /// Those of `matched` that reported this config FAILED before, and will not be offered it again.
    pub(crate) failed_before: Vec<InstanceUid>,
    /// Those of `matched` that take no packages.
    pub(crate) without_packages: Vec<InstanceUid>,
}

/// Why a change was not made.
pub(crate) enum PublishError {
    /// It does not fit what is there.
    Refused(String),
    /// There is no such thing.
    Unknown(String),
    /// It could not be written down, so nobody was sent it.
    Store(StoreError),
    /// The file could not be put in its place.
    Io(std::io::Error),
}

/// The one shared state.
pub(crate) struct Hub {
    pub(crate) limits: Limits,
    pub(crate) journal: Journal,
    pub(crate) rest_exposure: RestExposure,
    /// Where agents find packages, when that is not where they connect.
    pub(crate) public_url: Option<Arc<str>>,
    /// Whether agents connect by TLS.
    pub(crate) secure: bool,
    pub(crate) store: Store,
    pub(crate) depot: Arc<Depot>,
    pub(crate) downloads: Arc<Semaphore>,
    pub(crate) uploads: Arc<Semaphore>,
    fleet: Mutex<Fleet>,
    lines: Mutex<BTreeMap<ConnectionId, Peer>>,
    next_line: AtomicU64,
    /// Keeps the order of changes in memory and on disk the same.
    publishing: AsyncMutex<()>,
    /// Makes certificates.
    pub(crate) authority: Option<Arc<Authority>>,
    /// Whether agents are asked for certificates.
    asks_certificates: bool,
    /// Keeps the order of credentials in memory and on disk the same.
    keeping: AsyncMutex<()>,
    /// A rotation may go on.
    rotating: Notify,
}

impl Hub {
    /// Takes up what the store kept.
    pub(crate) async fn open(
        store: Store,
        depot: Arc<Depot>,
        authority: Option<Arc<Authority>>,
        config: &Config,
    ) -> Result<Self, StoreError> {
        let catalog = Catalog::new(store.load_packages().await?, store.load_offers().await?);
        let (agents, configs) = (store.load_agents().await?, store.load_configs().await?);
        let public_url = config.public_url.as_deref().map(|url| url.trim_end_matches('/').into());
        let mut fleet = Fleet::new(agents, configs, catalog, config.limits.max_agents);
        fleet.credentials = Credentials::new(store.load_credentials().await?);
        fleet.connections = store.load_connections().await?;
        fleet.rotations = store.load_rotations().await?;
        if let Some(authority) = &authority {
            authority.revoke(fleet.credentials.revoked());
        }
        Ok(Self {
            limits: config.limits.clone(),
            journal: config.journal,
            rest_exposure: config.rest_exposure,
            public_url,
            secure: config.tls.is_some(),
            store,
            depot,
            downloads: Arc::new(Semaphore::new(config.limits.max_downloads)),
            uploads: Arc::new(Semaphore::new(config.limits.max_uploads)),
            fleet: Mutex::new(fleet),
            lines: Mutex::default(),
            next_line: AtomicU64::new(1),
            publishing: AsyncMutex::default(),
            asks_certificates: config.tls.is_some() && authority.is_some(),
            authority,
            keeping: AsyncMutex::default(),
            rotating: Notify::new(),
        })
    }

    /// Removes files that no package has; says which are missing.
    pub(crate) fn sweep(&self) -> Result<(), DepotError> {
        let fleet = self.fleet();
        let packages = fleet.catalog().packages().values();
        let found = self.depot.sweep(&packages.clone().map(|package| package.file).collect())?;
        for Package { id, file, .. } in packages.filter(|package| !found.contains(&package.file)) {
            self.journal
                .note(format_args!("package {id}: its file {file} is gone; upload it again"));
        }
        Ok(())
    }

    /// A new WebSocket connection.
    pub(crate) fn enter(
        &self,
        base: Option<Arc<str>>,
        identity: Option<Identity>,
    ) -> (Line<'_>, mpsc::Receiver<Outgoing>) {
        let id = ConnectionId(self.next_line.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(OUTGOING_QUEUE);
        let serial = identity.as_ref().map(|identity| identity.serial);
        self.lines().insert(id, Peer { sender, base: base.clone(), serial });
        (Line { hub: self, base, identity, id, renamed: BTreeMap::new() }, receiver)
    }

    /// Answers a message that came as an HTTP request.
    pub(crate) async fn answer_request(
        &self,
        body: Bytes,
        base: Option<&str>,
        identity: Option<&Identity>,
    ) -> Result<ServerToAgent, Refusal> {
        let (uid, message) = decode(body)?;
        if wants_uid(&message) {
            return Ok(fleet::renamed(uid, InstanceUid::generate()));
        }
        Ok(self.take_in(uid, Link::Http, base, identity, message).await)
    }

    /// Puts offers into force and pushes them to the connected agents that they are for, to each in one message.
    pub(crate) async fn publish(
        &self,
        target: &Selector,
        offers: Offers,
    ) -> Result<Published, PublishError> {
        let _in_order = self.publishing.lock().await;
        {
            let fleet = self.fleet();
            offers
                .config
                .as_ref()
                .map_or(Ok(()), |config| fleet.admits(&config.target))
                .and_then(|()| {
                    offers.packages.as_ref().map_or(Ok(()), |p| fleet.catalog().admits_offer(p))
                })
                .map_err(PublishError::Refused)?;
        }
        self.store.save_offers(&offers).await.map_err(PublishError::Store)?;
        let (pushes, published) = {
            let mut fleet = self.fleet();
            let matched = fleet.matching(target);
            let those = |holds: &dyn Fn(&Agent) -> bool| {
                let known = |uid: &InstanceUid| fleet.agents().get(uid).is_some_and(holds);
                matched.iter().copied().filter(known).collect()
            };
            let hash = offers.config.as_ref().map(|config| config.set.hash());
            let failed_before =
                those(&|agent| hash.is_some_and(|hash| agent.failed.contains(hash)));
            let without_packages = those(&|agent| !agent.has(AgentCapabilities::AcceptsPackages));
            if let Some(config) = offers.config {
                fleet.publish(config);
            }
            if let Some(packages) = offers.packages {
                fleet.catalog_mut().offer(packages);
            }
            (fleet.pushes(&matched), Published { matched, failed_before, without_packages })
        };
        self.push(pushes);
        Ok(published)
    }

    /// Takes an offer of packages back. Agents keep what they have; for those that an older offer means too, that
    /// one is in force again. Gives the former and the latter.
    pub(crate) async fn withdraw(
        &self,
        target: &Selector,
    ) -> Result<(Vec<InstanceUid>, Vec<InstanceUid>), PublishError> {
        let _in_order = self.publishing.lock().await;
        if !self.fleet().catalog().offers().iter().any(|offer| offer.target == *target) {
            return Err(PublishError::Unknown(format!("no packages are offered to {target}")));
        }
        self.store.delete_offer(target).await.map_err(PublishError::Store)?;
        let (pushes, parted) = {
            let mut fleet = self.fleet();
            fleet.catalog_mut().withdraw(target);
            let matched = fleet.matching(target).into_iter();
            let parted: (Vec<_>, Vec<_>) =
                matched.partition(|uid| fleet.assigned_packages(*uid).is_none());
            (fleet.pushes(&parted.1), parted)
        };
        self.push(pushes);
        Ok(parted)
    }

    /// Takes in a package whose file has arrived; false if it was here before.
    pub(crate) async fn add_package(
        &self,
        id: PackageId,
        kind: Kind,
        incoming: Incoming,
    ) -> Result<bool, PublishError> {
        let _in_order = self.publishing.lock().await;
        let known = self.fleet().catalog().packages().get(&id).cloned();
        match &known {
            None => self.fleet().catalog().admits_package().map_err(PublishError::Refused)?,
            Some(old) if old.file == incoming.file && old.kind == kind => {}
            Some(old) => {
                return Err(PublishError::Refused(format!(
                    "there is a {id} already, a {} with SHA-256 {}; this is a {} with SHA-256 {}: give it \
                     another version, or delete that one first",
                    old.kind.as_str(),
                    old.file,
                    kind.as_str(),
                    incoming.file
                )));
            }
        }
        let (file, size, depot) = (incoming.file, incoming.size, Arc::clone(&self.depot));
        // Also when it is known: its file may have been lost.
        let kept = spawn_blocking(move || depot.keep(&incoming)).await;
        kept.map_err(std::io::Error::other).flatten().map_err(PublishError::Io)?;
        if known.is_some() {
            return Ok(false);
        }
        let package = Package::new(id, kind, file, size, Moment::now(), Bytes::new());
        if let Err(error) = self.store.save_package(&package).await {
            self.discard(file).await;
            return Err(PublishError::Store(error));
        }
        self.fleet().catalog_mut().insert(package);
        Ok(true)
    }

    /// Gives a package its signature, and offers it again where it is offered.
    pub(crate) async fn sign_package(
        &self,
        id: &PackageId,
        signature: Bytes,
    ) -> Result<(), PublishError> {
        let _in_order = self.publishing.lock().await;
        let package = self.package(id)?.with_signature(signature);
        self.store.save_package(&package).await.map_err(PublishError::Store)?;
        let pushes = {
            let mut fleet = self.fleet();
            fleet.catalog_mut().insert(package);
            let mut agents: Vec<_> = fleet.agents().keys().copied().collect();
            agents.retain(|uid| fleet.assigned_packages(*uid).is_some_and(|offer| offer.holds(id)));
            fleet.pushes(&agents)
        };
        self.push(pushes);
        Ok(())
    }

    /// Removes a package that is offered to nobody.
    pub(crate) async fn remove_package(&self, id: &PackageId) -> Result<(), PublishError> {
        let _in_order = self.publishing.lock().await;
        let file = self.package(id)?.file;
        let targets: Vec<_> =
            self.fleet().catalog().offered_to(id).map(ToString::to_string).collect();
        if !targets.is_empty() {
            let targets = targets.join("; ");
            return Err(PublishError::Refused(format!(
                "{id} is offered to {targets}: offer another version there or take the offer back first"
            )));
        }
        self.store.delete_package(id).await.map_err(PublishError::Store)?;
        self.fleet().catalog_mut().remove(id);
        self.discard(file).await;
        Ok(())
    }

    /// Removes a file unless another package has the same.
    async fn discard(&self, file: FileHash) {
        if self.fleet().catalog().with_file(file).is_some() {
            return;
        }
        let depot = Arc::clone(&self.depot);
        let removed = spawn_blocking(move || depot.remove(file)).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            self.journal.note(format_args!(
                "package file {file}: it is removed at the next start, now it cannot be: {error}"
            ));
        }
    }

    fn package(&self, id: &PackageId) -> Result<Package, PublishError> {
        let found = self.fleet().catalog().packages().get(id).cloned();
        found.ok_or_else(|| PublishError::Unknown(format!("there is no package {id}")))
    }

    fn push(&self, pushes: Vec<(ConnectionId, ServerToAgent)>) {
        for (connection, message) in pushes {
            let uid = InstanceUid::from_wire(&message.instance_uid);
            let peer = self.lines().get(&connection).cloned();
            let sent = peer.is_some_and(|peer| {
                let message = self.addressed(message, peer.base.as_deref());
                peer.sender.try_send(Outgoing::Push(Box::new(message))).is_ok()
            });
            if let (false, Some(uid)) = (sent, uid) {
                self.fleet().not_delivered(uid);
            }
        }
    }

    /// Puts this server's address into the URLs of packages.
    fn addressed(&self, mut message: ServerToAgent, base: Option<&str>) -> ServerToAgent {
        if self.authority.is_some() && message.capabilities != 0 {
            message.capabilities |= ServerCapabilities::AcceptsConnectionSettingsRequest as u64;
        }
        let Some(offer) = &mut message.packages_available else { return message };
        let Some(base) = base else {
            let why = "its connection named no host, and there is no --public-url";
            self.journal.note(format_args!("an agent was not offered its packages: {why}"));
            message.packages_available = None;
            return message;
        };
        for file in offer.packages.values_mut().filter_map(|package| package.file.as_mut()) {
            file.download_url.insert_str(0, base);
        }
        message
    }

    /// The fleet, for as long as nothing is awaited.
    pub(crate) fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_in(
        &self,
        uid: InstanceUid,
        link: Link,
        base: Option<&str>,
        identity: Option<&Identity>,
        message: AgentToServer,
    ) -> ServerToAgent {
        let now = Moment::now();
        let request = request_in(&message);
        let (mut answer, changes) = self.fleet().receive(uid, link, message, now);
        if answer.error_response.is_none() {
            self.recognise(uid, identity, now);
            if let Some(pem) = request {
                answer = self.enroll(uid, &pem, identity, answer, now);
            }
        }
        self.keep_or_note().await;
        if let Err(error) = self.store.save(uid, &changes, now).await {
            // Memory is right, and the agent is not at fault: it gets its answer. `/healthz` tells the operator.
            self.journal.note(format_args!("agent {uid}: its state cannot be saved: {error}"));
        }
        self.within_limit(self.addressed(answer, base))
    }

    /// An answer over the limit must not be sent: it goes without its offers, and the journal says so.
    fn within_limit(&self, answer: ServerToAgent) -> ServerToAgent {
        let size = answer.encoded_len();
        if size <= self.limits.max_message_size {
            return answer;
        }
        let limit = self.limits.max_message_size;
        self.journal.note(format_args!(
            "an answer of {size} bytes was cut to its basics: at most {limit} may be sent"
        ));
        ServerToAgent {
            remote_config: None,
            packages_available: None,
            connection_settings: None,
            ..answer
        }
    }

    /// Whether the connection took it.
    fn send(&self, connection: ConnectionId, outgoing: Outgoing) -> bool {
        let peer = self.lines().get(&connection).cloned();
        peer.is_some_and(|peer| peer.sender.try_send(outgoing).is_ok())
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Peer>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line<'_> {
    /// Answers a message that came over this connection.
    pub(crate) async fn answer(&mut self, body: Bytes) -> Result<ServerToAgent, Refusal> {
        let (uid, message) = decode(body)?;
        if self.hub.is_revoked(self.identity.as_ref()) {
            return Err(Refusal { uid: Some(uid), text: "its certificate was revoked".to_owned() });
        }
        if let Some(new) = self.renamed.get(&uid) {
            // It had not seen its new uid when it sent this.
            return Ok(fleet::renamed(uid, *new));
        }
        let wanted = wants_uid(&message);
        if wanted || self.is_duplicate(uid).await {
            let new = InstanceUid::generate();
            if self.renamed.len() >= MAX_RENAMED {
                let text =
                    format!("at most {MAX_RENAMED} uids can be replaced over one connection");
                return Err(Refusal { uid: Some(uid), text });
            }
            self.renamed.insert(uid, new);
            let why = if wanted { "it asked for one" } else { "another live connection holds it" };
            self.hub.journal.note(format_args!("agent {uid} is given the uid {new}: {why}"));
            return Ok(fleet::renamed(uid, new));
        }
        let base = self.base.as_deref();
        let (link, identity) = (Link::WebSocket(self.id), self.identity.as_ref());
        Ok(self.hub.take_in(uid, link, base, identity, message).await)
    }

    /// Whether an older connection with this uid proves that it lives; if it cannot, it is dropped.
    ///
    /// A device that lost its network comes back while its old connection still looks open from here, so the
    /// newer one is right unless the older one answers a ping.
    async fn is_duplicate(&self, uid: InstanceUid) -> bool {
        let Some(holder) = self.hub.fleet().holder(uid).filter(|holder| *holder != self.id) else {
            return false;
        };
        let (alive, answer) = oneshot::channel();
        let asked = self.hub.send(holder, Outgoing::Probe(alive));
        if asked && matches!(timeout(self.hub.limits.duplicate_probe, answer).await, Ok(Ok(()))) {
            return true;
        }
        self.hub.journal.note(format_args!(
            "agent {uid} came back; its older connection is dead and is dropped"
        ));
        self.hub.send(holder, Outgoing::Drop);
        false
    }
}

/// The message and its uid, or the answer that says what is wrong with it.
fn decode(body: Bytes) -> Result<(InstanceUid, AgentToServer), Refusal> {
    let refusal = |text| Refusal { uid: None, text };
    let message = AgentToServer::decode(body)
        .map_err(|error| refusal(format!("the message is not an AgentToServer: {error}")))?;
    let uid = InstanceUid::from_wire(&message.instance_uid).ok_or_else(|| {
        let length = message.instance_uid.len();
        refusal(format!(
            "instance_uid must be 16 bytes that are not all zero; it has {length} bytes"
        ))
    })?;
    Ok((uid, message))
}

/// The certificate request in a message.
fn request_in(message: &AgentToServer) -> Option<Bytes> {
    let request = message.connection_settings_request.as_ref()?.opamp.as_ref()?;
    request.certificate_request.as_ref().map(|request| request.csr.clone())
}

fn wants_uid(message: &AgentToServer) -> bool {
    message.flags & (AgentToServerFlags::RequestInstanceUid as u64) != 0
}
