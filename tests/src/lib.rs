//! What the tests are made of: real servers and clients, and what judges their words.
//!
//! * [`server`] – the built `wellhead` as a child process, on a store of its own
//! * [`client`] – blocking HTTP and server-sent events, on TCP and AF_UNIX
//! * [`reading`] – what publishers send and subscribers must see
//! * [`prometheus`] – judges `/metrics`
//! * [`sim`] – whole servers in one thread, on a simulated network and virtual time
//! * [`source`] – judges the repository's own files
//! * [`seccomp`] – a system call refused, as containers refuse it
#![deny(unsafe_code, missing_docs)]

pub mod client;
pub mod prometheus;
pub mod reading;
pub mod seccomp;
pub mod server;
pub mod sim;
pub mod source;
