//! Packages fetched from an enemy: servers that stall, lie about sizes and ranges, never end, or point elsewhere.
//! `CHITON_FETCH_HASTE` (debug builds only) makes the patience of a download short. After each attack a good package
//! must go through.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use chiton_proto::{PackageAvailable, PackageStatus, PackageStatusEnum, PackageStatuses};
use common::packages::{
    Files, digest_form, drain, honest, manifest, offered, package, packages, signed, trusted,
};
use common::{Agent, Home, Peer, Server, Settings, eventually};

use PackageStatusEnum::{InstallFailed, Installed};

type Offer = (String, PackageAvailable);

/// More than `Limits::progress`, so that what came of it counts.
const LARGE: usize = 200_000;
/// Requests for one offer of one file, at most: `Limits::tries` without progress and some with.
const MOST_REQUESTS: usize = 12;

struct World {
    home: Home,
    server: Server,
    files: Files,
}

struct Link<'a> {
    world: &'a World,
    agent: Agent<'a>,
    peer: Peer,
    uid: Vec<u8>,
    offers: u32,
}

impl World {
    fn new(more: &str) -> Self {
        let world = Self { home: Home::new(), server: Server::new(), files: Files::new() };
        let settings = Settings {
            capabilities: vec!["accepts_packages"],
            command: Some("[\"{package_dir:prog}/prog\"]".to_owned()),
            opamp: vec![
                "remote_config: { rollback: { window: 10s, interval: 20ms, successes: 2 }, min_interval: 1ms }"
                    .to_owned(),
                format!("packages: {{ trusted_keys: [{}] {more} }}", trusted(&world.home, 1)),
            ],
            ..Settings::default()
        };
        world.home.settings(&world.server.ws(), &settings);
        world
    }

    fn start(&self) -> Link<'_> {
        let agent = self.home.start_with(&[("CHITON_FETCH_HASTE", "1")]);
        let (peer, first) = self.server.greet();
        Link { world: self, agent, peer, uid: first.instance_uid.to_vec(), offers: 0 }
    }

    /// A program of some length.
    fn program(&self, version: &str) -> Vec<u8> {
        let mut body = self.home.program(version, "");
        let filler = format!("# {version} {}\n", "x".repeat(61));
        while body.len() < LARGE {
            body.extend_from_slice(filler.as_bytes());
        }
        body
    }

    fn prog(&self, version: &str, counter: u64) -> Offer {
        offered(&self.files, "prog", version, counter, &self.program(version))
    }

    fn addon(&self, name: &str, version: &str, counter: u64) -> Offer {
        let (name, mut offer) =
            offered(&self.files, name, version, counter, format!("{name} {version}").as_bytes());
        offer.r#type = 1;
        (name, offer)
    }

    /// Files below packages_dir.
    fn holds(&self) -> Vec<PathBuf> {
        common::files_with(&self.home.packages(), "")
    }

    fn asked_for(&self, name: &str) -> usize {
        self.files.asked().iter().filter(|head| head.contains(&format!("/{name} "))).count()
    }
}

impl Link<'_> {
    fn send(&mut self, offers: Vec<Offer>) -> String {
        self.offers += 1;
        let hash = format!("{}-{}", self.agent.pid(), self.offers);
        self.peer.send(&packages(&self.uid, &hash, offers));
        hash
    }

    fn offer(&mut self, offers: Vec<Offer>) -> PackageStatuses {
        let hash = self.send(offers);
        self.peer.packages(&hash)
    }

    fn outcome(&mut self, offer: Offer) -> PackageStatus {
        let name = offer.0.clone();
        self.offer(vec![offer]).packages.remove(&name).unwrap()
    }

    fn refused(&mut self, offer: Offer, word: &str) {
        let status = self.outcome(offer);
        assert_eq!(status.status(), InstallFailed, "{status:?}");
        assert!(status.error_message.contains(word), "{word}: {status:?}");
    }

    fn installs(&mut self, offer: Offer) {
        let version = offer.1.version.clone();
        let status = self.outcome(offer);
        assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
        self.runs(&version);
    }

    fn runs(&self, version: &str) {
        eventually(&format!("{version} runs"), || {
            let pid = *self.world.home.pids().last()?;
            (common::is_alive(pid) && self.world.home.version(pid) == version).then_some(())
        });
    }

    /// The most memory that the agent ever had, KiB.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// It still works: a good package goes through, and nothing of the bad ones is left.
    fn ends_well(mut self) {
        self.world.files.honestly();
        let good = self.world.prog("99.0", u64::MAX);
        self.installs(good);
        let incoming = self.world.home.packages().join("incoming");
        eventually("no part is left", || {
            let left = fs::read_dir(&incoming).into_iter().flatten().count();
            (left == 0).then_some(())
        });
        self.peer.proves_to_work(&self.uid);
        self.agent.stop_with(self.peer);
    }
}

