//! `/packages/{sha256}`: a package's file, whole or in part, from the disk and never all in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST,
    HeaderName, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::hub::Hub;
use crate::package::FileHash;
use crate::page::NO_SNIFF;
use crate::range::{self, Wanted};

/// When who found no room is to come back.
const RETRY_SECONDS: &str = "10";
/// Bytes read at once.
const CHUNK: usize = 32 << 10;
/// A peer that does not take the next chunk within this time is given up: 273 bytes a second are enough.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A file's address says what is in it: it never changes, and nobody may repack it.
const FOREVER: &str = "public, max-age=31536000, immutable, no-transform";
/// Bytes of a Host header that is made a URL of.
const MAX_AUTHORITY: usize = 300;

/// Where this server's files are, as the peer sees it: `https://host:port`. `None` where it named no host.
pub(crate) fn base(hub: &Hub, headers: &HeaderMap) -> Option<Arc<str>> {
    if let Some(url) = &hub.public_url {
        return Some(Arc::clone(url));
    }
    let host = headers.get(HOST)?.to_str().ok().filter(|host| host.len() <= MAX_AUTHORITY)?;
    let authority: Authority = host.parse().ok()?;
    let named = !authority.host().is_empty() && !authority.as_str().contains('@');
    let scheme = if hub.secure { "https" } else { "http" };
    named.then(|| format!("{scheme}://{authority}").into())
}

/// Answers GET and HEAD.
pub(crate) async fn file(hub: &Hub, name: &str, method: &Method, headers: &HeaderMap) -> Response {
    let nothing = || (StatusCode::NOT_FOUND, "there is no such package\n").into_response();
    let Some(hash) = FileHash::from_text(name) else { return nothing() };
    let found = hub.fleet().catalog().with_file(hash).map(|p| (p.size, p.created));
    let Some((size, created)) = found else { return nothing() };
    let tag = format!("\"{hash}\"");
    let modified = httpdate::fmt_http_date(created.to_system());
    let lasting = [
        (ETAG, tag.clone()),
        (LAST_MODIFIED, modified.clone()),
        (CACHE_CONTROL, FOREVER.to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if matches_any(headers, &tag) {
        return (StatusCode::NOT_MODIFIED, lasting).into_response();
    }
    let wanted = match text(headers, &RANGE) {
        // Ranges are for GET. One that was asked for an older file is not served from this one.
        Some(range) if method == Method::GET && holds(headers, &tag, &modified) => {
            range::wanted(range, size)
        }
        _ => Wanted::Whole,
    };
    let (status, first, length) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0, size),
        Wanted::Part(first, last) => {
            (StatusCode::PARTIAL_CONTENT, first, last.saturating_sub(first).saturating_add(1))
        }
        Wanted::Beyond => {
            let range = [(CONTENT_RANGE, format!("bytes */{size}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, lasting, range).into_response();
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let Ok(permit) = Arc::clone(&hub.downloads).try_acquire_owned() else {
            let later = [(RETRY_AFTER, RETRY_SECONDS)];
            let text = format!(
                "{} downloads are under way, which is the limit\n",
                hub.limits.max_downloads
            );
            return (StatusCode::SERVICE_UNAVAILABLE, later, text).into_response();
        };
        let depot = Arc::clone(&hub.depot);
        match spawn_blocking(move || depot.read(hash)).await.map_err(io::Error::other).flatten() {
            Ok(file) => content(file, first, length, permit),
            Err(error) => {
                hub.journal.note(format_args!("package file {hash}: it cannot be read: {error}"));
                return (StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read\n")
                    .into_response();
            }
        }
    };
    let about = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    let mut response = (status, lasting, about, [NO_SNIFF], body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first.saturating_add(length).saturating_sub(1);
        if let Ok(value) = format!("bytes {first}-{last}/{size}").parse() {
            response.headers_mut().insert(CONTENT_RANGE, value);
        }
    }
    response
}

/// Reads ahead by one chunk. A file that ends too soon cuts the connection: the peer must not take it for whole.
fn content(file: File, first: u64, length: u64, permit: OwnedSemaphorePermit) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(feed(file, first, length, sender, permit));
    Body::from_stream(stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    }))
}

async fn feed(
    file: File,
    mut at: u64,
    mut left: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
) {
    let file = Arc::new(file);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
        let source = Arc::clone(&file);
        let read = spawn_blocking(move || {
            let mut chunk = vec![0; length];
            source.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
        });
        let chunk = read.await.map_err(io::Error::other).flatten();
        let over = chunk.is_err();
        // Too slow, or gone: either way nobody waits for the rest.
        if !matches!(timeout(STALL_TIMEOUT, sender.send(chunk)).await, Ok(Ok(()))) || over {
            return;
        }
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        (at, left) = (at.saturating_add(length), left.saturating_sub(length));
    }
}

/// Whether the file is what an If-Range asks about; so it is when none does. A weak tag never is.
fn holds(headers: &HeaderMap, tag: &str, modified: &str) -> bool {
    match headers.get(IF_RANGE) {
        None => true,
        Some(value) => value == tag || value == modified,
    }
}

/// Whether If-None-Match names the file, or any.
fn matches_any(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
