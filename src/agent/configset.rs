//! From an offered config map and the local file to the set of files that a generation's directory holds.
//!
//! The rules are PRODUCT.md §3's. An object is placed as a file of its name; an empty name is placed as
//! `main_file`, else as the local file's base name, else as `config.yaml`. One file is the main one, and the
//! local file lies beneath it. An offer is placed whole or refused whole.
//!
//! What PRODUCT.md leaves open, and what is done here:
//! - A name is one path component. A `/` is refused: a set is flat.
//! - The local file alone is its owner's own: `allow` and the limits bind offers, not it.
//! - Only YAML can lie beneath YAML. Where the main file's name has another extension than `yaml` or `yml` (and
//!   its content type does not say YAML), the remote file replaces the local one. A blank file of the two
//!   leaves the other as it is, byte for byte.
//! - In `layout: merge` each object's name must be allowed, though only the main file is placed.

use core::fmt;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentConfigObject};

use crate::agent::merge::{self, MergeError, Side};
use crate::agent::redact;
use crate::settings::{Layout, RemoteConfig};
use crate::sha256::Sha256;

/// Where an empty name is placed when nothing else names the file.
pub const DEFAULT_NAME: &str = "config.yaml";

/// The longest name, bytes: Linux's own limit for one path component.
pub const MAX_NAME: usize = 255;

/// Names that start so belong to the store.
pub const RESERVED_PREFIX: &str = ".chiton";

/// Characters of a name or of a merge's fault that a refusal shows.
const SHOWN: usize = 64;

/// The file at `local_config_path`.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// Its base name: it names files even while the file itself is missing.
    pub name: &'a str,
    /// Its content; absent: no such file.
    pub body: Option<&'a [u8]>,
}

/// A file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedFile {
    /// Name in the generation's directory.
    pub name: String,
    /// Name in the offer, which is the one to report.
    pub offered: String,
    /// As offered.
    pub content_type: String,
    /// As offered.
    pub role: String,
    /// What the file holds.
    pub body: Bytes,
}

/// A set of files that may be placed; the empty one goes with packages before there is a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigSet {
    main: Option<PlacedFile>,
    others: Vec<PlacedFile>,
}

impl ConfigSet {
    /// One that was placed before, its main file among the others.
    #[must_use]
    pub fn of(mut files: Vec<PlacedFile>, main: &str) -> Self {
        let at = files.iter().position(|file| file.name == main);
        Self { main: at.map(|at| files.remove(at)), others: files }
    }

    /// The main file's name: `{config_file}` without its directory. Empty where there is none.
    #[must_use]
    pub fn main_name(&self) -> &str {
        self.main.as_ref().map_or("", |main| &main.name)
    }

    /// The main file.
    #[must_use]
    pub const fn main(&self) -> Option<&PlacedFile> {
        self.main.as_ref()
    }

    /// Every file, the main one first, the others in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &PlacedFile> {
        self.main.iter().chain(&self.others)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn total_size(&self) -> usize {
        self.files().fold(0, |sum, file| sum.saturating_add(file.body.len()))
    }

    /// The digest of contents: SHA-256 over each file's name and body, main file first, each with its length
    /// before it. Two sets with one digest run the same.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in self.files() {
            for part in [file.name.as_bytes(), &file.body] {
                let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
                hash.update(length.to_le_bytes());
                hash.update(part);
            }
        }
        hash.finalize()
    }

    /// What to report as the effective config: the offered names, the placed bodies, with the values of keys
    /// that match a pattern masked.
    #[must_use]
    pub fn effective(&self, patterns: &[String]) -> AgentConfigMap {
        let object = |file: &PlacedFile| {
            let body = match redact::redact(&file.body, patterns) {
                // Nothing masked: the same buffer, no copy.
                std::borrow::Cow::Borrowed(_) => file.body.clone(),
                std::borrow::Cow::Owned(masked) => masked.into(),
            };
            let content_type = match file.content_type.as_str() {
                "" if is_yaml(&file.name, "") => "text/yaml",
                other => other,
            };
            AgentConfigObject {
                body,
                content_type: content_type.to_owned(),
                role: file.role.clone(),
            }
        };
        AgentConfigMap {
            config_map: self.files().map(|file| (file.offered.clone(), object(file))).collect(),
        }
    }
}

