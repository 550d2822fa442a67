//! The command line.

use std::env;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chiton_server::{
    Approval, AuthorityConfig, AuthorityFiles, ClientAuth, Config, Database, RestExposure, TlsFiles,
};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

/// Longest lifetime of a certificate, seconds.
const MAX_LIFETIME: u64 = 3650 * 86_400;
/// Bytes of a template of names: a uid is 22 bytes longer than what stands for it, and 64 are a name's bound.
const MAX_NAME: usize = 42;

const HELP: &str = "\
chiton-server: a small OpAMP control plane

Agents connect to it, report what they run and how they are, and take the configs and packages that you
offer. The files of packages lie in FILE.packages beside the database.

USAGE
  chiton-server run [OPTIONS]

OPTIONS
  --opamp ADDR:PORT   where agents connect, over WebSocket and HTTP, at the path
                      /v1/opamp                         [default: 0.0.0.0:4320]
  --rest ADDR:PORT    where REST and the page are     [default: 127.0.0.1:4321]
  --rest-unsafe       let --rest be an address that other machines reach. There is
                      no password: whoever reaches it can push configs. Put a proxy
                      that asks for one in front.
  --db FILE           where state is kept; :memory: keeps it nowhere
           [default: $XDG_DATA_HOME or ~/.local/share, /chiton-server/chiton-server.db]
  --tls-cert FILE     certificate chain for agents, PEM; with --tls-key
  --tls-key FILE      its private key, PEM
  --client-ca FILE    agents must show a certificate from this authority, PEM
  --client-auth WORD  optional or required: whether they must show one. [default:
                      required with --client-ca, else optional with --ca-dir]
  --ca-dir DIR        be a certificate authority for agents: ca.pem and ca.key in
                      DIR, made once. Its certificates are taken as --client-ca's are
  --ca-cert FILE --ca-key FILE   the same with an authority that you have, PEM
  --approve WORD      manual: a person approves requests, by REST or on the page;
                      auto: the server does, for whoever asks in an agent's name. For
                      demos, or where the first connection is trusted [default: manual]
  --cert-days N       how long certificates are valid; 30s is seconds   [default: 90]
  --cert-name NAME    the common name that a request must have
                                                      [default: {instance_uid}]
  --public-url URL    how agents reach --opamp, where a proxy is in between: packages
                      are downloaded from URL/packages/…   [default: the host that the
                      agent asked for; https with --tls-cert]
  --max-package-size SIZE   largest file of a package, such as 512MiB [default: 2GiB]
  -h, --help          this text
  -V, --version       the version

Port 0 takes a free port; the addresses are printed at the start. SIGINT and SIGTERM end it in order.

TRY
  chiton-server run --db :memory:
  curl http://127.0.0.1:4321/api/v1/agents
  curl http://127.0.0.1:4321/api/v1/config -H 'Content-Type: application/json' \\
    -d '{\"target\": \"env=test,region=eu\", \"files\": {\"main.yaml\": \"greeting: hello\"}}'
  curl -T otelcol.tar.gz 'http://127.0.0.1:4321/api/v1/packages/otelcol/1.2.3?type=top_level'
  curl -T otelcol.tar.gz.sig http://127.0.0.1:4321/api/v1/packages/otelcol/1.2.3/signature
  curl -X PUT http://127.0.0.1:4321/api/v1/offers/packages -H 'Content-Type: application/json' \\
    -d '{\"target\": \"env=test\", \"packages\": [{\"name\": \"otelcol\", \"version\": \"1.2.3\"}]}'

EXIT CODES
  0 ended by a signal, in order · 1 could not start · 2 the arguments make no sense";

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Say this and end.
    Print(&'static str),
}

