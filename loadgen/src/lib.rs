//! An open-loop load generator that checks what it receives. The binary is `gusher`.
//!
//! The path of a publication, in the order in which it meets these modules:
//!
//! 1. [`schedule`] says when it is due, whatever the server does.
//! 2. [`reading`] writes it, with its number and the time it was due inside.
//! 3. [`publisher`] posts it and waits for the answer ([`response`]).
//! 4. [`subscribers`] receive it on thousands of streams. Most of them only count bytes; the verified ones cut
//!    them into events ([`stream`]) and check each against those before it ([`check`]).
//! 5. [`run`] puts these together, reads what the server costs ([`process`], [`scrape`]) and makes the [`report`].
//!
//! A server under test is a black box: nothing here knows how it is built. Pure modules take bytes and time as
//! arguments; only `publisher`, `subscribers`, `run`, `snapshot`, `process`, `scrape` and [`sys`] do I/O.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod check;
pub mod process;
pub mod publisher;
pub mod reading;
pub mod report;
pub mod response;
pub mod run;
pub mod schedule;
pub mod scrape;
mod snapshot;
pub mod stream;
pub mod subscribers;
pub mod sys;