/// Why an offer is refused as a whole. [`Refusal::word`] is for machines and stays, the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No objects, or only blank ones, and no local file to run instead.
    Empty,
    /// A name that cannot be a file's.
    Name {
        /// The name, shortened and escaped.
        name: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// Over `allow.max_files`.
    TooManyFiles {
        /// Objects offered.
        files: usize,
        /// What is allowed.
        max: usize,
    },
    /// Over `allow.max_size`.
    TooLarge {
        /// Bytes offered.
        size: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not in `allow.files`.
    NotAllowed {
        /// The name on disk, shortened and escaped.
        name: String,
        /// The patterns, shortened.
        allowed: String,
    },
    /// Two objects would be one file, or one file on some file systems.
    Clash {
        /// One offered name.
        first: String,
        /// The other.
        second: String,
        /// The file's name.
        file: String,
    },
    /// None of the rules finds the main file.
    NoMainFile {
        /// Objects offered.
        files: usize,
    },
    /// Over `allow.max_merge`.
    MergeTooLarge {
        /// The main file's name.
        name: String,
        /// Bytes to merge, those of the local file included.
        size: usize,
        /// What is allowed.
        max: usize,
    },
    /// What is to be merged is not YAML.
    MergeInvalid {
        /// The file or object at fault.
        name: String,
        /// Line and fault.
        error: MergeError,
    },
}

/// What can be wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// Over [`MAX_NAME`].
    TooLong,
    /// It holds a `/` or a `\`.
    Separator,
    /// `.` or `..`.
    Dots,
    /// A control character, NUL among them.
    Control,
    /// It starts with [`RESERVED_PREFIX`].
    Reserved,
}

