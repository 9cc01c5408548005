//! What a server's figures are held against, measured on the same machine in the same run.
//!
//! * [`sends`]: the kernel alone, a tight loop of sends.
//! * [`wirelog`]: the least that a server of one topic can do: a shared log, a cursor per subscriber, one send
//!   for all that is new. Judged by the same load generator as the server.
//! * [`summary`]: the table of a run, from its raw results.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod sends;
pub mod summary;
pub mod wirelog;
