//! SQLite: what outlives the server.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use chiton_proto::{AgentConfigMap, AgentToServer, EffectiveConfig};
use prost::Message as _;
use sqlx::Row as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use crate::clock::Moment;
use crate::config::Database;
use crate::config_set::{ConfigHash, ConfigSet};
use crate::fleet::{Agent, Assignment, Changes, MAX_FAILED};
use crate::selector::Selector;
use crate::uid::InstanceUid;

/// The layout that this code reads and writes; kept in SQLite's `user_version`.
const LAYOUT: i64 = 1;
/// How long a write waits for another process that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The database tells what runs where: for its owner only.
const DIRECTORY_MODE: u32 = 0o700;

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
PRAGMA user_version = 1;
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
                SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
            }
        };
        let options = options.busy_timeout(BUSY_TIMEOUT).synchronous(SqliteSynchronous::Normal);
        // One connection: writes are small and in order, and a database in memory belongs to its connection.
        let pool =
            SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = pool.connect_with(options).await?;
        let layout: i64 = sqlx::query("PRAGMA user_version").fetch_one(&pool).await?.try_get(0)?;
        match layout {
            LAYOUT => {}
            0 => {
                let mut whole = pool.begin().await?;
                sqlx::raw_sql(SCHEMA).execute(&mut *whole).await?;
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

    /// Writes a config, in place of an older one with the same target.
    pub(crate) async fn save_config(&self, assignment: &Assignment) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO configs (target, hash, files, created) VALUES (?, ?, ?, ?)",
        )
        .bind(assignment.target.to_string())
        .bind(&assignment.set.hash().0[..])
        .bind(assignment.set.as_map().encode_to_vec())
        .bind(assignment.created.to_db())
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

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent)
        }
        _ => Ok(()),
    }
}
