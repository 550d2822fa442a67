//! Joins the fleet, the store and the live connections: what both transports and REST call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chiton_proto::{AgentToServer, AgentToServerFlags, ServerToAgent};
use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::Moment;
use crate::config::{Limits, RestExposure};
use crate::fleet::{self, Assignment, ConnectionId, Fleet, Link, Refusal};
use crate::journal::Journal;
use crate::store::{Store, StoreError};
use crate::uid::InstanceUid;

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
}

/// A WebSocket connection's place in the hub; leaving it marks its agents as disconnected.
pub(crate) struct Line<'hub> {
    hub: &'hub Hub,
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

/// A config that was taken.
pub(crate) struct Published {
    pub(crate) matched: Vec<InstanceUid>,
    /// Those of `matched` that reported this hash FAILED before, and will not be offered it again.
    pub(crate) failed_before: Vec<InstanceUid>,
}

/// Why a config was not taken.
pub(crate) enum PublishError {
    /// Too many targets.
    Refused(String),
    /// It could not be written down, so nobody was sent it.
    Store(StoreError),
}

/// The one shared state.
pub(crate) struct Hub {
    pub(crate) limits: Limits,
    pub(crate) journal: Journal,
    pub(crate) rest_exposure: RestExposure,
    pub(crate) store: Store,
    fleet: Mutex<Fleet>,
    lines: Mutex<BTreeMap<ConnectionId, mpsc::Sender<Outgoing>>>,
    next_line: AtomicU64,
    /// Keeps the order of configs in memory and on disk the same.
    publishing: AsyncMutex<()>,
}

impl Hub {
    /// Takes up what the store kept.
    pub(crate) async fn open(
        store: Store,
        limits: Limits,
        journal: Journal,
        rest_exposure: RestExposure,
    ) -> Result<Self, StoreError> {
        let fleet =
            Fleet::new(store.load_agents().await?, store.load_configs().await?, limits.max_agents);
        Ok(Self {
            limits,
            journal,
            rest_exposure,
            store,
            fleet: Mutex::new(fleet),
            lines: Mutex::default(),
            next_line: AtomicU64::new(1),
            publishing: AsyncMutex::default(),
        })
    }

    /// A new WebSocket connection.
    pub(crate) fn enter(&self) -> (Line<'_>, mpsc::Receiver<Outgoing>) {
        let id = ConnectionId(self.next_line.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(OUTGOING_QUEUE);
        self.lines().insert(id, sender);
        (Line { hub: self, id, renamed: BTreeMap::new() }, receiver)
    }

    /// Answers a message that came as an HTTP request.
    pub(crate) async fn answer_request(&self, body: Bytes) -> Result<ServerToAgent, Refusal> {
        let (uid, message) = decode(body)?;
        if wants_uid(&message) {
            return Ok(fleet::renamed(uid, InstanceUid::generate()));
        }
        Ok(self.take_in(uid, Link::Http, message).await)
    }

    /// Puts a config into force and pushes it to the connected agents that it is for.
    pub(crate) async fn publish(&self, assignment: Assignment) -> Result<Published, PublishError> {
        let _in_order = self.publishing.lock().await;
        self.fleet().admits(&assignment.target).map_err(PublishError::Refused)?;
        self.store.save_config(&assignment).await.map_err(PublishError::Store)?;
        let (pushes, published) = {
            let mut fleet = self.fleet();
            let matched = fleet.matching(&assignment.target);
            let hash = assignment.set.hash();
            let failed = |uid: &InstanceUid| {
                fleet.agents().get(uid).is_some_and(|agent| agent.failed.contains(hash))
            };
            let failed_before = matched.iter().copied().filter(failed).collect();
            (fleet.publish(assignment), Published { matched, failed_before })
        };
        for (connection, message) in pushes {
            let uid = InstanceUid::from_wire(&message.instance_uid);
            if let (false, Some(uid)) =
                (self.send(connection, Outgoing::Push(Box::new(message))), uid)
            {
                self.fleet().not_delivered(uid);
            }
        }
        Ok(published)
    }

    /// The fleet, for as long as nothing is awaited.
    pub(crate) fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_in(&self, uid: InstanceUid, link: Link, message: AgentToServer) -> ServerToAgent {
        let now = Moment::now();
        let (answer, changes) = self.fleet().receive(uid, link, message, now);
        if let Err(error) = self.store.save(uid, &changes, now).await {
            // Memory is right, and the agent is not at fault: it gets its answer. `/healthz` tells the operator.
            self.journal.note(format_args!("agent {uid}: its state cannot be saved: {error}"));
        }
        self.within_limit(answer)
    }

    /// An answer over the limit must not be sent: it goes without its config, and the journal says so.
    fn within_limit(&self, answer: ServerToAgent) -> ServerToAgent {
        let size = answer.encoded_len();
        if size <= self.limits.max_message_size {
            return answer;
        }
        let limit = self.limits.max_message_size;
        self.journal.note(format_args!(
            "an answer of {size} bytes was cut to its basics: at most {limit} may be sent"
        ));
        ServerToAgent { remote_config: None, ..answer }
    }

    /// Whether the connection took it.
    fn send(&self, connection: ConnectionId, outgoing: Outgoing) -> bool {
        let sender = self.lines().get(&connection).cloned();
        sender.is_some_and(|sender| sender.try_send(outgoing).is_ok())
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, mpsc::Sender<Outgoing>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line<'_> {
    /// Answers a message that came over this connection.
    pub(crate) async fn answer(&mut self, body: Bytes) -> Result<ServerToAgent, Refusal> {
        let (uid, message) = decode(body)?;
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
        Ok(self.hub.take_in(uid, Link::WebSocket(self.id), message).await)
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

fn wants_uid(message: &AgentToServer) -> bool {
    message.flags & (AgentToServerFlags::RequestInstanceUid as u64) != 0
}
