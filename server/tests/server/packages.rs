//! Packages: in by REST, offered to agents, and what they report.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use chiton_proto::{
    Message as _, PackageStatusEnum, PackageType, RemoteConfigStatuses, ServerCapabilities,
    ServerToAgent,
};
use chiton_server::{Config, Database, Limits, Server, StartError};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::client::{
    config_status, connect, delete, get, heartbeat, in_time, offer, package_statuses, post_json,
    post_report, push, put, put_json, quiet, report, request, server, server_with_file, shown,
    uid_text, upload, with_packages,
};

const ONE: [u8; 16] = [1; 16];
const TWO: [u8; 16] = [2; 16];
/// `printf hello | sha256sum`
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

#[tokio::test]
async fn a_package_comes_in_and_goes() {
    let running = server().await;
    let rest = running.rest_addr();
    let path = "/api/v1/packages/otelcol/1.2.3-rc.1";
    let answer = put(rest, &format!("{path}?type=addon"), b"hello").await;
    assert_eq!(answer.status, 201);
    let package = answer.json();
    assert_eq!(package["sha256"], HELLO);
    assert_eq!(package["size"], 5);
    assert_eq!(package["type"], "addon");
    assert_eq!(package["signature_size"], 0);
    assert_eq!(get(rest, path).await.json(), package);
    assert_eq!(get(rest, "/api/v1/packages").await.json(), json!({"packages": [package]}));

    assert_eq!(
        put(rest, &format!("{path}?type=addon"), b"hello").await.status,
        200,
        "the same again"
    );
    for (query, body) in
        [("?type=addon", &b"other"[..]), ("?type=top_level", b"hello"), ("", b"hello")]
    {
        let answer = put(rest, &format!("{path}{query}"), body).await;
        assert_eq!(answer.status, 409, "{query}");
        assert!(answer.error().contains(HELLO) && answer.error().contains("delete"), "{query}");
    }
    assert_eq!(get(rest, path).await.json(), package, "what was refused changed nothing");

    let signed = put(rest, &format!("{path}/signature"), &[7; 64]).await.json();
    assert_eq!(signed["signature_size"], 64);
    assert_ne!(signed["hash"], package["hash"]);
    // The same contents under another name stay when this one goes.
    upload(&running, "copy", "1", b"hello").await;
    assert_eq!(delete(rest, path).await.status, 200);
    assert_eq!(get(rest, path).await.status, 404);
    assert_eq!(delete(rest, path).await.status, 404);
    let file = format!("/packages/{HELLO}");
    assert_eq!(get(running.opamp_addr(), &file).await.body, b"hello");
    assert_eq!(delete(rest, "/api/v1/packages/copy/1").await.status, 200);
    assert_eq!(get(running.opamp_addr(), &file).await.status, 404);
    assert_eq!(put(rest, &format!("{path}?type=addon"), b"other").await.status, 201);
}

#[tokio::test]
async fn bad_uploads_are_refused_with_a_reason() {
    let limits = Limits { max_package_size: 10, ..Limits::default() };
    let running = Server::start(Config { limits, ..quiet() }).await.unwrap();
    let rest = running.rest_addr();
    for (path, body, status, part) in [
        ("otelcol/1", &b""[..], 400, "empty"),
        ("..%2Fx/1", b"a", 400, "letter or digit first"),
        ("a/..%2F1", b"a", 400, "version"),
        ("a/1?type=kernel", b"a", 400, "top_level and addon"),
        ("a/1?kind=addon", b"a", 400, "type=…"),
        ("a/1?type=addon&type=addon", b"a", 400, "once"),
        ("a/1/signature", b"a", 404, "there is no package a 1"),
    ] {
        let answer = put(rest, &format!("/api/v1/packages/{path}"), body).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.error().contains(part), "{path}: {}", answer.error());
    }
    assert_eq!(put(rest, "/api/v1/packages/a/1", &[1; 10]).await.status, 201);
    for (body, status) in [(&[1; 4097][..], 413), (b"", 400), (&[1; 4096], 200)] {
        assert_eq!(put(rest, "/api/v1/packages/a/1/signature", body).await.status, status);
    }
    // Too large: by its own word, before a byte of it is sent, and without a word.
    let line = "PUT /api/v1/packages/b/1";
    let announced = request(rest, line, "Host: localhost\r\nContent-Length: 11\r\n", b"").await;
    assert_eq!(announced.status, 413);
    assert!(announced.error().contains("--max-package-size"));
    let head = "Host: localhost\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(request(rest, line, head, b"b\r\n01234567890\r\n0\r\n\r\n").await.status, 413);
    assert_eq!(get(rest, "/api/v1/packages/b/1").await.status, 404);
    let head = "Host: evil.example\r\nContent-Length: 1\r\n";
    assert_eq!(request(rest, line, head, b"a").await.status, 421);
}

