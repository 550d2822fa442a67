//! `/v1/opamp`: a GET with an upgrade is a WebSocket, a POST is a report with its answer. Beside it the files of
//! packages.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use http_body_util::LengthLimitError;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::authority::Identity;
use crate::download;
use crate::gzip::{self, UnpackError};
use crate::hub::Hub;
use crate::listener::Ticket;
use crate::websocket;

/// The path that the specification suggests.
const PATH: &str = "/v1/opamp";
/// The type of both bodies.
const PROTOBUF: &str = "application/x-protobuf";
/// A request's body must arrive within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Context {
    hub: Arc<Hub>,
    stop: watch::Receiver<bool>,
}

/// Routes of the OpAMP listener.
pub(crate) fn routes(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Router {
    Router::new()
        .route(PATH, get(upgrade).post(report))
        .route("/packages/{sha256}", get(package))
        .layer(middleware::from_fn_with_state(Arc::clone(&hub), only_valid))
        .with_state(Context { hub, stop })
}

/// A certificate may be revoked while its connection is open.
async fn only_valid(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    if hub.is_revoked(request.extensions().get::<Identity>()) {
        return refuse(StatusCode::FORBIDDEN, "this connection's certificate was revoked");
    }
    next.run(request).await
}

async fn package(
    State(context): State<Context>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    download::file(&context.hub, &name, &method, &headers).await
}

async fn upgrade(State(context): State<Context>, mut request: Request) -> Response {
    let headers = request.headers();
    if !lists(headers, &UPGRADE, "websocket") || !lists(headers, &CONNECTION, "upgrade") {
        let text = "GET here must ask for a WebSocket; reports over plain HTTP are sent by POST\n";
        return (StatusCode::UPGRADE_REQUIRED, [(UPGRADE, "websocket")], text).into_response();
    }
    if !lists(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return (StatusCode::UPGRADE_REQUIRED, [(SEC_WEBSOCKET_VERSION, "13")]).into_response();
    }
    let Some(accept) = headers.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()))
    else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let Some(ticket) = request.extensions().get::<Ticket>().cloned() else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "this connection cannot be upgraded");
    };
    let base = download::base(&context.hub, headers);
    let identity = request.extensions().get::<Identity>().cloned();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // The connection counts, and a stopping server waits for it, for as long as the ticket lives.
        let _ticket = ticket;
        if let Ok(upgraded) = upgraded.await {
            websocket::serve(upgraded, context.hub, base, identity, context.stop).await;
        }
    });
    let switch = [(UPGRADE, "websocket"), (CONNECTION, "Upgrade"), (SEC_WEBSOCKET_ACCEPT, &accept)];
    (StatusCode::SWITCHING_PROTOCOLS, switch).into_response()
}

async fn report(State(context): State<Context>, request: Request) -> Response {
    let hub = context.hub;
    let limit = hub.limits.max_message_size;
    let (head, body) = request.into_parts();
    let content_type =
        text(&head.headers, &CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    if !content_type.eq_ignore_ascii_case(PROTOBUF) {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/x-protobuf",
        );
    }
    let packed = match text(&head.headers, &CONTENT_ENCODING).trim() {
        "" | "identity" => false,
        "gzip" => true,
        _ => {
            return refuse(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Encoding must be gzip or identity",
            );
        }
    };
    let announced = text(&head.headers, &CONTENT_LENGTH).parse().unwrap_or(0_usize);
    if announced > limit {
        return too_large(limit);
    }
    let Ok(read) = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await else {
        return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    };
    let body = match read {
        Ok(body) => body,
        Err(error) if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => {
            return too_large(limit);
        }
        Err(_) => return refuse(StatusCode::BAD_REQUEST, "the body was cut short"),
    };
    let body = match packed.then(|| gzip::unpack(&body, limit)) {
        None => body,
        Some(Ok(plain)) => Bytes::from(plain),
        Some(Err(UnpackError::TooLarge)) => return too_large(limit),
        Some(Err(UnpackError::Malformed)) => {
            return refuse(StatusCode::BAD_REQUEST, "the body is not whole gzip");
        }
    };
    let base = download::base(&hub, &head.headers);
    let identity = head.extensions.get::<Identity>();
    let (status, answer) = match hub.answer_request(body, base.as_deref(), identity).await {
        Ok(answer) => (StatusCode::OK, answer),
        Err(refusal) => (StatusCode::BAD_REQUEST, refusal.to_answer()),
    };
    let plain = answer.encode_to_vec();
    if accepts_gzip(&head.headers)
        && let Some(packed) = gzip::pack(&plain)
    {
        let headers = [(CONTENT_TYPE, PROTOBUF), (CONTENT_ENCODING, "gzip")];
        return (status, headers, packed).into_response();
    }
    (status, [(CONTENT_TYPE, PROTOBUF)], plain).into_response()
}

fn refuse(status: StatusCode, why: &'static str) -> Response {
    (status, [(CONTENT_TYPE, "text/plain")], Body::from(format!("{why}\n"))).into_response()
}

fn too_large(limit: usize) -> Response {
    (StatusCode::PAYLOAD_TOO_LARGE, format!("a message may have at most {limit} bytes\n"))
        .into_response()
}

/// The header's value; empty when it is absent or not ASCII.
fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether one of the header's comma-separated values is `wanted`.
fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}

/// Whether Accept-Encoding names gzip, and not with a quality of zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|choice| {
        let (coding, quality) = choice.split_once(';').unwrap_or((choice, "q=1"));
        let quality =
            quality.trim().strip_prefix("q=").and_then(|quality| quality.parse::<f32>().ok());
        matches!(coding.trim().to_ascii_lowercase().as_str(), "gzip" | "*")
            && quality.unwrap_or(1.0) > 0.0
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    #[test]
    fn gzip_only_where_it_is_accepted() {
        for (value, accepted) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("deflate, br", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(accepts_gzip(&headers), accepted, "{value}");
        }
    }
}