fn is_for(head: &str, name: &str) -> bool {
    head.contains(&format!("/{name} "))
}

fn write(stream: &mut TcpStream, head: &str, body: &[u8]) {
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

/// A server that holds a download after so many bytes until the test lets go.
fn hold(files: &Files, most: usize) -> (Receiver<()>, std::sync::mpsc::Sender<()>) {
    let (held, holds) = channel();
    let (go, goes) = channel::<()>();
    let goes = Mutex::new(goes);
    files.oddly(move |head, body, stream| {
        let (head, body) = honest(head, body);
        write(stream, &head, &body[..most]);
        let _ = held.send(());
        let _ = goes.lock().unwrap().recv();
        let _ = stream.write_all(&body[most..]);
        drain(stream);
        true
    });
    (holds, go)
}

#[test]
fn a2_a_file_swapped_while_it_comes_never_runs() {
    let world = World::new("");
    // At the usual pace: the swap takes its time.
    let agent = world.home.start();
    let (peer, first) = world.server.greet();
    let mut link = Link { world: &world, agent, peer, uid: first.instance_uid.to_vec(), offers: 0 };
    let (holds, go) = hold(&world.files, LARGE / 2);
    let hash = link.send(vec![world.prog("1.0", 1)]);
    holds.recv().unwrap();
    let incoming = world.home.packages().join("incoming");
    let part = eventually("the part is there", || {
        let mut found = fs::read_dir(&incoming).ok()?.flatten().map(|entry| entry.path());
        found.find(|path| path.extension().is_some_and(|end| end == "part"))
    });
    let evil = world.home.path("evil");
    fs::write(&evil, world.home.program("evil", "")).unwrap();
    fs::rename(&evil, &part).unwrap();
    go.send(()).unwrap();
    let status = link.peer.package(&hash, "prog");
    assert_eq!(status.status(), InstallFailed, "{status:?}");
    drop(go);
    world.files.honestly();
    link.installs(world.prog("1.1", 1));
    assert!(world.home.pids().iter().all(|pid| world.home.version(*pid) != "evil"));
    link.ends_well();
}

#[test]
fn a2_a_swapper_that_never_tires_brings_nothing_of_his_to_run() {
    let world = World::new("");
    let mut link = world.start();
    let incoming = world.home.packages().join("incoming");
    let evil = world.home.program("evil", "");
    let over = Arc::new(Mutex::new(false));
    let swapper = {
        let (over, path) = (Arc::clone(&over), world.home.path("evil"));
        thread::spawn(move || {
            while !*over.lock().unwrap() {
                for entry in fs::read_dir(&incoming).into_iter().flatten().flatten() {
                    if entry.path().extension().is_some_and(|end| end == "part") {
                        fs::write(&path, &evil).unwrap();
                        let _ = fs::rename(&path, entry.path());
                    }
                }
            }
        })
    };
    for (number, version) in (1..).zip(["1.0", "1.1", "1.2", "1.3"]) {
        let status = link.outcome(world.prog(version, number));
        let installed = status.status() == Installed;
        assert!(installed || !status.error_message.is_empty(), "{status:?}");
    }
    *over.lock().unwrap() = true;
    swapper.join().unwrap();
    assert!(world.home.pids().iter().all(|pid| world.home.version(*pid) != "evil"));
    link.ends_well();
}

#[test]
fn a3_sizes_around_the_powers_of_two_do_not_fool_it() {
    const SIZES: [u64; 6] =
        [(1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32, (1 << 32) + 1];
    for more in ["", ", max_size: 64GiB"] {
        let world = World::new(more);
        let mut link = world.start();
        let body = world.program("1.0");
        for size in SIZES.into_iter().chain([u64::MAX, u64::MAX - 1, 1 << 63]) {
            let other = world.program("2.0");
            world.files.put("big", &other);
            let mut says = manifest("prog", "2.0", 1, &other);
            says.size = size;
            let offer = package("2.0", &world.files.url("big"), &other, signed(&says, &[1]));
            // The server says so too, and sends less.
            world.files.oddly(move |_, body, stream| {
                let head =
                    format!("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: {size}\r\n\r\n");
                write(stream, &head, body);
                true
            });
            link.refused(("prog".to_owned(), offer), "");
            // It says so of a file that was signed with its true size.
            world.files.put("big", &body);
            let says = signed(&manifest("prog", "1.0", 1, &body), &[1]);
            let offer = package("1.0", &world.files.url("big"), &body, says);
            link.refused(("prog".to_owned(), offer), "signed");
            // A length that, cut to 32 bits, would be the right one.
            let wrapped = body.len() as u64 + (1 << 32);
            world.files.oddly(move |_, body, stream| {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {wrapped}\r\n\r\n");
                write(stream, &head, body);
                true
            });
            let says = signed(&manifest("prog", "1.0", 1, &body), &[1]);
            let offer = package("1.0", &world.files.url("big"), &body, says);
            link.refused(("prog".to_owned(), offer), "signed");
        }
        let disk: u64 = world.holds().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(disk < 10 * LARGE as u64, "{disk} bytes on the disk");
        link.ends_well();
    }
}

#[test]
fn p1_all_of_a_set_or_nothing() {
    let world = World::new("");
    let mut link = world.start();
    link.installs(world.prog("1.0", 1));
    let pid = world.home.workload(1);
    for round in 2..5_u64 {
        let version = format!("{round}.0");
        let dropped = format!("b-{version}");
        let name = dropped.clone();
        world.files.oddly(move |head, _, _| is_for(head, &name));
        let set = vec![
            world.addon("a", &version, round),
            world.addon("b", &version, round),
            world.prog(&version, round),
        ];
        let told = link.offer(set);
        assert!(told.packages.values().all(|it| it.status() == InstallFailed), "{told:?}");
        assert_eq!(told.packages["prog"].agent_has_version, "1.0");
        assert!(told.packages["prog"].error_message.contains('b'), "{told:?}");
        assert!(world.asked_for(&dropped) <= MOST_REQUESTS, "{}", world.asked_for(&dropped));
        assert_eq!((world.home.pids().len(), common::is_alive(pid)), (1, true));
        assert_eq!(world.home.installed("a").len(), 0);
    }
    world.files.honestly();
    let trees = world.home.packages().join("trees");
    let records = || {
        let names = fs::read_dir(&trees).unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".tree")).count()
    };
    assert!(records() <= 3, "what was obtained for offers that failed piles up: {}", records());
    let set = vec![world.addon("a", "4.0", 4), world.addon("b", "4.0", 4), world.prog("4.0", 4)];
    let told = link.offer(set);
    assert!(told.packages.values().all(|it| it.status() == Installed), "{told:?}");
    link.runs("4.0");
    link.ends_well();
}

