//! `chiton check`: the settings, and what they point to.

use core::time::Duration;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::RootCertStore;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::sign::CertifiedKey;
use rustix::fs::{Access, StatVfsMountFlags, access, statfs, statvfs};

use super::{BAD_SETTINGS, OK};
use crate::clock;
use crate::credentials::judge;
use crate::settings::{
    self, Apply, CheckKind, ClientCertificate, DegradeAction, Environment, ExternalBy, Key, Loaded,
    Owner, Packages, Problem, Process, Settings, Tls,
};
use crate::signature::{Keyring, PublicKey};
use crate::transport::tls::{MAX_PEM, certificates};
use crate::workload::identity::Identity;

/// File systems that can keep neither permissions nor links: VFAT and exFAT, as `statfs` names them.
const NO_PERMISSIONS: [i128; 2] = [0x4d44, 0x2011_bab0];

pub(super) fn run(config: &Path) -> u8 {
    check(config, &Process, &mut io::stdout().lock(), &mut io::stderr().lock())
}

/// Problems and notes go to `err`, the settings in force to `out`.
fn check(
    config: &Path,
    environment: &dyn Environment,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    // Nobody may be listening: the exit code says it all the same.
    let mut say = |line: &str| {
        let _ = writeln!(err, "{line}");
    };
    let loaded = match settings::load(config, environment) {
        Ok(loaded) => loaded,
        Err(problems) => {
            problems.iter().for_each(|problem| say(&problem.to_string()));
            return BAD_SETTINGS;
        }
    };
    let mut surroundings = Surroundings::new(&loaded);
    surroundings.look();
    for note in loaded.notes.iter().chain(&surroundings.notes) {
        say(&format!("note: {note}"));
    }
    let problems: Vec<&Problem> = loaded.deferred.iter().chain(&surroundings.problems).collect();
    problems.iter().for_each(|problem| say(&problem.to_string()));
    let _ = out.write_all(settings::render(&loaded.settings).as_bytes());
    if problems.is_empty() { OK } else { BAD_SETTINGS }
}

