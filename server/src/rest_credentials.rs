//! REST for certificates, connection settings, rotations and revocations.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::Moment;
use crate::connection::NewConnection;
use crate::credentials::Decision;
use crate::hub::Hub;
use crate::rest::{Failure, JSON_SLACK, json_body, json_response, texts, whole};
use crate::rest_packages::query;
use crate::rotation::{MAX_CONCURRENCY, MAX_RETRIES, MAX_TIMEOUT, Plan};
use crate::selector::Selector;
use crate::uid::InstanceUid;
use crate::view;

/// Bytes of a request here; connection settings may hold certificates.
const MAX_BODY: usize = 256 << 10;
/// Bytes of a reason.
const MAX_REASON: usize = 512;
/// What a PUT of connection settings may hold.
const CONNECTION_USAGE: &str = r#"send {"target": "env=test", "destination_endpoint": "wss://…", "headers": {…}, "heartbeat_interval_seconds": 30, "tls": {…}, "proxy": {"url": …}}, any of them"#;
/// What a POST of a rotation may hold.
const ROTATION_USAGE: &str =
    r#"send {"target": "env=test", "concurrency": 50, "retries": 3, "timeout_seconds": 600}"#;

/// The routes.
pub(crate) fn routes() -> Router<Arc<Hub>> {
    Router::new()
        .route("/api/v1/ca", get(authority))
        .route("/api/v1/csrs", get(requests))
        .route("/api/v1/csrs/{uid}/approve", post(approve))
        .route("/api/v1/csrs/{uid}/reject", post(reject))
        .route("/api/v1/agents/{uid}/rotate", post(rotate))
        .route("/api/v1/agents/{uid}/revoke", post(revoke))
        .route("/api/v1/agents/{uid}/connection", put(connect_one).delete(disconnect_one))
        .route("/api/v1/offers/connection", get(connections).put(connect).delete(disconnect))
        .route("/api/v1/rotations", get(rotations).post(begin))
        .route("/api/v1/rotations/{id}", get(rotation))
        .route("/api/v1/rotations/{id}", delete(cancel))
}

fn uid(Path(text): &Path<String>) -> Result<InstanceUid, Failure> {
    InstanceUid::from_text(text).ok_or_else(|| {
        Failure::bad(format!(
            "{text:?} is not an instance uid such as 01890a5d-ac96-774b-bcce-b302099a8057"
        ))
    })
}

/// The authority's certificate, for `ca_file` and `--client-ca` elsewhere.
async fn authority(State(hub): State<Arc<Hub>>) -> Result<Response, Failure> {
    let none = || Failure::new(StatusCode::NOT_FOUND, "this server has no certificate authority");
    let authority = hub.authority.as_ref().ok_or_else(none)?;
    Ok(([(CONTENT_TYPE, "application/x-pem-file")], authority.pem().to_owned()).into_response())
}

async fn requests(State(hub): State<Arc<Hub>>) -> Response {
    let list: Vec<Value> = {
        let fleet = hub.fleet();
        let all = fleet.credentials.all().iter();
        all.filter_map(|(uid, credential)| view::request(*uid, credential.request.as_ref()?))
            .collect()
    };
    json_response(StatusCode::OK, &json!({"csrs": list}))
}

/// A POST without a body must still be one that no form on another site can send.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Whom an order that says nothing more is about.
async fn bidden(name: &Path<String>, request: Request) -> Result<InstanceUid, Failure> {
    let uid = uid(name)?;
    let Nothing {} = json_body(request, JSON_SLACK, "send {}").await?;
    Ok(uid)
}

async fn approve(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let uid = bidden(&name, request).await?;
    whole(async move { hub.decide(uid, Decision::Approved).await }).await?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"instance_uid": uid.to_string(), "decision": "approved"}),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rejection {
    #[serde(default)]
    reason: String,
}

async fn reject(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let uid = uid(&name)?;
    let usage = r#"send {"reason": "…"} or {}"#;
    let Rejection { reason } = json_body(request, JSON_SLACK, usage).await?;
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(Failure::bad(format!("reason: one line of at most {MAX_REASON} bytes")));
    }
    let reason = if reason.is_empty() { "a person rejected it".to_owned() } else { reason };
    whole(async move { hub.decide(uid, Decision::Rejected(reason)).await }).await?;
    Ok(json_response(
        StatusCode::OK,
        &json!({"instance_uid": uid.to_string(), "decision": "rejected"}),
    ))
}

async fn rotate(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let uid = bidden(&name, request).await?;
    let hash = whole(async move { hub.renew_one(uid).await }).await?;
    Ok(json_response(StatusCode::OK, &json!({"instance_uid": uid.to_string(), "hash": hash})))
}

async fn revoke(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let uid = bidden(&name, request).await?;
    let serials = whole(async move { hub.revoke(uid).await }).await?;
    Ok(json_response(StatusCode::OK, &json!({"instance_uid": uid.to_string(), "revoked": serials})))
}

