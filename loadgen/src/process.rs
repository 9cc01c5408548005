//! What `/proc` says of the server and of the machine.

use std::fs;
use std::path::Path;

/// Clock ticks per second in `/proc/<pid>/stat`. Linux's USER_HZ: 100 on all architectures this runs on.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time and memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all threads, living and dead, ns; to 10 ms.
    pub cpu_ns: u64,
    /// Resident bytes.
    pub resident_bytes: u64,
}

/// Reads the usage of a process.
///
/// # Errors
/// If there is no such process.
pub fn usage(pid: u32) -> Result<Usage, String> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).map_err(|error| format!("{path}: {error}; is --server-pid right?"))
    };
    let unreadable = |file: &str| format!("/proc/{pid}/{file} is not as expected");
    Ok(Usage {
        cpu_ns: cpu_ns(&read("stat")?).ok_or_else(|| unreadable("stat"))?,
        resident_bytes: kib(&read("status")?, "VmRSS").ok_or_else(|| unreadable("status"))?,
    })
}

/// The kernel threads that do the network's work when it does not fit in elsewhere. A server whose sends are
/// finished there costs more than its own CPU time says.
#[derive(Clone, Debug)]
pub struct SoftirqThreads(Vec<u32>);

impl SoftirqThreads {
    /// Finds them; none are seen from inside most containers.
    pub fn find() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self(
            pids.filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.starts_with("ksoftirqd/"))
            })
            .collect(),
        )
    }

    /// Their CPU time, ns; `None` if they can't be seen.
    pub fn cpu_ns(&self) -> Option<u64> {
        let times = self.0.iter().map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            cpu_ns(&stat)
        });
        times.sum::<Option<u64>>().filter(|_| !self.0.is_empty())
    }
}

/// CPU time of the whole machine that was not idle, time taken by its host included, ns; to 10 ms.
pub fn machine_cpu_ns() -> Option<u64> {
    busy_ns(&fs::read_to_string("/proc/stat").ok()?)
}

/// Bytes of the kernel's object caches, sockets among them, for the whole machine.
pub fn slab_bytes() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "Slab")
}

/// One line about the machine a run was made on: kernel, CPU, how many.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cpus = fs::read_dir(Path::new("/sys/devices/system/cpu"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        })
        .count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpus} x {}, Linux {}", model.unwrap_or("unknown CPU"), kernel.trim())
}

/// User and system time of `/proc/<pid>/stat` (fields 14 and 15). The name before them may hold anything.
fn cpu_ns(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * (1_000_000_000 / TICKS_PER_SECOND))
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ns(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks = fields.split_ascii_whitespace().take(8).map(str::parse);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _, _, irq, softirq, steal] = ticks[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq + steal;
    Some(busy * (1_000_000_000 / TICKS_PER_SECOND))
}

/// The bytes of a line `name:   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "42 (a) b 1 2) S 1 42 42 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 1 0 5 6 7 8 9 10";
        assert_eq!(cpu_ns(stat), Some(4_000_000_000));
        assert_eq!(cpu_ns("42 (a) S 1 2"), None);
        assert_eq!(cpu_ns(""), None);
        let stat = "cpu  100 20 30 9999 999 4 5 41 7 7\ncpu0 1 2 3\n";
        assert_eq!(busy_ns(stat), Some(2_000_000_000));
        assert_eq!(busy_ns("cpu  1 2 3\n"), None);
        assert_eq!(busy_ns("cpu0 1 2 3 4 5 6 7 8\n"), None);
        let status = "Name:\tx\nVmRSSx:\t1 kB\nVmRSS:\t    2048 kB\nThreads:\t3\n";
        assert_eq!(kib(status, "VmRSS"), Some(2 << 20));
        assert_eq!(kib(status, "Threads"), None);
        assert_eq!(kib(status, "Slab"), None);
    }

    #[test]
    fn this_process_has_a_usage_and_a_stranger_has_not() {
        let before = usage(std::process::id()).unwrap();
        assert!(before.resident_bytes > 100 << 10);
        assert!(usage(u32::MAX).unwrap_err().contains("--server-pid"));
    }
}
