//! What offers may change, and what they may not.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use bytes::Bytes;
use chiton_proto::Header;

use super::*;

const OWN: &str = "
opamp:
  server:
    endpoint: wss://own.example:4320/v1/opamp
    headers: { Authorization: own }
    tls: { ca_file: /own/ca.pem, cert_file: /own/cert.pem, key_file: /own/key.pem }
    proxy: { url: 'http://proxy:3128', no_proxy: [localhost] }
    heartbeat_interval: 30s
    poll_interval: 45s
";

fn server(text: &str) -> Server {
    let none = BTreeMap::<&str, &str>::new();
    settings::from_text(text, "chiton.yaml", &none).unwrap().settings.server
}

/// The settings' own with one text in place of another.
fn with(what: &str, instead: &str) -> Server {
    assert!(OWN.contains(what), "{what}");
    server(&OWN.replace(what, instead))
}

type Offer = OpAmpConnectionSettings;

fn take_over(own: &Server, base: &Overlay, offer: &Offer) -> Result<Offered, String> {
    Bench { own, base, volatile: None }.take(offer)
}

fn take(own: &Server, offer: &Offer) -> Result<Offered, String> {
    take_over(own, &Overlay::default(), offer)
}

/// The connection that comes of an offer.
fn becomes(own: &Server, offer: &Offer) -> Server {
    take(own, offer).unwrap().overlay.lay_over(own, Path::new("/n"))
}

fn endpoint(url: &str) -> Offer {
    Offer { destination_endpoint: url.to_owned(), ..Offer::default() }
}

fn tls(tls: TlsConnectionSettings) -> Offer {
    Offer { tls: Some(tls), ..Offer::default() }
}

fn header(key: &str, value: &str) -> Header {
    Header { key: key.to_owned(), value: value.to_owned() }
}

fn headers(headers: Vec<Header>) -> Offer {
    Offer { headers: Some(Headers { headers }), ..Offer::default() }
}

fn certificate() -> Offer {
    let certificate = TlsCertificate {
        cert: Bytes::from_static(b"cert"),
        private_key: Bytes::from_static(b"key"),
        ca_cert: Bytes::from_static(b"issuer"),
    };
    Offer { certificate: Some(certificate), ..Offer::default() }
}

fn proxy(url: &str) -> Offer {
    let settings = ProxyConnectionSettings { url: url.to_owned(), connect_headers: None };
    Offer { proxy: Some(settings), ..Offer::default() }
}

#[test]
fn what_an_offer_does_not_name_stays_as_it_is() {
    let own = server(OWN);
    assert_eq!(becomes(&own, &Offer::default()), own);
    // Not even a client certificate is taken away by silence.
    let moved = becomes(&own, &headers(vec![header("Authorization", "new")]));
    assert_eq!(Server { headers: own.headers.clone(), ..moved }, own);
    // What earlier offers changed stays too.
    let first = take(&own, &certificate()).unwrap().overlay;
    let second = take_over(&own, &first, &endpoint("wss://own.example/2")).unwrap();
    assert!(second.overlay.certificate, "its certificate was forgotten");
    assert_eq!(second.material, Material::default());
}

#[test]
fn an_endpoint_leads_nowhere_else_and_is_never_weaker() {
    let own = server(OWN);
    let open = with("    headers:", "    allow_endpoints: ['*.example', 'other:99']\n    headers:");
    let plain = with("wss://own.example:4320", "ws://own.example:4320");
    for (own, url, allowed) in [
        (&own, "wss://own.example", true),
        (&own, "wss://OWN.example:1/else", true),
        (&own, "https://own.example", true),
        (&own, "ws://own.example", false),
        (&own, "http://own.example", false),
        (&own, "wss://other.example", false),
        (&own, "wss://own.example.evil", false),
        (&own, "wss://127.0.0.1", false),
        (&open, "wss://other.example", true),
        (&open, "wss://other:99", true),
        (&open, "wss://other", false),
        (&open, "wss://example", false),
        (&open, "ws://other.example", false),
        (&plain, "ws://own.example", true),
        (&plain, "wss://own.example", true),
        (&own, "own.example", false),
        (&own, "ftp://own.example", false),
        (&own, "file:///own.example", false),
        (&own, "wss://user:secret@own.example", false),
        (&own, "wss://", false),
        (&own, "wss://own.example/ x", false),
    ] {
        let taken = take(own, &endpoint(url));
        assert_eq!(taken.is_ok(), allowed, "{url}: {taken:?}");
        let error = taken.err().unwrap_or_default();
        assert!(!error.contains("secret"), "{error}");
        assert!(allowed || error.starts_with("destination_endpoint "), "{error}");
    }
}