impl Refusal {
    /// A stable word for machines.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Empty => "empty config",
            Self::Name { .. } => "name",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::TooLarge { .. } => "too_large",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Clash { .. } => "clash",
            Self::NoMainFile { .. } => "no_main_file",
            Self::MergeTooLarge { .. } => "merge_too_large",
            Self::MergeInvalid { .. } => "merge_invalid",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.word())?;
        match self {
            Self::Empty => {
                f.write_str("no object has content, and there is no local file to run instead")
            }
            Self::Name { name, fault } => {
                write!(f, "the object \"{name}\" ")?;
                f.write_str(match fault {
                    NameFault::TooLong => "has a name of more than 255 bytes",
                    NameFault::Separator => "has a / or \\ in its name; names are plain file names",
                    NameFault::Dots => "names a directory; names are plain file names",
                    NameFault::Control => "has a control character in its name",
                    NameFault::Reserved => {
                        "has a name that starts with .chiton, which is Chiton's own"
                    }
                })
            }
            Self::TooManyFiles { files, max } => {
                write!(f, "{files} objects, remote_config.allow.max_files allows {max}")
            }
            Self::TooLarge { size, max } => {
                write!(f, "{size} bytes, remote_config.allow.max_size allows {max}")
            }
            Self::NotAllowed { name, allowed } => {
                write!(f, "the file \"{name}\", remote_config.allow.files allows {allowed}")
            }
            Self::Clash { first, second, file } => {
                write!(
                    f,
                    "the objects \"{first}\" and \"{second}\" would both be the file \"{file}\""
                )
            }
            Self::NoMainFile { files } => write!(
                f,
                "none of the {files} objects is known to be the main file; set remote_config.main_file to its \
                 name, give it the empty name, or name it like the file at local_config_path"
            ),
            Self::MergeTooLarge { name, size, max } => {
                write!(
                    f,
                    "{size} bytes to merge into \"{name}\", remote_config.allow.max_merge allows {max}"
                )
            }
            Self::MergeInvalid { name, error } => {
                let what: String = error.what.chars().take(SHOWN.saturating_mul(4)).collect();
                write!(f, "\"{name}\"")?;
                if let Some(line) = error.line {
                    write!(f, ", line {line}")?;
                }
                write!(f, ": {what}")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// Makes the set of an offer, or of the local file where nothing is offered.
///
/// # Errors
/// Why nothing may be placed.
pub fn place(
    offer: Option<&AgentConfigMap>,
    local: Option<Local<'_>>,
    rules: &RemoteConfig,
) -> Result<ConfigSet, Refusal> {
    let unnamed = unnamed_file(local, rules);
    let mut files = offer.map_or_else(|| Ok(Vec::new()), |offer| offered(offer, unnamed, rules))?;
    if files.iter().all(|file| is_blank(&file.body)) {
        let offered_unnamed = files.iter().any(|file| file.offered.is_empty());
        return local_alone(local, unnamed, offered_unnamed);
    }
    for file in &files {
        if !rules.allow.files.iter().any(|pattern| matches(pattern, &file.name)) {
            return Err(Refusal::NotAllowed {
                name: shown(&file.name),
                allowed: listed(&rules.allow.files),
            });
        }
    }
    let beneath = local.and_then(|local| local.body).filter(|body| !is_blank(body));
    if rules.layout == Layout::Merge {
        let main = merge_all(files, beneath, unnamed, rules)?;
        return Ok(ConfigSet { main: Some(main), others: Vec::new() });
    }
    let at = main_index(&files, local, rules).ok_or(Refusal::NoMainFile { files: files.len() })?;
    let mut main = files.remove(at);
    if let Some(beneath) = beneath.filter(|_| is_yaml(&main.name, &main.content_type)) {
        main.body = lay_over(&main, beneath, local.map_or("", |local| local.name), rules)?;
    }
    Ok(ConfigSet { main: Some(main), others: files })
}

/// Where an empty name is placed.
fn unnamed_file<'a>(local: Option<Local<'a>>, rules: &'a RemoteConfig) -> &'a str {
    if !rules.main_file.is_empty() {
        return &rules.main_file;
    }
    local.map_or(DEFAULT_NAME, |local| local.name)
}

/// The objects of an offer as files in the order of their names, with what holds for blank ones too.
fn offered(
    offer: &AgentConfigMap,
    unnamed: &str,
    rules: &RemoteConfig,
) -> Result<Vec<PlacedFile>, Refusal> {
    let objects = &offer.config_map;
    if objects.len() > rules.allow.max_files {
        return Err(Refusal::TooManyFiles { files: objects.len(), max: rules.allow.max_files });
    }
    let size = objects.values().fold(0_usize, |sum, object| sum.saturating_add(object.body.len()));
    if size > rules.allow.max_size {
        return Err(Refusal::TooLarge { size, max: rules.allow.max_size });
    }
    // By the name without its case: some file systems keep none.
    let mut files = std::collections::BTreeMap::<String, PlacedFile>::new();
    for (offered, object) in objects {
        let name = if offered.is_empty() { unnamed } else { offered };
        test_name(name)?;
        let file = PlacedFile {
            name: name.to_owned(),
            offered: offered.clone(),
            content_type: object.content_type.clone(),
            role: object.role.clone(),
            body: object.body.clone(),
        };
        if let Some(first) = files.insert(caseless(name), file) {
            let (first, second) = (shown(&first.offered), shown(offered));
            return Err(Refusal::Clash { first, second, file: shown(name) });
        }
    }
    let mut files: Vec<PlacedFile> = files.into_values().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn caseless(name: &str) -> String {
    // Upper first: ẞ, ſ and their like fold only that way round.
    name.to_uppercase().to_lowercase()
}

fn test_name(name: &str) -> Result<(), Refusal> {
    let fault = if name.len() > MAX_NAME {
        NameFault::TooLong
    } else if name.contains(['/', '\\']) {
        NameFault::Separator
    } else if name.is_empty() || name == "." || name == ".." {
        NameFault::Dots
    } else if name.contains(char::is_control) {
        NameFault::Control
    } else if caseless(name).starts_with(RESERVED_PREFIX) {
        NameFault::Reserved
    } else {
        return Ok(());
    };
    Err(Refusal::Name { name: shown(name), fault })
}

fn local_alone(
    local: Option<Local<'_>>,
    unnamed: &str,
    offered_unnamed: bool,
) -> Result<ConfigSet, Refusal> {
    let Some((local, body)) = local.and_then(|local| Some((local, local.body?))) else {
        return Err(Refusal::Empty);
    };
    test_name(unnamed)?;
    let main = PlacedFile {
        name: unnamed.to_owned(),
        offered: if offered_unnamed { String::new() } else { local.name.to_owned() },
        content_type: String::new(),
        role: String::new(),
        body: Bytes::copy_from_slice(body),
    };
    Ok(ConfigSet { main: Some(main), others: Vec::new() })
}

fn main_index(
    files: &[PlacedFile],
    local: Option<Local<'_>>,
    rules: &RemoteConfig,
) -> Option<usize> {
    let by = |test: &dyn Fn(&PlacedFile) -> bool| files.iter().position(test);
    by(&|file| !rules.main_file.is_empty() && file.name == rules.main_file)
        .or_else(|| by(&|file| file.offered.is_empty()))
        .or_else(|| (files.len() == 1).then_some(0))
        .or_else(|| local.and_then(|local| by(&|file| file.name == local.name)))
}

/// The main file's body with the local file beneath it.
fn lay_over(
    main: &PlacedFile,
    beneath: &[u8],
    local: &str,
    rules: &RemoteConfig,
) -> Result<Bytes, Refusal> {
    if is_blank(&main.body) {
        return Ok(Bytes::copy_from_slice(beneath));
    }
    merge_fits(&main.name, beneath.len().saturating_add(main.body.len()), rules)?;
    let at_fault = |error: MergeError| {
        let name = if error.side == Side::Base {
            format!("{} (the local file)", shown(local))
        } else {
            shown(&main.name)
        };
        Refusal::MergeInvalid { name, error }
    };
    merge::overlay(beneath, &main.body).map(Bytes::from).map_err(at_fault)
}

/// `layout: merge`: the local file, then the objects in the order of their names, the empty-named last.
fn merge_all(
    mut files: Vec<PlacedFile>,
    beneath: Option<&[u8]>,
    unnamed: &str,
    rules: &RemoteConfig,
) -> Result<PlacedFile, Refusal> {
    files.sort_by(|a, b| {
        (a.offered.is_empty(), &a.offered).cmp(&(b.offered.is_empty(), &b.offered))
    });
    test_name(unnamed)?;
    let offered_unnamed = files.iter().any(|file| file.offered.is_empty());
    let offered = if offered_unnamed { String::new() } else { unnamed.to_owned() };
    files.retain(|file| !is_blank(&file.body));
    let size = files
        .iter()
        .fold(beneath.map_or(0, <[u8]>::len), |sum, file| sum.saturating_add(file.body.len()));
    let mut body = beneath.map(Bytes::copy_from_slice);
    let (mut content_type, mut role) = (String::new(), String::new());
    for file in files {
        body = Some(match body {
            None => file.body,
            Some(lower) => {
                merge_fits(unnamed, size, rules)?;
                let at_fault = |error| Refusal::MergeInvalid { name: shown(&file.name), error };
                merge::overlay(&lower, &file.body).map_err(at_fault)?.into()
            }
        });
        (content_type, role) = (file.content_type, file.role);
    }
    Ok(PlacedFile {
        name: unnamed.to_owned(),
        offered,
        content_type,
        role,
        body: body.unwrap_or_default(),
    })
}

fn merge_fits(name: &str, size: usize, rules: &RemoteConfig) -> Result<(), Refusal> {
    let max = rules.allow.max_merge;
    if size > max { Err(Refusal::MergeTooLarge { name: shown(name), size, max }) } else { Ok(()) }
}

fn is_blank(body: &[u8]) -> bool {
    body.trim_ascii().is_empty()
}

/// Whether a file is YAML as far as its name and content type tell. Without an extension: yes.
fn is_yaml(name: &str, content_type: &str) -> bool {
    if content_type.to_ascii_lowercase().contains("yaml") {
        return true;
    }
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => {
            extension.eq_ignore_ascii_case("yaml") || extension.eq_ignore_ascii_case("yml")
        }
        _ => true,
    }
}

/// A glob: `*` is any run of characters, `?` any one. Linear in the name for each `*`.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    // Where to go on when what follows the last `*` does not fit: one character further in the name.
    let mut retry = None;
    loop {
        let (mut after, mut rest) = (pattern.clone(), name.clone());
        match (after.next(), rest.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                pattern = after;
                retry = Some((pattern.clone(), name.clone()));
                continue;
            }
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                (pattern, name) = (after, rest);
                continue;
            }
            _ => {}
        }
        let Some((after_star, mut from)) = retry.take() else { return false };
        if from.next().is_none() {
            return false;
        }
        (pattern, name) = (after_star.clone(), from.clone());
        retry = Some((after_star, from));
    }
}

