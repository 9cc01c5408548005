//! Bytes to words and back, without I/O: everything here takes bytes and time and returns values.
//!
//! The path of the data, in the order in which it meets these modules:
//!
//! 1. [`http`] cuts a connection's bytes into requests, and refuses what is not one.
//! 2. [`dialect`] finds the door a request knocks at and turns it into a [`message::Command`].
//! 3. [`json`] scans payloads without building a tree, and splices them without re-formatting.
//! 4. [`topic`] names where a publication belongs, and who may see it.
//! 5. [`dialect`] writes the body of each publication, reply and refusal.
//! 6. [`sse`] frames bodies as server-sent events.
//!
//! [`time`] writes and reads RFC 3339 timestamps; [`percent`] decodes what URLs carry.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod dialect;
pub mod http;
pub mod json;
pub mod message;
pub mod percent;
pub mod sse;
pub mod time;
pub mod topic;