/// By the connection of today: what offers made safe is not made unsafe by another, and what the settings say by now
/// counts for what they say.
#[test]
fn an_endpoint_is_measured_by_the_connection_of_today() {
    let plain = with("wss://own.example:4320", "ws://own.example:4320");
    let safe = take(&plain, &endpoint("wss://own.example")).unwrap().overlay;
    assert!(take_over(&plain, &safe, &endpoint("ws://own.example")).is_err());
    let unsafe_one = take(&plain, &endpoint("ws://own.example:1")).unwrap().overlay;
    let own = server(OWN);
    assert!(take_over(&own, &unsafe_one, &endpoint("ws://own.example:1")).is_err());
}

#[test]
fn headers_replace_all_headers() {
    let own = server(OWN);
    let offered = headers(vec![header("Authorization", "new"), header("X-Site", "7")]);
    let names: Vec<String> =
        becomes(&own, &offered).headers.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["Authorization", "X-Site"]);
    assert!(becomes(&own, &headers(Vec::new())).headers.is_empty());
    for bad in [
        header("", "x"),
        header("a b", "x"),
        header("a", "x\r\nHost: evil"),
        header("a\n", "x"),
        header("a", &"x".repeat(MAX_HEADERS)),
    ] {
        let error = take(&own, &headers(vec![bad.clone()])).unwrap_err();
        assert!(error.starts_with("headers: "), "{bad:?}: {error}");
        assert!(!error.contains("evil"), "a value is repeated: {error}");
    }
}

#[test]
fn a_certificate_comes_with_its_files_and_only_where_it_would_last() {
    let own = server(OWN);
    let Offered { overlay, material } = take(&own, &certificate()).unwrap();
    let client = overlay.lay_over(&own, Path::new("/n")).tls.client.unwrap();
    assert_eq!(client.cert_file, Path::new("/n/cert.pem"));
    assert_eq!(client.key_file, Path::new("/n/key.pem"));
    assert_eq!(material.issuer, Some(Bytes::from_static(b"issuer")));
    assert_eq!(material.trust, None, "ca_cert is no trust root");
    // For a request of ours it comes without a key.
    let signed = TlsCertificate { cert: Bytes::from_static(b"cert"), ..TlsCertificate::default() };
    let signed = Offer { certificate: Some(signed), ..Offer::default() };
    assert_eq!(take(&own, &signed).unwrap().material.private_key, None);

    let empty = Offer { certificate: Some(TlsCertificate::default()), ..Offer::default() };
    assert!(take(&own, &empty).unwrap_err().starts_with("certificate: "));
    let none = Overlay::default();
    let bench = Bench { own: &own, base: &none, volatile: Some("tmpfs") };
    assert!(bench.take(&certificate()).unwrap_err().contains("tmpfs"));
    assert!(bench.take(&headers(Vec::new())).is_ok(), "the rest of it lasts as long as it does");
}

