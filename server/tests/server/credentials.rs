//! Certificates, connection settings, rotations and revocations, as agents and people see them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use chiton_proto::{
    AgentToServer, ConnectionSettingsOffers, ConnectionSettingsStatuses, ServerCapabilities,
    ServerErrorResponseType, ServerToAgent, TlsCertificate,
};
use chiton_server::{
    Approval, AuthorityConfig, AuthorityFiles, Config, Database, Running, Server, StartError,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData as _,
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::client::{
    Agent, connect, connection_status, delete, get, heartbeat, in_time, post_json, put_json, quiet,
    report, shown, uid_text, upgrade, with_connections, with_request,
};
use crate::tls;

const ONE: [u8; 16] = [1; 16];
const TWO: [u8; 16] = [2; 16];
use ConnectionSettingsStatuses::{Applied, Applying, Failed};

fn with_authority(directory: &Path, approval: Approval) -> Config {
    let authority = AuthorityConfig { approval, ..AuthorityConfig::new(directory.join("ca")) };
    Config {
        authority: Some(authority),
        database: Database::File(directory.join("state.db")),
        ..quiet()
    }
}

async fn server(directory: &Path, approval: Approval) -> Running {
    Server::start(with_authority(directory, approval)).await.unwrap()
}

/// A request that asks for more than it may have.
fn csr(key: &KeyPair, common_name: &str) -> String {
    let mut params = CertificateParams::new(["fleet.example.com".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, "Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn offer(answer: ServerToAgent) -> ConnectionSettingsOffers {
    assert_eq!(answer.error_response, None);
    answer.connection_settings.unwrap()
}

fn certificate(offer: &ConnectionSettingsOffers) -> TlsCertificate {
    offer.opamp.clone().unwrap().certificate.unwrap()
}

fn refusal(answer: &ServerToAgent) -> String {
    let error = answer.error_response.clone().unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    assert_eq!(answer.connection_settings, None);
    error.error_message
}

async fn post(running: &Running, path: &str, body: &Value) -> (u16, Value) {
    let answer = post_json(running.rest_addr(), path, &body.to_string()).await;
    (answer.status, answer.json())
}

async fn pending(running: &Running) -> Vec<String> {
    let list = get(running.rest_addr(), "/api/v1/csrs").await.json();
    let uids = list["csrs"].as_array().unwrap().iter();
    uids.map(|one| one["instance_uid"].as_str().unwrap().to_owned()).collect()
}

async fn enrolled(
    running: &Running,
    uid: [u8; 16],
    key: &KeyPair,
) -> (Agent<TcpStream>, TlsCertificate) {
    let mut agent = connect(running.opamp_addr()).await;
    let given = offer(agent.ask(&with_request(report(uid, 0), &csr(key, &uid_text(uid)))).await);
    let applied = connection_status(heartbeat(uid, 1), &given.hash, Applied, "");
    assert_eq!(agent.ask(&applied).await.connection_settings, None);
    let made = certificate(&given);
    (agent, made)
}

/// What must hold of every certificate of the authority, whatever was asked for.
fn check(made: &TlsCertificate, uid: [u8; 16], key: &KeyPair) {
    let issuer = x509_parser::pem::parse_x509_pem(&made.ca_cert).unwrap().1;
    let issuer = issuer.parse_x509().unwrap();
    let all: Vec<Pem> = Pem::iter_from_buffer(&made.cert).collect::<Result<_, _>>().unwrap();
    assert_eq!(all.len(), 1);
    let leaf: X509Certificate<'_> = all[0].parse_x509().unwrap();
    assert_eq!(leaf.subject().to_string(), format!("CN={}", uid_text(uid)));
    assert_eq!(leaf.issuer(), issuer.subject());
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.der_bytes());
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any);
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    let uri = format!("urn:uuid:{}", uid_text(uid));
    assert_eq!(names, [GeneralName::URI(&uri)]);
    let days = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(days, 90 * 86_400 + 3600);
    assert!(leaf.raw_serial().len() == 16);
}

#[tokio::test]
async fn a_request_is_signed_and_gets_nothing_else_that_it_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    for (number, key) in
        [KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_ED25519).unwrap()]
            .iter()
            .enumerate()
    {
        let uid = [u8::try_from(number).unwrap() + 1; 16];
        let mut agent = connect(running.opamp_addr()).await;
        let request = with_request(report(uid, 0), &csr(key, &uid_text(uid)));
        let answer = agent.ask(&request).await;
        assert_ne!(
            answer.capabilities & ServerCapabilities::AcceptsConnectionSettingsRequest as u64,
            0
        );
        let given = offer(answer);
        let made = certificate(&given);
        assert!(made.private_key.is_empty(), "the key never leaves the device");
        check(&made, uid, key);
        drop(agent);
        // It asks again, because it has not seen the answer: the same certificate, not another.
        let mut again = connect(running.opamp_addr()).await;
        let repeated =
            offer(again.ask(&with_request(report(uid, 1), &csr(key, &uid_text(uid)))).await);
        if number == 1 {
            // Ed25519 signs alike each time, so it is the same request.
            assert_eq!(repeated.hash, given.hash);
        }
        let applied = connection_status(heartbeat(uid, 2), &repeated.hash, Applied, "");
        again.ask(&applied).await;
        let view = shown(&running, uid).await;
        assert_eq!(view["certificate"]["days_left"], 89);
        assert_eq!(view["offered_connection"]["outcome"], "applied");
    }
    let mode =
        |name| fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca/ca.key"), mode("ca"), mode("state.db")), (0o600, 0o700, 0o600));
    let authority = get(running.rest_addr(), "/api/v1/ca").await.body;
    assert_eq!(authority, fs::read(directory.path().join("ca/ca.pem")).unwrap());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    let mut agent = connect(running.opamp_addr()).await;
    let key = KeyPair::generate().unwrap();
    let good = csr(&key, &uid_text(ONE));
    // Another key under the same signature.
    let mut der = pem_body(&good);
    let at = der.windows(2).position(|two| two == [0x03, 0x42]).unwrap() + 10;
    der[at] ^= 1;
    let forged = rcgen_pem(&der);
    agent.ask(&with_connections(report(ONE, 0))).await;
    for (request, part) in [
        (csr(&key, &uid_text(TWO)), "common name"),
        (csr(&key, ""), "common name"),
        (forged, "signature"),
        (good.replace("CERTIFICATE REQUEST", "CERTIFICATE"), ""),
        (good[..good.len() / 2].to_owned(), "cannot be read"),
        (String::new(), "cannot be read"),
        (format!("{good}{}", "\n".repeat(9000)), "at most 8192"),
    ] {
        let answer = agent.ask(&with_request(heartbeat(ONE, 1), &request)).await;
        if part.is_empty() {
            continue;
        }
        let why = refusal(&answer);
        assert!(why.contains(part), "{part}: {why}");
    }
    // The agent is still served.
    offer(agent.ask(&with_request(report(ONE, 9), &good)).await);
    // Without an authority.
    let bare = crate::client::server().await;
    let mut agent = connect(bare.opamp_addr()).await;
    let answer = agent.ask(&with_request(report(ONE, 0), &good)).await;
    assert!(refusal(&answer).contains("--ca-dir"));
    let (status, _) = post(&bare, "/api/v1/rotations", &json!({"target": "*"})).await;
    assert_eq!(status, 409);
    assert_eq!(get(bare.rest_addr(), "/api/v1/ca").await.status, 404);
}

