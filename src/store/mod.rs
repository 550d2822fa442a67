//! The state directory: the only code that writes below it.
//!
//! ```text
//! state_dir/
//!   lock                         one agent at a time
//!   instance_uid                 record: the uid and what it is bound to
//!   settings                     record: the last good settings, not expanded
//!   workloads/default/
//!     record                     record: what is committed, what failed
//!     config -> generations/7    the running generation: {config_dir}
//!     generations/7/             one complete set, file by file as offered
//!     generations/7.set          record: which file is the main one, and the offered names
//! ```
//!
//! Everything here blocks: the runtime calls it on the blocking pool, one call at a time.

mod files;
mod record;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentConfigObject};
use rustix::fs::{FlockOperation, flock};

use crate::agent::configset::{self, ConfigSet, Local};
use crate::agent::identity::Kept;
use crate::agent::redact;
use crate::agent::rollout::{Digest, Generation, Memory, Staged};
use crate::settings::{RemoteConfig, Settings};
use record::{Description, FileDescription, LastGood, MAX_RECORD, Record};

/// `state_dir`: others may pass through to what the workload reads, and see nothing.
const STATE_MODE: u32 = 0o711;
/// Generations: the workload's group reads them.
const GENERATION_MODE: u32 = 0o750;
const CONFIG_MODE: u32 = 0o640;
const RECORD_MODE: u32 = 0o600;
/// Largest local configuration file that is read.
pub const MAX_LOCAL: u64 = 16 << 20;
/// Largest record of the last good settings: their bounds as they are read leave room below it.
const MAX_SETTINGS: u64 = 4 << 20;
/// The name under which the one workload of today is kept.
const WORKLOAD: &str = "default";

/// The state directory of one agent.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    local: Option<PathBuf>,
    rules: RemoteConfig,
    redact: Vec<String>,
    /// Who may read the generations, beside us.
    group: Option<u32>,
}

/// The local file's base name, and its contents where it exists.
type LocalFile = (String, Option<Vec<u8>>);

/// Held while the agent runs.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "dropping it unlocks")] File);

impl Store {
    /// A store for these settings; touches nothing. `group` is the workload's, when it is not ours.
    #[must_use]
    pub fn new(settings: &Settings, group: Option<u32>) -> Self {
        Self {
            root: settings.state_dir.clone(),
            local: settings.local_config_path.clone(),
            rules: settings.remote_config.clone(),
            redact: settings.redact.clone(),
            group,
        }
    }

    /// The same state directory by other rules; where it lies and whose it is does not change.
    #[must_use]
    pub fn govern(&self, settings: &Settings) -> Self {
        Self {
            root: self.root.clone(),
            local: self.local.clone(),
            rules: settings.remote_config.clone(),
            redact: settings.redact.clone(),
            group: self.group,
        }
    }

