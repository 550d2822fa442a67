//! What systemd is told (sd_notify): ready, reloading, stopping, how the connection is, and that the loop turns.
//!
//! Without NOTIFY_SOCKET nothing is done. A datagram that cannot be sent at once is not waited for.

use core::time::Duration;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::clock::Mono;

/// The service manager, where there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    /// It wants to hear from us this often.
    watchdog: Option<Duration>,
    pinged: Mono,
    ready: bool,
    status: String,
}

impl Notify {
    /// As the environment says. The variables stay in it: no child is given them (`workload::spawn`).
    ///
    /// # Errors
    /// Why the socket that it names cannot be used.
    pub fn from_environment(now: Mono) -> Result<Self, String> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let variable = |name| std::env::var(name).ok();
        let for_us =
            variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC")
            .filter(|_| for_us)
            .and_then(|text| text.parse().ok())
            .filter(|usec| *usec > 0)
            .map(Duration::from_micros);
        let socket = connect(&name).map_err(|error| format!("NOTIFY_SOCKET {name:?}: {error}"))?;
        Ok(Self { socket: Some(socket), watchdog, pinged: now, ..Self::default() })
    }

    /// Whether there is nothing to tell, or nobody to tell it to.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready || self.socket.is_none()
    }

    /// The workload was started, and the loop runs.
    pub fn ready(&mut self) {
        // It is waited for: one that got lost goes again.
        self.ready = self.send("READY=1");
    }

    /// The settings are being read again; [`Notify::ready`] ends that.
    pub fn reloading(&mut self, now: Mono) {
        if core::mem::take(&mut self.ready) {
            self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.0.as_micros()));
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// How things are, in a line; sent when it changes.
    pub fn status(&mut self, status: &str) {
        if self.socket.is_some() && self.status != status {
            self.status.clear();
            self.status.push_str(status);
            self.send(&format!("STATUS={status}"));
        }
    }

    /// The loop turns. Sent early, at half the time that [`Notify::deadline`] leaves, so that it goes along with a
    /// wake-up that happens anyway.
    pub fn alive(&mut self, now: Mono) {
        let early = self.watchdog.map(|watchdog| watchdog.checked_div(4).unwrap_or_default());
        if early.is_some_and(|early| now.since(self.pinged) >= early) {
            self.pinged = now;
            self.send("WATCHDOG=1");
        }
    }

    /// When it must hear from us at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let half = self.watchdog?.checked_div(2).unwrap_or_default();
        Some(self.pinged.after(half))
    }

    fn send(&self, text: &str) -> bool {
        match &self.socket {
            Some(socket) => socket.send(text.as_bytes()).is_ok(),
            None => true,
        }
    }
}

/// A path, or an abstract name behind an `@`.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
        Some((b'/', _)) => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_watchdog_goes_along_with_other_wake_ups() {
        let at = |seconds| Mono(Duration::from_secs(seconds));
        let mut notify = Notify { watchdog: Some(Duration::from_secs(120)), ..Notify::default() };
        // A heartbeat each 30 s: the deadline is never what wakes us.
        for beat in 1..=100 {
            let now = at(beat * 30);
            assert!(notify.deadline().unwrap() > now, "woken for the watchdog alone");
            notify.alive(now);
        }
        // Nothing else happens: the deadline does.
        assert_eq!(notify.deadline(), Some(at(3060)));
        notify.alive(at(3060));
        assert_eq!(notify.deadline(), Some(at(3120)));
        assert_eq!(Notify::default().deadline(), None);
    }

    #[test]
    fn names_are_paths_or_abstract() {
        for bad in ["", "relative", "vsock:2:1", "/no/such/socket", "@no-such-name-of-chiton"] {
            assert!(connect(OsStr::new(bad)).is_err(), "{bad}");
        }
    }
}