fn pem_body(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

fn rcgen_pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for (number, three) in der.chunks(3).enumerate() {
        let mut group = [0; 3];
        group[..three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for digit in 0..4 {
            let value = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap();
            text.push(if digit <= three.len() { char::from(DIGITS[value]) } else { '=' });
        }
        if number % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END CERTIFICATE REQUEST-----\n"
}

#[tokio::test]
async fn a_person_approves_or_rejects_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Manual).await;
    let mut agent = connect(running.opamp_addr()).await;
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    for key in [&first, &second] {
        let answer = agent.ask(&with_request(report(ONE, 0), &csr(key, &uid_text(ONE)))).await;
        assert_eq!((answer.error_response, answer.connection_settings), (None, None));
        assert_eq!(pending(&running).await, [uid_text(ONE)], "the newest alone");
    }
    drop(agent);
    in_time(running.shutdown()).await;
    let running = server(directory.path(), Approval::Manual).await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&with_connections(report(ONE, 0))).await;
    let approve = format!("/api/v1/csrs/{}/approve", uid_text(ONE));
    assert_eq!(post(&running, &approve, &json!({})).await.0, 200);
    let given = offer(agent.next().await);
    check(&certificate(&given), ONE, &second);
    assert_eq!(post(&running, &approve, &json!({})).await.0, 409, "nothing waits any more");
    assert!(pending(&running).await.is_empty());
    assert_eq!(
        post(&running, &format!("/api/v1/csrs/{}/approve", uid_text(TWO)), &json!({})).await.0,
        404
    );

    let third = csr(&first, &uid_text(TWO));
    agent.ask(&with_request(report(TWO, 0), &third)).await;
    let reject = format!("/api/v1/csrs/{}/reject", uid_text(TWO));
    assert_eq!(post(&running, &reject, &json!({"reason": "not ours"})).await.0, 200);
    // The agent hears of it when it asks again, and however often it does.
    for sequence in 1..3 {
        let answer = agent.ask(&with_request(heartbeat(TWO, sequence), &third)).await;
        assert_eq!(refusal(&answer), "not ours");
    }
    // Another request is another question.
    let answer = agent.ask(&with_request(heartbeat(TWO, 3), &csr(&second, &uid_text(TWO)))).await;
    assert_eq!(answer.error_response, None);
    assert_eq!(pending(&running).await, [uid_text(TWO)]);
}

