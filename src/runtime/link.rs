//! One link: the transport beneath, the reports above, the effective config put in on the way.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use chiton_proto::{EffectiveConfig, Message};
use smol::channel::{Receiver, Sender, TrySendError, bounded};

use super::Inbox;
use super::executor::Executor;
use crate::agent::Event;
use crate::agent::connection::Way;
use crate::agent::session::{LinkError, LinkErrorKind, Outgoing as Report, Tone};
use crate::agent::uid::Uid;
use crate::settings::{Scheme, Server};
use crate::store::Store;
use crate::transport::tls::Factory;
use crate::transport::{self, Incoming, Outgoing, Plan};

/// Messages that may wait for the network; the core folds what changes meanwhile into one.
const QUEUE: usize = 16;
/// Messages that may wait for the core: while it is busy, nothing more is read.
const READ_AHEAD: usize = 2;

/// What a link is to do.
pub(super) enum Task {
    Report(Box<Report>),
    Ping,
    Close,
}

/// The sending end of a link.
pub(super) struct Link {
    pub(super) number: u64,
    tasks: Sender<Task>,
    /// Dropping it drops the link.
    _running: smol::Task<()>,
}

impl Link {
    /// Hands a task to the link. False: its queue is full, the network takes nothing. One that has ended takes nothing
    /// either, but has said why: that is on its way to the core.
    pub(super) fn put(&self, task: Task) -> bool {
        !matches!(self.tasks.try_send(task), Err(TrySendError::Full(_)))
    }
}

/// What links have in common.
pub(super) struct Links {
    pub(super) server: Server,
    pub(super) way: Way,
    /// As the settings have it now.
    pub(super) store: Rc<RefCell<Arc<Store>>>,
    pub(super) factory: Arc<Mutex<Factory>>,
    pub(super) inbox: Rc<Inbox>,
}

/// Begins link `number`.
pub(super) fn begin(links: Rc<Links>, number: u64, executor: &Executor<'_>) -> Link {
    let (tasks, todo) = bounded(QUEUE);
    let running = executor.spawn(run(links, number, todo));
    Link { number, tasks, _running: running }
}

async fn run(links: Rc<Links>, number: u64, todo: Receiver<Task>) {
    let plan = match plan(&links).await {
        Ok(plan) => plan,
        Err(text) => {
            let text = format!("{}: {text}", links.server.endpoint);
            let error = Some(LinkError { text, kind: LinkErrorKind::Failed });
            links.inbox.put(Event::LinkDown { link: number, error }).await;
            return;
        }
    };
    let (to_network, outgoing) = bounded(1);
    let (incoming, from_network) = bounded(READ_AHEAD);
    let down = RefCell::new(false);
    let http = matches!(links.server.endpoint.scheme, Scheme::Http | Scheme::Https);
    let encode = async {
        while let Ok(task) = todo.recv().await {
            let told = match task {
                Task::Report(report) => match encode(&links, *report).await {
                    Ok(message) => message,
                    Err(text) if http => {
                        links.inbox.put(Event::Refused { link: number, text }).await;
                        continue;
                    }
                    Err(text) => {
                        links.inbox.log(Tone::Warning, text).await;
                        continue;
                    }
                },
                Task::Ping => Outgoing::Ping,
                Task::Close => Outgoing::Close,
            };
            if to_network.send(told).await.is_err() {
                break;
            }
        }
        // The link may end by itself now; that is for the other half to say.
        core::future::pending::<()>().await;
    };
    let listen = async {
        while let Ok(came) = from_network.recv().await {
            let event = match came {
                Incoming::Up => Event::LinkUp { link: number },
                Incoming::Message(bytes) => Event::Received { link: number, bytes },
                Incoming::TooLarge(text) => Event::Refused { link: number, text },
                Incoming::Pong => Event::Pong { link: number },
                Incoming::Remark(text) => {
                    links.inbox.log(Tone::Peer, text).await;
                    continue;
                }
                Incoming::Down(error) => {
                    *down.borrow_mut() = true;
                    Event::LinkDown { link: number, error }
                }
            };
            links.inbox.put(event).await;
        }
    };
    let carry = transport::run(plan, outgoing, incoming);
    smol::future::or(encode, async {
        smol::future::zip(carry, listen).await;
    })
    .await;
    debug_assert!(down.into_inner(), "a transport always says how it ended");
}

/// What a link needs to know.
async fn plan(links: &Links) -> Result<Plan, String> {
    if let Some(reason) = &links.server.unusable {
        return Err(reason.clone());
    }
    if links.server.tls.insecure_skip_verify {
        let text =
            "opamp.server.tls.insecure_skip_verify is on: the server is not verified".to_owned();
        links.inbox.log(Tone::Warning, text).await;
    }
    Ok(Plan { server: links.server.clone(), factory: Arc::clone(&links.factory) })
}

/// A report as it is sent.
///
/// # Errors
/// Even its smallest form is too large (opamp-spec L456).
async fn encode(links: &Links, report: Report) -> Result<Outgoing, String> {
    let Report { mut message, effective_config } = report;
    if effective_config {
        let store = Arc::clone(&links.store.borrow());
        match crate::pool::unblock(move || store.effective()).await {
            Ok(map) => message.effective_config = Some(EffectiveConfig { config_map: Some(map) }),
            Err(error) => {
                links
                    .inbox
                    .log(Tone::Warning, format!("the effective config is not reported: {error}"))
                    .await;
            }
        }
    }
    let limit = links.server.max_message_size;
    if message.encoded_len() > limit && message.effective_config.is_some() {
        let text = format!(
            "the effective config is not reported: with it a message has {} bytes, more than max_message_size ({limit})",
            message.encoded_len()
        );
        links.inbox.log(Tone::Warning, text).await;
        message.effective_config = None;
    }
    if message.encoded_len() > limit {
        return Err(format!(
            "a report of {} bytes was not sent: max_message_size is {limit}",
            message.encoded_len()
        ));
    }
    let uid = Uid::from_slice(&message.instance_uid).ok_or("a report without an instance uid")?;
    Ok(Outgoing::Message { body: transport::frame(&message), uid })
}
