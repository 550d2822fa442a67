//! What happens to the core, and what it has done.

use core::time::Duration;
use std::path::PathBuf;

use bytes::Bytes;

use super::Reread;
use super::connection;
use super::health::CheckResult;
use super::metrics::Figures;
use super::packages::set::Running;
use super::packages::{Unobtained, Wanted};
use super::rollout::{Candidate, Digest, Generation, Memory, Staged};
use super::session::{LinkError, Outgoing, Tone};
use super::supervision::{Ask, Process};
use super::uid::Uid;
use crate::credentials::Judged;
use crate::settings::KeyKind;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The deadline has come, or it is simply later than before.
    Tick,
    /// Link `link` is up.
    LinkUp {
        /// Its number.
        link: u64,
    },
    /// Link `link` could not be opened, was lost, or was closed as asked.
    LinkDown {
        /// Its number.
        link: u64,
        /// Why, unless it was asked for.
        error: Option<LinkError>,
    },
    /// One message came, without its transport's header.
    Received {
        /// On which link.
        link: u64,
        /// The protobuf bytes.
        bytes: Bytes,
    },
    /// Over plain HTTP: the last message is too large, for the server or for ourselves.
    Refused {
        /// On which link.
        link: u64,
        /// What, on what, why.
        text: String,
    },
    /// A WebSocket pong came.
    Pong {
        /// On which link.
        link: u64,
    },
    /// Answers [`Action::KeepUid`].
    UidKept {
        /// The uid that was to be kept.
        uid: Uid,
        /// Why it could not be.
        error: Option<String>,
    },
    /// Answers [`Action::Stage`].
    Staged(Staged),
    /// Answers [`Action::StageConnection`].
    ConnectionStaged(connection::overlay::Staged),
    /// Answers [`Action::RememberConnection`].
    ConnectionRemembered(Result<(), String>),
    /// The client certificate in use, if there is one that can be read. Answers [`Action::UseCredentials`].
    Certificate(Option<Judged>),
    /// Answers [`Action::MakeRequest`].
    RequestMade {
        /// For whom.
        common_name: String,
        /// The request, PEM.
        result: Result<Bytes, String>,
    },
    /// Answers [`Action::Validate`].
    Validated(Result<(), String>),
    /// Answers [`Action::Arm`].
    Armed(Result<(), String>),
    /// Answers [`Action::Substitute`].
    Substituted(Result<(), String>),
    /// Answers [`Action::Activate`]: with what runs now.
    Activated(Result<Running, String>),
    /// Bytes of what [`Action::Obtain`] asked for have arrived.
    Progress {
        /// The round it belongs to.
        round: u64,
        /// Bytes that are here.
        had: u64,
        /// Bytes there are, where that is known.
        total: Option<u64>,
    },
    /// Answers [`Action::Obtain`].
    Obtained {
        /// The round it belongs to.
        round: u64,
        /// Whether it is here: verified and unpacked.
        result: Result<(), Unobtained>,
    },
    /// Answers [`Action::Remember`].
    Remembered(Result<(), String>),
    /// Answers [`Action::Reload`] and [`Action::RunApply`].
    Reloaded(Result<(), String>),
    /// Answers [`Action::StartWorkload`].
    WorkloadStarted {
        /// Its process id.
        pid: u32,
    },
    /// Answers [`Action::StartWorkload`] too.
    WorkloadNotStarted(String),
    /// The workload's process is gone; says how, with its last words.
    WorkloadExited(String),
    /// The main process of an external workload is this one.
    WorkloadSeen {
        /// Which.
        process: Process,
        /// How old it is.
        age: Duration,
    },
    /// An external workload has no main process; says how one knows.
    WorkloadGone(String),
    /// Answers [`Action::Ask`].
    WorkloadTold {
        /// The main process just before.
        before: Option<Process>,
        /// Whether it could be asked.
        result: Result<(), String>,
    },
    /// The workload was to stop and is still there long after SIGKILL; [`Event::WorkloadExited`] may yet come.
    WorkloadStuck(String),
    /// Answers [`Action::Check`].
    Checked {
        /// The round it belongs to.
        round: u64,
        /// One result a check; empty where there is none to run.
        results: Vec<CheckResult>,
    },
    /// Answers [`Action::Measure`].
    Measured {
        /// The round it belongs to.
        round: u64,
        /// What could be measured.
        figures: Figures,
    },
    /// The settings were read again: what is in force now, or why they are bad and nothing has changed.
    Settings(Result<Box<Reread>, String>),
    /// SIGTERM or SIGINT.
    Shutdown,
}

