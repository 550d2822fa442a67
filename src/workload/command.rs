//! Commands that run to their end: dry runs, `apply`, exec checks.

use core::fmt;
use core::time::Duration;

use super::reap::Exit;
use super::spawn::{Child, LOG_TAIL, SpawnError, Spec};
use crate::confine;
use crate::reactor::within;

/// Bytes of a command's last output that are kept.
pub const OUTPUT_TAIL: usize = LOG_TAIL;

/// What became of a command.
#[derive(Debug)]
pub struct CommandOutcome {
    /// How it ended.
    pub how: How,
    /// The end of what it wrote to stdout and stderr, at most [`OUTPUT_TAIL`] bytes.
    pub output: String,
}

/// How a command ended.
#[derive(Debug)]
pub enum How {
    /// By itself.
    Ended(Exit),
    /// Killed after this long.
    TimedOut(Duration),
    /// It did not start.
    NotStarted(SpawnError),
}

impl CommandOutcome {
    /// Ended itself with status 0, in time.
    #[must_use]
    pub fn success(&self) -> bool {
        matches!(self.how, How::Ended(exit) if exit.success())
    }
}

impl fmt::Display for CommandOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Ended(exit) => write!(f, "{exit}")?,
            How::TimedOut(limit) => write!(f, "killed after its {limit:?}")?,
            How::NotStarted(error) => write!(f, "{error}")?,
        }
        if !self.output.is_empty() {
            write!(f, ": {}", self.output)?;
        }
        f.write_str(if self.success() { "" } else { confine::hint(&self.output) })
    }
}

/// Runs a command for at most `limit`. Neither it nor its group outlives the call, nor its being dropped; a probe
/// leaves nothing at all behind.
pub async fn run(spec: &Spec, limit: Duration) -> CommandOutcome {
    let child = match Child::spawn(spec) {
        Ok(child) => child,
        Err(error) => {
            return CommandOutcome { how: How::NotStarted(error), output: String::new() };
        }
    };
    let how = match within(limit, child.wait()).await {
        Some(exit) => How::Ended(exit),
        None => {
            // What SIGKILL does not end is left to die with us.
            let _ = child.end().await;
            How::TimedOut(limit)
        }
    };
    CommandOutcome { how, output: child.output_tail() }
}
