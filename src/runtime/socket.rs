//! The status socket: one JSON document a connection.

use core::time::Duration;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;

use smol::io::AsyncWriteExt;

use super::{Inbox, Input};
use crate::reactor::{Io, Timer, within};

/// A client has so long to take the document.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed accept (out of descriptors), wait so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Binds it, replacing one that a dead agent left.
///
/// # Errors
/// When the directory cannot be made or the socket not be bound.
pub(super) fn bind(path: &Path) -> io::Result<Io<UnixListener>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Created without permissions for others: no moment in which they could connect.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = bound?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Io::new(listener)
}

/// Accepts for ever.
pub(super) async fn accept(listener: Io<UnixListener>, inbox: Rc<Inbox>) {
    loop {
        match listener.when_readable(UnixListener::accept).await {
            Ok((stream, _)) => inbox.input(Input::Status(stream)).await,
            Err(_) => Timer::after(PAUSE).await,
        }
    }
}

/// Writes the document and closes.
pub(super) async fn answer(stream: UnixStream, document: String) {
    let sent = async {
        stream.set_nonblocking(true)?;
        let mut stream = Io::new(stream)?;
        stream.write_all(document.as_bytes()).await?;
        stream.close().await
    };
    // Who does not take it in time gets nothing.
    let _ = within(WRITE_TIMEOUT, sent).await;
}
