//! REST and the page: what is shown, what is refused and why.

use std::net::SocketAddr;

use chiton_server::{Config, RestExposure, Server, StartError};
use serde_json::json;

use crate::client::{connect, get, post_json, quiet, report, request, server, uid_text};

#[tokio::test]
async fn bad_configs_are_refused_with_a_reason() {
    let running = server().await;
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("{n}.yaml"), json!(""))).collect();
    for (body, part) in [
        ("{", "EOF"),
        ("[]", "target"),
        (r#"{"files": {"a": "b"}}"#, "target"),
        (r#"{"target": "env"}"#, "key=value"),
        (r#"{"target": "env", "files": {"a": "b"}}"#, "key=value"),
        (r#"{"target": "*"}"#, "neither files nor config"),
        (r#"{"target": "*", "files": {}}"#, "at least one"),
        (r#"{"target": "*", "files": {"a": 1}}"#, "string"),
        (r#"{"target": "*", "files": {"a": "b"}, "config": {}}"#, "both"),
        (r#"{"target": "*", "config": "text"}"#, "object"),
        (r#"{"target": "*", "file": {"a": "b"}}"#, "unknown field"),
        (&json!({"target": "*", "files": many}).to_string(), "at most 32"),
        (
            &json!({"target": "*", "files": {"a": "x".repeat(1 << 20)}}).to_string(),
            "at most 1048576",
        ),
    ] {
        let answer = post_json(running.rest_addr(), "/api/v1/config", body).await;
        assert_eq!(answer.status, 400, "{body:.80}");
        assert!(answer.error().contains(part), "{body:.80}: {}", answer.error());
    }
    assert_eq!(get(running.rest_addr(), "/api/v1/config").await.json(), json!({"configs": []}));
}

#[tokio::test]
async fn a_config_object_becomes_yaml() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report([1; 16], 0)).await;
    let body =
        json!({"target": "*", "config": {"receivers": {"otlp": {"port": 4317, "on": "yes"}}}})
            .to_string();
    let answer = post_json(running.rest_addr(), "/api/v1/config", &body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["matched"], json!([uid_text([1; 16])]));
    let files = agent.next().await.remote_config.unwrap().config.unwrap().config_map;
    assert_eq!(files.keys().collect::<Vec<_>>(), [""]);
    let yaml: serde_json::Value = serde_yaml::from_slice(&files[""].body).unwrap();
    assert_eq!(yaml, json!({"receivers": {"otlp": {"port": 4317, "on": "yes"}}}));
    let list = get(running.rest_addr(), "/api/v1/config").await.json();
    assert_eq!(list["configs"][0]["target"], "*");
    assert_eq!(list["configs"][0]["hash"], answer.json()["hash"]);
}

#[tokio::test]
async fn unknown_and_bad_uids() {
    let running = server().await;
    let rest = running.rest_addr();
    assert_eq!(get(rest, &format!("/api/v1/agents/{}", uid_text([9; 16]))).await.status, 404);
    for bad in ["seven", "00000000-0000-0000-0000-000000000000", "01890a5dac96774bbcceb302099a8057"]
    {
        let answer = get(rest, &format!("/api/v1/agents/{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert!(answer.error().contains("instance uid"));
    }
    let answer = get(rest, "/api/v2").await;
    assert_eq!(answer.status, 404);
    assert!(!answer.error().is_empty());
}

#[tokio::test]
async fn other_sites_cannot_use_it() {
    let running = server().await;
    let rest = running.rest_addr();
    let host = async |host: &str| {
        request(rest, "GET /healthz", &format!("Host: {host}\r\n"), b"").await.status
    };
    for good in ["localhost", "LOCALHOST:4321", "127.0.0.1", "127.0.0.1:1", "[::1]:4321", "[::1]"] {
        assert_eq!(host(good).await, 200, "{good}");
    }
    for bad in
        ["evil.example", "localhost.evil.example:4321", "127.0.0.1.nip.io", "localhost:4321:x", ""]
    {
        assert_eq!(host(bad).await, 421, "{bad}");
    }
    // What a form can send without asking.
    let body = br#"{"target": "*", "files": {"a": "b"}}"#;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let head = format!(
            "Host: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n",
            body.len()
        );
        assert_eq!(
            request(rest, "POST /api/v1/config", &head, body).await.status,
            415,
            "{content_type}"
        );
    }
}

#[tokio::test]
async fn other_machines_need_an_explicit_word() {
    let open = Config { rest: SocketAddr::from(([0, 0, 0, 0], 0)), ..quiet() };
    match Server::start(open.clone()).await {
        Err(StartError::RestExposed(_)) => {}
        other => panic!("{other:?}"),
    }
    let running =
        Server::start(Config { rest_exposure: RestExposure::AnyAddress, ..open }).await.unwrap();
    let rest = SocketAddr::from(([127, 0, 0, 1], running.rest_addr().port()));
    assert_eq!(request(rest, "GET /healthz", "Host: fleet.example.com\r\n", b"").await.status, 200);
}

#[tokio::test]
async fn health_counts_agents() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report([1; 16], 0)).await;
    let health = get(running.rest_addr(), "/healthz").await.json();
    assert_eq!(health, json!({"status": "ok", "agents": 1, "connected": 1}));
}

#[tokio::test]
async fn the_page_brings_everything_with_it() {
    let running = server().await;
    let page = get(running.rest_addr(), "/").await;
    assert_eq!(page.status, 200);
    assert!(
        page.head.contains("content-security-policy: default-src 'none'; script-src 'self';"),
        "{}",
        page.head
    );
    assert!(page.head.contains("x-content-type-options: nosniff"));
    let html = String::from_utf8(page.body).unwrap();
    for path in ["/page.css", "/page.js"] {
        assert!(html.contains(path));
        assert_eq!(get(running.rest_addr(), path).await.status, 200);
    }
    // What the script writes to is there.
    for id in ["agents", "csrs", "rotations", "certificates", "decided"] {
        assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
    }
    let script = String::from_utf8(get(running.rest_addr(), "/page.js").await.body).unwrap();
    for way_in in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.contains(way_in), "{way_in}");
    }
}
