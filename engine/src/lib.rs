//! wellhead: telemetry in, stored, out to very many live connections.
//!
//! A message's path: bytes in → [`ring`] → [`session`] (the protocols, a dialect) → effect → [`shard`] → the owner
//! shard's [`topic`] log → [`mesh`] → every interested shard → encoded once per [`group`] → its [`wire_log`] → the
//! members' cursors → one send per socket → bytes out. [`mail`] is what crosses lanes, [`connector`] the world beside
//! the shards, [`server`] starts and ends it all.
#![deny(unsafe_code, missing_docs)]

pub mod auth;
pub mod cli;
pub mod config;
pub mod connector;
pub mod demo;
pub mod group;
pub mod logs;
pub mod mail;
pub mod mesh;
pub mod metrics;
pub mod ring;
pub mod server;
pub mod session;
pub mod shard;
pub mod sys;
pub mod timer;
pub mod topic;
pub mod wire_log;
