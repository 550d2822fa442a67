//! What the core decides, carried out.

use std::rc::Rc;

use super::link::Task;
use super::{Runtime, disk, link, reload};
use crate::agent::connection::overlay::Staged;
use crate::agent::session::{LinkError, LinkErrorKind};
use crate::agent::{Action, Event};
use crate::clock;

impl Runtime<'_> {
    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect { link } => {
                    self.refresh_links();
                    self.link = Some(link::begin(Rc::clone(&self.links), link, &self.executor));
                    if self.settings.server.unusable.is_some() {
                        self.read_settings(reload::Why::Missing);
                    }
                }
                Action::Send(report) => self.link_task(Task::Report(report)),
                Action::Ping => self.link_task(Task::Ping),
                Action::Close => self.link_task(Task::Close),
                Action::Abort => self.link = None,
                Action::KeepUid(uid) => {
                    let kept = self.keep(uid);
                    self.job(disk::Job::KeepUid(kept));
                }
                Action::StageConnection { candidate, known } => {
                    self.stage_connection(candidate, known);
                }
                Action::RememberConnection(memory) => {
                    self.job(disk::Job::RememberConnection(memory));
                }
                Action::UseCredentials => self.use_credentials(),
                Action::MakeRequest { common_name, key } => self.make_request(common_name, key),
                Action::Stage { candidate, known, write } => {
                    self.job(disk::Job::Stage { candidate, known, write });
                }
                Action::Arm { memory, after_going_back } => {
                    self.job(disk::Job::Arm { memory, after_going_back });
                }
                Action::Substitute(file) => self.job(disk::Job::Substitute(file)),
                Action::Activate(generation) => self.job(disk::Job::Activate(generation)),
                Action::Remember(memory) => {
                    clock::raise_floor(memory.packages.seen);
                    self.job(disk::Job::Remember(memory));
                }
                Action::Validate { generation, packages, config } => {
                    self.validate(generation, packages, config);
                }
                Action::Obtain(wanted) => self.obtain(*wanted),
                Action::Prepare { keep } => self.prepare(keep),
                Action::StartWorkload => self.start_workload(),
                Action::StopWorkload => self.stop_workload(),
                Action::Reload => self.reload(),
                Action::RunApply => self.run_apply(),
                Action::Ask(ask) => self.ask(ask),
                Action::Check { round } => self.check(round),
                Action::Measure { round } => self.measure(round),
                Action::Log(tone, text) => self.say(tone, &text),
                Action::Exit => self.over = true,
            }
        }
    }

    fn link_task(&mut self, task: Task) {
        let full = self.link.as_ref().filter(|link| !link.put(task)).map(|link| link.number);
        if let Some(link) = full {
            // What was not sent must be sent: all that is not acknowledged goes again with the next link.
            self.link = None;
            let text = "the network takes no more messages".to_owned();
            let error = Some(LinkError { text, kind: LinkErrorKind::Failed });
            self.aftermath.push_back(Event::LinkDown { link, error });
        }
    }

    pub(super) fn job(&mut self, job: disk::Job) {
        let Err(refused) = self.jobs.try_send(job) else { return };
        let text = "the disk does not keep up: a change was not written".to_owned();
        // Who waits for an answer would wait for ever.
        self.aftermath.extend(match refused.into_inner() {
            disk::Job::StageConnection { .. } => {
                Some(Event::ConnectionStaged(Staged::Failed(text.clone())))
            }
            disk::Job::RememberConnection(_) => {
                Some(Event::ConnectionRemembered(Err(text.clone())))
            }
            disk::Job::MakeRequest { common_name, .. } => {
                Some(Event::RequestMade { common_name, result: Err(text.clone()) })
            }
            _ => None,
        });
        self.problem(text);
    }
}
