//! Figures that only the workload knows, from its Prometheus endpoint.
//!
//! Read line by line and never kept: what counts is what a few names add up to. A Collector writes its metrics without
//! units and `_total` (v0.162), others with them; both are taken.

use core::time::Duration;

use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::check::{Why, open, parse_status};
use crate::reactor::within;
use crate::settings::HttpTarget;
use crate::settings::endpoint::Authority;

/// How long a scrape may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read of an answer. A Collector's is tens of KiB, at `level: detailed` hundreds.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Bytes of a line; a longer one is no sample of ours.
const MAX_LINE: usize = 8 * 1024;
/// Bytes read at once: after each the others have their turn.
const CHUNK: usize = 4096;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scraped {
    /// Goroutines.
    pub goroutines: Option<f64>,
    /// Spans received so far.
    pub spans: Option<f64>,
    /// Seconds that all requests to others took together so far.
    pub seconds: Option<f64>,
    /// How many these were.
    pub requests: Option<f64>,
}

/// Reads the endpoint once.
///
/// # Errors
/// When it does not answer with status 2xx, in time and within [`MAX_ANSWER`].
pub async fn scrape(target: &HttpTarget, limit: Duration) -> Result<Scraped, Why> {
    within(limit, get(target, limit)).await.unwrap_or(Err(Why::TimedOut(limit)))
}

async fn get(target: &HttpTarget, limit: Duration) -> Result<Scraped, Why> {
    let mut stream = open(&target.host, target.port, limit).await?;
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: chiton\r\nAccept: text/plain\r\n\r\n",
        target.path,
        Authority(&target.host, target.port)
    );
    stream.write_all(request.as_bytes()).await.map_err(Why::Broken)?;
    let mut lines = Lines::default();
    let mut chunk = [0; CHUNK];
    let mut total: usize = 0;
    loop {
        let count = stream.read(&mut chunk).await.map_err(Why::Broken)?;
        let bytes = chunk.get(..count).unwrap_or_default();
        total = total.saturating_add(count);
        if total > MAX_ANSWER {
            return Err(Why::TooLong(MAX_ANSWER));
        }
        for byte in bytes {
            lines.push(*byte)?;
        }
        if count == 0 {
            return lines.end();
        }
        smol::future::yield_now().await;
    }
}

/// An answer as it comes in.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    /// The line is too long: the rest of it is skipped.
    skips: bool,
    part: Part,
    found: Scraped,
}

#[derive(Default, PartialEq, Eq)]
enum Part {
    #[default]
    Status,
    Headers,
    Body,
}

impl Lines {
    fn push(&mut self, byte: u8) -> Result<(), Why> {
        if byte == b'\n' {
            return self.whole();
        }
        if self.line.len() < MAX_LINE {
            self.line.push(byte);
        } else {
            self.skips = true;
        }
        Ok(())
    }

    /// A line is there.
    fn whole(&mut self) -> Result<(), Why> {
        let mut line = core::mem::take(&mut self.line);
        let skips = core::mem::take(&mut self.skips);
        match self.part {
            Part::Status => match parse_status(&line) {
                Some(200..=299) => self.part = Part::Headers,
                Some(status) => return Err(Why::Status(status)),
                None => return Err(Why::NotHttp),
            },
            Part::Headers if matches!(line.as_slice(), b"" | b"\r") => self.part = Part::Body,
            Part::Headers => {}
            Part::Body if skips => {}
            Part::Body => self.found.take(&line),
        }
        line.clear();
        self.line = line;
        Ok(())
    }

    fn end(mut self) -> Result<Scraped, Why> {
        if self.part != Part::Body {
            return Err(Why::NotHttp);
        }
        self.whole()?;
        Ok(self.found)
    }
}

impl Scraped {
    /// One line of the text format; what is not understood is nothing.
    fn take(&mut self, line: &[u8]) {
        let Some((name, value)) = core::str::from_utf8(line).ok().and_then(sample) else { return };
        let add = |to: &mut Option<f64>, value| *to = Some(to.unwrap_or(0.0) + value);
        let name = name.strip_suffix("_total").unwrap_or(name);
        match name {
            "go_goroutines" | "go_goroutine_count" | "process_runtime_go_goroutines" => {
                self.goroutines = Some(value);
            }
            "otelcol_receiver_accepted_spans" => add(&mut self.spans, value),
            _ => {
                let Some((name, part)) = name.rsplit_once('_') else { return };
                let Some(scale) = request_duration(name) else { return };
                match part {
                    "sum" => add(&mut self.seconds, value * scale),
                    "count" => add(&mut self.requests, value),
                    _ => {}
                }
            }
        }
    }
}