#[tokio::test]
async fn an_offer_reaches_its_agents_and_stops_when_it_is_taken_up() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    let answer = agent.ask(&with_packages(report(ONE, 0))).await;
    for bit in [ServerCapabilities::OffersPackages, ServerCapabilities::AcceptsPackagesStatus] {
        assert_ne!(answer.capabilities & bit as u64, 0, "{bit:?}");
    }
    assert_eq!(answer.packages_available, None);
    upload(&running, "otelcol", "1.0", b"hello").await;
    put(running.rest_addr(), "/api/v1/packages/otelcol/1.0/signature", &[7; 64]).await;
    put(running.rest_addr(), "/api/v1/packages/plug/2?type=addon", b"plug").await;
    let offered = offer(&running, "env=test", &[("otelcol", "1.0"), ("plug", "2")]).await;
    assert_eq!(offered["matched"], json!([uid_text(ONE)]));
    assert_eq!(offered["unsigned"], json!(["plug 2"]));

    let pushed = agent.next().await;
    assert_eq!(pushed.remote_config, None);
    let available = pushed.packages_available.unwrap();
    assert_eq!(available.packages.keys().collect::<Vec<_>>(), ["otelcol", "plug"]);
    assert_eq!(available.packages["plug"].r#type(), PackageType::Addon);
    let otelcol = &available.packages["otelcol"];
    assert_eq!((otelcol.version.as_str(), otelcol.r#type()), ("1.0", PackageType::TopLevel));
    let file = otelcol.file.clone().unwrap();
    // The host that the agent named; it names no port here.
    assert_eq!(file.download_url, format!("http://localhost/packages/{HELLO}"));
    assert_eq!((file.content_hash.len(), &file.signature[..]), (32, &[7; 64][..]));
    assert_eq!((otelcol.hash.len(), available.all_packages_hash.len()), (32, 32));

    // Under way, taken up, refused: not offered again, not by a new connection either.
    assert_eq!(agent.ask(&with_packages(heartbeat(ONE, 1))).await.packages_available, None);
    let all = available.all_packages_hash;
    let failed = [("otelcol", "1.0", &otelcol.hash[..], PackageStatusEnum::InstallFailed)];
    let failed = package_statuses(heartbeat(ONE, 2), &all, &failed);
    assert_eq!(agent.ask(&failed).await.packages_available, None);
    drop(agent);
    let mut agent = connect(running.opamp_addr()).await;
    let installed = [("otelcol", "1.0", &otelcol.hash[..], PackageStatusEnum::Installed)];
    let mut first = package_statuses(report(ONE, 0), &all, &installed);
    first.package_statuses.as_mut().unwrap().server_provided_all_packages_hash = all.clone();
    assert_eq!(agent.ask(&first).await.packages_available, None);

    // A new signature is a new offer; so is the same agent that has forgotten everything.
    put(running.rest_addr(), "/api/v1/packages/plug/2/signature", &[8; 64]).await;
    let again = agent.next().await.packages_available.unwrap();
    assert_ne!(again.all_packages_hash, all);
    assert_eq!(again.packages["otelcol"], available.packages["otelcol"]);
    drop(agent);
    let mut agent = connect(running.opamp_addr()).await;
    let fresh = agent.ask(&with_packages(report(ONE, 0))).await;
    assert_eq!(fresh.packages_available.unwrap(), again);
}

#[tokio::test]
async fn only_whom_the_target_means_and_who_takes_packages() {
    let running = server().await;
    upload(&running, "a", "1", b"1").await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&with_packages(report(ONE, 0))).await;
    let mut other = connect(running.opamp_addr()).await;
    other.ask(&report(TWO, 0)).await;
    assert_eq!(offer(&running, "region=us", &[("a", "1")]).await["matched"], json!([]));
    assert_eq!(agent.ask(&with_packages(heartbeat(ONE, 1))).await.packages_available, None);
    let answer = offer(&running, "*", &[("a", "1")]).await;
    assert_eq!(answer["matched"], json!([uid_text(ONE), uid_text(TWO)]));
    assert_eq!(answer["without_packages"], json!([uid_text(TWO)]));
    assert!(agent.next().await.packages_available.is_some());
    assert_eq!(other.ask(&heartbeat(TWO, 1)).await.packages_available, None);
    let answer = offer(&running, &format!("instance_uid={}", uid_text(ONE)), &[("a", "1")]).await;
    assert_eq!(answer["matched"], json!([uid_text(ONE)]));
    // The same packages by another target are the same offer to the agent.
    assert_eq!(agent.ask(&with_packages(heartbeat(ONE, 2))).await.packages_available, None);
}

#[tokio::test]
async fn a_config_and_packages_that_are_due_together_come_together() {
    let running = server().await;
    for version in ["1", "2"] {
        upload(&running, "a", version, version.as_bytes()).await;
    }
    push(&running, "env=test", "a: 1").await;
    offer(&running, "*", &[("a", "1")]).await;
    let mut agent = connect(running.opamp_addr()).await;
    let first = agent.ask(&with_packages(report(ONE, 0))).await;
    let hash = first.remote_config.unwrap().config_hash;
    assert_eq!(first.packages_available.unwrap().packages["a"].version, "1");
    let applied = config_status(ONE, 1, &hash, RemoteConfigStatuses::Applied);
    agent.ask(&with_packages(applied)).await;

    // To a connected agent too, when they are offered by one request.
    let body = json!({
        "target": "env=test", "files": {"main.yaml": "a: 2"}, "packages": [{"name": "a", "version": "2"}]
    });
    let answer = post_json(running.rest_addr(), "/api/v1/config", &body.to_string()).await;
    assert_eq!(answer.status, 200);
    let both = agent.next().await;
    let config = both.remote_config.unwrap().config.unwrap();
    assert_eq!(config.config_map["main.yaml"].body, "a: 2");
    assert_eq!(both.packages_available.unwrap().packages["a"].version, "2");
    assert_eq!(agent.ask(&with_packages(heartbeat(ONE, 2))).await.packages_available, None);

    // One that cannot be offered takes the config with it.
    let body =
        json!({"target": "*", "files": {"b": "c"}, "packages": [{"name": "b", "version": "1"}]});
    let answer = post_json(running.rest_addr(), "/api/v1/config", &body.to_string()).await;
    assert_eq!(answer.status, 409);
    assert!(answer.error().contains("upload it first"));
    let configs = get(running.rest_addr(), "/api/v1/config").await.json();
    assert_eq!(configs["configs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_offer_that_is_taken_back_removes_nothing() {
    let running = server().await;
    let rest = running.rest_addr();
    for version in ["1", "2"] {
        upload(&running, "a", version, version.as_bytes()).await;
    }
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&with_packages(report(ONE, 0))).await;
    offer(&running, "*", &[("a", "1")]).await;
    agent.next().await;
    offer(&running, "env=test", &[("a", "2")]).await;
    assert_eq!(agent.next().await.packages_available.unwrap().packages["a"].version, "2");
    let refused = delete(rest, "/api/v1/packages/a/2").await;
    assert_eq!(refused.status, 409);
    assert!(refused.error().contains("env=test"), "{}", refused.error());

    // The older offer means it too, and is in force again.
    let answer = delete(rest, "/api/v1/offers/packages?target=env%3Dtest").await;
    assert_eq!(answer.json()["under_older_offer"], json!([uid_text(ONE)]));
    assert_eq!(agent.next().await.packages_available.unwrap().packages["a"].version, "1");
    assert_eq!(delete(rest, "/api/v1/packages/a/2").await.status, 200);
    let answer = delete(rest, "/api/v1/offers/packages?target=*").await;
    assert_eq!(answer.json()["without_offer"], json!([uid_text(ONE)]));
    let next = agent.ask(&with_packages(heartbeat(ONE, 1))).await;
    assert_eq!(next.packages_available, None, "an empty offer would remove all it runs");
    assert_eq!(delete(rest, "/api/v1/offers/packages?target=*").await.status, 404);
    assert_eq!(
        delete(rest, "/api/v1/offers/packages").await.status,
        400,
        "not every agent by a slip"
    );
    assert_eq!(get(rest, "/api/v1/offers/packages").await.json(), json!({"offers": []}));
}

#[tokio::test]
async fn bad_offers_are_refused_with_a_reason() {
    let running = server().await;
    upload(&running, "a", "1", b"1").await;
    let rest = running.rest_addr();
    let many: Vec<_> = (0..65).map(|n| json!({"name": format!("p{n}"), "version": "1"})).collect();
    for (body, status, part) in [
        (json!({"target": "*", "packages": []}), 400, "DELETE"),
        (json!({"packages": []}), 400, "target"),
        (json!({"target": "env", "packages": []}), 400, "key=value"),
        (json!({"target": "*", "packages": {"a": "1"}}), 400, "sequence"),
        (json!({"target": "*", "packages": [{"name": "a"}]}), 400, "version"),
        (json!({"target": "*", "packages": [{"name": "../a", "version": "1"}]}), 400, "letters"),
        (
            json!({"target": "*", "packages": [{"name": "a", "version": "2"}]}),
            409,
            "upload it first",
        ),
        (json!({"target": "*", "packages": many}), 400, "at most 64"),
    ] {
        let answer = put_json(rest, "/api/v1/offers/packages", &body).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.error().contains(part), "{body}: {}", answer.error());
    }
    let head = "Host: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n";
    assert_eq!(request(rest, "PUT /api/v1/offers/packages", head, b"{}").await.status, 415);
    assert_eq!(get(rest, "/api/v1/offers/packages").await.json(), json!({"offers": []}));
}

#[tokio::test]
async fn progress_is_shown_for_each_agent_and_counted_for_each_offer() {
    let running = server().await;
    upload(&running, "a", "1", b"1").await;
    offer(&running, "*", &[("a", "1")]).await;
    let mut agent = connect(running.opamp_addr()).await;
    let available = agent.ask(&with_packages(report(ONE, 0))).await.packages_available.unwrap();
    let (all, hash) = (available.all_packages_hash, available.packages["a"].hash.clone());
    let mut other = connect(running.opamp_addr()).await;
    other.ask(&report(TWO, 0)).await;
    let counted = async |state: &str| {
        let offers = get(running.rest_addr(), "/api/v1/offers/packages").await.json();
        let agents = offers["offers"][0]["agents"].as_object().unwrap().clone();
        assert_eq!(agents["without_packages"], 1);
        let others = agents.iter().filter(|(key, _)| *key != "without_packages");
        let found: Vec<_> = others.filter(|(_, count)| **count != 0).collect();
        assert_eq!(found, [(&state.to_owned(), &json!(1))]);
    };
    counted("waiting").await;
    for (at, status, word, state) in [
        (1, PackageStatusEnum::InstallPending, "InstallPending", "pending"),
        (2, PackageStatusEnum::Downloading, "Downloading", "downloading"),
        (3, PackageStatusEnum::Installing, "Installing", "installing"),
        (4, PackageStatusEnum::InstallFailed, "InstallFailed", "failed"),
        (5, PackageStatusEnum::Installed, "Installed", "installed"),
    ] {
        agent.ask(&package_statuses(heartbeat(ONE, at), &all, &[("a", "1", &hash, status)])).await;
        counted(state).await;
        let seen = shown(&running, ONE).await;
        let package = &seen["packages"]["a"];
        assert_eq!(package["status"], word);
        assert_eq!(package["offered_version"], "1");
        assert_eq!(seen["assigned_packages"]["state"], state);
        let details = json!({"percent": 42.5, "bytes_per_second": 0.0});
        let expected = if word == "Downloading" { details } else { json!(null) };
        assert_eq!(package["download"], expected);
        assert_eq!(package["version"], if word == "Installed" { "1" } else { "" });
        assert_eq!(package["error_message"], if state == "failed" { "<b>no</b>" } else { "" });
    }
    // Installed, but not what was offered: it is not there yet.
    let older = [("a", "0", &b"older"[..], PackageStatusEnum::Installed)];
    agent.ask(&package_statuses(heartbeat(ONE, 6), &all, &older)).await;
    counted("pending").await;
}

#[tokio::test]
async fn over_http_the_url_names_the_host_that_the_agent_asked_for() {
    let running = server().await;
    upload(&running, "a", "1", b"1").await;
    offer(&running, "*", &[("a", "1")]).await;
    let poll = async |address, message: chiton_proto::AgentToServer| {
        let answer = post_report(address, "", &message.encode_to_vec()).await;
        ServerToAgent::decode(&answer.body[..]).unwrap().packages_available
    };
    let url = |offer: &chiton_proto::PackagesAvailable| {
        offer.packages["a"].file.clone().unwrap().download_url
    };
    let first = poll(running.opamp_addr(), with_packages(report(ONE, 0))).await.unwrap();
    assert!(url(&first).starts_with("http://opamp.example.com/packages/"), "{}", url(&first));
    let again = poll(running.opamp_addr(), with_packages(heartbeat(ONE, 1))).await;
    assert_eq!(again.as_ref(), Some(&first), "the answer may have been lost");
    let taken = [("a", "1", &first.packages["a"].hash[..], PackageStatusEnum::Downloading)];
    let taken = package_statuses(heartbeat(ONE, 2), &first.all_packages_hash, &taken);
    assert_eq!(poll(running.opamp_addr(), taken).await, None);

    let public_url = Some("https://fleet.example.com/opamp/".to_owned());
    let running = Server::start(Config { public_url, ..quiet() }).await.unwrap();
    upload(&running, "a", "1", b"1").await;
    offer(&running, "*", &[("a", "1")]).await;
    let offered = poll(running.opamp_addr(), with_packages(report(ONE, 0))).await.unwrap();
    let expected = "https://fleet.example.com/opamp/packages/";
    assert!(url(&offered).starts_with(expected), "{}", url(&offered));
}

/// The files below a database's directory of packages.
fn stored(database: &Path, part: &str) -> Vec<String> {
    let directory = format!("{}.packages/{part}", database.display());
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn packages_and_offers_survive_a_restart_and_scraps_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let running = server_with_file(&database).await;
    upload(&running, "a", "1", b"hello").await;
    put(running.rest_addr(), "/api/v1/packages/a/1/signature", &[7; 64]).await;
    upload(&running, "b", "1", b"plug").await;
    let one = offer(&running, "env=test", &[("a", "1"), ("b", "1")]).await;
    upload(&running, "c", "1", b"c").await;
    offer(&running, "region=us", &[("c", "1")]).await;
    let list = async |running: &chiton_server::Running| {
        let packages = get(running.rest_addr(), "/api/v1/packages").await.json();
        (packages, get(running.rest_addr(), "/api/v1/offers/packages").await.json())
    };
    let before = list(&running).await;
    match Server::start(Config { database: Database::File(database.clone()), ..quiet() }).await {
        Err(StartError::Depot(error)) => {
            assert!(error.to_string().contains("another chiton-server"), "{error}");
        }
        other => panic!("two servers must not sweep each other's uploads: {other:?}"),
    }
    running.shutdown().await;

    // What a crash can leave: a half file, and a whole one that was not written down.
    let root = format!("{}.packages", database.display());
    let orphan = "0".repeat(64);
    fs::write(format!("{root}/incoming/9.part"), b"half").unwrap();
    fs::write(format!("{root}/files/{orphan}"), b"whole").unwrap();
    let running = server_with_file(&database).await;
    assert_eq!(list(&running).await, before);
    assert_eq!(stored(&database, "incoming"), [""; 0]);
    assert_eq!(stored(&database, "files").len(), 3);
    let mut agent = connect(running.opamp_addr()).await;
    let offer = agent.ask(&with_packages(report(ONE, 0))).await.packages_available.unwrap();
    let hex: String = offer.all_packages_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(one["hash"], hex);
    assert_eq!(offer.packages["a"].file.as_ref().unwrap().signature[..], [7; 64]);
    assert_eq!(get(running.opamp_addr(), &format!("/packages/{HELLO}")).await.body, b"hello");
    running.shutdown().await;

    // A file that somebody removed is told by its absence, and healed by the same upload.
    fs::remove_file(format!("{root}/files/{HELLO}")).unwrap();
    let running = server_with_file(&database).await;
    assert_eq!(get(running.opamp_addr(), &format!("/packages/{HELLO}")).await.status, 500);
    assert_eq!(put(running.rest_addr(), "/api/v1/packages/a/1", b"hello").await.status, 200);
    assert_eq!(get(running.opamp_addr(), &format!("/packages/{HELLO}")).await.body, b"hello");
}

/// A connection in the middle of an upload of 1000 bytes.
async fn half_an_upload(rest: std::net::SocketAddr) -> TcpStream {
    let mut stream = in_time(TcpStream::connect(rest)).await.unwrap();
    let head =
        "PUT /api/v1/packages/a/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n";
    in_time(stream.write_all(head.as_bytes())).await.unwrap();
    in_time(stream.write_all(&[1; 500])).await.unwrap();
    stream
}

async fn until(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_is_cut_short_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let running = server_with_file(&database).await;
    let stream = half_an_upload(running.rest_addr()).await;
    until(|| !stored(&database, "incoming").is_empty()).await;
    drop(stream);
    until(|| stored(&database, "incoming").is_empty()).await;
    assert_eq!(stored(&database, "files"), [""; 0]);
    assert_eq!(get(running.rest_addr(), "/api/v1/packages").await.json(), json!({"packages": []}));
}

#[tokio::test]
async fn too_many_uploads_are_told_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let limits = Limits { max_uploads: 1, ..Limits::default() };
    let database_config = Database::File(database.clone());
    let running =
        Server::start(Config { limits, database: database_config, ..quiet() }).await.unwrap();
    let stream = half_an_upload(running.rest_addr()).await;
    until(|| !stored(&database, "incoming").is_empty()).await;
    let busy = put(running.rest_addr(), "/api/v1/packages/b/1", b"b").await;
    assert_eq!(busy.status, 503);
    assert!(busy.head.contains("retry-after: ") && busy.error().contains("limit"));
    drop(stream);
    until(|| stored(&database, "incoming").is_empty()).await;
    // The room is free a moment after the file is gone.
    in_time(async {
        while put(running.rest_addr(), "/api/v1/packages/b/1", b"b").await.status == 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(get(running.rest_addr(), "/api/v1/packages/b/1").await.status, 200);
}

#[tokio::test]
async fn a_kill_in_the_middle_of_an_upload_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("state.db");
    let mut child = Command::new(env!("CARGO_BIN_EXE_chiton-server"))
        .args(["run", "--opamp", "127.0.0.1:0", "--rest", "127.0.0.1:0", "--db"])
        .arg(&database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("page and REST")).unwrap();
    let address = line.split("http://").nth(1).unwrap().trim_end_matches('/').parse().unwrap();
    let _stream = half_an_upload(address).await;
    until(|| !stored(&database, "incoming").is_empty()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(stored(&database, "incoming").len(), 1);
    let running = server_with_file(&database).await;
    assert_eq!(stored(&database, "incoming"), [""; 0]);
    assert_eq!(stored(&database, "files"), [""; 0]);
    upload(&running, "a", "1", b"hello").await;
}