#[tokio::test]
async fn a_rotation_of_one_uses_the_agents_key_where_it_has_one() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    let key = KeyPair::generate().unwrap();
    let (mut agent, old) = enrolled(&running, ONE, &key).await;
    let rotate = |uid| format!("/api/v1/agents/{}/rotate", uid_text(uid));
    let (status, answer) = post(&running, &rotate(ONE), &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let given = offer(agent.next().await);
    let new = certificate(&given);
    check(&new, ONE, &key);
    assert!(new.private_key.is_empty() && new.cert != old.cert);
    // An agent that never asked gets a key with it.
    agent.ask(&with_connections(report(TWO, 0))).await;
    post(&running, &rotate(TWO), &json!({})).await;
    let given = offer(agent.next().await);
    let made = certificate(&given);
    let text = String::from_utf8(made.private_key.to_vec()).unwrap();
    check(&made, TWO, &KeyPair::from_pem(&text).unwrap());
    // Offered again until the agent says what became of it, and then the key is nowhere here.
    let mut again = connect(running.opamp_addr()).await;
    assert_eq!(offer(again.ask(&with_connections(report(TWO, 1))).await).hash, given.hash);
    again.ask(&connection_status(heartbeat(TWO, 2), &given.hash, Applied, "")).await;
    in_time(running.shutdown()).await;
    for file in ["state.db", "state.db-wal"] {
        let bytes = fs::read(directory.path().join(file)).unwrap_or_default();
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!bytes.windows(hex.len()).any(|window| window == hex.as_bytes()), "{file}");
    }
    let running = server(directory.path(), Approval::Auto).await;
    assert_eq!(shown(&running, TWO).await["certificate"]["days_left"], 89);
    assert_eq!(post(&running, &rotate([9; 16]), &json!({})).await.0, 404);
}

