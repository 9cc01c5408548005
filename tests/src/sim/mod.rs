//! Whole servers in one thread, on a simulated network and virtual time: everything that happens follows from a seed.
//!
//! * `world` – shards, store and network, and the steps they take
//! * `store` – a store that keeps what it has committed, and loses the rest in a crash
//! * `client` – publishers and subscribers, and what each has seen
//! * `golden` – transcripts, played to the byte
//! * `scenario` – what they do, and what must hold afterwards

mod client;
pub mod golden;
mod scenario;
mod store;
mod world;

pub use client::{Frame, Frames, Response};
pub use scenario::{Report, run};
pub use world::{Random, Rule, Setup, World};
