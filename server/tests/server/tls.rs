//! TLS for agents, with and without client certificates.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use chiton_server::{Config, Running, Server, StartError, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::client::{in_time, offer, quiet, report, shown, upgrade, upload, with_packages};

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, in PEM.
fn leaf(authority: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

pub(crate) fn files(directory: &Path, authority: &Authority, client_ca: bool) -> TlsFiles {
    let (cert, key) = leaf(authority);
    let file = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    TlsFiles {
        cert: file("cert.pem", cert),
        key: file("key.pem", key),
        client_ca: client_ca.then(|| file("ca.pem", authority.pem())),
    }
}

async fn server(files: TlsFiles) -> Running {
    Server::start(Config { tls: Some(files), ..quiet() }).await.unwrap()
}

pub(crate) async fn connect(
    running: &Running,
    trusted: &Authority,
    identity: Option<(String, String)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let stream = TcpStream::connect(running.opamp_addr()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    in_time(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// In TLS 1.3 the client learns that its certificate was refused only when it reads.
pub(crate) async fn is_refused(connection: std::io::Result<TlsStream<TcpStream>>) -> bool {
    match connection {
        Err(_) => true,
        Ok(mut stream) => in_time(stream.read(&mut [0; 1])).await.is_err(),
    }
}

#[tokio::test]
async fn agents_speak_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority();
    let running = server(files(directory.path(), &ours, false)).await;
    let stream = connect(&running, &ours, None).await.unwrap();
    let mut agent = upgrade(Box::new(stream)).await;
    assert_eq!(agent.ask(&with_packages(report([1; 16], 0))).await.instance_uid[..], [1; 16]);
    assert_eq!(shown(&running, [1; 16]).await["connected"], true);
    // Packages come from the same address, by TLS too.
    let path = upload(&running, "a", "1", b"a").await["path"].as_str().unwrap().to_owned();
    offer(&running, "*", &[("a", "1")]).await;
    let available = agent.next().await.packages_available.unwrap();
    let file = available.packages["a"].file.clone().unwrap();
    assert_eq!(file.download_url, format!("https://localhost{path}"));
}

#[tokio::test]
async fn a_client_authority_lets_only_its_own_in() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(), authority());
    let running = server(files(directory.path(), &ours, true)).await;
    assert!(is_refused(connect(&running, &ours, None).await).await, "no certificate");
    assert!(is_refused(connect(&running, &ours, Some(leaf(&theirs))).await).await, "a stranger's");
    let stream = connect(&running, &ours, Some(leaf(&ours))).await.unwrap();
    let mut agent = upgrade(Box::new(stream)).await;
    assert_eq!(agent.ask(&report([1; 16], 0)).await.error_response, None);
}

#[tokio::test]
async fn bad_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let good = files(directory.path(), &authority(), true);
    let other_key = directory.path().join("other.pem");
    fs::write(&other_key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let empty = directory.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    for (files, part) in [
        (TlsFiles { cert: directory.path().join("absent.pem"), ..good.clone() }, "absent.pem"),
        (TlsFiles { cert: empty.clone(), ..good.clone() }, "no certificate"),
        (TlsFiles { key: empty.clone(), ..good.clone() }, "empty.pem"),
        (TlsFiles { key: other_key, ..good.clone() }, "other.pem"),
        (TlsFiles { client_ca: Some(empty), ..good.clone() }, "empty.pem"),
    ] {
        match Server::start(Config { tls: Some(files), ..quiet() }).await {
            Err(error @ StartError::Tls(_)) => assert!(error.to_string().contains(part), "{error}"),
            other => panic!("{part}: {other:?}"),
        }
    }
}