#[test]
fn versions_of_tls() {
    use TlsVersion::{V12, V13};
    let own = server(OWN);
    let strict = with("tls: { ", "tls: { min_version: '1.3', ");
    for (own, min, max, expected) in [
        (&own, "", "", Some((V12, V13))),
        (&own, "1.2", "1.2", Some((V12, V12))),
        (&own, "TLSv1.3", "TLS1.3", Some((V13, V13))),
        (&own, "TLSv1.0", "", Some((V12, V13))), // lower is raised
        (&own, "1.1", "TLSv1.2", Some((V12, V12))),
        (&own, "", "1.1", None),
        (&own, "", "TLSv1", None),
        (&own, "1.3", "1.2", None),
        (&own, "2", "", None),
        (&own, "", "SSLv3", None),
        (&strict, "1.2", "", Some((V13, V13))),
        (&strict, "", "1.2", None),
    ] {
        let offer = tls(TlsConnectionSettings {
            min_version: min.to_owned(),
            max_version: max.to_owned(),
            ..TlsConnectionSettings::default()
        });
        let taken = take(own, &offer).map(|offered| offered.overlay);
        let versions = taken.as_ref().ok().map(|overlay| {
            let tls = overlay.lay_over(own, Path::new("/n")).tls;
            (tls.min_version, tls.max_version)
        });
        assert_eq!(versions, expected, "{min:?} to {max:?}: {taken:?}");
        assert!(taken.err().is_none_or(|error| error.starts_with("tls.m")));
    }
}

#[test]
fn trust_is_what_was_offered_and_pins_bind() {
    let pin = "tls: { pinned_spki_sha256: ['47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='], ";
    let own = with("tls: { ", pin);
    let pem = TlsConnectionSettings {
        ca_pem_contents: "roots".to_owned(),
        cipher_suites: vec!["TLS_AES_128_GCM_SHA256".to_owned()],
        ..TlsConnectionSettings::default()
    };
    let Offered { overlay, material } = take(&own, &tls(pem)).unwrap();
    assert_eq!(material.trust, Some(Bytes::from_static(b"roots")));
    let laid = overlay.lay_over(&own, Path::new("/n"));
    assert_eq!(laid.tls.ca_file.as_deref(), Some(Path::new("/n/ca.pem")));
    assert!(!laid.tls.include_system_ca_certs_pool);
    assert_eq!(laid.tls.cipher_suites, ["TLS_AES_128_GCM_SHA256"]);
    assert_eq!(laid.tls.pinned_spki_sha256, own.tls.pinned_spki_sha256);
    assert_eq!(laid.tls.client, own.tls.client);
    // Roots that were offered stay where another offer has none.
    let with_system =
        TlsConnectionSettings { include_system_ca_certs_pool: true, ..Default::default() };
    let next = take_over(&own, &overlay, &tls(with_system.clone())).unwrap();
    let laid = next.overlay.lay_over(&own, Path::new("/m"));
    assert_eq!(laid.tls.ca_file.as_deref(), Some(Path::new("/m/ca.pem")));
    assert!(laid.tls.include_system_ca_certs_pool);
    // And so does the settings' own file.
    let laid = becomes(&own, &tls(with_system));
    assert_eq!(laid.tls.ca_file, own.tls.ca_file);
}

#[test]
fn the_server_is_verified_unless_the_settings_say_otherwise() {
    let skip = tls(TlsConnectionSettings { insecure_skip_verify: true, ..Default::default() });
    let own = server(OWN);
    assert!(take(&own, &skip).unwrap_err().starts_with("tls.insecure_skip_verify: "));
    let lax = with("tls: { ", "tls: { insecure_skip_verify: true, ");
    assert!(becomes(&lax, &skip).tls.insecure_skip_verify);
    let verify = tls(TlsConnectionSettings::default());
    assert!(!becomes(&lax, &verify).tls.insecure_skip_verify);
    // It was allowed once, and is not any more.
    let overlay = take(&lax, &skip).unwrap().overlay;
    assert!(!overlay.lay_over(&own, Path::new("/n")).tls.insecure_skip_verify);
}