async fn connect(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Failure> {
    let new: NewConnection = json_body(request, MAX_BODY, CONNECTION_USAGE).await?;
    let target = new.target.clone();
    let target =
        target.ok_or_else(|| Failure::bad(format!("target is missing; {CONNECTION_USAGE}")))?;
    put_connection(hub, new, &target).await
}

async fn connect_one(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let uid = uid(&name)?;
    let new: NewConnection = json_body(request, MAX_BODY, CONNECTION_USAGE).await?;
    if new.target.is_some() {
        return Err(Failure::bad(
            "target: the path names the agent; for several PUT /api/v1/offers/connection",
        ));
    }
    put_connection(hub, new, &format!("instance_uid={uid}")).await
}

async fn put_connection(
    hub: Arc<Hub>,
    new: NewConnection,
    target: &str,
) -> Result<Response, Failure> {
    let target = Selector::parse(target).map_err(Failure::bad)?;
    let connection = new.check(target, Moment::now()).map_err(Failure::bad)?;
    let shown = connection.view();
    let matched = whole(async move { hub.connect(connection).await }).await?;
    Ok(json_response(StatusCode::OK, &json!({"connection": shown, "matched": texts(&matched)})))
}

async fn connections(State(hub): State<Arc<Hub>>) -> Response {
    let list: Vec<Value> =
        hub.fleet().connections.iter().rev().map(crate::connection::Connection::view).collect();
    json_response(StatusCode::OK, &json!({"connections": list}))
}

async fn disconnect(
    State(hub): State<Arc<Hub>>,
    parameters: RawQuery,
) -> Result<Response, Failure> {
    let target = query(&parameters, "target")?;
    let target =
        target.ok_or_else(|| Failure::bad("the query must name the target: ?target=env%3Dtest"))?;
    delete_connection(hub, &target).await
}

async fn disconnect_one(
    State(hub): State<Arc<Hub>>,
    name: Path<String>,
) -> Result<Response, Failure> {
    let uid = uid(&name)?;
    delete_connection(hub, &format!("instance_uid={uid}")).await
}

async fn delete_connection(hub: Arc<Hub>, target: &str) -> Result<Response, Failure> {
    let target = Selector::parse(target).map_err(Failure::bad)?;
    let gone = target.to_string();
    whole(async move { hub.disconnect(&target).await }).await?;
    Ok(json_response(StatusCode::OK, &json!({"target": gone})))
}

/// The body of a POST to `/api/v1/rotations`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRotation {
    #[serde(alias = "selector")]
    target: String,
    #[serde(default = "default_concurrency")]
    concurrency: u32,
    #[serde(default = "default_retries")]
    retries: u32,
    #[serde(default = "default_timeout")]
    timeout_seconds: u32,
}

const fn default_concurrency() -> u32 {
    50
}

const fn default_retries() -> u32 {
    3
}

const fn default_timeout() -> u32 {
    600
}

async fn begin(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Failure> {
    let new: NewRotation = json_body(request, JSON_SLACK, ROTATION_USAGE).await?;
    let target = Selector::parse(&new.target).map_err(Failure::bad)?;
    let within = |name: &str, value: u32, least: u32, most: u32| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(Failure::bad(format!("{name}: {value}; allowed are {least} to {most}")))
    };
    let plan = Plan {
        target: target.to_string(),
        concurrency: within("concurrency", new.concurrency, 1, MAX_CONCURRENCY)?,
        retries: within("retries", new.retries, 0, MAX_RETRIES)?,
        timeout_seconds: within("timeout_seconds", new.timeout_seconds, 1, MAX_TIMEOUT)?,
        created: Moment::now(),
        ended: None,
        cancelled: false,
    };
    let begun = whole(async move { hub.begin(&target, plan).await }).await?;
    let answer = json!({"id": begun.id, "agents": begun.agents, "without": texts(&begun.without)});
    Ok(json_response(StatusCode::ACCEPTED, &answer))
}

async fn rotations(State(hub): State<Arc<Hub>>) -> Response {
    let list: Vec<Value> = hub.fleet().rotations.iter().rev().map(view::rotation).collect();
    json_response(StatusCode::OK, &json!({"rotations": list}))
}

async fn rotation(State(hub): State<Arc<Hub>>, Path(id): Path<u64>) -> Result<Response, Failure> {
    let shown = hub.fleet().rotation(id).map(|rotation| view::rotation_detail(rotation));
    let shown = shown
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("there is no rotation {id}")))?;
    Ok(json_response(StatusCode::OK, &shown))
}

async fn cancel(State(hub): State<Arc<Hub>>, Path(id): Path<u64>) -> Result<Response, Failure> {
    whole(async move { hub.cancel(id).await }).await?;
    Ok(json_response(StatusCode::OK, &json!({"id": id})))
}
