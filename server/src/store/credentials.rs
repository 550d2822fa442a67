//! Certificates, connection settings and rotations.

use std::collections::BTreeMap;

use bytes::Bytes;
use chiton_proto::OpAmpConnectionSettings;
use prost::Message as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError};
use crate::clock::Moment;
use crate::connection::Connection;
use crate::credentials::Credential;
use crate::rotation::{Member, Plan, Rotation};
use crate::selector::Selector;
use crate::uid::InstanceUid;

/// What a step of a rotation changed.
pub(crate) struct RotationChanges {
    pub(crate) id: u64,
    pub(crate) plan: Plan,
    pub(crate) members: Vec<(InstanceUid, Member)>,
}

fn uid(row: &SqliteRow, column: usize, what: &'static str) -> Result<InstanceUid, StoreError> {
    InstanceUid::from_wire(row.try_get(column)?).ok_or(StoreError::Corrupt(what))
}

fn json<T: DeserializeOwned>(
    row: &SqliteRow,
    column: usize,
    what: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_str(row.try_get(column)?).map_err(|_| StoreError::Corrupt(what))
}

fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Corrupt("a value that is no JSON"))
}

fn number(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

impl Store {
    /// What every agent was given.
    pub(crate) async fn load_credentials(
        &self,
    ) -> Result<BTreeMap<InstanceUid, Credential>, StoreError> {
        let rows = sqlx::query("SELECT uid, state FROM credentials").fetch_all(&self.pool).await?;
        let read = |row| Ok((uid(row, 0, "credentials.uid")?, json(row, 1, "credentials.state")?));
        rows.iter().map(read).collect()
    }

    /// Every connection that is offered, oldest first.
    pub(crate) async fn load_connections(&self) -> Result<Vec<Connection>, StoreError> {
        let mut connections = Vec::new();
        let statement = "SELECT target, settings, created FROM connections ORDER BY id";
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            let target = Selector::parse(row.try_get(0)?)
                .map_err(|_| StoreError::Corrupt("connections.target"))?;
            let settings = Bytes::from(row.try_get::<Vec<u8>, _>(1)?);
            let settings = OpAmpConnectionSettings::decode(settings)
                .map_err(|_| StoreError::Corrupt("connections.settings"))?;
            let created = Moment::from_db(row.try_get(2)?);
            connections.push(Connection::new(target, settings, created));
        }
        Ok(connections)
    }

    /// Every rotation, oldest first.
    pub(crate) async fn load_rotations(&self) -> Result<Vec<Rotation>, StoreError> {
        let mut members: BTreeMap<i64, BTreeMap<InstanceUid, Member>> = BTreeMap::new();
        let statement = "SELECT rotation, uid, state FROM rotation_members";
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            let one = json(&row, 2, "rotation_members.state")?;
            let of = members.entry(row.try_get(0)?).or_default();
            of.insert(uid(&row, 1, "rotation_members.uid")?, one);
        }
        let mut rotations = Vec::new();
        let statement = "SELECT id, plan FROM rotations ORDER BY id";
        for row in sqlx::query(statement).fetch_all(&self.pool).await? {
            let id: i64 = row.try_get(0)?;
            let plan = json(&row, 1, "rotations.plan")?;
            let members = members.remove(&id).unwrap_or_default();
            rotations.push(Rotation::restored(u64::try_from(id).unwrap_or(0), plan, members));
        }
        Ok(rotations)
    }

    /// Writes what changed, all of it or nothing.
    pub(crate) async fn save_credentials(
        &self,
        credentials: &[(InstanceUid, Credential)],
        rotations: &[RotationChanges],
    ) -> Result<(), StoreError> {
        let mut whole = self.pool.begin().await?;
        for (uid, credential) in credentials {
            let statement = "INSERT OR REPLACE INTO credentials (uid, state) VALUES (?, ?)";
            let query = sqlx::query(statement).bind(uid.as_bytes()).bind(text(credential)?);
            query.execute(&mut *whole).await?;
        }
        for rotation in rotations {
            let statement = "INSERT OR REPLACE INTO rotations (id, plan) VALUES (?, ?)";
            let query =
                sqlx::query(statement).bind(number(rotation.id)).bind(text(&rotation.plan)?);
            query.execute(&mut *whole).await?;
            for (uid, member) in &rotation.members {
                let statement = "INSERT OR REPLACE INTO rotation_members (rotation, uid, state) VALUES (?, ?, ?)";
                let query = sqlx::query(statement).bind(number(rotation.id)).bind(uid.as_bytes());
                query.bind(text(member)?).execute(&mut *whole).await?;
            }
        }
        whole.commit().await?;
        Ok(())
    }

    /// Forgets a rotation.
    pub(crate) async fn delete_rotation(&self, id: u64) -> Result<(), StoreError> {
        let mut whole = self.pool.begin().await?;
        for statement in [
            "DELETE FROM rotations WHERE id = ?",
            "DELETE FROM rotation_members WHERE rotation = ?",
        ] {
            sqlx::query(statement).bind(number(id)).execute(&mut *whole).await?;
        }
        whole.commit().await?;
        Ok(())
    }

    /// Writes a connection, in place of an older one with the same target.
    pub(crate) async fn save_connection(&self, connection: &Connection) -> Result<(), StoreError> {
        let statement =
            "INSERT OR REPLACE INTO connections (target, settings, created) VALUES (?, ?, ?)";
        sqlx::query(statement)
            .bind(connection.target.to_string())
            .bind(connection.settings().encode_to_vec())
            .bind(connection.created.to_db())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets a connection.
    pub(crate) async fn delete_connection(&self, target: &Selector) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM connections WHERE target = ?");
        query.bind(target.to_string()).execute(&self.pool).await?;
        Ok(())
    }
}
