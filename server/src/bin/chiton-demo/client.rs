//! REST as a script uses it: one request, one connection.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Failure;

/// Largest answer that is read.
const MAX_ANSWER: u64 = 16 << 20;

/// Speaks to the demo's own server.
pub(crate) struct Client {
    address: SocketAddr,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(&format!("GET {path}"), b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(&format!("POST {path}"), body.to_string().as_bytes()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &[u8]) -> Result<Value, Failure> {
        self.ask(&format!("PUT {path}"), body).await
    }

    async fn ask(&self, line: &str, body: &[u8]) -> Result<Value, Failure> {
        let length = body.len();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.write_all(body).await?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or("the server's answer was cut short")?;
        if !head.starts_with("HTTP/1.1 20") {
            return Err(format!("{line}: {body}").into());
        }
        Ok(serde_json::from_str(body)?)
    }
}