/// Reads the arguments. The error is one line for the person who wrote them.
pub(crate) fn parse(mut arguments: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut config = Config::default();
    let (mut run, mut database) = (false, None);
    let mut authority = Authority::default();
    let (mut cert, mut key, mut client_ca) = (None::<PathBuf>, None::<PathBuf>, None::<PathBuf>);
    while let Some(argument) = arguments.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Print(HELP)),
            Short('V') | Long("version") => {
                return Ok(Command::Print(concat!("chiton-server ", env!("CARGO_PKG_VERSION"))));
            }
            Value(word) if !run && word == "run" => run = true,
            Long("opamp") => config.opamp = address("--opamp", arguments.value()?)?,
            Long("rest") => config.rest = address("--rest", arguments.value()?)?,
            Long("rest-unsafe") => config.rest_exposure = RestExposure::AnyAddress,
            Long("db") => database = Some(named(arguments.value()?)),
            Long("tls-cert") => cert = Some(arguments.value()?.into()),
            Long("tls-key") => key = Some(arguments.value()?.into()),
            Long("client-ca") => client_ca = Some(arguments.value()?.into()),
            Long("client-auth") => {
                config.client_auth = match arguments.value()?.string()?.as_str() {
                    "optional" => ClientAuth::Optional,
                    "required" => ClientAuth::Required,
                    other => {
                        return Err(format!("--client-auth {other:?}: optional or required").into());
                    }
                };
            }
            Long("ca-dir") => authority.directory = Some(arguments.value()?.into()),
            Long("ca-cert") => authority.cert = Some(arguments.value()?.into()),
            Long("ca-key") => authority.key = Some(arguments.value()?.into()),
            Long("approve") => {
                authority.approval = Some(match arguments.value()?.string()?.as_str() {
                    "auto" => Approval::Auto,
                    "manual" => Approval::Manual,
                    other => return Err(format!("--approve {other:?}: auto or manual").into()),
                });
            }
            Long("cert-days") => authority.lifetime = Some(days(&arguments.value()?.string()?)?),
            Long("cert-name") => {
                let name = arguments.value()?.string()?;
                if !name.contains("{instance_uid}") || name.len() > MAX_NAME {
                    return Err("--cert-name: it must have {instance_uid} in it, and at most 64 bytes with it".into());
                }
                authority.name = Some(name);
            }
            Long("public-url") => config.public_url = Some(public_url(arguments.value()?)?),
            Long("max-package-size") => {
                config.limits.max_package_size = size("--max-package-size", arguments.value()?)?;
            }
            other => return Err(other.unexpected()),
        }
    }
    if !run {
        return Err("the command is missing: chiton-server run, or --help".into());
    }
    config.tls = match (cert, key, client_ca) {
        (Some(cert), Some(key), client_ca) => Some(TlsFiles { cert, key, client_ca }),
        (None, None, None) => None,
        (None, None, Some(_)) => return Err("--client-ca needs --tls-cert and --tls-key".into()),
        _ => return Err("--tls-cert and --tls-key go together".into()),
    };
    config.authority = authority.check()?;
    if config.client_auth != ClientAuth::Default
        && (config.tls.is_none()
            || (config.authority.is_none()
                && config.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())))
    {
        return Err("--client-auth needs --tls-cert, and --client-ca or --ca-dir".into());
    }
    config.database = match database {
        Some(database) => database,
        None => default_database(env::var_os("XDG_DATA_HOME"), env::var_os("HOME"))?,
    };
    Ok(Command::Run(Box::new(config)))
}

/// What was said of the authority.
#[derive(Default)]
struct Authority {
    directory: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    approval: Option<Approval>,
    lifetime: Option<Duration>,
    name: Option<String>,
}

impl Authority {
    fn check(self) -> Result<Option<AuthorityConfig>, lexopt::Error> {
        let files = match (self.directory, self.cert, self.key) {
            (Some(directory), None, None) => AuthorityFiles::Directory(directory),
            (None, Some(cert), Some(key)) => AuthorityFiles::Given { cert, key },
            (None, None, None) => {
                if self.approval.is_some() || self.lifetime.is_some() || self.name.is_some() {
                    return Err("--approve, --cert-days and --cert-name need --ca-dir".into());
                }
                return Ok(None);
            }
            _ => return Err("either --ca-dir, or --ca-cert and --ca-key together".into()),
        };
        let mut config = AuthorityConfig { files, ..AuthorityConfig::new(PathBuf::new()) };
        config.approval = self.approval.unwrap_or(config.approval);
        config.lifetime = self.lifetime.unwrap_or(config.lifetime);
        config.common_name = self.name.unwrap_or(config.common_name);
        Ok(Some(config))
    }
}

/// Days, or seconds with an `s`.
fn days(text: &str) -> Result<Duration, lexopt::Error> {
    let (number, unit) = text.strip_suffix('s').map_or((text, 86_400), |seconds| (seconds, 1));
    let number: Option<u64> = number.parse().ok();
    let seconds = number.and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| (1..=MAX_LIFETIME).contains(seconds));
    let wrong =
        || format!("--cert-days {text:?}: it must be days, 1 to 3650, or seconds such as 30s");
    seconds.map(Duration::from_secs).ok_or_else(|| wrong().into())
}

fn address(option: &str, value: OsString) -> Result<SocketAddr, lexopt::Error> {
    let text = value.string()?;
    text.parse().map_err(|_| {
        format!("{option} {text:?}: it must be ADDRESS:PORT, such as 127.0.0.1:4320 or [::]:4320")
            .into()
    })
}

fn public_url(value: OsString) -> Result<String, lexopt::Error> {
    let text = value.string()?;
    Config::check_public_url(&text).map_err(|error| format!("--public-url {error}"))?;
    Ok(text)
}

/// Bytes: a number, alone or with KiB, MiB or GiB.
fn size(option: &str, value: OsString) -> Result<u64, lexopt::Error> {
    let text = value.string()?;
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let unit = match unit {
        "" => Some(1_u64),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = unit.zip(digits.parse().ok()).and_then(|(unit, count)| unit.checked_mul(count));
    let wrong = || format!("{option} {text:?}: it must be a size such as 300000, 512MiB or 2GiB");
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| wrong().into())
}