#[test]
fn e1_data_without_end_is_cut_off_and_takes_no_memory() {
    let world = World::new(", signature: digest, max_size: 4MiB");
    let mut link = world.start();
    let body = world.program("1.0");
    let place = "prog-1.0";
    world.files.put(place, &body);
    let by_manifest = || {
        let says = signed(&manifest("prog", "1.0", 1, &body), &[1]);
        ("prog".to_owned(), package("1.0", &world.files.url(place), &body, says))
    };
    let by_digest = || {
        let says = digest_form(&body, 1);
        ("prog".to_owned(), package("1.0", &world.files.url(place), &body, says))
    };
    let sent = Arc::new(Mutex::new(0_u64));
    let endless = |head: &'static str, chunk: &'static str| {
        let sent = Arc::clone(&sent);
        world.files.oddly(move |_, _, stream| {
            let _ = stream.write_all(head.as_bytes());
            let piece = format!("{chunk}{}", "z".repeat(0x1_0000));
            let end = if chunk.is_empty() { "" } else { "\r\n" };
            while stream.write_all(piece.as_bytes()).is_ok()
                && stream.write_all(end.as_bytes()).is_ok()
            {
                *sent.lock().unwrap() += 0x1_0000;
            }
            true
        });
    };
    let cases: [(&str, &str); 4] = [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n"),
        ("HTTP/1.1 200 OK\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "ffffffffffffffff\r\n"),
    ];
    for (head, chunk) in cases {
        endless(head, chunk);
        link.refused(by_manifest(), "");
        link.refused(by_digest(), "");
    }
    // A head that does not end, and chunks with extensions without end.
    endless("HTTP/1.1 200 OK\r\nX: ", "");
    link.refused(by_manifest(), "");
    endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "");
    link.refused(by_manifest(), "");
    let sent = *sent.lock().unwrap();
    assert!(sent < 200 << 20, "{sent} bytes were taken");
    assert!(world.holds().iter().all(|path| path.ends_with(".part") || !path.ends_with("prog")));
    // A small file that would be a large one.
    let zeros = vec![0; 64 << 20];
    let bomb = common::packages::tar_gz(&[("prog", &zeros, 0o755)]);
    let says = signed(&manifest("prog", "1.0", 1, &bomb), &[1]);
    world.files.honestly();
    world.files.put("bomb", &bomb);
    let offer = package("1.0", &world.files.url("bomb"), &bomb, says);
    link.refused(("prog".to_owned(), offer), "allowed for a file of its size");
    eventually("nothing is left of it", || world.holds().is_empty().then_some(()));
    let peak = link.peak();
    assert!(peak < 40 << 10, "{peak} KiB");
    link.ends_well();
}

