//! Blocking work off the main thread: one thread a job, at most two at once, gone when the job is done.
//!
//! smol's pool keeps idle threads that wake twice a second; jobs here are rare, and rest must be rest (promise 7).

use std::sync::{Arc, Mutex};
use std::{io, thread};

use smol::channel::bounded;
use smol::lock::Semaphore;

/// Jobs at once: a hung name lookup must not delay a flush.
const THREADS: usize = 2;
/// Stack of a job, bytes: merging YAML recurses, up to its bound.
const STACK: usize = 512 * 1024;

static ROOM: Semaphore = Semaphore::new(THREADS);

/// Does `work` on a thread of its own, when there is room. Where no thread can be had, it is done here.
pub async fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = ROOM.acquire().await;
    let (result, done) = bounded(1);
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let job = move || {
        let _turn = turn;
        if let Some(work) = theirs.lock().ok().and_then(|mut work| work.take()) {
            let _ = result.try_send(work());
        }
    };
    if spawn(STACK, Box::new(job)).is_err() {
        let work = work.lock().ok().and_then(|mut work| work.take());
        if let Some(work) = work {
            return work();
        }
    }
    match done.recv().await {
        Ok(value) => value,
        // The job panicked, which ends the process in a release build.
        Err(_) => core::future::pending().await,
    }
}

/// A thread for one job. The job is boxed: one copy of what std makes of it, not one for each kind of job.
///
/// # Errors
/// No thread is to be had.
pub fn spawn(stack: usize, job: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().stack_size(stack).spawn(job).map(drop)
}
