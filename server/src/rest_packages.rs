//! REST for packages: files in, signatures, offers and how far they have come.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, RETRY_AFTER};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::clock::Moment;
use crate::depot::{Incoming, Piece, ReceiveError};
use crate::fleet::Offers;
use crate::hub::Hub;
use crate::package::{Kind, MAX_SIGNATURE, PackageId};
use crate::rest::{
    Failure, JSON_SLACK, NewPackage, body, disk, json_body, json_response, package_offer, texts,
    whole,
};
use crate::selector::Selector;
use crate::view;

/// The next piece of a file must arrive within this time.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pieces of one upload that wait for the disk; one has at most 16 KiB.
const PIECES: usize = 16;
/// When who found no room is to come back.
const RETRY_SECONDS: &str = "5";
/// What a PUT of an offer may hold.
const USAGE: &str = r#"send {"target": "env=test,region=eu", "packages": [{"name": "otelcol", "version": "1.2.3"}]}"#;

/// The routes.
pub(crate) fn routes() -> Router<Arc<Hub>> {
    Router::new()
        .route("/api/v1/packages", get(list))
        .route("/api/v1/packages/{name}/{version}", get(one).put(upload).delete(remove))
        .route("/api/v1/packages/{name}/{version}/signature", put(sign))
        .route("/api/v1/offers/packages", get(offers).put(offer).delete(withdraw))
}

type Name = Path<(String, String)>;

fn id(Path((name, version)): &Name) -> Result<PackageId, Failure> {
    PackageId::new(name, version).map_err(Failure::bad)
}

async fn list(State(hub): State<Arc<Hub>>) -> Response {
    let list: Vec<Value> = {
        let fleet = hub.fleet();
        let catalog = fleet.catalog();
        catalog.packages().values().map(|package| view::package(catalog, package)).collect()
    };
    json_response(StatusCode::OK, &json!({"packages": list}))
}

async fn one(State(hub): State<Arc<Hub>>, name: Name) -> Result<Response, Failure> {
    show(&hub, &id(&name)?, StatusCode::OK)
}

fn show(hub: &Hub, id: &PackageId, status: StatusCode) -> Result<Response, Failure> {
    let shown = {
        let fleet = hub.fleet();
        let package = fleet.catalog().packages().get(id);
        package.map(|package| view::package(fleet.catalog(), package))
    };
    let unknown = || Failure::new(StatusCode::NOT_FOUND, format!("there is no package {id}"));
    Ok(json_response(status, &shown.ok_or_else(unknown)?))
}

/// The one thing that a query may say; `None` when it is not there.
pub(crate) fn query(RawQuery(query): &RawQuery, known: &str) -> Result<Option<String>, Failure> {
    let mut found = None;
    for (key, value) in form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes()) {
        if key != known || found.is_some() {
            let text = format!("the query has {key:?}; allowed is {known}=…, once");
            return Err(Failure::bad(text));
        }
        found = Some(value.into_owned());
    }
    Ok(found)
}

async fn upload(
    State(hub): State<Arc<Hub>>,
    name: Name,
    parameters: RawQuery,
    request: Request,
) -> Result<Response, Failure> {
    let id = id(&name)?;
    let kind = query(&parameters, "type")?.unwrap_or_else(|| "top_level".to_owned());
    let kind = Kind::parse(&kind).ok_or_else(|| {
        Failure::bad(format!("type: {kind:?} is not one; allowed are top_level and addon"))
    })?;
    let limit = hub.limits.max_package_size;
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(too_large(limit));
    }
    let Ok(_room) = hub.uploads.try_acquire() else {
        let text = format!("{} uploads are under way, which is the limit", hub.limits.max_uploads);
        let busy = Failure::new(StatusCode::SERVICE_UNAVAILABLE, text);
        return Ok(([(RETRY_AFTER, RETRY_SECONDS)], busy).into_response());
    };
    let incoming = receive(&hub, request.into_body(), limit).await?;
    if incoming.size == 0 {
        return Err(Failure::bad("the body is empty: it must be the package's file"));
    }
    let (changing, named) = (Arc::clone(&hub), id.clone());
    let new = whole(async move { changing.add_package(named, kind, incoming).await }).await?;
    show(&hub, &id, if new { StatusCode::CREATED } else { StatusCode::OK })
}