fn named(value: OsString) -> Database {
    if value == OsStr::new(":memory:") { Database::Memory } else { Database::File(value.into()) }
}

/// In the user's data directory; as the XDG rules say, a relative one does not count.
fn default_database(
    data_home: Option<OsString>,
    home: Option<OsString>,
) -> Result<Database, lexopt::Error> {
    let absolute =
        |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(data_home).or_else(|| absolute(home).map(|home| home.join(".local/share")));
    let base = base
        .ok_or("neither XDG_DATA_HOME nor HOME is set: say where state is kept with --db FILE")?;
    Ok(Database::File(base.join("chiton-server/chiton-server.db")))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Config, String> {
        match parse(lexopt::Parser::from_args(words)) {
            Ok(Command::Run(config)) => Ok(*config),
            Ok(Command::Print(text)) => panic!("printed {text}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn options_reach_the_config() {
        let words =
            ["run", "--opamp", "[::1]:1", "--rest=0.0.0.0:2", "--rest-unsafe", "--db", ":memory:"];
        let config = parsed(&words).unwrap();
        assert_eq!(config.opamp.to_string(), "[::1]:1");
        assert_eq!(config.rest.to_string(), "0.0.0.0:2");
        assert_eq!(config.rest_exposure, RestExposure::AnyAddress);
        assert_eq!(config.database, Database::Memory);
        assert_eq!(config.tls, None);
        let config =
            parsed(&["run", "--db", "f", "--tls-cert", "c", "--tls-key", "k", "--client-ca", "a"])
                .unwrap();
        assert_eq!(config.database, Database::File("f".into()));
        assert_eq!(config.tls.unwrap().client_ca, Some("a".into()));
        let words = ["run", "--db=f", "--ca-dir=d", "--approve=auto", "--cert-days", "30s"];
        let authority = parsed(&words).unwrap().authority.unwrap();
        assert_eq!(authority.files, AuthorityFiles::Directory("d".into()));
        assert_eq!(authority.approval, Approval::Auto);
        assert_eq!(authority.lifetime, Duration::from_secs(30));
        let words = ["run", "--db=f", "--public-url=https://f:1/x", "--max-package-size", "3MiB"];
        let config = parsed(&words).unwrap();
        assert_eq!(config.public_url.as_deref(), Some("https://f:1/x"));
        assert_eq!(config.limits.max_package_size, 3 << 20);
    }

    #[test]
    fn nonsense_is_named() {
        for (words, part) in [
            (&[][..], "command is missing"),
            (&["walk"], "walk"),
            (&["run", "run"], "run"),
            (&["run", "--fast"], "--fast"),
            (&["run", "--opamp", "4320"], "ADDRESS:PORT"),
            (&["run", "--opamp"], "--opamp"),
            (&["run", "--public-url", "fleet:4320"], "https://"),
            (&["run", "--public-url", "ftp://fleet"], "https://"),
            (&["run", "--public-url", "https://u:p@fleet"], "https://"),
            (&["run", "--max-package-size", "0"], "such as"),
            (&["run", "--max-package-size", "9MB"], "such as"),
            (&["run", "--max-package-size", "99999999999999GiB"], "such as"),
            (&["run", "--client-auth", "optional"], "needs --tls-cert"),
            (&["run", "--client-auth", "maybe"], "optional or required"),
            (&["run", "--approve", "auto"], "need --ca-dir"),
            (&["run", "--ca-dir", "d", "--approve", "perhaps"], "auto or manual"),
            (&["run", "--ca-dir", "d", "--ca-cert", "c"], "either --ca-dir"),
            (&["run", "--ca-cert", "c"], "either --ca-dir"),
            (&["run", "--ca-dir", "d", "--cert-days", "0"], "such as 30s"),
            (&["run", "--ca-dir", "d", "--cert-days", "9h"], "such as 30s"),
            (&["run", "--ca-dir", "d", "--cert-name", "edge"], "{instance_uid}"),
            (&["run", "--tls-cert", "c"], "go together"),
            (&["run", "--client-ca", "c"], "needs --tls-cert"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_database_is_in_the_data_directory() {
        let of = |data: Option<&str>, home: Option<&str>| {
            default_database(data.map(Into::into), home.map(Into::into))
        };
        let file = |path: &str| Database::File(path.into());
        assert_eq!(
            of(Some("/data"), Some("/home/u")).unwrap(),
            file("/data/chiton-server/chiton-server.db")
        );
        assert_eq!(
            of(Some("rel"), Some("/home/u")).unwrap(),
            file("/home/u/.local/share/chiton-server/chiton-server.db")
        );
        assert!(of(None, None).is_err());
    }
}
