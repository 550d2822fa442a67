//! Size limits, encodings and content types of both transports.

use std::io::{Read as _, Write as _};

use chiton_proto::{AgentDescription, AgentToServer, KeyValue, Message as _, ServerToAgent};
use chiton_server::{Config, Limits, Running, Server};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{connect, get, post_report, quiet, report, request, server};

const LIMIT: usize = 64 << 10;

async fn small_server() -> Running {
    let limits = Limits { max_message_size: LIMIT, ..Limits::default() };
    Server::start(Config { limits, ..quiet() }).await.unwrap()
}

/// A report of exactly so many bytes.
fn padded(size: usize) -> Vec<u8> {
    let with = |padding: usize| {
        let pad = KeyValue { key: "x".repeat(padding), value: None };
        let description =
            AgentDescription { identifying_attributes: vec![pad], ..Default::default() };
        AgentToServer { agent_description: Some(description), ..report([1; 16], 0) }.encode_to_vec()
    };
    let overhead = with(size / 2).len() - size / 2;
    let bytes = with(size - overhead);
    assert_eq!(bytes.len(), size);
    bytes
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn gzip_both_ways() {
    let running = server().await;
    let head = "Content-Encoding: gzip\r\nAccept-Encoding: gzip\r\n";
    let answer =
        post_report(running.opamp_addr(), head, &gzip(&report([1; 16], 0).encode_to_vec())).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-encoding: gzip"), "{}", answer.head);
    let mut plain = Vec::new();
    GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(ServerToAgent::decode(&plain[..]).unwrap().instance_uid[..], [1; 16]);

    let head = "Content-Encoding: identity\r\n";
    let answer = post_report(running.opamp_addr(), head, &report([1; 16], 1).encode_to_vec()).await;
    assert!(!answer.head.contains("content-encoding"), "{}", answer.head);
    assert_eq!(ServerToAgent::decode(&answer.body[..]).unwrap().error_response, None);
}

#[tokio::test]
async fn http_requests_over_the_limit_are_refused_before_and_after_unpacking() {
    let running = small_server().await;
    let address = running.opamp_addr();
    assert_eq!(post_report(address, "", &padded(LIMIT)).await.status, 200);
    assert_eq!(post_report(address, "", &padded(LIMIT + 1)).await.status, 413);
    let packed = "Content-Encoding: gzip\r\n";
    assert_eq!(post_report(address, packed, &gzip(&padded(LIMIT))).await.status, 200);
    assert_eq!(post_report(address, packed, &gzip(&padded(LIMIT + 1))).await.status, 413);
    // Without a length the limit still holds.
    let mut chunked = format!("{:x}\r\n", LIMIT + 1).into_bytes();
    chunked.extend(padded(LIMIT + 1));
    chunked.extend(b"\r\n0\r\n\r\n");
    let head = "Host: h\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(request(address, "POST /v1/opamp", head, &chunked).await.status, 413);
}

#[tokio::test]
async fn a_websocket_message_over_the_limit_is_closed_with_1009() {
    let running = small_server().await;
    let whole = |size: usize| {
        let mut bytes = vec![0];
        bytes.extend(padded(size - 1));
        Message::Binary(bytes.into())
    };
    let mut agent = connect(running.opamp_addr()).await;
    agent.send_raw(whole(LIMIT)).await;
    assert_eq!(agent.next().await.error_response, None);
    agent.send_raw(whole(LIMIT + 1)).await;
    assert_eq!(agent.close_code().await, 1009);
}

#[tokio::test]
async fn other_types_and_encodings_are_refused() {
    let running = server().await;
    let address = running.opamp_addr();
    let body = report([1; 16], 0).encode_to_vec();
    let post = async |head: &str, body: &[u8]| {
        let head = format!("Host: h\r\nContent-Length: {}\r\n{head}", body.len());
        request(address, "POST /v1/opamp", &head, body).await.status
    };
    assert_eq!(post("Content-Type: application/x-protobuf; v=1\r\n", &body).await, 200);
    assert_eq!(post("Content-Type: application/json\r\n", &body).await, 415);
    assert_eq!(post("", &body).await, 415);
    assert_eq!(
        post("Content-Type: application/x-protobuf\r\nContent-Encoding: br\r\n", &body).await,
        415
    );
    assert_eq!(
        post("Content-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\n", &body).await,
        400
    );
    assert_eq!(get(address, "/v1/opamp").await.status, 426);
    assert_eq!(get(address, "/").await.status, 404);
    assert_eq!(request(address, "PUT /v1/opamp", "Host: h\r\n", b"").await.status, 405);
}