#[tokio::test]
async fn connection_settings_are_offered_until_they_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&with_connections(report(ONE, 0))).await;
    let path = format!("/api/v1/agents/{}/connection", uid_text(ONE));
    let settings = json!({
        "destination_endpoint": "wss://other.example.com/v1/opamp",
        "headers": {"Authorization": "Bearer hunter2", "X-Many": ["a", "b"]},
        "heartbeat_interval_seconds": 45,
        "tls": {"max_version": "1.3"},
        "proxy": {"url": "http://u:hunter2@proxy:3128"}
    });
    let answer = put_json(running.rest_addr(), &path, &settings).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let given = offer(agent.next().await);
    let opamp = given.opamp.clone().unwrap();
    assert_eq!(opamp.destination_endpoint, "wss://other.example.com/v1/opamp");
    assert_eq!((opamp.heartbeat_interval_seconds, opamp.certificate), (45, None));
    assert_eq!(opamp.headers.unwrap().headers.len(), 3);
    // No secret is shown.
    let list = get(running.rest_addr(), "/api/v1/offers/connection").await;
    let list = String::from_utf8(list.body).unwrap();
    assert!(list.contains("Authorization") && list.contains("http://proxy:3128"), "{list}");
    assert!(!list.contains("hunter2"), "{list}");
    // FAILED: not again, on no connection, also after a restart, until there is a new hash.
    let failed = connection_status(heartbeat(ONE, 1), &given.hash, Failed, "<b>no route</b>");
    assert_eq!(agent.ask(&failed).await.connection_settings, None);
    let view = shown(&running, ONE).await;
    assert_eq!(view["offered_connection"]["error_message"], "<b>no route</b>");
    assert_eq!(view["connection_settings_status"]["status"], "FAILED");
    drop(agent);
    in_time(running.shutdown()).await;
    let running = server(directory.path(), Approval::Auto).await;
    let mut agent = connect(running.opamp_addr()).await;
    assert_eq!(agent.ask(&with_connections(report(ONE, 0))).await.connection_settings, None);
    // A certificate does not bring back what failed.
    post(&running, &format!("/api/v1/agents/{}/rotate", uid_text(ONE)), &json!({})).await;
    let given = offer(agent.next().await);
    assert_eq!(given.opamp.unwrap().destination_endpoint, "");
    agent.ask(&connection_status(heartbeat(ONE, 1), &given.hash, Applied, "")).await;
    // A newer target wins; what an agent does not take is not sent.
    let all = json!({"target": "env=test", "heartbeat_interval_seconds": 20});
    let answer = put_json(running.rest_addr(), "/api/v1/offers/connection", &all).await.json();
    assert_eq!(answer["matched"], json!([uid_text(ONE)]));
    let given = offer(agent.next().await);
    assert_eq!(given.opamp.unwrap().heartbeat_interval_seconds, 20);
    agent.ask(&connection_status(heartbeat(ONE, 2), &given.hash, Applied, "")).await;
    assert_eq!(agent.ask(&report(TWO, 0)).await.connection_settings, None);
    // Taken back: nothing is undone.
    assert_eq!(
        delete(running.rest_addr(), "/api/v1/offers/connection?target=env%3Dtest").await.status,
        200
    );
    assert_eq!(
        delete(running.rest_addr(), "/api/v1/offers/connection?target=env%3Dtest").await.status,
        404
    );

    for (bad, part) in [
        (json!({}), "offers nothing"),
        (json!({"destination_endpoint": "ftp://x"}), "destination_endpoint"),
        (json!({"destination_endpoint": "wss://"}), "destination_endpoint"),
        (json!({"headers": {"a b": "c"}}), "no name of a header"),
        (json!({"headers": {"a": "c\nd"}}), "bytes that a header cannot have"),
        (json!({"heartbeat_interval_seconds": 0}), "destination_endpoint"),
        (json!({"heartbeat_interval_seconds": 90000}), "at most 86400"),
        (json!({"tls": {"min_version": "2"}}), "tls.min_version"),
        (json!({"proxy": {"url": "u:hunter2@proxy"}}), "proxy.url"),
        (json!({"proxy": {}}), "url"),
        (json!({"endpoint": "wss://x"}), "unknown field"),
    ] {
        let answer = put_json(running.rest_addr(), &path, &bad).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert!(
            answer.error().contains(part) && !answer.error().contains("hunter2"),
            "{}",
            answer.error()
        );
    }
}

