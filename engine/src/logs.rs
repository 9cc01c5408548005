//! Logs: for people where standard error is a terminal, JSON lines where it is not.
//!
//! What is secret has a type whose `Debug` hides it; tokens and passwords are never handed to a log at all.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that sets the filter where no flag does.
pub const VARIABLE: &str = "WELLHEAD_LOG";
/// The filter where nothing sets it.
const DEFAULT: &str = "info";

/// Why there are no logs.
#[derive(Debug)]
pub enum LogError {
    /// The filter makes no sense; where it was given, and what is wrong with it.
    Filter(&'static str, String),
    /// Logs were started before.
    Started,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(source, error) => {
                write!(f, "{source}: {error}. It takes a level such as info, or info,engine::shard=debug")
            }
            Self::Started => f.write_str("logs were started before"),
        }
    }
}

impl std::error::Error for LogError {}

/// Starts logging to standard error. The filter is a level or a list of `target=level`; `flag` goes before
/// [`VARIABLE`], and that before `info`.
///
/// # Errors
/// If the filter makes no sense, or logs were started before.
pub fn start(flag: Option<&str>) -> Result<(), LogError> {
    let variable = std::env::var(VARIABLE).ok().filter(|filter| !filter.is_empty());
    let filter = filter(flag, variable.as_deref())?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match io::stderr().is_terminal() {
        true => logs.with_ansi(true).finish().try_init(),
        false => logs.json().flatten_event(true).with_current_span(false).finish().try_init(),
    };
    started.map_err(|_| LogError::Started)
}

fn filter(flag: Option<&str>, variable: Option<&str>) -> Result<EnvFilter, LogError> {
    let (source, text) = match (flag, variable) {
        (Some(flag), _) => ("--log", flag),
        (None, Some(variable)) => (VARIABLE, variable),
        (None, None) => ("", DEFAULT),
    };
    EnvFilter::builder().parse(text).map_err(|error| LogError::Filter(source, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_variable_before_the_default() {
        for (flag, variable, expected) in [
            (None, None, Ok("info")),
            (None, Some("warn"), Ok("warn")),
            (Some("debug"), Some("warn"), Ok("debug")),
            (Some("warn,engine::mesh=trace"), None, Ok("engine::mesh=trace,warn")),
            (Some("engine=loud"), Some("warn"), Err("--log")),
            (None, Some("engine=loud"), Err(VARIABLE)),
        ] {
            let filter = filter(flag, variable).map(|filter| filter.to_string());
            let filter = filter.map_err(|error| match error {
                LogError::Filter(source, _) => source,
                LogError::Started => "started",
            });
            assert_eq!(filter.as_deref().map_err(|source| *source), expected);
        }
    }
}