#[test]
fn proxies() {
    let own = server(OWN);
    let laid = becomes(&own, &proxy("http://other:8080")).proxy.unwrap();
    assert!(laid.url.expose().contains("other:8080"));
    assert_eq!(laid.no_proxy, ["localhost"], "what is reached directly is the device's own");
    let mut offer = proxy("http://other:8080");
    if let Some(proxy) = &mut offer.proxy {
        proxy.connect_headers = Some(Headers { headers: vec![header("X", "y\n")] });
    }
    assert!(take(&own, &offer).unwrap_err().starts_with("proxy.connect_headers: "));
    for bad in ["", "other", "ftp://other", "http://user:secret@", "http:// x"] {
        let error = take(&own, &proxy(bad)).unwrap_err();
        assert!(error.starts_with("proxy.url: ") && !error.contains("secret"), "{bad}: {error}");
    }
}

#[test]
fn heartbeats() {
    let own = server(OWN);
    let url = "wss://own.example";
    for (url, offered, expected, poll) in [
        ("", 0, 30, 45), // it does not mean it
        ("", 1, 1, 1),
        ("", 300, 300, 300),
        ("", u64::MAX, 86_400, 86_400),
        (url, 0, 0, 45), // off; plain HTTP has to poll nevertheless
        (url, 60, 60, 60),
    ] {
        let offer = Offer { heartbeat_interval_seconds: offered, ..endpoint(url) };
        let laid = becomes(&own, &offer);
        let seconds = |interval: Duration| interval.as_secs();
        let intervals = (seconds(laid.heartbeat_interval), seconds(laid.poll_interval));
        assert_eq!(intervals, (expected, poll), "{url:?} {offered}");
    }
}

/// Who edits a part of chiton.yaml means it: that part is the settings' own again, and no other.
#[test]
fn settings_that_change_afterwards_take_their_part_back() {
    let own = server(OWN);
    let offer = Offer {
        destination_endpoint: "wss://own.example:1".to_owned(),
        heartbeat_interval_seconds: 7,
        certificate: certificate().certificate,
        headers: headers(vec![header("Authorization", "new")]).headers,
        tls: Some(TlsConnectionSettings {
            ca_pem_contents: "roots".to_owned(),
            ..TlsConnectionSettings::default()
        }),
        proxy: proxy("http://other:1").proxy,
    };
    let overlay = take(&own, &offer).unwrap().overlay;
    let directory = Path::new("/n");
    let all = overlay.lay_over(&own, directory);
    assert_ne!(all.endpoint, own.endpoint);
    type Part = fn(&mut Server, &Server);
    let parts: [(&str, &str, Part); 7] = [
        ("own.example:4320", "own.example:4321", |to, from| to.endpoint = from.endpoint.clone()),
        ("Authorization: own", "Authorization: mine", |to, from| {
            to.headers = from.headers.clone();
        }),
        ("/own/key.pem", "/new/key.pem", |to, from| to.tls.client = from.tls.client.clone()),
        ("/own/ca.pem", "/new/ca.pem", |to, from| to.tls.ca_file = from.tls.ca_file.clone()),
        ("http://proxy:3128", "http://proxy:3129", |to, from| to.proxy = from.proxy.clone()),
        ("heartbeat_interval: 30s", "heartbeat_interval: 31s", |to, from| {
            to.heartbeat_interval = from.heartbeat_interval;
            to.poll_interval = from.poll_interval;
        }),
        ("poll_interval: 45s", "poll_interval: 46s", |to, from| {
            to.heartbeat_interval = from.heartbeat_interval;
            to.poll_interval = from.poll_interval;
        }),
    ];
    for (what, instead, take_back) in parts {
        let changed = with(what, instead);
        let mut expected = all.clone();
        take_back(&mut expected, &changed);
        let laid = overlay.lay_over(&changed, directory);
        assert_eq!(laid, expected, "{what}");
        // The next offer is laid over what is left of it.
        let next = take_over(&changed, &overlay, &Offer::default()).unwrap().overlay;
        assert_eq!(next.lay_over(&changed, directory), expected, "{what}");
    }
}