/// Something to be done. Actions are carried out in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Open a link, by [`super::Agent::server`]. → [`Event::LinkUp`], [`Event::LinkDown`]
    Connect {
        /// Its number.
        link: u64,
    },
    /// Send one message on the link.
    Send(Box<Outgoing>),
    /// Send a WebSocket ping. → [`Event::Pong`]
    Ping,
    /// Close the link in order, after everything that was sent. → [`Event::LinkDown`]
    Close,
    /// Drop the link at once; no event follows.
    Abort,
    /// Write a new uid down. → [`Event::UidKept`]
    KeepUid(Uid),
    /// Place connection settings as a new generation. → [`Event::ConnectionStaged`]
    StageConnection {
        /// What is to be placed.
        candidate: Box<connection::overlay::Candidate>,
        /// Contents that need not be written.
        known: Vec<Digest>,
    },
    /// Write the record of the connection. → [`Event::ConnectionRemembered`]
    RememberConnection(Box<connection::memory::Memory>),
    /// Other credentials are in force: they are read, and placed for others. → [`Event::Certificate`]
    UseCredentials,
    /// Make a key and a request for a certificate, or find the pending one. → [`Event::RequestMade`]
    MakeRequest {
        /// Of the subject.
        common_name: String,
        /// Of the key.
        key: KeyKind,
    },
    /// Place a set as a new generation. → [`Event::Staged`]
    Stage {
        /// What is to be placed.
        candidate: Candidate,
        /// Contents that need not be written.
        known: Vec<Digest>,
        /// False: only say what it would be.
        write: bool,
    },
    /// Write the way back and that a trial begins. → [`Event::Armed`]
    Arm {
        /// The record during the trial.
        memory: Box<Memory>,
        /// The record after going back, for a disk that is full by then.
        after_going_back: Box<Memory>,
    },
    /// Dry run of a generation. → [`Event::Validated`]
    Validate {
        /// Which.
        generation: Generation,
        /// Its packages are new: they are labelled and tried too.
        packages: bool,
        /// Its configuration is new.
        config: bool,
    },
    /// Have a file of a package here; drop what was asked for before. → [`Event::Obtained`]
    Obtain(Box<Wanted>),
    /// Another offer of packages: drop what was asked for, and what has arrived of files that it does not have.
    Prepare {
        /// SHA-256 of the files that it has.
        keep: Vec<Digest>,
    },
    /// Place this file of the device's own and run with it. → [`Event::Substituted`]
    Substitute(PathBuf),
    /// Swap the running generation. → [`Event::Activated`]
    Activate(Option<Generation>),
    /// Write the life cycle's record. → [`Event::Remembered`]
    Remember(Box<Memory>),
    /// → [`Event::WorkloadStarted`], [`Event::WorkloadNotStarted`]
    StartWorkload,
    /// SIGTERM, then SIGKILL. → [`Event::WorkloadExited`]
    StopWorkload,
    /// SIGHUP. → [`Event::Reloaded`]
    Reload,
    /// The command of `apply`. → [`Event::Reloaded`]
    RunApply,
    /// Ask an external workload, or the init system that owns it. → [`Event::WorkloadTold`]
    Ask(Ask),
    /// Run all checks once. → [`Event::Checked`]
    Check {
        /// To be given back.
        round: u64,
    },
    /// Measure what the workload uses and does. → [`Event::Measured`]
    Measure {
        /// To be given back.
        round: u64,
    },
    /// Write a line to the log.
    Log(Tone, String),
    /// All is done: end the process.
    Exit,
}
