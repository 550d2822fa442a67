//! A server on free ports, a WebSocket agent and a small HTTP client, all with a deadline.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chiton_proto::{
    AgentCapabilities, AgentDescription, AgentToServer, AnyValue, CertificateRequest,
    ConnectionSettingsRequest, ConnectionSettingsStatus, ConnectionSettingsStatuses, KeyValue,
    Message as _, OpAmpConnectionSettingsRequest, PackageDownloadDetails, PackageStatus,
    PackageStatusEnum, PackageStatuses, RemoteConfigStatus, RemoteConfigStatuses, ServerToAgent,
    any_value::Value as Any,
};
use chiton_server::{Config, Database, Journal, Running, Server};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Nothing here takes so long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(DEADLINE, work).await.unwrap()
}

/// Free ports, state in memory, nothing on stderr.
pub(crate) fn quiet() -> Config {
    Config {
        opamp: SocketAddr::from(([127, 0, 0, 1], 0)),
        rest: SocketAddr::from(([127, 0, 0, 1], 0)),
        journal: Journal::Silent,
        ..Config::default()
    }
}

pub(crate) async fn server() -> Running {
    Server::start(quiet()).await.unwrap()
}

pub(crate) async fn server_with_file(file: &Path) -> Running {
    Server::start(Config { database: Database::File(file.to_owned()), ..quiet() }).await.unwrap()
}

/// What an agent says first.
pub(crate) fn report(uid: [u8; 16], sequence_num: u64) -> AgentToServer {
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) }),
    };
    AgentToServer {
        agent_description: Some(AgentDescription {
            identifying_attributes: vec![text("service.name", "sample")],
            non_identifying_attributes: vec![text("env", "test"), text("region", "eu")],
        }),
        ..heartbeat(uid, sequence_num)
    }
}

pub(crate) fn heartbeat(uid: [u8; 16], sequence_num: u64) -> AgentToServer {
    AgentToServer {
        instance_uid: Bytes::copy_from_slice(&uid),
        sequence_num,
        capabilities: AgentCapabilities::ReportsStatus as u64
            | AgentCapabilities::AcceptsRemoteConfig as u64,
        ..AgentToServer::default()
    }
}

pub(crate) fn config_status(
    uid: [u8; 16],
    sequence_num: u64,
    hash: &[u8],
    status: RemoteConfigStatuses,
) -> AgentToServer {
    let mut report = RemoteConfigStatus {
        last_remote_config_hash: Bytes::copy_from_slice(hash),
        error_message: if status == RemoteConfigStatuses::Failed {
            "<b>no</b>".to_owned()
        } else {
            String::new()
        },
        ..RemoteConfigStatus::default()
    };
    report.set_status(status);
    AgentToServer { remote_config_status: Some(report), ..heartbeat(uid, sequence_num) }
}

pub(crate) fn uid_text(uid: [u8; 16]) -> String {
    let hex: String = uid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// An agent with a WebSocket connection.
pub(crate) struct Agent<S> {
    pub(crate) socket: WebSocketStream<S>,
}

pub(crate) async fn connect(address: SocketAddr) -> Agent<TcpStream> {
    let stream = in_time(TcpStream::connect(address)).await.unwrap();
    upgrade(stream).await
}

pub(crate) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Agent<S> {
    let request = "ws://localhost/v1/opamp";
    let (socket, _) = in_time(tokio_tungstenite::client_async(request, stream)).await.unwrap();
    Agent { socket }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Agent<S> {
    pub(crate) async fn send(&mut self, message: &AgentToServer) {
        let mut bytes = vec![0];
        bytes.extend(message.encode_to_vec());
        self.send_raw(Message::Binary(bytes.into())).await;
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        in_time(self.socket.send(message)).await.unwrap();
    }

    /// The next message; pings are answered on the way.
    pub(crate) async fn next(&mut self) -> ServerToAgent {
        match self.next_frame().await {
            Some(Message::Binary(bytes)) => {
                assert_eq!(bytes[0], 0, "header");
                ServerToAgent::decode(&bytes[1..]).unwrap()
            }
            other => panic!("not a message: {other:?}"),
        }
    }

    pub(crate) async fn ask(&mut self, message: &AgentToServer) -> ServerToAgent {
        self.send(message).await;
        self.next().await
    }

    /// The code of the Close that comes next.
    pub(crate) async fn close_code(&mut self) -> u16 {
        match self.next_frame().await {
            Some(Message::Close(Some(frame))) => frame.code.into(),
            other => panic!("not a Close: {other:?}"),
        }
    }

    async fn next_frame(&mut self) -> Option<Message> {
        loop {
            match in_time(self.socket.next()).await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(frame)) => return Some(frame),
                Some(Err(error)) => panic!("connection: {error}"),
                None => return None,
            }
        }
    }
}

/// Status, head in lower case, body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

/// One request on its own connection; `head` is all lines after the first, each with its line end.
pub(crate) async fn request(address: SocketAddr, line: &str, head: &str, body: &[u8]) -> Answer {
    let mut bytes = format!("{line} HTTP/1.1\r\nConnection: close\r\n{head}\r\n").into_bytes();
    bytes.extend(body);
    let mut stream = in_time(TcpStream::connect(address)).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = in_time(stream.write_all(&bytes)).await;
    let mut answer = Vec::new();
    let _ = in_time(stream.read_to_end(&mut answer)).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: answer[end + 4..].to_vec() }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, &format!("GET {path}"), "Host: localhost\r\n", b"").await
}