#[tokio::test]
async fn a_revoked_certificate_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let ours = tls::authority();
    let mut config = with_authority(directory.path(), Approval::Auto);
    config.tls = Some(tls::files(directory.path(), &ours, false));
    let running = Server::start(config.clone()).await.unwrap();
    let key = KeyPair::generate().unwrap();
    // A new agent has no certificate yet.
    let stream = tls::connect(&running, &ours, None).await.unwrap();
    let mut agent = upgrade(Box::new(stream)).await;
    let given = offer(agent.ask(&with_request(report(ONE, 0), &csr(&key, &uid_text(ONE)))).await);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let identity = (text(&certificate(&given).cert), key.serialize_pem());
    drop(agent);
    let stream = tls::connect(&running, &ours, Some(identity.clone())).await.unwrap();
    let mut agent = upgrade(Box::new(stream)).await;
    agent.ask(&connection_status(report(ONE, 1), &given.hash, Applied, "")).await;

    // Auto does not hand out a second identity to whoever asks without showing the first.
    let stranger = tls::connect(&running, &ours, None).await.unwrap();
    let mut stranger = upgrade(Box::new(stranger)).await;
    let other = csr(&KeyPair::generate().unwrap(), &uid_text(ONE));
    agent
        .ask(&AgentToServer {
            agent_disconnect: Some(chiton_proto::AgentDisconnect {}),
            ..heartbeat(ONE, 2)
        })
        .await;
    let answer = stranger.ask(&with_request(report(ONE, 0), &other)).await;
    assert_eq!((answer.connection_settings, pending(&running).await.len()), (None, 1));
    drop(stranger);
    agent.ask(&with_connections(report(ONE, 3))).await;

    let revoke = format!("/api/v1/agents/{}/revoke", uid_text(ONE));
    let (status, answer) = post(&running, &revoke, &json!({})).await;
    assert_eq!((status, answer["revoked"].as_array().unwrap().len()), (200, 1));
    assert_eq!(agent.close_code().await, 1008, "the open connection ends");
    let refused = tls::connect(&running, &ours, Some(identity.clone())).await;
    assert!(tls::is_refused(refused).await);
    in_time(running.shutdown()).await;
    let running = Server::start(config).await.unwrap();
    assert!(
        tls::is_refused(tls::connect(&running, &ours, Some(identity)).await).await,
        "after a restart"
    );
    assert_eq!(shown(&running, ONE).await["revoked"], true);
    // Its next certificate needs a person, whatever the policy.
    let stream = tls::connect(&running, &ours, None).await.unwrap();
    let mut agent = upgrade(Box::new(stream)).await;
    let fresh = csr(&KeyPair::generate().unwrap(), &uid_text(ONE));
    assert_eq!(agent.ask(&with_request(report(ONE, 9), &fresh)).await.connection_settings, None);
    assert_eq!(
        post(&running, &format!("/api/v1/agents/{}/rotate", uid_text(ONE)), &json!({})).await.0,
        409
    );
    post(&running, &format!("/api/v1/csrs/{}/approve", uid_text(ONE)), &json!({})).await;
    offer(agent.next().await);
    assert_eq!(shown(&running, ONE).await["revoked"], false);
}