/// What the settings point to: files, directories, programs, users.
struct Surroundings<'l> {
    loaded: &'l Loaded,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl<'l> Surroundings<'l> {
    const fn new(loaded: &'l Loaded) -> Self {
        Self { loaded, problems: Vec::new(), notes: Vec::new() }
    }

    fn problem(&mut self, key: &str, text: String) {
        self.problem_at(&Key::of(key), text);
    }

    fn problem_at(&mut self, key: &Key, text: String) {
        self.problems.push(self.loaded.sources.problem(key, text, false));
    }

    fn note(&mut self, key: &str, text: String) {
        self.notes.push(self.loaded.sources.problem(&Key::of(key), text, false).to_string());
    }

    fn look(&mut self) {
        let settings = &self.loaded.settings;
        self.tls(&settings.server.tls);
        self.trusted_keys(&settings.packages);
        self.directories(settings);
        self.programs();
        if let Some(file) = &settings.local_config_path
            && let Err(error) = std::fs::File::open(file)
        {
            let text = format!(
                "{}: {error}; until it is there, only a remote config runs",
                file.display()
            );
            self.note("opamp.local_config_path", text);
        }
        if let Some(workload) = &settings.workload {
            if let Some(Err(error)) = workload.user.as_deref().map(Identity::find) {
                self.problem("opamp.workload.user", error.to_string());
            }
            for (at, degrade) in workload.degrade.iter().enumerate() {
                if let DegradeAction::Use(file) = &degrade.action
                    && let Err(error) = std::fs::File::open(file)
                {
                    let key = Key::of("opamp.workload.degrade").index(at).name("do").name("use");
                    self.problem_at(&key, format!("{}: {error}", file.display()));
                }
            }
        }
    }

    fn tls(&mut self, tls: &Tls) {
        if let Some(file) = &tls.ca_file
            && let Err(error) = read_certificates(file).and_then(|found| roots(file, found))
        {
            self.problem("opamp.server.tls.ca_file", error);
        }
        let Some(client) = &tls.client else { return };
        let chain = read_certificates(&client.cert_file);
        let key = read(&client.key_file).and_then(|pem| {
            PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|error| format!("{}: no private key: {error}", client.key_file.display()))
        });
        match (chain, key) {
            (Ok(chain), Ok(key)) => {
                if let Err(error) = CertifiedKey::from_der(chain, key, &ring::default_provider()) {
                    let (key, cert) = (client.key_file.display(), client.cert_file.display());
                    let text = format!("{key}: does not go with {cert}: {error}");
                    self.problem("opamp.server.tls.key_file", text);
                } else {
                    self.own_certificate(client, tls.renew_before);
                }
            }
            (chain, key) => {
                for (name, error) in [("cert_file", chain.err()), ("key_file", key.err())] {
                    if let Some(error) = error {
                        self.problem(&format!("opamp.server.tls.{name}"), error);
                    }
                }
            }
        }
        let mode = std::fs::metadata(&client.key_file).map(|file| file.permissions().mode());
        if let Ok(mode) = mode
            && mode & 0o077 != 0
        {
            let text = format!(
                "{}: others may read it (mode {:o}); 600 keeps it to its owner",
                client.key_file.display(),
                mode & 0o777
            );
            self.note("opamp.server.tls.key_file", text);
        }
    }

    /// A chain and a key that go together: would a server take them, and for how long?
    fn own_certificate(&mut self, client: &ClientCertificate, renew_before: Duration) {
        #[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
        let now = clock::trusted(clock::now().wall).0.as_secs();
        let file = client.cert_file.display();
        let judged = read(&client.cert_file)
            .and_then(|chain| judge(&chain, &read(&client.key_file)?, None, now));
        match judged {
            Err(why) => self.problem("opamp.server.tls.cert_file", format!("{file}: {why}")),
            Ok(own) if own.not_after.saturating_sub(now) < renew_before.as_secs() => {
                let day = clock::date(clock::Wall(Duration::from_secs(own.not_after)));
                let text =
                    format!("{file}: expires on {day}, within renew_before; a new one is due");
                self.note("opamp.server.tls.cert_file", text);
            }
            Ok(_) => {}
        }
    }

    fn trusted_keys(&mut self, packages: &Packages) {
        let mut keys = Vec::new();
        for (at, file) in packages.trusted_keys.iter().enumerate() {
            let parsed = read(file).and_then(|pem| {
                PublicKey::from_pem(&pem).map_err(|error| format!("{}: {error}", file.display()))
            });
            match parsed {
                Ok(key) => keys.push(key),
                Err(error) => {
                    self.problem_at(&Key::of("opamp.packages.trusted_keys").index(at), error);
                }
            }
        }
        // Which of them are the same or revoked is known only when all are read.
        let whole = !keys.is_empty() && keys.len() == packages.trusted_keys.len();
        let keyring = Keyring::new(keys, packages.threshold, &packages.revoked_keys);
        if whole && !keyring.is_usable() {
            let active = keyring.active().count();
            let text = format!(
                "{} cannot be reached: the trusted_keys have {active} different key(s) that are not revoked",
                packages.threshold
            );
            self.problem("opamp.packages.threshold", text);
        }
    }

    fn directories(&mut self, settings: &Settings) {
        let socket = settings.status_socket.parent().unwrap_or_else(|| Path::new("/"));
        let packages = settings.capabilities.accepts_packages
            && !(settings.packages.require_signature && settings.packages.trusted_keys.is_empty());
        let all = [
            ("opamp.state_dir", Some(settings.state_dir.as_path())),
            ("opamp.status_socket", Some(socket)),
            ("opamp.packages_dir", packages.then_some(settings.packages_dir.as_path())),
            ("opamp.credentials.export", settings.credentials.export.as_deref()),
        ];
        for (key, directory) in all {
            let Some(directory) = directory else { continue };
            let existing = match writable(directory) {
                Ok(existing) => existing,
                Err(error) => {
                    self.problem(key, error);
                    continue;
                }
            };
            let unfit = match key {
                "opamp.state_dir" => without_permissions(&existing).then_some(
                    "the file system keeps no permissions (VFAT, exFAT); allowed is one that does, such as ext4",
                ),
                "opamp.packages_dir" => noexec(&existing)
                    .then_some("is mounted noexec; allowed is a place where programs may run"),
                _ => None,
            };
            if let Some(unfit) = unfit {
                self.problem(key, format!("{}: {unfit}", directory.display()));
            }
        }
    }

    fn programs(&mut self) {
        let of_apply = |apply: &'l Apply| match apply {
            Apply::Command(command) => command.as_slice(),
            Apply::Restart | Apply::Reload => &[],
        };
        let settings: &'l Settings = &self.loaded.settings;
        let mut commands: Vec<(Key, &'l [String])> = vec![
            (Key::of("opamp.remote_config.validate"), &settings.remote_config.validate),
            (Key::of("opamp.remote_config.apply"), of_apply(&settings.remote_config.apply)),
            (Key::of("opamp.packages.apply"), of_apply(&settings.packages.apply)),
            (Key::of("opamp.packages.verify"), &settings.packages.verify),
            (Key::of("opamp.packages.after_install"), &settings.packages.after_install),
            (Key::of("opamp.credentials.on_change"), &settings.credentials.on_change),
        ];
        for (at, check) in settings.health.checks.iter().enumerate() {
            if let CheckKind::Exec(command) = &check.kind {
                commands.push((Key::of("opamp.health.checks").index(at).name("exec"), command));
            }
        }
        match settings.workload.as_ref().map(|workload| &workload.owner) {
            Some(Owner::Chiton { command }) => {
                commands.push((Key::of("opamp.workload.command"), command));
            }
            Some(Owner::External(external)) => {
                if matches!(external.by, ExternalBy::Unit(_))
                    && external.restart.is_empty()
                    && let Err(error) = executable("systemctl")
                {
                    let text = format!("{error}, or a restart command beside the unit");
                    self.problem("opamp.workload.external.unit", text);
                }
                commands.push((Key::of("opamp.workload.external.reload"), &external.reload));
                commands.push((Key::of("opamp.workload.external.restart"), &external.restart));
            }
            None => {}
        }
        for (key, command) in commands {
            if let Some(Err(error)) = command.first().map(|program| executable(program)) {
                self.problem_at(&key, error);
            }
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let describe = |error: io::Error| format!("{}: {error}", file.display());
    let facts = std::fs::metadata(file).map_err(describe)?;
    if !facts.is_file() {
        return Err(format!("{}: not a file", file.display()));
    }
    if facts.len() > MAX_PEM {
        return Err(format!("{}: {} bytes; allowed are {MAX_PEM}", file.display(), facts.len()));
    }
    std::fs::read(file).map_err(describe)
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates(&read(file)?).map_err(|error| format!("{}: {error}", file.display()))
}

