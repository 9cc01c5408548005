//! wellhead from outside: the built server as a child process, over real sockets; and whole servers in one thread.
//!
//! * `streams` – every subscriber gets every publication once, in order
//! * `resume` – going on where a connection broke
//! * `durability` – what is acknowledged survives
//! * `history` – reading back
//! * `http_rules` – what is HTTP and what is not
//! * `auth` – who may do what
//! * `secrets` – what is secret stays so
//! * `limits` – slow, greedy and too many clients
//! * `operations` – starting, watching, ending
//! * `cli` – the command line
//! * `simulation` – thousands of servers on a network that misbehaves
//! * `golden` – transcripts, to the byte
//! * `tidy` – the repository's own rules

mod auth;
mod cli;
mod durability;
mod golden;
mod history;
mod http_rules;
mod limits;
mod operations;
mod resume;
mod secrets;
mod simulation;
mod streams;
mod tidy;