#[test]
fn s1_a_stall_at_the_end_ends_and_the_rest_is_asked_for() {
    let world = World::new("");
    let mut link = world.start();
    // It stalls at 99 %, for ever, at the first request only.
    let mut first = true;
    world.files.oddly(move |head, body, stream| {
        let stalls = core::mem::take(&mut first);
        if stalls {
            let (head, body) = honest(head, body);
            write(stream, &head, &body[..body.len() * 99 / 100]);
            drain(stream);
        }
        stalls
    });
    link.installs(world.prog("1.0", 1));
    let asked = world.files.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].contains("Range: bytes="), "{asked:?}");
    // It always stalls, at the start or just before the end, or drips.
    for part in [0, 10, LARGE - 10] {
        world.files.oddly(move |head, body, stream| {
            let (head, body) = honest(head, body);
            write(stream, &head, &body[..part.min(body.len().saturating_sub(1))]);
            drain(stream);
            true
        });
        let version = format!("2.{part}");
        link.refused(world.prog(&version, 2), "");
        let asked = world.asked_for(&format!("prog-{version}"));
        assert!(asked <= MOST_REQUESTS, "{asked}");
    }
    world.files.oddly(|head, body, stream| {
        let (head, body) = honest(head, body);
        let (mut stream, body) = (stream.try_clone().unwrap(), body.to_vec());
        thread::spawn(move || {
            write(&mut stream, &head, b"");
            for byte in body {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                thread::park_timeout(std::time::Duration::from_millis(20));
            }
        });
        true
    });
    // Meanwhile it listens: a newer offer takes the place of one that drips.
    link.send(vec![world.prog("3.0", 3)]);
    eventually("it is asked for", || (world.asked_for("prog-3.0") > 0).then_some(()));
    link.peer.proves_to_work(&link.uid);
    link.refused(world.prog("3.1", 3), "too slow");
    link.runs("1.0");
    link.ends_well();
}

