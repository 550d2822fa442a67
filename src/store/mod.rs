//! The state directory: the only code that writes below it.
//!
//! ```text
//! state_dir/
//!   lock                         one agent at a time
//!   instance_uid                 record: the uid and what it is bound to
//!   settings                     record: the last good settings, not expanded
//!   workloads/default/
//!     record                     record: what is committed, what is on trial, what failed
//!     config -> generations/7    the running generation: {config_dir}
//!     generations/7/             one complete set, file by file as offered
//!     generations/7.set          record: which file is the main one, and the offered names
//!     back -> generations/6      during a trial: the way back, one rename away
//!     record.back                during a trial: what is true after going back, one rename away
//! ```
//!
//! Packages have a place of their own, see `sets.rs`; so has the connection (`connections.rs`). The order of the writes is that of `docs/decisions.md`, and every crash point of it is tested in `crash.rs`.
//! Everything here blocks: the runtime calls it off the main thread (`pool`), one call at a time.

pub mod connections;
#[cfg(test)]
mod crash;
mod disk;
pub mod incoming;
mod record;
mod sets;
#[cfg(test)]
mod simulated;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentConfigObject};
use rustix::fs::{FlockOperation, flock};

use crate::agent::configset::{self, ConfigSet, Local, PlacedFile};
use crate::agent::identity::Kept;
use crate::agent::packages::set::Running;
use crate::agent::redact;
use crate::agent::rollout::{Candidate, Digest, Generation, Memory, Source, Staged};
use crate::settings::{RemoteConfig, Settings};
pub use disk::make_directories;
use disk::{Access, Disk, Real};
use record::{Description, FileDescription, LastGood, MAX_RECORD, Record, Unread};
pub use sets::{Tree, TreeFile, VerifiedPackage};

/// `state_dir`: others may pass through to what the workload reads, and see nothing.
const STATE_MODE: u32 = 0o711;
/// Generations: the workload's group reads them.
const GENERATION_MODE: u32 = 0o750;
const CONFIG_MODE: u32 = 0o640;
const RECORD: Access = Access { mode: 0o600, group: None };
/// Largest local configuration file that is read.
pub const MAX_LOCAL: u64 = 16 << 20;
/// Largest record of the last good settings: their bounds as they are read leave room below it.
const MAX_SETTINGS: u64 = 4 << 20;
/// Prefix of temporaries; the sets of a server cannot hold such names.
const TEMPORARY: &str = ".chiton-new-";
/// The one workload of today, below the state directory.
const WORKLOAD: &str = "workloads/default";
const GENERATIONS: &str = "workloads/default/generations";
/// The link to the running generation.
const CONFIG: &str = "workloads/default/config";
const BACK: &str = "workloads/default/back";
const MEMORY: &str = "workloads/default/record";
const MEMORY_BACK: &str = "workloads/default/record.back";
/// A record that could not be read is kept beside the new one.
const MEMORY_BROKEN: &str = "workloads/default/record.broken";
const UID: &str = "instance_uid";
const SETTINGS: &str = "settings";

/// The state directory of one agent.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    packages_root: PathBuf,
    packages: Arc<dyn Disk>,
    /// Trees that are in no set yet.
    trees: Arc<Mutex<sets::Trees>>,
    /// The connection's generation that was staged last, until the record has named it; 0: none.
    staged: Arc<AtomicU64>,
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

/// Where the parts of a candidate lie.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// Its configuration.
    pub config_dir: PathBuf,
    /// Its main file.
    pub config_file: Option<PathBuf>,
    /// Its packages by name.
    pub package_dirs: BTreeMap<String, PathBuf>,
}

/// What was found at the start.
#[derive(Debug)]
pub struct Recovered {
    /// The record of the life cycle.
    pub memory: Memory,
    /// What was wrong, each in one line.
    pub problems: Vec<String>,
    /// A change was under way, and what was committed before runs again.
    pub went_back: bool,
    /// What is committed has.
    pub running: Running,
    /// What is committed could not be made to run, or not be looked at: to be tried again.
    pub astray: bool,
}