/// Seconds in the unit of a histogram of what requests to others took: OpenTelemetry's HTTP and gRPC clients, by
/// their names of today and of before.
fn request_duration(name: &str) -> Option<f64> {
    match name {
        "http_client_request_duration"
        | "http_client_request_duration_seconds"
        | "rpc_client_call_duration"
        | "rpc_client_call_duration_seconds" => Some(1.0),
        "http_client_duration"
        | "http_client_duration_milliseconds"
        | "rpc_client_duration"
        | "rpc_client_duration_milliseconds" => Some(0.001),
        _ => None,
    }
}

/// `name{label="value",…} value [time]`: name and value, where that is a count.
fn sample(line: &str) -> Option<(&str, f64)> {
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = line.split_at_checked(end)?;
    let rest = if rest.starts_with('{') { after_labels(rest)? } else { rest };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((name, value))
}

/// What follows `{…}`; brackets in quotes do not end it.
fn after_labels(text: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return text.get(at.checked_add(1)?..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(answer: &[u8]) -> Result<Scraped, Why> {
        let mut lines = Lines::default();
        for byte in answer {
            lines.push(*byte)?;
        }
        lines.end()
    }

    fn body(text: &str) -> Scraped {
        read(format!("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{text}").as_bytes()).unwrap()
    }

    #[test]
    fn what_a_collector_says_is_added_up() {
        let found = body(concat!(
            "# HELP otelcol_receiver_accepted_spans Spans. [Alpha]\n",
            "# TYPE otelcol_receiver_accepted_spans counter\n",
            "otelcol_receiver_accepted_spans{receiver=\"otlp\",transport=\"http\"} 40\n",
            "otelcol_receiver_accepted_spans{receiver=\"a } \\\" b\",transport=\"grpc\"} 2 1700000000000\r\n",
            "otelcol_receiver_accepted_spans_x 1000\n",
            "http_client_request_duration_bucket{le=\"0.5\"} 7\n",
            "http_client_request_duration_sum{server_port=\"4318\"} 1.5\n",
            "http_client_request_duration_count{server_port=\"4318\"} 6\n",
            "rpc_client_duration_milliseconds_sum 500\n",
            "rpc_client_duration_milliseconds_count 2\n",
            "go_goroutines 1.2e+01",
        ));
        let expected = Scraped {
            goroutines: Some(12.0),
            spans: Some(42.0),
            seconds: Some(2.0),
            requests: Some(8.0),
        };
        assert_eq!(found, expected);
        assert_eq!(body("otelcol_receiver_accepted_spans_total 3\n").spans, Some(3.0));
        assert_eq!(body("process_runtime_go_goroutines 3\n").goroutines, Some(3.0));
    }

    #[test]
    fn what_is_no_count_is_nothing() {
        for text in [
            "",
            "go_goroutines",
            "go_goroutines NaN",
            "go_goroutines +Inf",
            "go_goroutines -1",
            "go_goroutines many",
            "go_goroutines{a=\"} 5",
            "go_goroutines{a=\"b\"}",
            " go_goroutines 5",
            "# go_goroutines 5",
            "<html><body>go_goroutines 5</body></html>",
            "_ 1\n{} 1\n__ 1",
        ] {
            assert_eq!(body(text), Scraped::default(), "{text}");
        }
        let mut answer = b"HTTP/1.1 204 No\r\n\r\n\xff\xfe 5\ngo_goroutines{a=\"".to_vec();
        answer.extend(vec![b'x'; 3 * MAX_LINE]);
        answer.extend(b"\"} 5\ngo_goroutines 6\n");
        assert_eq!(read(&answer).unwrap().goroutines, Some(6.0), "a line too long is skipped");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(matches!(read(b""), Err(Why::NotHttp)));
        assert!(matches!(read(b"go_goroutines 5\n"), Err(Why::NotHttp)));
        assert!(matches!(read(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Err(Why::NotHttp)));
        assert!(matches!(read(b"HTTP/1.1 404 Not Found\r\n\r\n"), Err(Why::Status(404))));
    }
}
