//! What is asked of the system: clocks, CPUs, descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds on the machine's monotonic clock. All processes of a machine read the same one.
pub fn now_ns() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// CPU time of this process, all threads, user and system, ns.
pub fn process_cpu_ns() -> u64 {
    nanos(clock_gettime(ClockId::ProcessCPUTime))
}

/// CPU time of this thread, user and system, ns.
pub fn thread_cpu_ns() -> u64 {
    nanos(clock_gettime(ClockId::ThreadCPUTime))
}

fn nanos(time: Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Keeps this thread, and those it starts from now on, on these CPUs.
///
/// # Errors
/// If there is no such CPU or it is not allowed; the text says what to do.
pub fn pin(cpus: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(format!("there is no CPU {cpu}"));
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(|error| {
        format!("can't run on CPU {cpus:?} ({error}); see `taskset -p $$` for those allowed")
    })
}

/// Sees to it that this process may open so many descriptors.
///
/// # Errors
/// If the hard limit is lower; the text says what to do.
pub fn allow_descriptors(count: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < count) {
        return Err(format!(
            "{count} file descriptors are needed, and at most {maximum} allowed: raise the hard limit (as root \
             `ulimit -Hn {count}`, or nofile in /etc/security/limits.conf), or ask for fewer connections"
        ));
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("can't raise the limit of file descriptors: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let error = allow_descriptors(u64::MAX - 1).unwrap_err();
        assert!(error.contains("ulimit -Hn"), "{error}");
        assert!(pin(&[1_000_000]).unwrap_err().contains("no CPU 1000000"));
    }
}