impl Store {
    /// A store for these settings; touches nothing. `group` is the workload's, when it is not ours.
    #[must_use]
    pub fn new(settings: &Settings, group: Option<u32>) -> Self {
        Self {
            disk: Arc::new(Real::new(settings.state_dir.clone())),
            packages: Arc::new(Real::new(settings.packages_dir.clone())),
            packages_root: settings.packages_dir.clone(),
            trees: Arc::default(),
            staged: Arc::default(),
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
            disk: Arc::clone(&self.disk),
            packages: Arc::clone(&self.packages),
            packages_root: self.packages_root.clone(),
            trees: Arc::clone(&self.trees),
            staged: Arc::clone(&self.staged),
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
        make_directories(&self.root, 0o755).map_err(|error| at(&self.root, error))?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(STATE_MODE))
            .map_err(|error| at(&self.root, error))?;
        self.lay_out()?;
        let path = self.root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|error| at(&path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(format!("{}: another chiton runs on this state_dir", self.root.display()))
            }
            Err(error) => Err(at(&path, error.into())),
        }
    }

    /// What no other state directory has at this time: its device and inode.
    #[must_use]
    pub fn key(&self) -> Option<String> {
        let root = fs::metadata(&self.root).ok()?;
        Some(format!("{:x}-{:x}", root.dev(), root.ino()))
    }

    fn lay_out(&self) -> Result<(), String> {
        let access = Access { mode: STATE_MODE, group: None };
        for path in ["workloads", WORKLOAD, GENERATIONS].map(Path::new) {
            self.disk.make_directory(path, access).map_err(|error| self.at(path, &error))?;
        }
        Ok(())
    }

    /// The kept uid; [`None`] when there is none yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn uid(&self) -> Result<Option<Kept>, String> {
        Ok(self.load(Path::new(UID))?)
    }

    /// Keeps a uid.
    ///
    /// # Errors
    /// The step that failed.
    pub fn keep_uid(&self, kept: &Kept) -> Result<(), String> {
        self.save(Path::new(UID), kept)
    }

    /// Keeps settings that are good, as they stand in `file` and what lies beside it; writes nothing where they are
    /// kept already.
    ///
    /// # Errors
    /// The step that failed; the older ones are still there.
    pub fn keep_settings(&self, file: &Path, text: String) -> Result<(), String> {
        let good = LastGood { file: file.display().to_string(), text };
        match self.load_up_to(Path::new(SETTINGS), MAX_SETTINGS) {
            Ok(Some(kept)) if good == kept => Ok(()),
            // Also where the old ones are broken.
            _ => self.save(Path::new(SETTINGS), &good),
        }
    }

    /// The record of the life cycle, with the running generation made what it says is committed: a trial that was
    /// under way is undone. Needs nothing but the disk.
    #[must_use]
    pub fn recover(&self) -> Recovered {
        let mut problems: Vec<String> = self.newer().into_iter().collect();
        let is_newer = !problems.is_empty();
        let memory = match self.load::<Memory>(Path::new(MEMORY)) {
            Err(error) if error.is_newer() => return self.leave_alone(problems),
            Ok(Some(memory)) if !self.is_missing(memory.committed) => memory,
            Ok(None) if self.running().is_none() && self.running_set() == 0 => Memory::default(),
            found => {
                let wrong = match found {
                    Err(error) => error.into(),
                    Ok(found) => {
                        let what = match found {
                            Some(_) => "its generation is not there: it is an older one",
                            None => "it is missing",
                        };
                        format!("{}: {what}", self.shown(Path::new(MEMORY)))
                    }
                };
                let _ = self.disk.rename(Path::new(MEMORY), Path::new(MEMORY_BROKEN));
                // A way back is only there during a trial: what it leads to was committed.
                let number = self.pointed(BACK).or_else(|| self.running());
                let committed = number.and_then(|number| self.generation(number));
                problems.push(format!(
                    "{wrong}; going on with generation {}, and what failed before is forgotten",
                    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
                ));
                let mut memory = Memory { committed, ..Memory::default() };
                memory.packages.floors.lost = true;
                memory
            }
        };
        let wanted = memory.committed.map(|generation| generation.number);
        let set = wanted.map_or(Some(0), |number| self.set_of(number).ok());
        let went_back =
            self.running() != wanted || set.is_some_and(|set| self.running_set() != set);
        let running = if went_back {
            self.activate(memory.committed)
        } else {
            wanted.map_or_else(|| Ok(Running::default()), |number| self.look_at(number))
        };
        let astray = running.is_err();
        let running = running.unwrap_or_else(|error| {
            problems.push(error);
            // What lies there runs as well as it can: its workload needs to find it.
            Running {
                members: self.running_members(),
                has_config: wanted.is_some(),
                local: self.local_names(),
            }
        });
        if memory.trial.is_none() {
            self.clear_way_back();
        }
        if is_newer {
            self.close();
        }
        Recovered { memory, problems, went_back, running, astray }
    }

    /// What is said where a newer Chiton wrote what lies here: an update of the device that was taken back.
    fn newer(&self) -> Option<String> {
        let running = self.running().map(description_of);
        let records = [MEMORY, UID, SETTINGS, connections::MEMORY].map(PathBuf::from);
        let found = records.into_iter().chain(running).find_map(|path| {
            let bytes = self.disk.read(&path, MAX_SETTINGS).ok()?;
            let error = record::open(&bytes).err().filter(Unread::is_newer)?;
            let path = self.shown(&path);
            Some(format!("{path}: {error}; what was committed runs, and nothing here is changed"))
        });
        found.or_else(|| {
            let error = self.newer_set()?;
            Some(format!("{error}; what was committed runs, and nothing here is changed"))
        })
    }

    fn close(&self) {
        self.disk.close();
        self.packages.close();
    }

    /// The record is a newer Chiton's. That one would undo an interrupted trial; so do we, by the way back that is there,
    /// and touch nothing else.
    fn leave_alone(&self, problems: Vec<String>) -> Recovered {
        let went_back = self.pointed(BACK).is_some()
            && self.replace(Path::new(BACK), Path::new(CONFIG)).is_ok();
        self.go_back_of_sets();
        self.close();
        let committed = self.running().map(|number| {
            let unknown = Generation { number, digest: [0; 32], remote: true };
            self.generation(number).unwrap_or(unknown)
        });
        let running = committed.and_then(|generation| self.look_at(generation.number).ok());
        let running = running.unwrap_or_else(|| Running {
            members: self.running_members(),
            has_config: committed.is_some(),
            local: self.local_names(),
        });
        let mut memory = Memory { committed, ..Memory::default() };
        memory.packages.floors.lost = true;
        Recovered { memory, problems, went_back, running, astray: false }
    }

    /// Whether nothing is left of a generation.
    fn is_missing(&self, generation: Option<Generation>) -> bool {
        let described = generation.map(|it| self.load::<Description>(&description_of(it.number)));
        matches!(described, Some(Ok(None)))
    }

    /// The set of packages of a generation.
    fn set_of(&self, number: u64) -> Result<u64, String> {
        Ok(self.describe(number)?.set)
    }

    fn look_at(&self, number: u64) -> Result<Running, String> {
        let description = self.describe(number)?;
        let mut members = self.set(description.set)?;
        // What somebody deleted is not installed any more.
        members.retain(|member| self.has_member(description.set, member));
        let has_config = !description.main.is_empty();
        Ok(Running { members, has_config, local: self.local_names() })
    }

    /// Before a trial: the way back, then the record that says a trial has begun. Both are durable when this is
    /// done, and going back is one rename of what is there, also on a full disk.
    ///
    /// # Errors
    /// The step that failed; nothing runs differently.
    pub fn arm(&self, memory: &Memory, after_going_back: &Memory) -> Result<(), String> {
        if let Some(committed) = memory.committed
            && self.pointed(BACK) != Some(committed.number)
        {
            // Flushed with the record. Nobody reads it before.
            let back = Path::new(BACK);
            self.discard(back)
                .and_then(|()| self.disk.link(back, &target_of(committed.number)))
                .map_err(|error| self.at(back, &error))?;
        }
        let set = |generation: Option<Generation>| match generation {
            Some(generation) => self.set_of(generation.number),
            None => Ok(0),
        };
        let committed = set(memory.committed)?;
        if set(memory.trial.as_ref().map(|trial| trial.generation))? != committed {
            self.arm_set(committed)?;
        }
        self.place(Path::new(MEMORY_BACK), after_going_back)?;
        self.save(Path::new(MEMORY), memory)
    }

    /// Writes the record. On a full disk, what was written before the trial must do.
    ///
    /// # Errors
    /// The step that failed; the old record stands.
    pub fn remember(&self, memory: &Memory) -> Result<(), String> {
        if let Err(error) = self.save(Path::new(MEMORY), memory) {
            let prepared: Option<Memory> = self.load(Path::new(MEMORY_BACK)).ok().flatten();
            let same = prepared.is_some_and(|prepared| {
                let failed = |memory: &Memory| memory.failed.front().map(|failed| failed.digest);
                memory.trial.is_none()
                    && prepared.committed == memory.committed
                    && failed(&prepared) == failed(memory)
            });
            if !same {
                return Err(error);
            }
            return self.replace(Path::new(MEMORY_BACK), Path::new(MEMORY)).map_err(|_| error);
        }
        let committed = memory.committed.map(|generation| generation.number);
        if memory.trial.is_none() && self.running() == committed {
            self.clear_way_back();
        }
        self.prune(memory);
        Ok(())
    }

    /// Places a candidate as a new generation beside the running one; `committed` is what it may keep of. Without
    /// `write` it only says what it would be: [`Staged::Deferred`] for contents that are not known.
    #[must_use]
    pub fn stage(&self, candidate: &Candidate, known: &[Digest], write: bool) -> Staged {
        let number = candidate.base.map(|generation| generation.number);
        let base = match number.map(|number| self.describe(number)).transpose() {
            Ok(base) => base,
            Err(error) => return Staged::Failed(error),
        };
        let set = base.as_ref().map_or(0, |base| base.set);
        let members = match self.members(candidate.packages.as_ref(), set) {
            Ok(members) => members,
            Err(error) => return Staged::Failed(error),
        };
        let (config, remote) = match self.config_of(candidate, base.as_ref(), members.is_empty()) {
            Ok(Some(config)) => config,
            Ok(None) => return Staged::Nothing,
            Err(staged) => return staged,
        };
        let digest = sets::digest(config.digest(), &members);
        // What is committed, of which something had to be obtained again.
        let repairs = known.first() == Some(&digest)
            && candidate.packages.as_ref().is_some_and(|plan| !plan.changed.is_empty());
        if known.contains(&digest) && !repairs {
            // The same contents by other names.
            if candidate.packages.is_some()
                && known.first() == Some(&digest)
                && let Err(error) = self.relabel(set, &members)
            {
                return Staged::Failed(error);
            }
            return Staged::Known(digest);
        }
        if !write {
            return Staged::Deferred;
        }
        let unchanged = !repairs && self.set(set).is_ok_and(|old| old == members);
        let set = if unchanged { Ok(set) } else { self.write_set(&members) };
        let set = match set {
            Ok(set) => set,
            Err(staged) => return staged,
        };
        match self.write(&config, remote, set, digest) {
            Ok(generation) => Staged::New(generation),
            Err(error) => Staged::Failed(format!("writing the configuration: {error}")),
        }
    }

    /// The configuration of a candidate, and whether an offer is part of it; [`None`]: there is nothing to place.
    fn config_of(
        &self,
        candidate: &Candidate,
        base: Option<&Description>,
        no_packages: bool,
    ) -> Result<Option<(ConfigSet, bool)>, Staged> {
        let offer = match &candidate.config {
            Source::Offer(offer) => Some(offer),
            Source::Keep if base.is_some() => {
                return match self.kept(base, candidate.base) {
                    Ok(set) => Ok(Some((set, base.is_some_and(|base| base.remote)))),
                    Err(error) => Err(Staged::Failed(error)),
                };
            }
            Source::Keep | Source::Local => None,
        };
        let local = self.read_local().map_err(Staged::Failed)?;
        if offer.is_none() && local.as_ref().is_none_or(|(_, body)| body.is_none()) {
            return Ok((!no_packages).then(|| (ConfigSet::default(), false)));
        }
        let local = local.as_ref().map(|(name, body)| Local { name, body: body.as_deref() });
        match configset::place(offer, local, &self.rules) {
            Ok(set) => Ok(Some((set, offer.is_some()))),
            Err(refusal) => Err(Staged::Refused(refusal.to_string())),
        }
    }

    /// The configuration of a generation, as it lies there.
    fn kept(
        &self,
        base: Option<&Description>,
        generation: Option<Generation>,
    ) -> Result<ConfigSet, String> {
        let (Some(base), Some(Generation { number, .. })) = (base, generation) else {
            return Ok(ConfigSet::default());
        };
        let mut files = Vec::new();
        for file in &base.files {
            let path = directory(number).join(&file.name);
            let body = self.disk.read(&path, MAX_LOCAL).map_err(|error| self.at(&path, &error))?;
            files.push(PlacedFile {
                name: file.name.clone(),
                offered: file.offered.clone(),
                content_type: file.content_type.clone(),
                role: String::new(),
                body: Bytes::from(body),
            });
        }
        Ok(ConfigSet::of(files, &base.main))
    }

    /// Places a file of the device's own and makes it the running generation. What is committed stays so, and runs
    /// again after the next start.
    ///
    /// # Errors
    /// The step that failed; what ran runs on.
    pub fn substitute(&self, file: &Path) -> Result<(), String> {
        let at = |error: io::Error| format!("{}: {error}", file.display());
        let body = File::open(file).and_then(|file| disk::read_all(file, MAX_LOCAL)).map_err(at)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let local = Local { name: &name, body: Some(&body) };
        let set = configset::place(None, Some(local), &self.rules)
            .map_err(|refusal| format!("{}: {refusal}", file.display()))?;
        let running = self.running().map(|number| self.set_of(number)).transpose()?.unwrap_or(0);
        let generation = self.write(&set, false, running, set.digest()).map_err(at)?;
        self.point(Path::new(CONFIG), generation.number)
    }

    /// Makes a generation the running one: its configuration in one step, then its packages in one; the record tells
    /// after a power cut between them. [`None`]: none runs. What runs now.
    ///
    /// # Errors
    /// The step that failed.
    pub fn activate(&self, generation: Option<Generation>) -> Result<Running, String> {
        let link = Path::new(CONFIG);
        let Some(generation) = generation else {
            self.discard(link)
                .and_then(|()| self.disk.sync(Path::new(WORKLOAD)))
                .map_err(|error| self.at(link, &error))?;
            self.point_to_set(0)?;
            return Ok(Running::default());
        };
        let goes_back = self.pointed(BACK) == Some(generation.number);
        match self.running() {
            Some(number) if number == generation.number => {}
            _ if goes_back => self.replace(Path::new(BACK), link)?,
            _ => self.point(link, generation.number)?,
        }
        self.point_to_set(self.set_of(generation.number)?)?;
        if goes_back && let Ok(Some(memory)) = self.load::<Memory>(Path::new(MEMORY)) {
            // What failed does not run any more.
            self.prune(&memory);
        }
        self.look_at(generation.number)
    }

    /// `{config_dir}`: the stable path of the running generation.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// `{config_file}`: the main file of the running generation, or the local file where nothing could be placed.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        let Some(number) = self.running() else { return self.local.clone() };
        match self.describe(number) {
            Ok(description) if description.main.is_empty() => None,
            Ok(description) => Some(self.config_dir().join(description.main)),
            Err(_) => self.likely_main(number).or_else(|| self.local.clone()),
        }
    }

    /// The main file of a generation whose description cannot be read, by what lies there.
    fn likely_main(&self, number: u64) -> Option<PathBuf> {
        let names = self.disk.names(&directory(number)).ok()?;
        let local = self.local.as_ref().and_then(|path| path.file_name()?.to_str());
        let wanted = [Some(self.rules.main_file.as_str()), local];
        let named = wanted.into_iter().flatten().find(|name| names.iter().any(|it| it == name));
        let only = names.first().filter(|_| names.len() == 1);
        Some(self.config_dir().join(named.or(only.map(String::as_str))?))
    }

    /// Where a generation lies that may not run yet.
    ///
    /// # Errors
    /// When its description cannot be read.
    pub fn candidate(&self, generation: Generation) -> Result<Candidacy, String> {
        let config_dir = self.root.join(directory(generation.number));
        let description = self.describe(generation.number)?;
        let config_file = Some(&description.main).filter(|main| !main.is_empty());
        let members = self.set(description.set)?.into_iter();
        let packages = members
            .map(|member| (self.package_dir(Some(description.set), &member.name), member.name))
            .map(|(path, name)| (name, path));
        Ok(Candidacy {
            config_file: config_file.map(|main| config_dir.join(main)),
            package_dirs: packages.collect(),
            config_dir,
        })
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
            let path = directory(number).join(&file.name);
            let body = self.disk.read(&path, MAX_LOCAL).map_err(|error| self.at(&path, &error))?;
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
        match File::open(path).and_then(|file| disk::read_all(file, MAX_LOCAL)) {
            Ok(body) => Ok(Some((name, Some(body)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some((name, None))),
            Err(error) => Err(format!("local_config_path {}: {error}", path.display())),
        }
    }

    /// Writes and flushes all of a generation; nothing points at it yet.
    fn write(
        &self,
        config: &ConfigSet,
        remote: bool,
        set: u64,
        digest: Digest,
    ) -> io::Result<Generation> {
        let number = self.next_number()?;
        let directory = directory(number);
        let access = |mode| Access { mode, group: self.group };
        self.disk.make_directory(&directory, access(GENERATION_MODE))?;
        for file in config.files() {
            self.disk.create(&directory.join(&file.name), &file.body, access(CONFIG_MODE))?;
        }
        self.disk.sync(&directory)?;
        let description = Description {
            digest: digest.to_vec(),
            remote,
            main: config.main_name().to_owned(),
            set,
            files: config
                .files()
                .map(|file| FileDescription {
                    name: file.name.clone(),
                    offered: file.offered.clone(),
                    content_type: file.content_type.clone(),
                })
                .collect(),
        };
        // Its name is new: nothing is replaced, and nothing reads it before it is flushed.
        let sealed = record::seal(&description.to_payload());
        self.disk.create(&description_of(number), &sealed, RECORD)?;
        self.disk.sync(Path::new(GENERATIONS))?;
        Ok(Generation { number, digest, remote })
    }

    /// One more than the highest number ever used that is still here.
    fn next_number(&self) -> io::Result<u64> {
        let highest = self.numbers()?.into_iter().max().unwrap_or(0);
        highest.checked_add(1).ok_or_else(|| io::Error::other("no more generation numbers"))
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let names = self.disk.names(Path::new(GENERATIONS))?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".set").unwrap_or(name).parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// Removes generations beyond `history`; never one that runs or may run again. What cannot be removed now is
    /// tried again after the next change.
    fn prune(&self, memory: &Memory) {
        let trial = memory.trial.as_ref().map(|trial| trial.generation);
        let keep: Vec<u64> = [memory.committed, memory.previous, trial]
            .into_iter()
            .flatten()
            .map(|generation| generation.number)
            .chain(self.running())
            .collect();
        let sets: Result<Vec<u64>, _> = keep.iter().map(|number| self.set_of(*number)).collect();
        // Where one cannot be read, nothing is taken away from it.
        if let Ok(sets) = sets {
            self.prune_sets(&sets);
        }
        let Ok(numbers) = self.numbers() else { return };
        let spare = numbers.len().saturating_sub(self.rules.history.max(1));
        for number in numbers.into_iter().filter(|number| !keep.contains(number)).take(spare) {
            // The description first: without it nobody takes what is left for a generation.
            let _ = self.disk.remove(&description_of(number));
            let directory = directory(number);
            for name in self.disk.names(&directory).unwrap_or_default() {
                let _ = self.disk.remove(&directory.join(name));
            }
            let _ = self.disk.remove_directory(&directory);
        }
    }

    /// The generation that the link points at.
    #[must_use]
    pub fn running(&self) -> Option<u64> {
        self.pointed(CONFIG)
    }

    fn pointed(&self, link: &str) -> Option<u64> {
        let target = self.disk.target(Path::new(link)).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    fn generation(&self, number: u64) -> Option<Generation> {
        let description = self.describe(number).ok()?;
        let digest = description.digest.try_into().ok()?;
        Some(Generation { number, digest, remote: description.remote })
    }

    fn describe(&self, number: u64) -> Result<Description, String> {
        let path = description_of(number);
        self.load(&path)?.ok_or_else(|| format!("{}: it is missing", self.shown(&path)))
    }

    /// Reads a record; [`None`] when there is none.
    fn load<R: Record>(&self, path: &Path) -> Result<Option<R>, Unread> {
        self.load_up_to(path, MAX_RECORD)
    }

    fn load_up_to<R: Record>(&self, path: &Path, most: u64) -> Result<Option<R>, Unread> {
        load(self.disk.as_ref(), path, most).map_err(|error| error.of(&self.shown(path)))
    }

    /// Replaces a record as a whole, and flushes its name.
    fn save(&self, path: &Path, record: &impl Record) -> Result<(), String> {
        let temporary = temporary(path);
        self.fresh(&temporary, record)?;
        self.replace(&temporary, path)
    }

    /// Replaces a record as a whole; its name is flushed with the next one's.
    fn place(&self, path: &Path, record: &impl Record) -> Result<(), String> {
        let temporary = temporary(path);
        self.fresh(&temporary, record)?;
        self.disk.rename(&temporary, path).map_err(|error| self.at(path, &error))
    }

    fn fresh(&self, path: &Path, record: &impl Record) -> Result<(), String> {
        self.discard(path)
            .and_then(|()| self.disk.create(path, &record::seal(&record.to_payload()), RECORD))
            .map_err(|error| self.at(path, &error))
    }

    /// Points a link of the workload's at a generation, in one step.
    fn point(&self, link: &Path, number: u64) -> Result<(), String> {
        let temporary = temporary(link);
        self.discard(&temporary)
            .and_then(|()| self.disk.link(&temporary, &target_of(number)))
            .map_err(|error| self.at(link, &error))?;
        self.replace(&temporary, link)
    }

    /// Renames, and flushes the directory.
    fn replace(&self, from: &Path, to: &Path) -> Result<(), String> {
        let directory = to.parent().unwrap_or_else(|| Path::new(""));
        self.disk
            .rename(from, to)
            .and_then(|()| self.disk.sync(directory))
            .map_err(|error| self.at(to, &error))
    }

    /// Removes what is there.
    fn discard(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// After a trial. What stays here through a power cut is removed at the next start.
    fn clear_way_back(&self) {
        let _ = self.discard(Path::new(BACK));
        let _ = self.discard(Path::new(MEMORY_BACK));
        self.clear_way_back_of_sets();
    }

    fn at(&self, path: &Path, error: &io::Error) -> String {
        format!("{}: {error}", self.shown(path))
    }

    fn shown(&self, path: &Path) -> String {
        self.root.join(path).display().to_string()
    }
}

/// The settings that were last good for `file`; [`None`] when there are none below this `state_dir`.
///
/// # Errors
/// When they are there and cannot be read.
pub fn last_good(state_dir: &Path, file: &Path) -> Result<Option<String>, String> {
    let disk = Real::new(state_dir.to_owned());
    let kept: Option<LastGood> = load(&disk, Path::new(SETTINGS), MAX_SETTINGS)
        .map_err(|error| format!("{}: {error}", state_dir.join(SETTINGS).display()))?;
    let name = file.display().to_string();
    Ok(kept.filter(|kept| kept.file == name).map(|kept| kept.text))
}

/// Reads a record; [`None`] when there is none.
fn load<R: Record>(disk: &dyn Disk, path: &Path, most: u64) -> Result<Option<R>, Unread> {
    let bytes = match disk.read(path, most) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unread::Broken(error.to_string())),
    };
    Ok(Some(R::from_payload(record::open(&bytes)?)?))
}

fn directory(number: u64) -> PathBuf {
    Path::new(GENERATIONS).join(number.to_string())
}

/// What a link to it holds: relative, so that the state directory can be moved.
fn target_of(number: u64) -> PathBuf {
    Path::new("generations").join(number.to_string())
}

fn description_of(number: u64) -> PathBuf {
    Path::new(GENERATIONS).join(format!("{number}.set"))
}

/// Beside a file, its successor until it is complete.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}"))
}
