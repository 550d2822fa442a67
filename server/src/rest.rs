//! REST for people and scripts, and the page's routes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::clock::Moment;
use crate::config::RestExposure;
use crate::config_set::ConfigSet;
use crate::fleet::{Assignment, Offers};
use crate::hub::{Hub, PublishError};
use crate::package::{PackageId, PackageOffer};
use crate::page;
use crate::selector::Selector;
use crate::uid::InstanceUid;
use crate::view;

/// A request's body must arrive within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than its config a request may be: JSON writes one byte as up to six (`\u0000`).
const JSON_OVERHEAD: usize = 6;
/// Room for the rest of a request: target, names, punctuation.
pub(crate) const JSON_SLACK: usize = 64 << 10;
/// What a POST of a config may hold.
const USAGE: &str = r#"send {"target": "env=test,region=eu", "files": {"main.yaml": "…"}}, or "config": {…} in place of "files", and "packages": [{"name": …, "version": …}] to offer both together"#;

/// Routes of the REST listener, and `more` of them.
pub(crate) fn routes(hub: Arc<Hub>, more: Router<Arc<Hub>>) -> Router {
    Router::new()
        .route("/api/v1/agents", get(agents))
        .route("/api/v1/agents/{uid}", get(agent))
        .route("/api/v1/config", post(publish).get(configs))
        .route("/healthz", get(health))
        .merge(page::routes())
        .merge(more)
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&hub), only_for_us))
        .with_state(hub)
}

/// A refusal, as `{"error": "…"}`.
pub(crate) struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        json_response(self.status, &json!({"error": self.text}))
    }
}

/// A page elsewhere whose name was made to point here (DNS rebinding) sends its own name in Host: refused.
async fn only_for_us(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    if hub.rest_exposure == RestExposure::LoopbackOnly && !names_loopback(request.headers()) {
        let text = "the Host header must be localhost, 127.0.0.1 or [::1], with or without a port";
        return Failure::new(StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    next.run(request).await
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || matches!(name, "127.0.0.1" | "[::1]")
}

async fn agents(State(hub): State<Arc<Hub>>) -> Response {
    let now = Moment::now();
    let list: Vec<_> = {
        let fleet = hub.fleet();
        let show = |(uid, agent)| view::agent(&fleet, uid, agent, now, hub.limits.stale_after);
        fleet.agents().iter().map(|(uid, agent)| (*uid, agent)).map(show).collect()
    };
    json_response(StatusCode::OK, &BTreeMap::from([("agents", list)]))
}

async fn agent(State(hub): State<Arc<Hub>>, Path(uid): Path<String>) -> Result<Response, Failure> {
    let uid = InstanceUid::from_text(&uid).ok_or_else(|| {
        Failure::bad(format!(
            "{uid:?} is not an instance uid such as 01890a5d-ac96-774b-bcce-b302099a8057"
        ))
    })?;
    let detail = {
        let fleet = hub.fleet();
        let agent = fleet.agents().get(&uid);
        let agent = agent.ok_or_else(|| {
            Failure::new(StatusCode::NOT_FOUND, format!("no agent has the uid {uid}"))
        })?;
        let view = view::agent(&fleet, uid, agent, Moment::now(), hub.limits.stale_after);
        view::detail(view, agent, fleet.assigned(uid))
    };
    let effective = hub.store.effective_config(uid).await;
    let effective = effective
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(json_response(StatusCode::OK, &detail.with_effective_config(effective.as_ref())))
}

async fn configs(State(hub): State<Arc<Hub>>) -> Response {
    let list: Vec<Value> = hub.fleet().assignments().iter().rev().map(view::assignment).collect();
    json_response(StatusCode::OK, &json!({"configs": list}))
}

async fn health(State(hub): State<Arc<Hub>>) -> Response {
    let now = Moment::now();
    let (known, connected) = {
        let fleet = hub.fleet();
        let connected =
            fleet.agents().values().filter(|agent| agent.is_connected(now, hub.limits.stale_after));
        (fleet.agents().len(), connected.count())
    };
    match hub.store.check().await {
        Ok(()) => json_response(
            StatusCode::OK,
            &json!({"status": "ok", "agents": known, "connected": connected}),
        ),
        Err(error) => {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, format!("the database: {error}"))
                .into_response()
        }
    }
}

/// The body of a POST to `/api/v1/config`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewConfig {
    target: String,
    files: Option<BTreeMap<String, String>>,
    config: Option<Value>,
    /// Offered with it, in the same message.
    packages: Option<Vec<NewPackage>>,
}

/// One package of an offer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPackage {
    name: String,
    version: String,
}