pub(crate) async fn post_json(address: SocketAddr, path: &str, body: &str) -> Answer {
    let head = format!(
        "Host: 127.0.0.1:4321\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    request(address, &format!("POST {path}"), &head, body.as_bytes()).await
}

/// A POST of an OpAMP message; `more` is further header lines.
pub(crate) async fn post_report(address: SocketAddr, more: &str, body: &[u8]) -> Answer {
    let head = format!(
        "Host: opamp.example.com\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n{more}",
        body.len()
    );
    request(address, "POST /v1/opamp", &head, body).await
}

/// Pushes one file and gives the answer.
pub(crate) async fn push(running: &Running, target: &str, body: &str) -> Value {
    let request = json!({"target": target, "files": {"main.yaml": body}}).to_string();
    let answer = post_json(running.rest_addr(), "/api/v1/config", &request).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

pub(crate) async fn shown(running: &Running, uid: [u8; 16]) -> Value {
    let answer = get(running.rest_addr(), &format!("/api/v1/agents/{}", uid_text(uid))).await;
    assert_eq!(answer.status, 200);
    answer.json()
}

/// A PUT of bytes.
pub(crate) async fn put(address: SocketAddr, path: &str, body: &[u8]) -> Answer {
    let head = format!("Host: localhost\r\nContent-Length: {}\r\n", body.len());
    request(address, &format!("PUT {path}"), &head, body).await
}

pub(crate) async fn put_json(address: SocketAddr, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    request(address, &format!("PUT {path}"), &head, body.as_bytes()).await
}

pub(crate) async fn delete(address: SocketAddr, path: &str) -> Answer {
    request(address, &format!("DELETE {path}"), "Host: localhost\r\n", b"").await
}

/// Uploads a package and gives what is shown of it.
pub(crate) async fn upload(running: &Running, name: &str, version: &str, body: &[u8]) -> Value {
    let path = format!("/api/v1/packages/{name}/{version}");
    let answer = put(running.rest_addr(), &path, body).await;
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

/// Offers packages, each `(name, version)`, and gives the answer.
pub(crate) async fn offer(running: &Running, target: &str, packages: &[(&str, &str)]) -> Value {
    let list: Vec<_> =
        packages.iter().map(|(name, version)| json!({"name": name, "version": version})).collect();
    let body = json!({"target": target, "packages": list});
    let answer = put_json(running.rest_addr(), "/api/v1/offers/packages", &body).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

/// A message of an agent that takes packages.
pub(crate) fn with_packages(message: AgentToServer) -> AgentToServer {
    let capabilities = message.capabilities
        | AgentCapabilities::AcceptsPackages as u64
        | AgentCapabilities::ReportsPackageStatuses as u64;
    let package_statuses = message
        .agent_description
        .is_some()
        .then(PackageStatuses::default)
        .or_else(|| message.package_statuses.clone());
    AgentToServer { capabilities, package_statuses, ..message }
}

/// What an agent says that has taken up an offer: each package with its version, hash and status.
pub(crate) fn package_statuses(
    message: AgentToServer,
    all: &[u8],
    packages: &[(&str, &str, &[u8], PackageStatusEnum)],
) -> AgentToServer {
    let one = |(name, version, hash, status): &(&str, &str, &[u8], PackageStatusEnum)| {
        let mut one = PackageStatus {
            name: (*name).to_owned(),
            server_offered_version: (*version).to_owned(),
            server_offered_hash: Bytes::copy_from_slice(hash),
            ..PackageStatus::default()
        };
        match status {
            PackageStatusEnum::Installed => {
                one.agent_has_version.clone_from(&one.server_offered_version);
                one.agent_has_hash = one.server_offered_hash.clone();
            }
            PackageStatusEnum::InstallFailed => one.error_message = "<b>no</b>".to_owned(),
            PackageStatusEnum::Downloading => {
                one.download_details = Some(PackageDownloadDetails {
                    download_percent: 42.5,
                    download_bytes_per_second: f64::INFINITY,
                });
            }
            _ => {}
        }
        one.set_status(*status);
        ((*name).to_owned(), one)
    };
    let statuses = PackageStatuses {
        packages: packages.iter().map(one).collect(),
        server_provided_all_packages_hash: Bytes::copy_from_slice(all),
        error_message: String::new(),
    };
    with_packages(AgentToServer { package_statuses: Some(statuses), ..message })
}

/// The same agent, taking connection settings and saying what became of them.
pub(crate) fn with_connections(message: AgentToServer) -> AgentToServer {
    let capabilities = message.capabilities
        | AgentCapabilities::AcceptsOpAmpConnectionSettings as u64
        | AgentCapabilities::ReportsConnectionSettingsStatus as u64;
    AgentToServer { capabilities, ..message }
}

pub(crate) fn connection_status(
    message: AgentToServer,
    hash: &[u8],
    status: ConnectionSettingsStatuses,
    error: &str,
) -> AgentToServer {
    let mut report = ConnectionSettingsStatus {
        last_connection_settings_hash: Bytes::copy_from_slice(hash),
        error_message: error.to_owned(),
        ..ConnectionSettingsStatus::default()
    };
    report.set_status(status);
    with_connections(AgentToServer { connection_settings_status: Some(report), ..message })
}

/// A message that asks for a certificate.
pub(crate) fn with_request(message: AgentToServer, csr: &str) -> AgentToServer {
    let csr = Bytes::copy_from_slice(csr.as_bytes());
    let opamp = Some(OpAmpConnectionSettingsRequest {
        certificate_request: Some(CertificateRequest { csr }),
    });
    let request = Some(ConnectionSettingsRequest { opamp });
    with_connections(AgentToServer { connection_settings_request: request, ..message })
}