#[test]
fn s2_parts_of_two_files_are_never_put_together() {
    let world = World::new("");
    let mut link = world.start();
    type Lie = fn(usize, usize) -> String;
    let lies: [(&str, Lie); 7] = [
        ("200", |_, all| format!("HTTP/1.1 200 OK\r\nContent-Length: {all}\r\n\r\n")),
        ("early", |from, all| range(from - 1, all - 1, all)),
        ("late", |from, all| range(from + 1, all - 1, all)),
        ("start", |_, all| range(0, all - 1, all)),
        ("total", |from, all| range(from, all, all + 1)),
        ("star", |from, all| {
            format!("HTTP/1.1 206 P\r\nContent-Range: bytes {from}-{}/*\r\n\r\n", all - 1)
        }),
        ("none", |_, _| "HTTP/1.1 206 P\r\n\r\n".to_owned()),
    ];
    for (number, (name, lie)) in (1..).zip(lies) {
        // Half of it, then a lie to whoever asks for the rest.
        world.files.oddly(move |head, body, stream| {
            let (answer, honest_body) = honest(head, body);
            match head.split_once("Range: bytes=").filter(|_| head.contains("Range: bytes=")) {
                None => write(stream, &answer, &honest_body[..honest_body.len() / 2]),
                Some((_, rest)) => {
                    let from: usize = rest.split_once('-').unwrap().0.parse().unwrap();
                    write(stream, &lie(from, body.len()), &vec![b'!'; body.len()]);
                }
            }
            true
        });
        let version = format!("1.{number}");
        link.refused(world.prog(&version, number), "");
        let asked = world.asked_for(&format!("prog-{version}"));
        assert!(asked <= MOST_REQUESTS, "{name}: {asked}");
        world.files.honestly();
        // What is there of it does no harm.
        link.installs(world.prog(&version, number));
    }
    // Another version of the file comes to stand there between two requests.
    let mut first = true;
    world.files.oddly(move |head, body, stream| {
        let cut = core::mem::take(&mut first);
        if cut {
            let (head, body) = honest(head, body);
            write(stream, &head, &body[..body.len() / 2]);
        } else {
            let other = vec![b'?'; body.len()];
            let (head, body) = honest(head, &other);
            write(stream, &head, body);
        }
        true
    });
    link.refused(world.prog("2.0", 20), "SHA-256");
    link.ends_well();
}

fn range(first: usize, last: usize, total: usize) -> String {
    format!("HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{total}\r\n\r\n")
}

#[test]
fn s3_a_server_that_never_has_it_is_not_asked_for_ever() {
    let world = World::new("");
    let mut link = world.start();
    for (number, (answer, most)) in (1..).zip([
        ("404 Not Found\r\n", 3),
        ("410 Gone\r\n", 3),
        ("403 Forbidden\r\n", 3),
        ("204 No Content\r\n", 3),
        ("503 No\r\nRetry-After: 0\r\n", MOST_REQUESTS),
        ("503 No\r\nRetry-After: -1\r\n", MOST_REQUESTS),
        ("503 No\r\nRetry-After: 99999999999999999999999\r\n", MOST_REQUESTS),
        ("429 No\r\nRetry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n", MOST_REQUESTS),
        ("500 No\r\n", MOST_REQUESTS),
    ]) {
        let head = format!("HTTP/1.1 {answer}Content-Length: 0\r\n\r\n");
        world.files.oddly(move |_, _, stream| {
            write(stream, &head, b"");
            true
        });
        let version = format!("1.{number}");
        link.refused(world.prog(&version, number), answer.split_once(' ').unwrap().0);
        let asked = world.asked_for(&format!("prog-{version}"));
        assert!(asked <= most, "{answer:?}: {asked}");
    }
    // The same offer at once again is not tried again at once.
    let before = world.files.asked().len();
    let hash = link.send(vec![world.prog("1.9", 9)]);
    link.peer.package(&hash, "prog");
    let once = world.files.asked().len() - before;
    for _ in 0..5 {
        link.peer.send(&packages(&link.uid, &hash, vec![world.prog("1.9", 9)]));
        link.peer.proves_to_work(&link.uid);
    }
    assert!(once <= MOST_REQUESTS && world.files.asked().len() - before == once);
    link.ends_well();
}