fn roots(file: &Path, found: Vec<CertificateDer<'static>>) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    found.into_iter().try_for_each(|certificate| {
        store.add(certificate).map_err(|error| format!("{}: {error}", file.display()))
    })
}

/// The directory itself, or the nearest one above it that exists, when we may write there.
fn writable(directory: &Path) -> Result<PathBuf, String> {
    for above in directory.ancestors() {
        let shown = above.display();
        let facts = match std::fs::metadata(above) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{shown}: {error}")),
        };
        if !facts.is_dir() {
            return Err(format!("{shown}: not a directory"));
        }
        return match access(above, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Ok(above.to_owned()),
            Err(error) if above == directory => Err(format!("{shown}: not writable: {error}")),
            Err(error) => {
                let wanted = directory.display();
                Err(format!("{wanted}: cannot be made, {shown} is not writable: {error}"))
            }
        };
    }
    Err(format!("{}: no directory above it exists", directory.display()))
}

fn noexec(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|facts| facts.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

fn without_permissions(directory: &Path) -> bool {
    // The type of `f_type` differs by architecture; this one holds them all.
    statfs(directory).is_ok_and(|facts| NO_PERMISSIONS.contains(&i128::from(facts.f_type)))
}

/// Whether a command's program can be run. One with a placeholder in it may come later.
fn executable(program: &str) -> Result<(), String> {
    if program.contains('{') {
        return Ok(());
    }
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if !program.contains('/') {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|directory| runs(&directory.join(program))) {
            return Ok(());
        }
        return Err(format!(
            "{program}: in no directory of PATH; allowed is also an absolute path"
        ));
    }
    let path = Path::new(program);
    if !path.is_absolute() {
        return Err(format!("{program}: a relative path; allowed is an absolute one"));
    }
    match std::fs::metadata(path) {
        Err(error) => Err(format!("{program}: {error}")),
        Ok(_) if runs(path) => Ok(()),
        Ok(_) => Err(format!("{program}: not a file that may be executed")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    struct Device(tempfile::TempDir);

    impl Device {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn write(&self, name: &str, content: &str) {
            std::fs::write(self.0.path().join(name), content).unwrap();
        }

        /// A certificate authority, a client certificate and its key.
        fn certificates(&self) {
            for name in ["ca", "agent", "other"] {
                let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
                self.write(&format!("{name}.pem"), &made.cert.pem());
                self.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
                std::fs::set_permissions(
                    self.path(&format!("{name}.key")),
                    std::fs::Permissions::from_mode(0o600),
                )
                .unwrap();
            }
        }

        /// Exit code, stdout, stderr. `@` stands for the directory.
        fn check(&self, yaml: &str) -> (u8, String, String) {
            let yaml = format!(
                "{}\n  state_dir: @/state\n  status_socket: @/run/status.sock\n",
                yaml.trim_end()
            );
            self.write(
                "chiton.yaml",
                &yaml.replace("@/", &format!("{}/", self.0.path().display())),
            );
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let environment = BTreeMap::from([("TOKEN", "hunter2")]);
            let config = self.0.path().join("chiton.yaml");
            let code = check(&config, &environment, &mut out, &mut err);
            (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        }
    }

    const MTLS: &str = "opamp:
  server:
    endpoint: wss://opamp.example.com
    headers: {Authorization: \"Bearer ${TOKEN}\"}
    tls:
      ca_file: @/ca.pem
      cert_file: @/agent.pem
      key_file: @/agent.key
";

    #[test]
    fn good_settings_are_shown_without_secrets() {
        let device = Device::new();
        device.certificates();
        let (code, out, err) = device.check(MTLS);
        assert_eq!((code, err.as_str()), (OK, ""));
        assert!(out.contains("wss://opamp.example.com/v1/opamp"), "{out}");
        assert!(out.contains("Authorization: '***'"), "{out}");
        assert!(!out.contains("hunter2"));
    }

    #[test]
    fn each_missing_file_is_a_problem_with_its_line() {
        let device = Device::new();
        let (code, out, err) = device.check(MTLS);
        assert_eq!(code, BAD_SETTINGS);
        for (line, key) in [(6, "ca_file"), (7, "cert_file"), (8, "key_file")] {
            assert!(
                err.contains(&format!("chiton.yaml:{line}: opamp.server.tls.{key}: ")),
                "{err}"
            );
        }
        assert_eq!(err.lines().count(), 3, "{err}");
        assert!(out.contains("endpoint"), "what is in force is shown all the same");
    }

    #[test]
    fn bad_certificates_and_keys_are_told_apart() {
        let device = Device::new();
        device.certificates();
        let copy = |from: &str, to: &str| {
            std::fs::copy(device.path(from), device.path(to)).unwrap();
        };
        copy("other.key", "agent.key");
        let (code, _, err) = device.check(MTLS);
        assert_eq!(code, BAD_SETTINGS);
        assert!(err.contains(":8: opamp.server.tls.key_file: "), "{err}");
        assert!(err.contains("does not go with"), "{err}");
        device.write("agent.key", "no key");
        device.write("ca.pem", "no certificate");
        device.write("agent.pem", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
        let (_, _, err) = device.check(MTLS);
        assert_eq!(err.lines().count(), 2, "{err}");
        copy("other.key", "agent.key");
        let (_, _, err) = device.check(MTLS);
        assert!(err.contains("does not go with"), "{err}");
    }

    #[test]
    fn the_end_of_a_certificate_is_seen_coming() {
        let device = Device::new();
        device.certificates();
        let key = rcgen::KeyPair::generate().unwrap();
        device.write("agent.key", &key.serialize_pem());
        let place = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::new(vec!["agent".to_owned()]).unwrap();
            change(&mut params);
            device.write("agent.pem", &params.self_signed(&key).unwrap().pem());
            device.check(MTLS)
        };
        let (code, _, err) = place(&|params| params.not_after = rcgen::date_time_ymd(2020, 2, 3));
        assert_eq!(code, BAD_SETTINGS);
        assert!(
            err.contains(":7: opamp.server.tls.cert_file: ")
                && err.contains("expired on 2020-02-03"),
            "{err}"
        );
        let (code, _, err) = place(&|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert!(code == BAD_SETTINGS && err.contains("clientAuth"), "{err}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a certificate that ends soon ends soon after now"
        )]
        let now = clock::trusted(clock::now().wall).0;
        for (days, noted) in [(29, true), (31, false)] {
            let end = now.saturating_add(Duration::from_secs(days * 86_400));
            let (code, _, err) =
                place(&|params| params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end);
            assert_eq!(code, OK, "{err}");
            assert_eq!(err.contains("within renew_before"), noted, "{err}");
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_noted() {
        let device = Device::new();
        device.certificates();
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(device.path("agent.key"), mode).unwrap();
        let (code, _, err) = device.check(MTLS);
        assert_eq!(code, OK);
        assert!(err.starts_with("note: ") && err.contains("mode 644"), "{err}");
    }

    #[test]
    fn trusted_keys_must_be_ed25519() {
        let device = Device::new();
        // The public key of RFC 8410's example, section 10.1.
        device.write(
            "good.pub",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
        );
        let p256 = rcgen::KeyPair::generate().unwrap();
        device.write("p256.pub", &p256.public_key_pem());
        device.write("empty.pub", "");
        let (code, _, err) = device.check(
            "opamp:\n  server: {endpoint: \"ws://localhost\"}\n  packages:\n    trusted_keys:\n    - @/good.pub\n    - @/p256.pub\n    - @/empty.pub\n    - @/absent.pub\n",
        );
        assert_eq!(code, BAD_SETTINGS);
        for (at, line, word) in [(1, 6, "another kind"), (2, 7, "no public key"), (3, 8, "No such")]
        {
            let place = format!("chiton.yaml:{line}: opamp.packages.trusted_keys[{at}]: ");
            let found = err.lines().find(|found| found.contains(&place));
            assert!(found.is_some_and(|found| found.contains(word)), "{err}");
        }
        assert!(!err.contains("trusted_keys[0]"), "{err}");
    }

    #[test]
    fn a_threshold_counts_different_keys_that_are_not_revoked() {
        let device = Device::new();
        // The public key of RFC 8410's example, section 10.1, and its id.
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        device.write("a.pub", pem);
        device.write("b.pub", pem);
        let id = PublicKey::from_pem(pem.as_bytes()).unwrap().id();
        let packages = |rest: &str| {
            device.check(&format!(
                "opamp:\n  server: {{endpoint: \"ws://localhost\"}}\n  packages:\n    trusted_keys: [@/a.pub, @/b.pub]\n    {rest}\n"
            ))
        };
        for rest in ["threshold: 2".to_owned(), format!("revoked_keys: [{id}]")] {
            let (code, _, err) = packages(&rest);
            assert_eq!(code, BAD_SETTINGS, "{rest}");
            assert!(
                err.contains("opamp.packages.threshold: ") && err.contains("cannot be reached"),
                "{err}"
            );
        }
        let (code, _, err) = packages("threshold: 1");
        assert_eq!(code, OK, "{err}");
    }

    #[test]
    fn programs_users_and_directories_are_looked_for() {
        let device = Device::new();
        device.write("plain", "");
        let (code, _, err) = device.check(
            "opamp:
  server: {endpoint: \"ws://localhost\"}
  health:
    checks:
    - {exec: [/bin/sh]}
    - {exec: [@/plain]}
  workload:
    command: [@/absent]
    user: nobody-of-that-name
  local_config_path: @/absent.yaml
  remote_config: {validate: [no-such-program-anywhere]}
  credentials: {export: @/plain/x}
",
        );
        assert_eq!(code, BAD_SETTINGS);
        for (line, key) in [
            (6, "opamp.health.checks[1].exec: "),
            (8, "opamp.workload.command: "),
            (9, "opamp.workload.user: "),
            (11, "opamp.remote_config.validate: "),
            (12, "opamp.credentials.export: "),
        ] {
            assert!(err.contains(&format!("chiton.yaml:{line}: {key}")), "{key}: {err}");
        }
        let problems = err.lines().filter(|line| !line.starts_with("note: ")).count();
        assert_eq!(problems, 5, "{err}");
        assert!(err.contains(":10: opamp.local_config_path: "), "{err}");
    }

    #[test]
    fn deferred_problems_are_problems_here() {
        let device = Device::new();
        let (code, _, err) = device.check(
            "opamp:\n  server:\n    endpoint: ws://localhost\n    headers: {A: \"${UNSET}\"}\n",
        );
        assert_eq!(code, BAD_SETTINGS);
        assert!(err.contains("chiton.yaml:4: opamp.server.headers.A: the variable UNSET"), "{err}");
    }

    #[test]
    fn bad_settings_print_nothing_to_stdout() {
        let device = Device::new();
        let (code, out, err) = device.check("opamp:\n  server: {endpoint: 5}\n");
        assert_eq!((code, out.as_str()), (BAD_SETTINGS, ""));
        assert!(err.contains("chiton.yaml:2: opamp.server.endpoint: "), "{err}");
    }
}