/// Lets a body flow to the disk. When the peer goes away this future is dropped, the sender with it, and the
/// writer removes what it wrote.
async fn receive(hub: &Hub, body: Body, limit: u64) -> Result<Incoming, Failure> {
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let depot = Arc::clone(&hub.depot);
    let writer = spawn_blocking(move || depot.receive(&mut pieces, limit));
    let mut stream = body.into_data_stream();
    let late = || Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    let cut = || Failure::bad("the body was cut short");
    loop {
        let piece = match timeout(PIECE_TIMEOUT, stream.next()).await.map_err(|_| late())? {
            Some(Ok(data)) => Piece::Data(data),
            Some(Err(_)) => return Err(cut()),
            None => Piece::End,
        };
        let end = matches!(piece, Piece::End);
        // A writer that no longer listens has failed, and says why.
        if sender.send(piece).await.is_err() || end {
            break;
        }
    }
    let written = writer.await.map_err(|error| disk(&std::io::Error::other(error)))?;
    written.map_err(|error| match error {
        ReceiveError::TooLarge => too_large(limit),
        ReceiveError::CutShort => cut(),
        ReceiveError::Io(error) => disk(&error),
    })
}

fn too_large(limit: u64) -> Failure {
    let text = format!("a package's file may have at most {limit} bytes (--max-package-size)");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn sign(
    State(hub): State<Arc<Hub>>,
    name: Name,
    request: Request,
) -> Result<Response, Failure> {
    let id = id(&name)?;
    let signature = body(request, MAX_SIGNATURE).await?;
    if signature.is_empty() {
        return Err(Failure::bad(
            "the body is empty: it must be the bytes that `chiton sign` wrote",
        ));
    }
    let (changing, named) = (Arc::clone(&hub), id.clone());
    whole(async move { changing.sign_package(&named, signature).await }).await?;
    show(&hub, &id, StatusCode::OK)
}

async fn remove(State(hub): State<Arc<Hub>>, name: Name) -> Result<Response, Failure> {
    let id = id(&name)?;
    let shown = json!({"deleted": {"name": id.name, "version": id.version}});
    whole(async move { hub.remove_package(&id).await }).await?;
    Ok(json_response(StatusCode::OK, &shown))
}

async fn offers(State(hub): State<Arc<Hub>>) -> Response {
    let list = view::package_offers(&hub.fleet());
    json_response(StatusCode::OK, &json!({"offers": list}))
}

/// The body of a PUT of an offer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOffer {
    target: String,
    packages: Vec<NewPackage>,
}

async fn offer(State(hub): State<Arc<Hub>>, request: Request) -> Result<Response, Failure> {
    let new: NewOffer = json_body(request, JSON_SLACK, USAGE).await?;
    let target = Selector::parse(&new.target).map_err(Failure::bad)?;
    let max_message = hub.limits.max_message_size;
    let offer = package_offer(target.clone(), &new.packages, max_message, Moment::now())?;
    let (changing, wanted) = (Arc::clone(&hub), offer.clone());
    let published = whole(async move {
        let offers = Offers { config: None, packages: Some(wanted) };
        changing.publish(&target, offers).await
    });
    let published = published.await?;
    let (hash, unsigned) = {
        let fleet = hub.fleet();
        let catalog = fleet.catalog();
        let unsigned = catalog.members(&offer).filter(|package| package.signature().is_empty());
        let unsigned: Vec<_> = unsigned.map(|package| package.id.to_string()).collect();
        (catalog.hash(&offer).to_string(), unsigned)
    };
    let answer = json!({
        "hash": hash,
        "matched": texts(&published.matched),
        "without_packages": texts(&published.without_packages),
        "unsigned": unsigned,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

async fn withdraw(State(hub): State<Arc<Hub>>, parameters: RawQuery) -> Result<Response, Failure> {
    // Forgetting it must not mean every agent.
    let target = query(&parameters, "target")?
        .ok_or_else(|| Failure::bad("the target is missing: say which offer with ?target=…"))?;
    let target = Selector::parse(&target).map_err(Failure::bad)?;
    let text = target.to_string();
    let (kept, back) = whole(async move { hub.withdraw(&target).await }).await?;
    let answer = json!({"withdrawn": text, "without_offer": texts(&kept), "under_older_offer": texts(&back)});
    Ok(json_response(StatusCode::OK, &answer))
}
