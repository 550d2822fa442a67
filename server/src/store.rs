//! SQLite: what outlives the server.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use chiton_proto::{AgentConfigMap, AgentToServer, EffectiveConfig};
use prost::Message as _;
use sqlx::Row as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

use crate::clock::Moment;
use crate::config::Database;
use crate::config_set::{ConfigHash, ConfigSet};
use crate::fleet::{Agent, Assignment, Changes, MAX_FAILED, Offers};
use crate::package::{FileHash, Kind, Package, PackageId, PackageOffer};
use crate::selector::Selector;
use crate::uid::InstanceUid;

mod credentials;

pub(crate) use credentials::RotationChanges;

/// The layout that this code reads and writes; kept in SQLite's `user_version`.
const LAYOUT: i64 = 3;
/// How long a write waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The database tells what runs where: for its owner only.
const DIRECTORY_MODE: u32 = 0o700;
/// It holds private keys while they are on their way.
const FILE_MODE: u32 = 0o600;

const SCHEMA: &str = "
CREATE TABLE agents (
    uid BLOB PRIMARY KEY NOT NULL,
    report BLOB NOT NULL,            -- AgentToServer: all reports merged
    effective_config BLOB,           -- EffectiveConfig
    last_seen INTEGER NOT NULL       -- milliseconds since 1970
) STRICT;
CREATE TABLE configs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL UNIQUE,
    hash BLOB NOT NULL,
    files BLOB NOT NULL,             -- AgentConfigMap
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE failed_offers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid BLOB NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (uid, hash)
) STRICT;
";

