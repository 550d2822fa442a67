//! A large package through the static binary, and through `curl && sha256sum && sync`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chiton::signature::Manifest;
use sha2::{Digest as _, Sha256};

use crate::common::packages::{package, packages, signed, trusted};
use crate::common::{Home, Server, Settings, read_head};

const MIB: u64 = 1 << 20;
/// How often the agent is killed, and its connection cut, where it is.
const BREAKS: u64 = 5;

pub struct Row {
    pub what: &'static str,
    pub seconds: f64,
    pub peak: u64,
    pub fetched: u64,
    /// Bytes written to the disk; 0 on tmpfs, and where it was not watched.
    pub written: u64,
}

/// Bytes that do not compress.
pub fn make(path: &Path, size: u64) -> [u8; 32] {
    let mut file = File::create(path).unwrap();
    let mut hash = Sha256::new();
    let mut state = 1_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..size / MIB {
        for word in block.as_chunks_mut::<8>().0 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *word = (state ^ (state >> 29)).to_le_bytes();
        }
        file.write_all(&block).unwrap();
        hash.update(&block);
    }
    hash.finalize().into()
}

/// Serves the files of a directory with ranges, and counts.
pub struct Shelf {
    port: u16,
    sent: Arc<AtomicU64>,
    /// A connection is cut when so many bytes have gone over all of them; 0: never.
    cut_at: Arc<AtomicU64>,
}

impl Shelf {
    pub fn open(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, cut_at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, cut, dir) = (Arc::clone(&sent), Arc::clone(&cut_at), dir.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, cut, dir) = (Arc::clone(&counted), Arc::clone(&cut), dir.clone());
                thread::spawn(move || serve(stream, &dir, &counted, &cut));
            }
        });
        Self { port, sent, cut_at }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }
}

fn serve(mut stream: TcpStream, dir: &Path, sent: &AtomicU64, cut_at: &AtomicU64) {
    let head = read_head(&mut stream);
    let name = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
    let mut file = File::open(dir.join(name)).unwrap();
    let size = file.metadata().unwrap().len();
    let range = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
    });
    let from: u64 = range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0);
    file.seek(SeekFrom::Start(from)).unwrap();
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nETag: \"one\"\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\n",
        size - from
    );
    if from > 0 {
        answer.push_str(&format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1));
    }
    answer.push_str("\r\n");
    if stream.write_all(answer.as_bytes()).is_err() || head.starts_with("HEAD") {
        return;
    }
    let mut part = vec![0; 256 * 1024];
    loop {
        let count = file.read(&mut part).unwrap();
        let cut = cut_at.load(Ordering::SeqCst);
        if cut > 0 && sent.load(Ordering::SeqCst) >= cut {
            cut_at.store(0, Ordering::SeqCst);
            return;
        }
        if count == 0 || stream.write_all(part.get(..count).unwrap()).is_err() {
            return;
        }
        sent.fetch_add(count as u64, Ordering::SeqCst);
    }
}

/// What came of one way.
#[derive(Default)]
struct Ran {
    peak: u64,
    written: u64,
    /// Where it was timed from nearer by.
    seconds: Option<f64>,
}

fn measured(what: &'static str, shelf: &Shelf, run: impl FnOnce() -> Ran) -> Row {
    let before = shelf.sent.load(Ordering::SeqCst);
    let begun = Instant::now();
    let Ran { peak, written, seconds } = run();
    let seconds = seconds.unwrap_or_else(|| begun.elapsed().as_secs_f64());
    Row { what, seconds, peak, fetched: shelf.sent.load(Ordering::SeqCst) - before, written }
}

/// What a script would do.
pub fn curl(dir: &Path, shelf: &Shelf) -> Row {
    let script = format!(
        "cd {} && curl -s -o got {} && sha256sum got >/dev/null && sync got",
        dir.display(),
        shelf.url("payload")
    );
    let row = measured("curl && sha256sum && sync", shelf, || {
        peak_of(Command::new("sh").args(["-c", &script]))
    });
    fs::remove_file(dir.join("got")).unwrap();
    row
}

