//! A small OpAMP control plane.
//!
//! Agents connect over WebSocket or plain HTTP, people and scripts over REST or the page. What the server knows
//! of an agent, the configs it was given and what each agent refused are kept in SQLite; the files of packages lie
//! beside it and are downloaded from where agents connect.
//!
//! ```no_run
//! # async fn demo() -> Result<(), chiton_server::StartError> {
//! use chiton_server::{Config, Server};
//!
//! let running = Server::start(Config::default()).await?;
//! println!("agents: {}, page: http://{}/", running.opamp_addr(), running.rest_addr());
//! running.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! How one message travels: [`listener`] accepts, [`opamp`] or [`websocket`] turns bytes into a message, [`hub`]
//! asks [`fleet`], which alone decides and does no I/O, then [`store`] keeps what changed, and the answer goes back.

mod authority;
mod clock;
mod config;
mod config_set;
mod connection;
mod credentials;
mod depot;
mod download;
mod fleet;
mod frame;
mod gzip;
mod hub;
mod journal;
mod listener;
mod opamp;
mod package;
mod page;
mod range;
mod rest;
mod rest_credentials;
mod rest_packages;
mod rotation;
mod selector;
mod server;
mod store;
mod tls;
mod uid;
mod view;
mod websocket;

pub use config::{
    Approval, AuthorityConfig, AuthorityFiles, ClientAuth, Config, Database, Limits, RestExposure,
    TlsFiles,
};
pub use depot::DepotError;
pub use journal::Journal;
pub use server::{Running, Server, StartError};
pub use store::StoreError;
pub use tls::TlsError;
