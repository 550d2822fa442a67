//! A server of plain HTTP that does as it is told: a test reads each request and writes each answer itself.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use chiton_proto::{AgentToServer, Message as _, RemoteConfigStatus, ServerToAgent};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::{Agent, PATIENCE, Server, Stream, read_head};

/// One connection.
pub(crate) struct Http {
    stream: Stream,
}

/// One request.
pub(crate) struct Request {
    pub(crate) head: String,
    /// Bytes of the body on the wire.
    pub(crate) size: usize,
    pub(crate) report: AgentToServer,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The least that a server says.
    pub(crate) fn to(&self) -> ServerToAgent {
        ServerToAgent { instance_uid: self.report.instance_uid.clone(), ..ServerToAgent::default() }
    }

    /// It says no more than that the agent is there.
    pub(crate) fn is_poll(&self) -> bool {
        let least = AgentToServer {
            instance_uid: self.report.instance_uid.clone(),
            sequence_num: self.report.sequence_num,
            capabilities: self.report.capabilities,
            ..AgentToServer::default()
        };
        self.report == least
    }
}

impl Http {
    pub(crate) const fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// The next connection of a server.
    pub(crate) fn accept(server: &Server) -> Self {
        Self::new(Stream::Plain(server.tcp()))
    }

    /// The next connection and its first request, not answered yet.
    pub(crate) fn asked(server: &Server) -> (Self, Request) {
        let mut http = Self::accept(server);
        let request = http.request();
        (http, request)
    }

    /// The next request, held against what holds for each of them.
    pub(crate) fn request(&mut self) -> Request {
        let head = self.head();
        self.body(head)
    }

    /// The head of the next request; its body is still to be read.
    pub(crate) fn head(&mut self) -> String {
        read_head(&mut self.stream)
    }

    pub(crate) fn body(&mut self, head: String) -> Request {
        let mut request = Request { head, size: 0, report: AgentToServer::default() };
        assert!(request.head.starts_with("POST /v1/opamp HTTP/1.1\r\n"), "{}", request.head);
        assert_eq!(request.header("Content-Type"), Some("application/x-protobuf"));
        assert_eq!(request.header("Accept-Encoding"), Some("gzip"));
        request.size = request.header("Content-Length").unwrap().parse().unwrap();
        let mut body = vec![0; request.size];
        self.stream.read_exact(&mut body).unwrap();
        match request.header("Content-Encoding") {
            None => {}
            Some("gzip") => body = gunzip(&body),
            Some(other) => panic!("Content-Encoding: {other}"),
        }
        request.report = AgentToServer::decode(body.as_slice()).unwrap();
        let uid: String =
            request.report.instance_uid.iter().map(|byte| format!("{byte:02x}")).collect();
        let named = request.header("OpAMP-Instance-UID").unwrap();
        assert_eq!(named.len(), 36, "canonical: {named}");
        assert_eq!(named.replace('-', ""), uid);
        request
    }

    /// Bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// An answer with these headers and body, and its length.
    pub(crate) fn answer(&mut self, headers: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.write(&[head.as_bytes(), body].concat());
    }

    pub(crate) fn send(&mut self, message: &ServerToAgent) {
        self.answer("Content-Type: application/x-protobuf\r\n", &message.encode_to_vec());
    }

    /// Answers requests until one fits, and that one too.
    pub(crate) fn until(&mut self, what: &str, mut fits: impl FnMut(&Request) -> bool) -> Request {
        let end = Instant::now() + PATIENCE;
        loop {
            let request = self.request();
            self.send(&request.to());
            if fits(&request) {
                return request;
            }
            assert!(Instant::now() < end, "in vain: {what}");
        }
    }

    /// The remote config status of the next report that has one for this hash and status.
    pub(crate) fn status(
        &mut self,
        hash: &str,
        status: chiton_proto::RemoteConfigStatuses,
    ) -> RemoteConfigStatus {
        let request = self.until(&format!("{hash} {status:?}"), |request| {
            request.report.remote_config_status.as_ref().is_some_and(|sent| {
                sent.last_remote_config_hash == hash.as_bytes() && sent.status() == status
            })
        });
        request.report.remote_config_status.unwrap()
    }

    /// Writes a part again and again, until the agent has had enough: how much it took.
    pub(crate) fn writes_until_dropped(&mut self, head: &[u8], part: &[u8]) -> usize {
        let end = Instant::now() + PATIENCE;
        let mut written = 0;
        self.write(head);
        while self.stream.write_all(part).is_ok() {
            written += part.len();
            assert!(Instant::now() < end, "the agent reads for ever");
        }
        written
    }

    /// Nothing more is asked within the window.
    pub(crate) fn quiet_for(&mut self, window: Duration) {
        self.stream.tcp().set_read_timeout(Some(window)).unwrap();
        let came = self.stream.read(&mut [0]);
        assert!(came.is_err(), "{came:?}");
        self.stream.tcp().set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// The agent has let go of the connection.
    pub(crate) fn is_dropped(&mut self) {
        let came = self.stream.read(&mut [0]);
        assert!(!matches!(came, Ok(1..)), "a request on a connection that is of no use");
    }

    /// SIGTERM; the last request says so, and the agent ends in order.
    pub(crate) fn stop(mut self, agent: Agent<'_>) -> String {
        agent.terminate();
        self.until("agent_disconnect", |request| request.report.agent_disconnect.is_some());
        self.is_dropped();
        agent.ended()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}
