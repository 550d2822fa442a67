//! SIGTERM, SIGINT and SIGHUP become inputs of the loop.

use core::time::Duration;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use super::{Inbox, Input, Runtime, SHUTDOWN_GRACE, now};
use crate::agent::Event;
use crate::agent::session::Tone;
use crate::reactor::Io;

/// The byte that stands for SIGHUP; any other asks us to end.
const HUP: u8 = 1;
const END: u8 = 2;
/// SIGTERM and SIGINT, and SIGHUP, each as readable bytes of a socket.
pub(super) struct Signals {
    end: Io<UnixStream>,
    hang_up: Io<UnixStream>,
}

impl Runtime<'_> {
    pub(super) fn signal(&mut self, signal: u8) {
        match signal {
            HUP => self.hang_up(),
            _ => {
                self.notify.stopping();
                self.say(Tone::Info, "ending in order");
                let stop = self
                    .settings
                    .workload
                    .as_ref()
                    .map_or(Duration::ZERO, |workload| workload.stop_timeout);
                self.give_up_at = Some(now().mono.after(stop.saturating_add(SHUTDOWN_GRACE)));
                self.handle(Event::Shutdown);
            }
        }
    }
}

pub(super) fn signals() -> io::Result<Signals> {
    let pair = || {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        io::Result::Ok((Io::new(ours)?, theirs))
    };
    let (end, write_end) = pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, write_end.try_clone()?)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, write_end)?;
    let (hang_up, write_hang_up) = pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, write_hang_up)?;
    Ok(Signals { end, hang_up })
}

pub(super) async fn watch_signals(signals: Signals, inbox: Rc<Inbox>) {
    let watch = async |stream: &Io<UnixStream>, byte: u8| {
        let mut buffer = [0; 16];
        loop {
            let read =
                stream.when_readable(|mut stream| io::Read::read(&mut stream, &mut buffer)).await;
            if read.is_err() {
                return;
            }
            inbox.input(Input::Signal(byte)).await;
        }
    };
    smol::future::zip(watch(&signals.end, END), watch(&signals.hang_up, HUP)).await;
}