/// A peer's text as a message may show it: escaped and short.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

fn listed(patterns: &[String]) -> String {
    let mut list =
        patterns.iter().take(8).map(|pattern| shown(pattern)).collect::<Vec<_>>().join(", ");
    if patterns.len() > 8 {
        list.push_str(", …");
    }
    if list.is_empty() { "none".to_owned() } else { list }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::settings::{Allow, Apply, CrashLoop, Rollback};

    fn rules() -> RemoteConfig {
        RemoteConfig {
            main_file: String::new(),
            layout: Layout::Files,
            validate: Vec::new(),
            apply: Apply::Restart,
            rollback: Rollback {
                window: Duration::from_secs(60),
                interval: Duration::from_secs(1),
                successes: 5,
                attempts: 3,
                crash_loop: CrashLoop { crashes: 3, within: Duration::from_secs(600) },
            },
            min_interval: Duration::from_secs(60),
            allow: Allow {
                files: vec!["*".into()],
                max_files: 32,
                max_size: 1 << 20,
                max_merge: 128 << 10,
            },
            history: 5,
            require_signature: false,
        }
    }

    fn main_is(name: &str) -> RemoteConfig {
        RemoteConfig { main_file: name.into(), ..rules() }
    }

    fn offer(objects: &[(&str, &str)]) -> AgentConfigMap {
        let object = |&(name, body): &(&str, &str)| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            (name.to_owned(), AgentConfigObject { body, ..Default::default() })
        };
        AgentConfigMap { config_map: objects.iter().map(object).collect() }
    }

    fn local<'a>(name: &'a str, body: &'a str) -> Option<Local<'a>> {
        Some(Local { name, body: Some(body.as_bytes()) })
    }

    fn names(set: &ConfigSet) -> Vec<&str> {
        set.files().map(|file| file.name.as_str()).collect()
    }

    fn word(
        objects: &[(&str, &str)],
        local: Option<Local<'_>>,
        rules: &RemoteConfig,
    ) -> &'static str {
        place(Some(&offer(objects)), local, rules).unwrap_err().word()
    }

    #[test]
    fn an_empty_name_is_main_file_else_the_local_name_else_config_yaml() {
        let one = offer(&[("", "a: 1")]);
        let absent = Some(Local { name: "otel.yaml", body: None });
        for (local, rules, name) in [
            (absent, main_is("m.yaml"), "m.yaml"),
            (absent, rules(), "otel.yaml"),
            (None, rules(), "config.yaml"),
        ] {
            let set = place(Some(&one), local, &rules).unwrap();
            assert_eq!((set.main_name(), set.main().unwrap().offered.as_str()), (name, ""));
        }
    }

    #[test]
    fn the_main_file_is_found_in_the_order_of_the_rules() {
        let main = |objects: &[(&str, &str)], local, rules: &RemoteConfig| {
            place(Some(&offer(objects)), local, rules).unwrap().main_name().to_owned()
        };
        let three = [("", "a: 1"), ("b.yaml", "b: 1"), ("otel.yml", "c: 1")];
        let here = Some(Local { name: "otel.yml", body: None });
        // The set has main_file. Its empty-named object would be the same file, so there is none.
        assert_eq!(main(&three[1..], here, &main_is("b.yaml")), "b.yaml");
        // The set does not: the empty-named, which then is main_file.
        assert_eq!(main(&three, None, &main_is("m.yaml")), "m.yaml");
        assert_eq!(main(&three, None, &rules()), "config.yaml");
        // The only object whatever its name, though main_file is another.
        assert_eq!(main(&three[1..2], here, &main_is("m.yaml")), "b.yaml");
        // The local file's name.
        assert_eq!(main(&three[1..], here, &rules()), "otel.yml");
        // None of them.
        let refused = place(Some(&offer(&three[1..])), None, &rules()).unwrap_err();
        assert_eq!(refused, Refusal::NoMainFile { files: 2 });
        assert!(refused.to_string().contains("remote_config.main_file"), "{refused}");
    }

    #[test]
    fn without_a_local_file_bodies_are_placed_byte_for_byte() {
        let body = "b:   1 # kept\r\na: [1,\n 2]";
        let set = place(Some(&offer(&[("", body), ("z.txt", "\0z")])), None, &rules()).unwrap();
        assert_eq!(set.main().unwrap().body, body);
        assert_eq!(names(&set), ["config.yaml", "z.txt"]);
        assert_eq!(set.total_size(), body.len() + 2);
        // Also what is no YAML, and what is over max_merge: nothing is merged.
        let large = "x".repeat(200 << 10);
        let set =
            place(Some(&offer(&[("", &large)])), Some(Local { name: "c", body: None }), &rules())
                .unwrap();
        assert_eq!(set.total_size(), large.len());
    }

    #[test]
    fn the_local_file_lies_beneath_the_main_file_only() {
        let objects = offer(&[("", "m: {b: 2}\nl: [2]"), ("other.yaml", "o: 1")]);
        let set =
            place(Some(&objects), local("config.yaml", "m: {a: 1}\nl: [1]\n"), &rules()).unwrap();
        assert_eq!(set.main().unwrap().body, "m:\n  a: 1\n  b: 2\nl:\n- 2\n");
        assert_eq!(set.files().nth(1).unwrap().body, "o: 1");
    }

    #[test]
    fn a_blank_half_leaves_the_other_as_it_is() {
        let set = place(Some(&offer(&[("", "b:   1")])), local("c.yaml", " \n"), &rules()).unwrap();
        assert_eq!(set.main().unwrap().body, "b:   1");
        let objects = offer(&[("", "\n"), ("x.yaml", "x: 1")]);
        let set = place(Some(&objects), local("c.yaml", "b:   1"), &rules()).unwrap();
        assert_eq!(set.main().unwrap().body, "b:   1");
    }

    #[test]
    fn what_is_no_yaml_replaces_the_local_file() {
        let set = place(
            Some(&offer(&[("", "[b]\nk = 1")])),
            local("telegraf.conf", "[a]\nk = 2"),
            &rules(),
        )
        .unwrap();
        assert_eq!(set.main().unwrap().body, "[b]\nk = 1");
        let mut objects = offer(&[("", "b: 1")]);
        objects.config_map.get_mut("").unwrap().content_type = "application/yaml".into();
        let set = place(Some(&objects), local("agent.conf", "a: 1"), &rules()).unwrap();
        assert_eq!(set.main().unwrap().body, "a: 1\nb: 1\n");
    }

    #[test]
    fn merging_is_bounded_and_its_faults_say_whose_they_are() {
        let rules = RemoteConfig { allow: Allow { max_merge: 20, ..rules().allow }, ..rules() };
        assert!(
            place(Some(&offer(&[("", "a: 345678901")])), local("c.yaml", "b: 45678"), &rules)
                .is_ok()
        );
        let refused =
            place(Some(&offer(&[("", "a: 3456789012")])), local("c.yaml", "b: 45678"), &rules)
                .unwrap_err();
        assert_eq!(refused, Refusal::MergeTooLarge { name: "c.yaml".into(), size: 21, max: 20 });
        let refused = place(Some(&offer(&[("", "a: 1\nb: [")])), local("c.yaml", "b: 1"), &rules)
            .unwrap_err();
        assert_eq!(refused.word(), "merge_invalid");
        assert!(refused.to_string().starts_with("merge_invalid: \"c.yaml\", line "), "{refused}");
        let refused =
            place(Some(&offer(&[("", "a: 1")])), local("c.yaml", "b: ["), &rules).unwrap_err();
        assert!(refused.to_string().contains("the local file"), "{refused}");
    }

    #[test]
    fn layout_merge_goes_in_name_order_with_the_empty_name_last() {
        let rules = RemoteConfig { layout: Layout::Merge, ..rules() };
        let objects = offer(&[
            ("", "v: unnamed"),
            ("20.yaml", "v: b\nb: 1"),
            ("10.yaml", "v: a\na: 1\nb: 2"),
        ]);
        let set = place(Some(&objects), local("c.yaml", "v: l\nl: 1"), &rules).unwrap();
        assert_eq!(names(&set), ["c.yaml"]);
        assert_eq!(set.main().unwrap().body, "v: unnamed\nl: 1\na: 1\nb: 1\n");
        assert_eq!(set.main().unwrap().offered, "");
        // One object and nothing beneath it: as it is.
        let set = place(Some(&offer(&[("x.yaml", "a:   1")])), None, &rules).unwrap();
        assert_eq!(
            (set.main_name(), &set.main().unwrap().body[..]),
            ("config.yaml", &b"a:   1"[..])
        );
        let small = RemoteConfig { allow: Allow { max_merge: 8, ..rules.allow.clone() }, ..rules };
        assert_eq!(word(&[("a", "a: 1"), ("b", "b: 12")], None, &small), "merge_too_large");
    }

    #[test]
    fn blank_offers_mean_the_local_file_alone_or_a_refusal() {
        for objects in [&[][..], &[("", "")], &[("", " \n\t"), ("b", "")]] {
            assert_eq!(word(objects, None, &rules()), "empty config");
            assert_eq!(
                word(objects, Some(Local { name: "c.yaml", body: None }), &rules()),
                "empty config"
            );
            let set = place(Some(&offer(objects)), local("c.yaml", "a:   1"), &rules()).unwrap();
            assert_eq!(
                (set.main_name(), &set.main().unwrap().body[..]),
                ("c.yaml", &b"a:   1"[..])
            );
        }
        assert_eq!(place(None, None, &rules()).unwrap_err(), Refusal::Empty);
        // The owner's own file is bound by no rule for offers, and is placed where a remote one would be.
        let strict = RemoteConfig {
            main_file: "m.yaml".into(),
            allow: Allow { files: Vec::new(), max_files: 0, max_size: 0, max_merge: 0 },
            ..rules()
        };
        let set = place(None, local("c.yaml", "a: 1"), &strict).unwrap();
        assert_eq!((set.main_name(), set.main().unwrap().offered.as_str()), ("m.yaml", "c.yaml"));
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(300);
        for (name, fault) in [
            ("../x", NameFault::Separator),
            ("/x", NameFault::Separator),
            ("a/../../x", NameFault::Separator),
            ("a/b", NameFault::Separator),
            ("a\\b", NameFault::Separator),
            (".", NameFault::Dots),
            ("..", NameFault::Dots),
            ("a\0b", NameFault::Control),
            ("a\nb", NameFault::Control),
            ("\u{85}", NameFault::Control),
            (long.as_str(), NameFault::TooLong),
            (".chiton-tmp", NameFault::Reserved),
            (".CHITON", NameFault::Reserved),
        ] {
            // Blank or not, beside a good object or alone.
            for body in ["", "a: 1"] {
                let refused =
                    place(Some(&offer(&[("", "a: 1"), (name, body)])), None, &rules()).unwrap_err();
                assert!(
                    matches!(&refused, Refusal::Name { fault: found, .. } if *found == fault),
                    "{refused}"
                );
                assert!(refused.to_string().len() < 512 && !refused.to_string().contains('\0'));
            }
        }
        assert!(
            place(Some(&offer(&[("ok.yaml", "a: 1"), ("", "b: 1"), ("..a", "x")])), None, &rules())
                .is_ok()
        );
        assert_eq!(word(&[("", "a: 1")], None, &main_is("../x")), "name");
    }

    #[test]
    fn two_objects_on_one_name_are_refused_case_twins_too() {
        assert_eq!(word(&[("", "a: 1"), ("config.yaml", "b: 1")], None, &rules()), "clash");
        assert_eq!(word(&[("", "a: 1"), ("M.yaml", "b: 1")], None, &main_is("m.yaml")), "clash");
        assert_eq!(word(&[("", "a: 1"), ("x.yaml", ""), ("X.yaml", "")], None, &rules()), "clash");
        assert_eq!(word(&[("", "a: 1"), ("straße", ""), ("STRASSE", "")], None, &rules()), "clash");
    }

    #[test]
    fn limits_and_patterns_hold() {
        let rules = |files: &[&str], max_files, max_size| RemoteConfig {
            allow: Allow {
                files: files.iter().map(|&f| f.to_owned()).collect(),
                max_files,
                max_size,
                max_merge: 0,
            },
            ..rules()
        };
        let two = [("", "a: 1"), ("b.yaml", "b: 1")];
        assert!(place(Some(&offer(&two)), None, &rules(&["*"], 2, 8)).is_ok());
        assert_eq!(word(&two, None, &rules(&["*"], 1, 8)), "too_many_files");
        assert_eq!(word(&two, None, &rules(&["*"], 2, 7)), "too_large");
        // Names are tested after the mapping.
        assert!(place(Some(&offer(&two)), None, &rules(&["config.yaml", "?.yaml"], 2, 8)).is_ok());
        assert_eq!(word(&two, None, &rules(&["b.yaml"], 2, 8)), "not_allowed");
        assert_eq!(word(&two, None, &rules(&[], 2, 8)), "not_allowed");
    }

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.yaml", "a.yaml", true),
            ("*.yaml", "a.yaml.yaml", true),
            ("*.yaml", "a.yml", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyybz", false),
            ("", "", true),
            ("", "a", false),
            ("ü?", "üß", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(20), &"b".repeat(255)));
    }

    #[test]
    fn the_digest_is_of_names_and_bodies() {
        let digest = |objects: &[(&str, &str)], rules: &RemoteConfig| {
            place(Some(&offer(objects)), None, rules).unwrap().digest()
        };
        let one = digest(&[("", "a: 1"), ("b", "x")], &rules());
        assert_eq!(one, digest(&[("config.yaml", "a: 1"), ("b", "x")], &main_is("config.yaml")));
        for other in [
            digest(&[("", "a: 1"), ("b", "y")], &rules()),
            digest(&[("", "a: 1"), ("c", "x")], &rules()),
            digest(&[("", "a: 1"), ("bx", "")], &rules()),
            digest(&[("config.yaml", "a: 1"), ("b", "x")], &main_is("b")),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_effective_config_has_offered_names_and_masked_values() {
        let patterns = ["*token*".to_owned()];
        let objects = offer(&[("", "token: hunter2\n"), ("b.json", "{}")]);
        let effective = place(Some(&objects), None, &rules()).unwrap().effective(&patterns);
        let body =
            |name: &str| String::from_utf8(effective.config_map[name].body.to_vec()).unwrap();
        assert!(!body("").contains("hunter2") && body("").contains("***"), "{}", body(""));
        assert_eq!(effective.config_map[""].content_type, "text/yaml");
        assert_eq!(
            (body("b.json").as_str(), effective.config_map["b.json"].content_type.as_str()),
            ("{}", "")
        );
        let alone = place(None, local("c.yaml", "a: 1"), &rules()).unwrap().effective(&patterns);
        assert_eq!(alone.config_map.keys().collect::<Vec<_>>(), ["c.yaml"]);
        let blank = place(Some(&offer(&[("", "")])), local("c.yaml", "a: 1"), &rules()).unwrap();
        assert_eq!(blank.effective(&patterns).config_map.keys().collect::<Vec<_>>(), [""]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_placed_is_safe(
            objects in prop::collection::btree_map("[a-cA-C./\\\\\0]{0,4}", "[a-c: \n]{0,12}", 0..5),
            main_file in "[a-c]{0,2}", merge in any::<bool>(), beneath in prop::option::of("[a-c: \n]{0,12}"),
        ) {
            let layout = if merge { Layout::Merge } else { Layout::Files };
            let rules = RemoteConfig { main_file, layout, ..rules() };
            let list: Vec<(&str, &str)> = objects.iter().map(|(n, b)| (n.as_str(), b.as_str())).collect();
            let local = beneath.as_deref().map(|body| Local { name: "c.yaml", body: Some(body.as_bytes()) });
            if let Ok(set) = place(Some(&offer(&list)), local, &rules) {
                let mut names: Vec<String> = set.files().map(|file| file.name.to_lowercase()).collect();
                for name in &names {
                    prop_assert!(!name.is_empty() && name != "." && name != "..");
                    prop_assert!(!name.contains(['/', '\\', '\0']));
                }
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), set.files().count());
                prop_assert_eq!(set.effective(&[]).config_map.len(), set.files().count());
            }
        }
    }
}