    /// Makes the directories and takes the lock.
    ///
    /// # Errors
    /// Which directory cannot be made, or that another agent holds the lock.
    pub fn prepare(&self) -> Result<Lock, String> {
        let at = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        if let Some(parent) = self.root.parent() {
            fs::create_dir_all(parent).map_err(|error| at(parent, error))?;
        }
        let workload = self.workload();
        let workloads = self.root.join("workloads");
        for path in [self.root.as_path(), &workloads, &workload, &self.generations()] {
            files::make_directory(path, STATE_MODE).map_err(|error| at(path, error))?;
        }
        let path = self.root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| at(&path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(format!("{}: another chiton runs on this state_dir", self.root.display()))
            }
            Err(error) => Err(at(&path, error.into())),
        }
    }

    /// The kept uid; [`None`] when there is none yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn uid(&self) -> Result<Option<Kept>, String> {
        load(&self.root.join("instance_uid"))
    }

    /// Keeps a uid.
    ///
    /// # Errors
    /// The step that failed.
    pub fn keep_uid(&self, kept: &Kept) -> Result<(), String> {
        save(&self.root.join("instance_uid"), kept)
    }

    /// Keeps settings that are good, as they stand in `file` and what lies beside it; writes nothing where they are
    /// kept already.
    ///
    /// # Errors
    /// The step that failed; the older ones are still there.
    pub fn keep_settings(&self, file: &Path, text: String) -> Result<(), String> {
        let path = settings_of(&self.root);
        let good = LastGood { file: file.display().to_string(), text };
        match load_up_to(&path, MAX_SETTINGS) {
            Ok(Some(kept)) if good == kept => Ok(()),
            // Also where the old ones are broken.
            _ => save(&path, &good),
        }
    }

    /// The record of the life cycle, and the running generation as it says: an interrupted change is undone.
    ///
    /// # Errors
    /// What is wrong; the memory beside it is what can be told from the running generation.
    pub fn recover(&self) -> (Memory, Option<String>) {
        let loaded = match load(&self.record()) {
            Ok(loaded) => loaded.unwrap_or_default(),
            Err(error) => {
                let running = self.running().and_then(|number| self.generation(number));
                return (Memory { committed: running, ..Memory::default() }, Some(error));
            }
        };
        let committed: Option<Generation> = Memory::clone(&loaded).committed;
        let wanted = committed.map(|generation| generation.number);
        let error = if self.running() == wanted { None } else { self.activate(committed).err() };
        (loaded, error)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The step that failed; the old record stands.
    pub fn remember(&self, memory: &Memory) -> Result<(), String> {
        save(&self.record(), memory)?;
        self.prune(memory);
        Ok(())
    }

    /// Places a set as a new generation beside the running one.
    #[must_use]
    pub fn stage(&self, offer: Option<&AgentConfigMap>, known: &[Digest]) -> Staged {
        if offer.is_none() && self.local.is_none() {
            return Staged::Nothing;
        }
        let local = match self.read_local() {
            Ok(local) => local,
            Err(error) => return Staged::Failed(error),
        };
        let local = local.as_ref().map(|(name, body)| Local { name, body: body.as_deref() });
        let set = match configset::place(offer, local, &self.rules) {
            Ok(set) => set,
            Err(refusal) => return Staged::Refused(refusal.to_string()),
        };
        let digest = set.digest();
        if known.contains(&digest) {
            return Staged::Known(digest);
        }
        match self.write(&set, offer.is_some(), digest) {
            Ok(generation) => Staged::New(generation),
            Err(error) => Staged::Failed(format!("writing the configuration: {error}")),
        }
    }

    /// Makes a generation the running one, in one step; [`None`]: none runs.
    ///
    /// # Errors
    /// The step that failed; the old one still runs.
    pub fn activate(&self, generation: Option<Generation>) -> Result<(), String> {
        let link = self.config_dir();
        let done = match generation {
            Some(generation) => {
                files::point(&link, &Path::new("generations").join(generation.number.to_string()))
            }
            None => files::remove(&link),
        };
        done.map_err(|error| format!("{}: {error}", link.display()))
    }

    /// `{config_dir}`: the stable path of the running generation.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.workload().join("config")
    }

    /// `{config_file}`: the main file of the running generation, or the local file where nothing could be placed.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        match self.running().and_then(|number| self.describe(number).ok()) {
            Some(description) => Some(self.config_dir().join(description.main)),
            None => self.local.clone(),
        }
    }

    /// The directory of a generation that may not run yet, and its main file.
    ///
    /// # Errors
    /// When its description cannot be read.
    pub fn candidate(&self, generation: Generation) -> Result<(PathBuf, PathBuf), String> {
        let directory = self.directory(generation.number);
        let main = directory.join(self.describe(generation.number)?.main);
        Ok((directory, main))
    }

    /// What runs, under the offered names, with secrets masked.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn effective(&self) -> Result<AgentConfigMap, String> {
        let mut map = AgentConfigMap::default();
        let Some(number) = self.running() else {
            if let Some((_, Some(body))) = self.read_local()? {
                map.config_map.insert(String::new(), self.reported(body, "text/yaml".to_owned()));
            }
            return Ok(map);
        };
        for file in self.describe(number)?.files {
            let path = self.directory(number).join(&file.name);
            let body = files::read(&path, MAX_LOCAL)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            map.config_map.insert(file.offered, self.reported(body, file.content_type));
        }
        Ok(map)
    }

    fn reported(&self, body: Vec<u8>, content_type: String) -> AgentConfigObject {
        let masked = match redact::redact(&body, &self.redact) {
            std::borrow::Cow::Borrowed(_) => None,
            std::borrow::Cow::Owned(masked) => Some(masked),
        };
        AgentConfigObject {
            body: Bytes::from(masked.unwrap_or(body)),
            content_type,
            role: String::new(),
        }
    }

    fn read_local(&self) -> Result<Option<LocalFile>, String> {
        let Some(path) = &self.local else { return Ok(None) };
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match files::read(path, MAX_LOCAL) {
            Ok(body) => Ok(Some((name, Some(body)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some((name, None))),
            Err(error) => Err(format!("local_config_path {}: {error}", path.display())),
        }
    }

    /// Writes and flushes all of a generation; nothing points at it yet.
    fn write(&self, set: &ConfigSet, remote: bool, digest: Digest) -> io::Result<Generation> {
        let number = self.next_number()?;
        let directory = self.directory(number);
        files::make_directory(&directory, GENERATION_MODE)?;
        self.give_to_group(&directory)?;
        for file in set.files() {
            let path = directory.join(&file.name);
            files::create(&path, &file.body, CONFIG_MODE)?;
            self.give_to_group(&path)?;
        }
        files::sync_directory(&directory)?;
        let description = Description {
            digest: digest.to_vec(),
            remote,
            main: set.main_name().to_owned(),
            files: set
                .files()
                .map(|file| FileDescription {
                    name: file.name.clone(),
                    offered: file.offered.clone(),
                    content_type: file.content_type.clone(),
                })
                .collect(),
        };
        let sealed = record::seal(&description.to_payload());
        files::replace(&self.description_of(number), &sealed, RECORD_MODE)?;
        Ok(Generation { number, digest, remote })
    }

    fn give_to_group(&self, path: &Path) -> io::Result<()> {
        match self.group {
            Some(group) => chown(path, None, Some(group)),
            None => Ok(()),
        }
    }

    /// One more than the highest number ever used that is still here.
    fn next_number(&self) -> io::Result<u64> {
        let highest = self.numbers()?.into_iter().max().unwrap_or(0);
        highest.checked_add(1).ok_or_else(|| io::Error::other("no more generation numbers"))
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.generations())? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let stem = name.strip_suffix(".set").unwrap_or(&name);
            if let Ok(number) = stem.parse() {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// Removes generations beyond `history`; never the committed or the running one. What cannot be removed
    /// now is tried again after the next change.
    fn prune(&self, memory: &Memory) {
        let keep = [memory.committed.map(|generation| generation.number), self.running()];
        let Ok(numbers) = self.numbers() else { return };
        let spare = numbers.len().saturating_sub(self.rules.history.max(1));
        for number in
            numbers.into_iter().take(spare).filter(|number| !keep.contains(&Some(*number)))
        {
            let _ = fs::remove_dir_all(self.directory(number));
            let _ = fs::remove_file(self.description_of(number));
        }
    }

    /// The generation that the link points at.
    fn running(&self) -> Option<u64> {
        let target = fs::read_link(self.config_dir()).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    fn generation(&self, number: u64) -> Option<Generation> {
        let description = self.describe(number).ok()?;
        let digest = description.digest.try_into().ok()?;
        Some(Generation { number, digest, remote: description.remote })
    }

    fn describe(&self, number: u64) -> Result<Description, String> {
        let path = self.description_of(number);
        load(&path)?.ok_or_else(|| format!("{}: it is missing", path.display()))
    }

    fn workload(&self) -> PathBuf {
        self.root.join("workloads").join(WORKLOAD)
    }

    fn generations(&self) -> PathBuf {
        self.workload().join("generations")
    }

    fn directory(&self, number: u64) -> PathBuf {
        self.generations().join(number.to_string())
    }

    fn description_of(&self, number: u64) -> PathBuf {
        self.generations().join(format!("{number}.set"))
    }

    fn record(&self) -> PathBuf {
        self.workload().join("record")
    }
}

/// The settings that were last good for `file`; [`None`] when there are none below this `state_dir`.
///
/// # Errors
/// When they are there and cannot be read.
pub fn last_good(state_dir: &Path, file: &Path) -> Result<Option<String>, String> {
    let kept: Option<LastGood> = load_up_to(&settings_of(state_dir), MAX_SETTINGS)?;
    let name = file.display().to_string();
    Ok(kept.filter(|kept| kept.file == name).map(|kept| kept.text))
}

fn settings_of(root: &Path) -> PathBuf {
    root.join("settings")
}

/// Reads a record; [`None`] when there is none.
fn load<R: Record>(path: &Path) -> Result<Option<R>, String> {
    load_up_to(path, MAX_RECORD)
}

fn load_up_to<R: Record>(path: &Path, most: u64) -> Result<Option<R>, String> {
    let bytes = match files::read(path, most) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let record = record::open(&bytes).and_then(R::from_payload);
    record.map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

fn save<R: Record>(path: &Path, record: &R) -> Result<(), String> {
    files::replace(path, &record::seal(&record.to_payload()), RECORD_MODE)
        .map_err(|error| format!("{}: {error}", path.display()))
}