/// Runs a command to its end; the largest peak of it and its children, KiB, and its time without Python's own start.
fn peak_of(command: &mut Command) -> Ran {
    let mut child = Command::new("/usr/bin/env")
        .args(["python3", "-c"])
        .arg("import sys,time,resource,subprocess;t=time.monotonic();r=subprocess.run(sys.argv[1:],stdout=2).returncode;t=time.monotonic()-t;print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,t);sys.exit(r)")
        .arg(command.get_program())
        .args(command.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
    let (peak, seconds) = text.trim().split_once(' ').unwrap();
    Ran { peak: peak.parse().unwrap(), seconds: seconds.parse().ok(), ..Ran::default() }
}

/// Fetch, verify, install; `breaks`: killed and cut on the way.
pub fn chiton(
    what: &'static str,
    binary: &Path,
    dir: &Path,
    digest: &[u8; 32],
    size: u64,
    shelf: &Shelf,
    breaks: bool,
) -> Row {
    let (home, server) = (Home::below(dir), Server::new());
    let settings = Settings {
        capabilities: vec!["accepts_packages"],
        opamp: vec![
            "remote_config: { rollback: { window: 10s, interval: 10ms, successes: 1 } }".to_owned(),
            format!("packages: {{ trusted_keys: [{}], max_size: 8GiB }}", trusted(&home, 1)),
        ],
        ..Settings::default()
    };
    home.settings(&server.ws(), &settings);
    let manifest = Manifest {
        name: "data".to_owned(),
        version: "1".to_owned(),
        size,
        sha256: digest.to_vec(),
        issued_at: 1_900_000_000,
        counter: 1,
        ..Manifest::default()
    };
    let mut offer = package("1", &shelf.url("payload"), &[], signed(&manifest, &[1]));
    offer.r#type = 1;
    let file = offer.file.as_mut().unwrap();
    file.content_hash = digest.to_vec().into();
    let mut agent = home.start_by(Command::new(binary));
    let (mut peer, first) = server.greet();
    let uid = first.instance_uid;
    peer.proves_to_work(&uid);
    measured(what, shelf, || {
        let begun = shelf.sent.load(Ordering::SeqCst);
        let (mut peak, mut wrote) = (0, 0);
        peer.send(&packages(&uid, "all", vec![("data".to_owned(), offer.clone())]));
        for count in 1..=BREAKS {
            if !breaks {
                break;
            }
            let step = size / (2 * BREAKS + 1);
            shelf.cut_at.store(begun + (2 * count - 1) * step, Ordering::SeqCst);
            while shelf.sent.load(Ordering::SeqCst) < begun + 2 * count * step {
                thread::sleep(Duration::from_millis(1));
            }
            peak = peak.max(high_water(agent.pid()));
            wrote += written(agent.pid());
            drop(agent);
            drop(peer);
            agent = home.start_by(Command::new(binary));
            peer = server.greet().0;
            peer.send(&packages(&uid, "all", vec![("data".to_owned(), offer.clone())]));
        }
        let status = peer.package("all", "data");
        assert!(status.error_message.is_empty(), "{}", status.error_message);
        Ran {
            peak: peak.max(high_water(agent.pid())),
            written: wrote + written(agent.pid()),
            seconds: None,
        }
    })
}

/// Bytes that a process has caused to be written.
fn written(pid: i32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.trim().parse().unwrap()
}

/// VmHWM, KiB.
fn high_water(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// An image with the payload as its one file, signed as Debian's SWUpdate wants it.
pub fn swupdate(dir: &Path, digest: &[u8; 32], shelf: &Shelf) -> Option<Row> {
    let has = Command::new("swupdate")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !has.is_ok_and(|status| status.success()) {
        println!("swupdate is not installed: left out");
        return None;
    }
    let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let description = format!(
        "software = {{ version = \"1.0\"; hardware-compatibility = [ \"1.0\" ];\n files: ( {{ filename = \"payload\"; path = \"{}/out\"; sha256 = \"{sha256}\"; }} ); }}\n",
        dir.display()
    );
    fs::write(dir.join("sw-description"), description).unwrap();
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=x -addext extendedKeyUsage=emailProtection -days 10 2>/dev/null && \
        openssl cms -sign -in sw-description -out sw-description.sig -signer c.pem -inkey k.pem -outform DER -nosmimecap -binary && \
        printf 'sw-description\\nsw-description.sig\\npayload\\n' | cpio -o -H crc > img.swu 2>/dev/null";
    assert!(Command::new("sh").args(["-c", script]).current_dir(dir).status().unwrap().success());
    let row = measured("swupdate -d", shelf, || {
        let script = format!(
            "cd {} && exec swupdate -m -M -H board:1.0 -k c.pem -l 1 -d '-u {}'",
            dir.display(),
            shelf.url("img.swu")
        );
        peak_of(Command::new("sh").args(["-c", &script]))
    });
    assert!(dir.join("out").exists(), "swupdate has installed it");
    fs::remove_file(dir.join("img.swu")).unwrap();
    fs::remove_file(dir.join("out")).unwrap();
    Some(row)
}
