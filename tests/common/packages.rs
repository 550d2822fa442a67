//! What a server of packages has: files, served with ranges and counted, and signed offers of them.

#![expect(clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use chiton::signature::{Manifest, SignedManifest, SigningKey, sign_digest};
use chiton_proto::{
    DownloadableFile, PackageAvailable, PackageStatus, PackageStatusEnum, PackageStatuses,
    PackagesAvailable, ServerToAgent,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::{Home, Peer, read_head};

/// How one request is answered: given the head of the request and the file, what goes over the wire. [`None`]: as an
/// honest server would.
pub(crate) type Answer = dyn FnMut(&str, &[u8], &mut TcpStream) -> bool + Send;

#[derive(Default)]
struct Shelf {
    files: BTreeMap<String, Arc<Vec<u8>>>,
    /// `METHOD /path` and the head of each request, in order.
    asked: Vec<String>,
    /// Bytes of bodies that were written.
    sent: u64,
    /// True: it answered; false: answer as usual.
    odd: Option<Arc<Mutex<Answer>>>,
}

/// A file server on loopback.
#[derive(Clone)]
pub(crate) struct Files {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl Files {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let files =
            Self { address: listener.local_addr().unwrap(), shelf: Arc::new(Mutex::default()) };
        let served = files.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                thread::spawn(move || served.serve(stream));
            }
        });
        files
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    pub(crate) fn put(&self, name: &str, body: &[u8]) {
        self.shelf.lock().unwrap().files.insert(name.to_owned(), Arc::new(body.to_vec()));
    }

    /// From now on requests are answered by this where it says so.
    pub(crate) fn oddly(
        &self,
        answer: impl FnMut(&str, &[u8], &mut TcpStream) -> bool + Send + 'static,
    ) {
        self.shelf.lock().unwrap().odd = Some(Arc::new(Mutex::new(answer)));
    }

    pub(crate) fn honestly(&self) {
        self.shelf.lock().unwrap().odd = None;
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.shelf.lock().unwrap().asked.clone()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.shelf.lock().unwrap().sent
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut first = [0];
        // Nobody asks: a connection that is let go.
        while stream.peek(&mut first).is_ok_and(|count| count > 0) {
            let head = read_head(&mut stream);
            let name = head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
            let (file, odd) = {
                let mut shelf = self.shelf.lock().unwrap();
                shelf.asked.push(head.clone());
                (shelf.files.get(&name).cloned(), shelf.odd.clone())
            };
            if let Some(answer) = odd {
                let body = file.as_ref().map(|file| file.as_slice()).unwrap_or_default();
                // One at a time.
                let mut answer = answer.lock().unwrap();
                if answer(&head, body, &mut stream) {
                    return;
                }
            }
            let Some(file) = file else {
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                continue;
            };
            let (head, body) = honest(&head, &file);
            if stream.write_all(head.as_bytes()).is_err() {
                return;
            }
            for part in body.chunks(64 * 1024) {
                if stream.write_all(part).is_err() {
                    return;
                }
                self.shelf.lock().unwrap().sent += part.len() as u64;
            }
        }
    }
}

/// The answer of an honest server: head and body.
pub(crate) fn honest<'a>(request: &str, file: &'a [u8]) -> (String, &'a [u8]) {
    let header = |name: &str| {
        let mut headers = request.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let etag = format!("\"{}\"", hex(&Sha256::digest(file)[..8]));
    let from = header("Range").filter(|_| header("If-Range").as_ref() == Some(&etag));
    let from = from
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from.and_then(|from| Some((from, file.get(from..)?))) {
        Some((from, rest)) => (
            format!(
                "HTTP/1.1 206 Partial Content\r\nETag: {etag}\r\nContent-Length: {}\r\nContent-Range: bytes \
                 {from}-{}/{}\r\n\r\n",
                rest.len(),
                file.len() - 1,
                file.len()
            ),
            rest,
        ),
        None => (
            format!("HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: {}\r\n\r\n", file.len()),
            file,
        ),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The release key of these tests, and others.
pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32]).unwrap()
}

/// Writes the public key of [`key`] where settings can name it.
pub(crate) fn trusted(home: &Home, number: u8) -> String {
    let path = home.path(&format!("{number}.pub"));
    let der = key(number).public().der();
    let body: String = base64(&der);
    fs::write(&path, format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"))
        .unwrap();
    path.display().to_string()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { letter.into() } else { '=' });
        }
    }
    text
}