#[test]
fn s3_a_huge_retry_after_does_not_hold_a_newer_offer() {
    let world = World::new("");
    // At the usual pace: an hour.
    let agent = world.home.start();
    let (peer, first) = world.server.greet();
    let mut link = Link { world: &world, agent, peer, uid: first.instance_uid.to_vec(), offers: 0 };
    world.files.oddly(|head, _, stream| {
        let busy = is_for(head, "prog-1.0");
        if busy {
            write(
                stream,
                "HTTP/1.1 503 No\r\nRetry-After: 315360000\r\nContent-Length: 0\r\n\r\n",
                b"",
            );
        }
        busy
    });
    link.send(vec![world.prog("1.0", 1)]);
    eventually("it is asked for", || (world.asked_for("prog-1.0") > 0).then_some(()));
    link.installs(world.prog("2.0", 2));
    assert_eq!(world.asked_for("prog-1.0"), 1);
    link.ends_well();
}

#[test]
fn x2_urls_and_redirects_that_lead_elsewhere_are_not_followed() {
    let world = World::new("");
    let mut link = world.start();
    let (name, offer) = world.prog("1.0", 1);
    let victim = TcpListener::bind("127.0.0.2:0").unwrap();
    let foreign = victim.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    thread::spawn(move || {
        for mut stream in victim.incoming().flatten() {
            let mut got = vec![0; 4096];
            let count = stream.read(&mut got).unwrap_or(0);
            noted.lock().unwrap().push(String::from_utf8_lossy(&got[..count]).into_owned());
            write(&mut stream, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", b"");
        }
    });
    let secret = chiton_proto::Headers {
        headers: vec![chiton_proto::Header {
            key: "Authorization".to_owned(),
            value: "Bearer hunter2".to_owned(),
        }],
    };
    let with = |url: &str| {
        let mut offer = offer.clone();
        let file = offer.file.as_mut().unwrap();
        file.download_url = url.to_owned();
        file.headers = Some(secret.clone());
        (name.clone(), offer)
    };
    for url in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://0.0.0.0/x",
        "http://2852039166/x",
        "http://0xa9fea9fe/x",
        "http://user:hunter2@127.0.0.1/x",
        "http://127.0.0.1:0/x",
        "//127.0.0.1/x",
        "",
    ] {
        link.refused(with(url), "");
        let told = link.peer.proves_to_work(&link.uid).package_statuses.unwrap();
        assert!(!told.packages[&name].error_message.contains("hunter2"), "{told:?}");
    }
    assert!(world.files.asked().is_empty());
    let long = format!("http://127.0.0.1/{}", "x".repeat(9000));
    link.refused(with(&long), "longer");
    for location in [
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:a9fe:a9fe]/x",
        "ws://127.0.0.1/x",
        "http://user:hunter2@127.0.0.1/x",
        "http:",
        "/prog-1.0",
    ] {
        let head =
            format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        world.files.oddly(move |_, _, stream| {
            write(stream, &head, b"");
            true
        });
        let before = world.files.asked().len();
        link.refused(with(&world.files.url("prog-1.0")), "redirect");
        assert!(world.files.asked().len() - before <= MOST_REQUESTS, "{location}");
    }
    // Another host may have the file; the offered headers are not for it, and none go without TLS.
    let head =
        format!("HTTP/1.1 307 T\r\nLocation: http://{foreign}/x\r\nContent-Length: 0\r\n\r\n");
    world.files.oddly(move |_, _, stream| {
        write(stream, &head, b"");
        true
    });
    link.refused(with(&world.files.url("prog-1.0")), "404");
    let seen = seen.lock().unwrap().join("\n");
    assert!(seen.contains("GET /x") && !seen.contains("hunter2"), "{seen}");
    assert!(!world.files.asked().join("\n").contains("hunter2"));
    assert!(!link.agent.log().contains("hunter2"));
    assert!(world.holds().is_empty(), "{:?}", world.holds());
    link.ends_well();
}