/// What layout 2 adds.
const SCHEMA_2: &str = "
CREATE TABLE packages (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    type TEXT NOT NULL,              -- top_level, addon
    sha256 BLOB NOT NULL,            -- of its file
    size INTEGER NOT NULL,
    signature BLOB NOT NULL,         -- empty: none
    created INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;
CREATE TABLE package_offers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE package_offer_members (
    target TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (target, name)
) STRICT;
";

/// What layout 3 adds.
const SCHEMA_3: &str = "
CREATE TABLE credentials (
    uid BLOB PRIMARY KEY NOT NULL,
    state TEXT NOT NULL              -- JSON
) STRICT;
CREATE TABLE connections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    target TEXT NOT NULL UNIQUE,
    settings BLOB NOT NULL,          -- OpAMPConnectionSettings
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE rotations (
    id INTEGER PRIMARY KEY NOT NULL,
    plan TEXT NOT NULL               -- JSON
) STRICT;
CREATE TABLE rotation_members (
    rotation INTEGER NOT NULL,
    uid BLOB NOT NULL,
    state TEXT NOT NULL,             -- JSON
    PRIMARY KEY (rotation, uid)
) STRICT;
PRAGMA user_version = 3;
";

/// Why the store could not be used.
#[derive(Debug)]
pub enum StoreError {
    /// The directory of the file could not be made.
    Directory(io::Error),
    /// SQLite said no.
    Sqlite(sqlx::Error),
    /// The file was written by another version of this program.
    Layout(i64),
    /// A row does not hold what was written there.
    Corrupt(&'static str),
}

impl fmt::Display for StoreError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(error) => write!(out, "its directory cannot be made: {error}"),
            Self::Sqlite(error) => write!(out, "{error}"),
            Self::Layout(found) => {
                write!(out, "its layout is {found}, this version knows only {LAYOUT}")
            }
            Self::Corrupt(what) => write!(out, "a row is damaged: {what}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The open database.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the database, and makes it when it is absent.
    pub(crate) async fn open(database: &Database) -> Result<Self, StoreError> {
        let options = match database {
            Database::Memory => SqliteConnectOptions::new().in_memory(true),
            Database::File(path) => {
                make_parent(path).map_err(StoreError::Directory)?;
                make_private(path).map_err(StoreError::Directory)?;
                SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
            }
        };
        // Private keys that were delivered are to be gone, not only unlinked.
        let options = options.pragma("secure_delete", "ON");
        let options = options.busy_timeout(BUSY_TIMEOUT).synchronous(SqliteSynchronous::Normal);
        // One connection: writes are small and in order, and a database in memory belongs to its connection.
        let pool =
            SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect_with(options).await?;
        let layout: i64 = sqlx::query("PRAGMA user_version").fetch_one(&pool).await?.try_get(0)?;
        match layout {
            LAYOUT => {}
            0..LAYOUT => {
                let mut whole = pool.begin().await?;
                if layout == 0 {
                    sqlx::raw_sql(SCHEMA).execute(&mut *whole).await?;
                }
                if layout <= 1 {
                    sqlx::raw_sql(SCHEMA_2).execute(&mut *whole).await?;
                }
                sqlx::raw_sql(SCHEMA_3).execute(&mut *whole).await?;
                whole.commit().await?;
            }
            other => return Err(StoreError::Layout(other)),
        }
        Ok(Self { pool })
    }

    /// Every agent with the hashes that it reported FAILED.
    pub(crate) async fn load_agents(&self) -> Result<BTreeMap<InstanceUid, Agent>, StoreError> {
        let mut agents = BTreeMap::new();
        for row in
            sqlx::query("SELECT uid, report, last_seen FROM agents").fetch_all(&self.pool).await?
        {
            let uid =
                InstanceUid::from_wire(row.try_get(0)?).ok_or(StoreError::Corrupt("agents.uid"))?;
            let report: &[u8] = row.try_get(1)?;
            let report =
                AgentToServer::decode(report).map_err(|_| StoreError::Corrupt("agents.report"))?;
            agents.insert(uid, Agent::restored(report, Moment::from_db(row.try_get(2)?)));
        }
        for row in sqlx::query("SELECT uid, hash FROM failed_offers ORDER BY id")
            .fetch_all(&self.pool)
            .await?
        {
            let uid = InstanceUid::from_wire(row.try_get(0)?)
                .ok_or(StoreError::Corrupt("failed_offers.uid"))?;
            if let Some(agent) = agents.get_mut(&uid) {
                agent.remember_failed(ConfigHash(row.try_get::<Vec<u8>, _>(1)?.into()));
            }
        }
        Ok(agents)
    }

    /// Every config, oldest first.
    pub(crate) async fn load_configs(&self) -> Result<Vec<Assignment>, StoreError> {
        let mut configs = Vec::new();
        for row in sqlx::query("SELECT target, files, created FROM configs ORDER BY id")
            .fetch_all(&self.pool)
            .await?
        {
            let target = Selector::parse(row.try_get(0)?)
                .map_err(|_| StoreError::Corrupt("configs.target"))?;
            let files: &[u8] = row.try_get(1)?;
            let files =
                AgentConfigMap::decode(files).map_err(|_| StoreError::Corrupt("configs.files"))?;
            let created = Moment::from_db(row.try_get(2)?);
            configs.push(Assignment { target, set: ConfigSet::from_map(files), created });
        }
        Ok(configs)
    }

    /// Writes what one message changed, all of it or nothing.
    pub(crate) async fn save(
        &self,
        uid: InstanceUid,
        changes: &Changes,
        now: Moment,
    ) -> Result<(), StoreError> {
        let Changes { report, effective_config, failed, forgotten } = changes;
        if report.is_none() && effective_config.is_none() && failed.is_none() && forgotten.is_none()
        {
            return Ok(());
        }
        let mut whole = self.pool.begin().await?;
        if let Some(forgotten) = forgotten {
            for statement in
                ["DELETE FROM agents WHERE uid = ?", "DELETE FROM failed_offers WHERE uid = ?"]
            {
                sqlx::query(statement).bind(forgotten.as_bytes()).execute(&mut *whole).await?;
            }
        }
        if let Some(report) = report {
            let statement = "INSERT INTO agents (uid, report, effective_config, last_seen) VALUES (?, ?, ?, ?)
                ON CONFLICT (uid) DO UPDATE SET report = excluded.report, last_seen = excluded.last_seen,
                effective_config = coalesce(excluded.effective_config, effective_config)";
            sqlx::query(statement)
                .bind(uid.as_bytes())
                .bind(report.encode_to_vec())
                .bind(effective_config.as_ref().map(EffectiveConfig::encode_to_vec))
                .bind(now.to_db())
                .execute(&mut *whole)
                .await?;
        }
        if let Some(hash) = failed {
            let statement =
                "INSERT INTO failed_offers (uid, hash) VALUES (?, ?) ON CONFLICT DO NOTHING";
            sqlx::query(statement)
                .bind(uid.as_bytes())
                .bind(&hash.0[..])
                .execute(&mut *whole)
                .await?;
            let statement = "DELETE FROM failed_offers WHERE uid = ?1 AND id NOT IN
                (SELECT id FROM failed_offers WHERE uid = ?1 ORDER BY id DESC LIMIT ?2)";
            let keep = i64::try_from(MAX_FAILED).unwrap_or(i64::MAX);
            sqlx::query(statement).bind(uid.as_bytes()).bind(keep).execute(&mut *whole).await?;
        }
        whole.commit().await?;
        Ok(())
    }

    /// Writes offers, in place of older ones with the same target: all of them or none.
    pub(crate) async fn save_offers(&self, offers: &Offers) -> Result<(), StoreError> {
        let mut whole = self.pool.begin().await?;
        if let Some(config) = &offers.config {
            let statement =
                "INSERT OR REPLACE INTO configs (target, hash, files, created) VALUES (?, ?, ?, ?)";
            sqlx::query(statement)
                .bind(config.target.to_string())
                .bind(&config.set.hash().0[..])
                .bind(config.set.as_map().encode_to_vec())
                .bind(config.created.to_db())
                .execute(&mut *whole)
                .await?;
        }
        if let Some(packages) = &offers.packages {
            let target = packages.target.to_string();
            forget_offer(&mut whole, &target).await?;
            sqlx::query("INSERT INTO package_offers (target, created) VALUES (?, ?)")
                .bind(&target)
                .bind(packages.created.to_db())
                .execute(&mut *whole)
                .await?;
            for (name, version) in &packages.members {
                let statement =
                    "INSERT INTO package_offer_members (target, name, version) VALUES (?, ?, ?)";
                let member = sqlx::query(statement).bind(&target).bind(name).bind(version);
                member.execute(&mut *whole).await?;
            }
        }
        whole.commit().await?;
        Ok(())
    }

    /// Forgets an offer of packages.
    pub(crate) async fn delete_offer(&self, target: &Selector) -> Result<(), StoreError> {
        let mut whole = self.pool.begin().await?;
        forget_offer(&mut whole, &target.to_string()).await?;
        whole.commit().await?;
        Ok(())
    }

    /// Every offer of packages, oldest first.
    pub(crate) async fn load_offers(&self) -> Result<Vec<PackageOffer>, StoreError> {
        let mut offers: Vec<PackageOffer> = Vec::new();
        let statement = "SELECT target, created, name, package_offer_members.version
            FROM package_offers JOIN package_offer_members USING (target) ORDER BY id, name";
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            let target = Selector::parse(row.try_get(0)?)
                .map_err(|_| StoreError::Corrupt("package_offers.target"))?;
            let created = Moment::from_db(row.try_get(1)?);
            let (name, version) = (row.try_get(2)?, row.try_get(3)?);
            match offers.last_mut().filter(|offer| offer.target == target) {
                Some(offer) => {
                    offer.members.insert(name, version);
                }
                None => {
                    let members = BTreeMap::from([(name, version)]);
                    offers.push(PackageOffer { target, members, created });
                }
            }
        }
        Ok(offers)
    }

    /// Every package.
    pub(crate) async fn load_packages(&self) -> Result<Vec<Package>, StoreError> {
        let mut packages = Vec::new();
        let statement =
            "SELECT name, version, type, sha256, size, signature, created FROM packages";
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            let id = PackageId::new(row.try_get(0)?, row.try_get(1)?)
                .map_err(|_| StoreError::Corrupt("packages.name"))?;
            let kind = Kind::parse(row.try_get(2)?).ok_or(StoreError::Corrupt("packages.type"))?;
            let file = <[u8; 32]>::try_from(row.try_get::<&[u8], _>(3)?)
                .map_err(|_| StoreError::Corrupt("packages.sha256"))?;
            let size = u64::try_from(row.try_get::<i64, _>(4)?)
                .map_err(|_| StoreError::Corrupt("packages.size"))?;
            let signature = row.try_get::<Vec<u8>, _>(5)?.into();
            let created = Moment::from_db(row.try_get(6)?);
            packages.push(Package::new(id, kind, FileHash(file), size, created, signature));
        }
        Ok(packages)
    }

    /// Writes a package, in place of itself.
    pub(crate) async fn save_package(&self, package: &Package) -> Result<(), StoreError> {
        let statement = "INSERT OR REPLACE INTO packages
            (name, version, type, sha256, size, signature, created) VALUES (?, ?, ?, ?, ?, ?, ?)";
        sqlx::query(statement)
            .bind(&package.id.name)
            .bind(&package.id.version)
            .bind(package.kind.as_str())
            .bind(&package.file.0[..])
            .bind(i64::try_from(package.size).unwrap_or(i64::MAX))
            .bind(&package.signature()[..])
            .bind(package.created.to_db())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets a package.
    pub(crate) async fn delete_package(&self, id: &PackageId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM packages WHERE name = ? AND version = ?")
            .bind(&id.name)
            .bind(&id.version)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// What an agent last reported to run.
    pub(crate) async fn effective_config(
        &self,
        uid: InstanceUid,
    ) -> Result<Option<EffectiveConfig>, StoreError> {
        let query =
            sqlx::query("SELECT effective_config FROM agents WHERE uid = ?").bind(uid.as_bytes());
        let Some(row) = query.fetch_optional(&self.pool).await? else { return Ok(None) };
        let Some(bytes) = row.try_get::<Option<&[u8]>, _>(0)? else { return Ok(None) };
        EffectiveConfig::decode(bytes)
            .map(Some)
            .map_err(|_| StoreError::Corrupt("agents.effective_config"))
    }

    /// Whether the database answers.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT count(*) FROM configs").fetch_one(&self.pool).await?;
        Ok(())
    }

    /// Ends the connection; what was written is in the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

async fn forget_offer(whole: &mut SqliteConnection, target: &str) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM package_offers WHERE target = ?",
        "DELETE FROM package_offer_members WHERE target = ?",
    ] {
        sqlx::query(statement).bind(target).execute(&mut *whole).await?;
    }
    Ok(())
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent)
        }
        _ => Ok(()),
    }
}

/// Makes the file for its owner only, before SQLite makes it for everybody.
fn make_private(path: &Path) -> io::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_the_first_layout_is_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let old = SqlitePool::connect_with(options).await.unwrap();
        sqlx::raw_sql(SCHEMA).execute(&old).await.unwrap();
        let files = AgentConfigMap::default().encode_to_vec();
        sqlx::query("INSERT INTO configs (target, hash, files, created) VALUES ('*', x'00', ?, 1)")
            .bind(files)
            .execute(&old)
            .await
            .unwrap();
        sqlx::raw_sql("PRAGMA user_version = 1").execute(&old).await.unwrap();
        old.close().await;
        for _ in 0..2 {
            let store = Store::open(&Database::File(path.clone())).await.unwrap();
            assert_eq!(store.load_configs().await.unwrap().len(), 1);
            assert!(store.load_packages().await.unwrap().is_empty());
            assert!(store.load_offers().await.unwrap().is_empty());
            store.close().await;
        }
    }
}
