//! Why the kernel refused a ring, and what to do about it, in words for whoever runs the server.

use std::fmt;

use crate::sys;

/// The oldest kernel the io_uring ring runs on: the first with IORING_SETUP_DEFER_TASKRUN.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// io_uring can't be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError {
    /// What the kernel said.
    pub errno: i32,
    /// Cause and remedy, a few sentences.
    pub explanation: String,
}

impl SetupError {
    /// Explains an `errno` of io_uring_setup(2) from what can be seen of this process.
    pub(super) fn here(errno: i32) -> Self {
        let facts = Facts {
            uring_disabled: sys::io_uring_disabled(),
            seccomp: sys::seccomp_mode(),
            memlock: sys::memlock_limit(),
            kernel: sys::kernel_release(),
        };
        Self { errno, explanation: explain(errno, &facts) }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explanation)
    }
}

impl std::error::Error for SetupError {}

/// What a refusal is explained from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The sysctl `kernel.io_uring_disabled`, if the kernel has it.
    pub uring_disabled: Option<u32>,
    /// `Seccomp:` of /proc/self/status; 2 is a filter.
    pub seccomp: Option<u32>,
    /// RLIMIT_MEMLOCK in bytes; `None` without a limit.
    pub memlock: Option<u64>,
    /// Kernel release.
    pub kernel: String,
}

/// Cause and remedy of an `errno` that io_uring_setup(2) gave. Of several possible causes the one that must
/// be removed first is named.
pub fn explain(errno: i32, facts: &Facts) -> String {
    let kernel = &facts.kernel;
    let forbidden = matches!(errno, libc::EPERM | libc::EACCES | libc::ENOSYS);
    let too_old = version(kernel).is_some_and(|version| version < OLDEST_KERNEL);
    match errno {
        _ if forbidden && facts.uring_disabled == Some(2) => {
            "io_uring is switched off on this machine (sysctl kernel.io_uring_disabled = 2). \
             Remedy: sysctl -w kernel.io_uring_disabled=0"
                .to_owned()
        }
        _ if forbidden && facts.uring_disabled == Some(1) => {
            "io_uring is kept for privileged processes on this machine (sysctl \
             kernel.io_uring_disabled = 1). Remedy: put the server's group into sysctl \
             kernel.io_uring_group, give it CAP_SYS_ADMIN, or sysctl -w kernel.io_uring_disabled=0"
                .to_owned()
        }
        _ if forbidden && facts.seccomp == Some(2) => {
            "io_uring is forbidden by the seccomp filter this process runs under; the default profiles \
             of Docker and containerd forbid it. Remedy: run with a profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register (docker run --security-opt seccomp=profile.json; \
             Kubernetes: securityContext.seccompProfile of type Localhost)"
                .to_owned()
        }
        libc::EINVAL | libc::ENOSYS if too_old => format!(
            "the kernel is too old for the io_uring ring: {kernel}, needed is {}.{}. Remedy: a newer kernel",
            OLDEST_KERNEL.0, OLDEST_KERNEL.1
        ),
        libc::ENOSYS => {
            format!(
                "the kernel ({kernel}) was built without io_uring. Remedy: a kernel with CONFIG_IO_URING=y"
            )
        }
        libc::ENOMEM => explain_memory(facts.memlock),
        libc::EMFILE | libc::ENFILE => {
            "no file descriptor is left for an io_uring. Remedy: raise the limit of open files \
             (ulimit -n, in systemd LimitNOFILE=)"
                .to_owned()
        }
        _ => {
            let error = std::io::Error::from_raw_os_error(errno);
            format!("io_uring_setup failed on kernel {kernel}: {error}")
        }
    }
}

fn explain_memory(memlock: Option<u64>) -> String {
    match memlock {
        Some(bytes) => format!(
            "io_uring's queues need more locked memory than this user may have: RLIMIT_MEMLOCK is {} KiB \
             for all of its processes together. Remedy: ulimit -l unlimited, in systemd \
             LimitMEMLOCK=infinity, in Docker --ulimit memlock=-1",
            bytes / 1024
        ),
        None => "the kernel has no memory for io_uring's queues. Remedy: more memory (see the limit of the \
                 control group)"
            .to_owned(),
    }
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_cause_and_a_remedy() {
        const MIB8: Option<u64> = Some(8 << 20);
        let rows = [
            // errno, sysctl, seccomp, memlock, kernel; what must be said
            (
                libc::EPERM,
                Some(2),
                Some(0),
                MIB8,
                "6.18.44",
                ["io_uring_disabled = 2", "io_uring_disabled=0"],
            ),
            (libc::EPERM, Some(2), Some(2), MIB8, "6.18.44", ["io_uring_disabled = 2", "sysctl -w"]),
            (
                libc::EPERM,
                Some(1),
                Some(0),
                MIB8,
                "6.18.44",
                ["io_uring_disabled = 1", "kernel.io_uring_group"],
            ),
            (libc::EPERM, Some(0), Some(2), MIB8, "6.18.44", ["seccomp", "Docker and containerd"]),
            (libc::EPERM, None, Some(2), MIB8, "6.1.0", ["seccomp", "--security-opt"]),
            (libc::ENOSYS, Some(0), Some(2), MIB8, "6.18.44", ["seccomp", "io_uring_enter"]),
            (libc::EACCES, None, Some(2), MIB8, "6.5.0", ["seccomp", "Localhost"]),
            (
                libc::ENOSYS,
                None,
                Some(0),
                MIB8,
                "4.19.0-26-amd64",
                ["too old", "4.19.0-26-amd64, needed is 6.1"],
            ),
            (libc::EINVAL, None, Some(0), MIB8, "5.15.0-91-generic", ["too old", "newer kernel"]),
            (libc::ENOSYS, None, Some(0), MIB8, "6.8.0", ["built without", "CONFIG_IO_URING"]),
            (libc::ENOMEM, Some(0), Some(0), MIB8, "6.18.44", ["8192 KiB", "LimitMEMLOCK=infinity"]),
            (libc::ENOMEM, Some(0), Some(0), MIB8, "6.18.44", ["RLIMIT_MEMLOCK", "ulimit -l"]),
            (libc::ENOMEM, Some(0), Some(0), None, "6.18.44", ["no memory", "control group"]),
            (libc::EMFILE, Some(0), Some(0), None, "6.18.44", ["descriptor", "LimitNOFILE"]),
            (libc::EPERM, Some(0), Some(0), None, "6.18.44", ["6.18.44", "not permitted"]),
            (libc::EINVAL, Some(0), Some(0), None, "6.18.44", ["6.18.44", "Invalid argument"]),
            (libc::EINVAL, Some(0), Some(0), None, "strange", ["strange", "Invalid argument"]),
        ];
        for (errno, uring_disabled, seccomp, memlock, kernel, words) in rows {
            let facts = Facts { uring_disabled, seccomp, memlock, kernel: kernel.to_owned() };
            let text = explain(errno, &facts);
            for word in words {
                assert!(text.contains(word), "{errno} {facts:?}: {word:?} is not in {text:?}");
            }
        }
    }

    #[test]
    fn an_error_here_is_shown_as_its_explanation() {
        let error = SetupError::here(libc::EMFILE);
        assert_eq!(error.errno, libc::EMFILE);
        assert_eq!(error.to_string(), error.explanation);
    }
}