/// What is true of a file, as it is signed.
pub(crate) fn manifest(name: &str, version: &str, counter: u64, file: &[u8]) -> Manifest {
    Manifest {
        name: name.to_owned(),
        version: version.to_owned(),
        size: file.len() as u64,
        sha256: Sha256::digest(file).to_vec(),
        issued_at: 1_900_000_000,
        counter,
        ..Manifest::default()
    }
}

pub(crate) fn signed(manifest: &Manifest, keys: &[u8]) -> Vec<u8> {
    use prost::Message as _;
    let mut signed = SignedManifest::new(manifest);
    for number in keys {
        signed.sign(&key(*number));
    }
    signed.encode_to_vec()
}

pub(crate) fn digest_form(file: &[u8], number: u8) -> Vec<u8> {
    sign_digest(&key(number), &Sha256::digest(file).into()).to_vec()
}

/// A package as it is offered.
pub(crate) fn package(
    version: &str,
    url: &str,
    file: &[u8],
    signature: Vec<u8>,
) -> PackageAvailable {
    let digest = Sha256::digest(file);
    PackageAvailable {
        r#type: 0,
        version: version.to_owned(),
        hash: digest[..8].to_vec().into(),
        file: Some(DownloadableFile {
            download_url: url.to_owned(),
            content_hash: digest.to_vec().into(),
            signature: signature.into(),
            headers: None,
        }),
    }
}

/// Puts a file on the shelf and offers it, signed by key 1.
pub(crate) fn offered(
    files: &Files,
    name: &str,
    version: &str,
    counter: u64,
    file: &[u8],
) -> (String, PackageAvailable) {
    let place = format!("{name}-{version}");
    files.put(&place, file);
    let signature = signed(&manifest(name, version, counter, file), &[1]);
    (name.to_owned(), package(version, &files.url(&place), file, signature))
}

pub(crate) fn packages(
    uid: &[u8],
    hash: &str,
    packages: Vec<(String, PackageAvailable)>,
) -> ServerToAgent {
    ServerToAgent {
        instance_uid: uid.to_vec().into(),
        packages_available: Some(PackagesAvailable {
            packages: packages.into_iter().collect(),
            all_packages_hash: hash.as_bytes().to_vec().into(),
        }),
        ..ServerToAgent::default()
    }
}

impl Peer {
    /// The package statuses of the next report that echoes this hash and in which all of it have come to an end.
    pub(crate) fn packages(&mut self, hash: &str) -> PackageStatuses {
        use PackageStatusEnum::{InstallFailed, Installed};
        let report = self.until(&format!("the outcome of packages {hash}"), |report| {
            report.package_statuses.as_ref().is_some_and(|sent| {
                sent.server_provided_all_packages_hash == hash.as_bytes()
                    && sent
                        .packages
                        .values()
                        .all(|it| matches!(it.status(), Installed | InstallFailed))
            })
        });
        report.package_statuses.unwrap()
    }

    /// The one package of such a report.
    pub(crate) fn package(&mut self, hash: &str, name: &str) -> PackageStatus {
        self.packages(hash).packages.remove(name).unwrap()
    }
}

/// An entry of an archive.
pub(crate) fn tar_gz(entries: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, body, mode) in entries {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(body);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).unwrap();
    gzip.finish().unwrap()
}

impl Home {
    /// A program as the workload's script, that says its version.
    pub(crate) fn program(&self, version: &str, body: &str) -> Vec<u8> {
        let script = self.path("workload.sh");
        let text = fs::read_to_string(&script).unwrap();
        let (noted, stays) = text.rsplit_once("exec ").unwrap();
        let dir = self.path("").display().to_string();
        format!("#!/bin/sh\necho {version} > {dir}/version.$$\n{noted}{body}\nexec {stays}")
            .into_bytes()
    }

    /// The version that this workload said.
    pub(crate) fn version(&self, pid: i32) -> String {
        let text = fs::read_to_string(self.path(&format!("version.{pid}"))).unwrap_or_default();
        text.trim().to_owned()
    }

    pub(crate) fn packages(&self) -> std::path::PathBuf {
        self.path("state/packages")
    }

    /// What is in the running set, with the mode of each file.
    pub(crate) fn installed(&self, name: &str) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for entry in
            fs::read_dir(self.packages().join("current").join(name)).into_iter().flatten().flatten()
        {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            found.insert(entry.file_name().to_string_lossy().into_owned(), mode);
        }
        found
    }
}

/// All bytes of a stream, to its end.
pub(crate) fn drain(stream: &mut TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}
