//! The files of packages, as agents fetch them.

use std::net::SocketAddr;

use chiton_server::{Config, Limits, Running, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{Answer, get, in_time, quiet, request, server, upload};

/// Larger than any buffer on the way, and no two stretches of it are equal.
fn file() -> Vec<u8> {
    (0_u32..200_000).flat_map(u32::to_le_bytes).collect()
}

async fn uploaded() -> (Running, SocketAddr, String) {
    let running = server().await;
    let path =
        upload(&running, "otelcol", "1.0", &file()).await["path"].as_str().unwrap().to_owned();
    let address = running.opamp_addr();
    (running, address, path)
}

async fn ask(address: SocketAddr, line: &str, head: &str) -> Answer {
    request(address, line, &format!("Host: localhost\r\n{head}"), b"").await
}

/// The value of a header, as the server sent it but for the case.
fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn a_file_is_fetched_whole() {
    let (_running, address, path) = uploaded().await;
    let whole = get(address, &path).await;
    assert_eq!(whole.status, 200);
    assert!(whole.body == file());
    let hash = path.strip_prefix("/packages/").unwrap();
    assert_eq!(header(&whole, "content-length"), Some("800000"));
    assert_eq!(header(&whole, "etag"), Some(format!("\"{hash}\"").as_str()));
    assert_eq!(header(&whole, "accept-ranges"), Some("bytes"));
    assert_eq!(header(&whole, "content-type"), Some("application/octet-stream"));
    assert!(header(&whole, "last-modified").unwrap().ends_with(" gmt"));
    assert!(header(&whole, "cache-control").unwrap().contains("immutable"));

    let head = ask(address, &format!("HEAD {path}"), "Range: bytes=5-\r\n").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(header(&head, "content-length"), Some("800000"));
    assert_eq!(header(&head, "etag"), header(&whole, "etag"));
}

#[tokio::test]
async fn a_part_is_exactly_that_part() {
    let (_running, address, path) = uploaded().await;
    let file = file();
    for (range, part, named) in [
        ("bytes=0-0", 0..1, "bytes 0-0/800000"),
        ("bytes=32767-32769", 32_767..32_770, "bytes 32767-32769/800000"),
        ("bytes=799990-", 799_990..800_000, "bytes 799990-799999/800000"),
        ("bytes=100-900000", 100..800_000, "bytes 100-799999/800000"),
        ("bytes=-7", 799_993..800_000, "bytes 799993-799999/800000"),
        ("bytes=-900000", 0..800_000, "bytes 0-799999/800000"),
    ] {
        let answer = ask(address, &format!("GET {path}"), &format!("Range: {range}\r\n")).await;
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == file[part.clone()], "{range}");
        assert_eq!(header(&answer, "content-range"), Some(named), "{range}");
        assert_eq!(header(&answer, "content-length"), Some(part.len().to_string().as_str()));
        assert!(header(&answer, "etag").is_some(), "a resumed download must know what it has");
    }
    for range in ["bytes=800000-", "bytes=800000-800001", "bytes=-0"] {
        let answer = ask(address, &format!("GET {path}"), &format!("Range: {range}\r\n")).await;
        assert_eq!((answer.status, answer.body.len()), (416, 0), "{range}");
        assert_eq!(header(&answer, "content-range"), Some("bytes */800000"), "{range}");
    }
    for range in ["bytes=0-1,5-6", "bytes=6-5", "lines=1-2", "bytes"] {
        let answer = ask(address, &format!("GET {path}"), &format!("Range: {range}\r\n")).await;
        assert_eq!(answer.status, 200, "{range}");
        assert!(answer.body == file, "{range}");
        assert_eq!(header(&answer, "content-range"), None, "{range}");
    }
}

#[tokio::test]
async fn a_part_of_another_file_is_never_given() {
    let (_running, address, path) = uploaded().await;
    let whole = ask(address, &format!("HEAD {path}"), "").await;
    let tag = header(&whole, "etag").unwrap();
    let parted = async |condition: &str| {
        let head = format!("Range: bytes=10-19\r\n{condition}\r\n");
        ask(address, &format!("GET {path}"), &head).await
    };
    assert_eq!(parted(&format!("If-Range: {tag}")).await.body, file()[10..20]);
    for other in
        ["\"another\"".to_owned(), format!("W/{tag}"), "Thu, 01 Jan 1970 00:00:00 GMT".to_owned()]
    {
        let answer = parted(&format!("If-Range: {other}")).await;
        assert_eq!((answer.status, answer.body.len()), (200, 800_000), "{other}");
    }
    // What is known is not sent again.
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let head = format!("If-None-Match: {known}\r\n");
        let answer = ask(address, &format!("GET {path}"), &head).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{known}");
        assert_eq!(header(&answer, "etag"), Some(tag), "{known}");
    }
    let answer = ask(address, &format!("GET {path}"), "If-None-Match: \"x\"\r\n").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn too_many_downloads_are_told_to_come_back() {
    let limits = Limits { max_downloads: 1, ..Limits::default() };
    let running = Server::start(Config { limits, ..quiet() }).await.unwrap();
    // More than the sockets of both sides hold.
    let large = vec![7; 32 << 20];
    let path = upload(&running, "large", "1", &large).await["path"].as_str().unwrap().to_owned();
    let address = running.opamp_addr();
    let mut slow = in_time(TcpStream::connect(address)).await.unwrap();
    let line = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    in_time(slow.write_all(line.as_bytes())).await.unwrap();
    assert_eq!(in_time(slow.read_u8()).await.unwrap(), b'H', "it is being served");
    let busy = get(address, &path).await;
    assert_eq!((busy.status, busy.head.contains("retry-after: ")), (503, true));
    assert_eq!(ask(address, &format!("HEAD {path}"), "").await.status, 200, "which costs nothing");
    let mut rest = Vec::new();
    in_time(slow.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.ends_with(&large));
    in_time(async { while get(address, &path).await.status == 503 {} }).await;
}

#[tokio::test]
async fn nothing_else_is_to_be_had() {
    let (running, address, path) = uploaded().await;
    for bad in [
        "/packages/".to_owned() + &"0".repeat(64),
        path.to_uppercase().replace("PACKAGES", "packages"),
        "/packages/..%2Flock".to_owned(),
        "/packages/lock".to_owned(),
        "/packages/".to_owned(),
    ] {
        assert_eq!(get(address, &bad).await.status, 404, "{bad}");
    }
    assert_eq!(ask(address, &format!("PUT {path}"), "Content-Length: 0\r\n").await.status, 405);
    assert_eq!(get(address, "/api/v1/packages").await.status, 404, "REST is for people");
    assert_eq!(get(running.rest_addr(), &path).await.status, 404);
}