/// The offer that a request asks for.
pub(crate) fn package_offer(
    target: Selector,
    wanted: &[NewPackage],
    max_message: usize,
    now: Moment,
) -> Result<PackageOffer, Failure> {
    let ids = wanted.iter().map(|one| PackageId::new(&one.name, &one.version));
    let ids = ids.collect::<Result<_, _>>().map_err(|e| Failure::bad(format!("packages: {e}")))?;
    PackageOffer::new(target, ids, max_message, now).map_err(Failure::bad)
}

async fn publish(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Failure> {
    let limits = &hub.limits;
    let limit = limits.max_config_size.saturating_mul(JSON_OVERHEAD).saturating_add(JSON_SLACK);
    let new: NewConfig = json_body(request, limit, USAGE).await?;
    let target = Selector::parse(&new.target).map_err(Failure::bad)?;
    let files = files(new.files, new.config)?;
    // The other half of a message is for names, types and whatever travels beside the config.
    let max_size = limits.max_config_size.min(limits.max_message_size / 2);
    let set = ConfigSet::new(files, limits.max_config_files, max_size).map_err(Failure::bad)?;
    let hash = set.hash().to_string();
    let now = Moment::now();
    let offer =
        |wanted: Vec<_>| package_offer(target.clone(), &wanted, limits.max_message_size, now);
    let packages = new.packages.map(offer).transpose()?;
    let config = Some(Assignment { target: target.clone(), set, created: now });
    let published = whole(async move {
        let offers = Offers { config, packages };
        hub.publish(&target, offers).await
    });
    let published = published.await?;
    let answer = json!({
        "hash": hash,
        "matched": texts(&published.matched),
        "failed_before": texts(&published.failed_before),
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// A JSON body, of at most so many bytes.
pub(crate) async fn json_body<T: DeserializeOwned>(
    request: Request,
    limit: usize,
    usage: &str,
) -> Result<T, Failure> {
    // A form on another site cannot send this type without asking first, and nobody answers that question.
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
    {
        return Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/json",
        ));
    }
    let body = body(request, limit).await?;
    serde_json::from_slice(&body).map_err(|error| Failure::bad(format!("{error}; {usage}")))
}

/// A body of at most so many bytes.
pub(crate) async fn body(request: Request, limit: usize) -> Result<Bytes, Failure> {
    let body = timeout(BODY_TIMEOUT, axum::body::to_bytes(request.into_body(), limit)).await;
    let body = body.map_err(|_| {
        Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")
    })?;
    body.map_err(|_| {
        let text = format!("the body was cut short or has more than {limit} bytes");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    })
}

/// Sees a change through, even when the one who asked for it hangs up: memory and disk must agree.
pub(crate) async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, PublishError>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(change).await {
        Ok(made) => made.map_err(Failure::from),
        Err(_) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the server is stopping")),
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused(text) => Self::new(StatusCode::CONFLICT, text),
            PublishError::Unknown(text) => Self::new(StatusCode::NOT_FOUND, text),
            PublishError::Store(error) => {
                let text = format!("the change was not saved, and nothing was sent: {error}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            PublishError::Io(error) => disk(&error),
        }
    }
}

/// The disk said no.
pub(crate) fn disk(error: &io::Error) -> Failure {
    let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let status =
        if full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
    Failure::new(status, format!("the package's file cannot be written: {error}"))
}

pub(crate) fn texts(uids: &[InstanceUid]) -> Vec<String> {
    uids.iter().map(ToString::to_string).collect()
}

/// The files as they are, or the one nameless file that a config object becomes.
fn files(
    files: Option<BTreeMap<String, String>>,
    config: Option<Value>,
) -> Result<BTreeMap<String, String>, Failure> {
    match (files, config) {
        (Some(files), None) => Ok(files),
        (None, Some(config @ Value::Object(_))) => {
            let yaml = serde_yaml::to_string(&config);
            let yaml = yaml.map_err(|error| {
                Failure::bad(format!("config: it cannot be written as YAML: {error}"))
            })?;
            Ok(BTreeMap::from([(String::new(), yaml)]))
        }
        (None, Some(_)) => Err(Failure::bad(format!("config: it must be an object; {USAGE}"))),
        (Some(_), Some(_)) => {
            Err(Failure::bad(format!("files and config are both given; {USAGE}")))
        }
        (None, None) => Err(Failure::bad(format!("neither files nor config is given; {USAGE}"))),
    }
}

pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [(CONTENT_TYPE, "application/json"), page::NO_SNIFF, page::NO_STORE];
            (status, headers, Body::from(body)).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