#[tokio::test]
async fn a_rotation_keeps_to_its_width_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    let mut agents = Vec::new();
    for number in 1..=3 {
        let mut agent = connect(running.opamp_addr()).await;
        agent.ask(&with_connections(report([number; 16], 0))).await;
        agents.push(agent);
    }
    agents[0].ask(&report([9; 16], 0)).await;
    let plan =
        json!({"selector": "env=test", "concurrency": 1, "retries": 1, "timeout_seconds": 60});
    let (status, begun) = post(&running, "/api/v1/rotations", &plan).await;
    assert_eq!(
        (status, &begun["agents"], &begun["without"]),
        (202, &json!(3), &json!([uid_text([9; 16])]))
    );
    assert_eq!(post(&running, "/api/v1/rotations", &plan).await.0, 409, "one at a time");
    // The first fails twice, with a fresh certificate each time; the others have their turn before its second.
    let first = offer(agents[0].next().await);
    let why = connection_status(heartbeat([1; 16], 1), &first.hash, Failed, "expired");
    agents[0].ask(&why).await;
    let second = offer(agents[1].next().await);
    agents[1].ask(&connection_status(heartbeat([2; 16], 1), &second.hash, Applying, "")).await;
    assert_eq!(
        counts(&running).await,
        json!({"waiting": 2, "offered": 1, "applied": 0, "failed": 0, "at_first_try": 0})
    );
    drop(agents);
    in_time(running.shutdown()).await;

    let running = server(directory.path(), Approval::Auto).await;
    // The one whose turn it was comes back last, so that all are there when the next turn comes.
    let mut agents = Vec::new();
    for number in [1, 3, 2] {
        let mut agent = connect(running.opamp_addr()).await;
        let mut full = with_connections(report([number; 16], 0));
        if number == 2 {
            full = connection_status(full, &second.hash, Applied, "");
        }
        assert_eq!(agent.ask(&full).await.connection_settings, None);
        agents.push(agent);
    }
    let third = offer(agents[1].next().await);
    agents[1].ask(&connection_status(heartbeat([3; 16], 1), &third.hash, Applied, "")).await;
    let again = offer(agents[0].next().await);
    assert_ne!(certificate(&again).cert, certificate(&first).cert);
    agents[0].ask(&connection_status(heartbeat([1; 16], 1), &again.hash, Failed, "still no")).await;
    let done = get(running.rest_addr(), "/api/v1/rotations/1").await.json();
    assert_ne!(done["ended"], Value::Null, "{done}");
    assert_eq!(
        done["agents"],
        json!({"waiting": 0, "offered": 0, "applied": 2, "failed": 1, "at_first_try": 2})
    );
    assert_eq!(done["open"][0]["error_message"], "still no");
    assert_eq!(done["open"][0]["tries"], 2);

    // One that never answers is late, and the next may be cancelled.
    let plan = json!({"target": format!("instance_uid={}", uid_text(ONE)), "retries": 0, "timeout_seconds": 1});
    post(&running, "/api/v1/rotations", &plan).await;
    offer(agents[0].next().await);
    in_time(async {
        while counts(&running).await["failed"] != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    post(&running, "/api/v1/rotations", &json!({"target": "*", "concurrency": 1})).await;
    assert_eq!(delete(running.rest_addr(), "/api/v1/rotations/3").await.status, 200);
    assert_eq!(delete(running.rest_addr(), "/api/v1/rotations/3").await.status, 404);
    for bad in
        [json!({"target": "*", "concurrency": 0}), json!({"target": "*", "retries": 99}), json!({})]
    {
        assert_eq!(post(&running, "/api/v1/rotations", &bad).await.0, 400);
    }
}

async fn counts(running: &Running) -> Value {
    let list = get(running.rest_addr(), "/api/v1/rotations").await.json();
    list["rotations"][0]["agents"].clone()
}

#[tokio::test]
async fn an_agent_that_reports_no_status_is_sent_an_offer_once() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(directory.path(), Approval::Auto).await;
    let silent = |sequence| {
        let mut message = with_connections(report(ONE, sequence));
        message.capabilities &=
            !(chiton_proto::AgentCapabilities::ReportsConnectionSettingsStatus as u64);
        message
    };
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&silent(0)).await;
    post(&running, &format!("/api/v1/agents/{}/rotate", uid_text(ONE)), &json!({})).await;
    offer(agent.next().await);
    let mut again = connect(running.opamp_addr()).await;
    assert_eq!(
        again.ask(&silent(1)).await.connection_settings,
        None,
        "it would reconnect for ever"
    );
}

#[tokio::test]
async fn an_authority_that_is_not_one_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (ours, key) = (tls::authority(), KeyPair::generate().unwrap());
    let leaf = CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
    fs::write(at("ca.pem"), ours.pem()).unwrap();
    fs::write(at("leaf.pem"), leaf.pem()).unwrap();
    for (name, mode) in [("key.pem", 0o600), ("open.pem", 0o644)] {
        fs::write(at(name), key.serialize_pem()).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (cert, key, part) in [
        ("ca.pem", "key.pem", "not the key of"),
        ("leaf.pem", "key.pem", "no authority"),
        ("ca.pem", "open.pem", "chmod 600"),
        ("absent.pem", "key.pem", "absent.pem"),
        ("key.pem", "key.pem", "key.pem"),
    ] {
        let files = AuthorityFiles::Given { cert: at(cert), key: at(key) };
        let authority = AuthorityConfig { files, ..AuthorityConfig::new(at("unused")) };
        match Server::start(Config { authority: Some(authority), ..quiet() }).await {
            Err(error @ StartError::Authority(_)) => {
                assert!(error.to_string().contains(part), "{error}");
            }
            other => panic!("{part}: {other:?}"),
        }
    }
}
