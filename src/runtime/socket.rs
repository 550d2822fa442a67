//! The status socket: one JSON document a connection. Who wants more than the status says so in one line.

use core::time::Duration;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;

use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::{Inbox, Input};
use crate::reactor::{Io, Timer, within};
use crate::store::make_directories;

/// A client that wants more than the status has so long to say so.
const ASK_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes of what it may say.
const MAX_REQUEST: usize = 4096;
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
        make_directories(parent, 0o755)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // By our umask others have no permission: no moment in which they could connect.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Io::new(listener)
}

/// Accepts for ever.
pub(super) async fn accept(listener: Io<UnixListener>, inbox: Rc<Inbox>) {
    loop {
        match listener.when_readable(UnixListener::accept).await {
            Ok((stream, _)) => {
                if let Some((stream, request)) = read(stream).await {
                    inbox.input(Input::Asked(stream, request)).await;
                }
            }
            Err(_) => Timer::after(PAUSE).await,
        }
    }
}

/// Reads the line with which a client begins; one that says nothing is shown the status.
async fn read(stream: UnixStream) -> Option<(Io<UnixStream>, String)> {
    stream.set_nonblocking(true).ok()?;
    let mut stream = Io::new(stream).ok()?;
    let mut request = Vec::new();
    let reading = async {
        let mut part = [0; 256];
        while request.len() < MAX_REQUEST && !request.contains(&b'\n') {
            match stream.read(&mut part).await {
                Ok(count) if count > 0 => request.extend(part.get(..count).unwrap_or_default()),
                _ => return,
            }
        }
    };
    let _ = within(ASK_TIMEOUT, reading).await;
    let request = String::from_utf8_lossy(&request);
    let line = request.lines().next().unwrap_or_default().to_owned();
    Some((stream, line))
}

/// Writes the document and closes.
pub(super) async fn answer(mut stream: Io<UnixStream>, document: String) {
    let sent = async {
        stream.write_all(document.as_bytes()).await?;
        stream.close().await
    };
    // Who does not take it in time gets nothing.
    let _ = within(WRITE_TIMEOUT, sent).await;
}
