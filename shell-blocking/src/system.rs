//! What the machine is and what this process takes of it; clocks and randomness.
//!
//! Linux tells it in `/proc` and the control groups' files; macOS through `sysctl`, `vm_stat` and `ps`, so that no
//! unsafe call is needed for figures that are read a few times in a node's life.

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consensus_core::bench::report::System;
use consensus_core::release::manifest::network_name;
use consensus_core::time::Now;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// The compiler that built this program (see `build.rs`).
const RUST_VERSION: &str = env!("CONSENSUS_NODE_RUSTC");

/// Both clocks, read together. All of the process reads the same ones: a [`Now`] from here can be compared with any
/// other.
#[must_use]
pub fn now() -> Now {
    Now {
        monotonic: start().elapsed(),
        unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    }
}

/// A time of the first of those clocks, as the system has it; none where it is too far away for that.
#[must_use]
pub fn instant(monotonic: Duration) -> Option<Instant> {
    start().checked_add(monotonic)
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// The processor time of the calling thread, since its begin.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Logical processors that this process may use.
#[must_use]
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// 32 bytes of the system's randomness: what a node, or a machine beside it, is seeded with.
///
/// # Errors
/// The system has none.
pub fn seed() -> Result<[u8; 32], String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("the system gives no randomness: {error}"))?;
    Ok(seed)
}

/// Files and sockets that a node may want open at once, at most.
const MAX_FILES: u64 = 65_536;

/// macOS refuses more, whatever its hard limit says.
const MAX_FILES_OF_MACOS: u64 = 10_240;

/// Raises the number of files and sockets that this process may have open as far as it may itself. Systems start
/// programs with 1024 or fewer; a node that serves many streams has more. Where it cannot be raised, it stays.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    for most in [MAX_FILES, MAX_FILES_OF_MACOS] {
        let wanted = limit.maximum.map_or(most, |hard| hard.min(most));
        if limit.current.is_none_or(|current| current >= wanted) {
            return;
        }
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok() {
            return;
        }
    }
}

/// The platform in the network's names, such as `linux-x64`.
#[must_use]
pub fn platform() -> String {
    consensus_core::release::manifest::platform(std::env::consts::OS, std::env::consts::ARCH)
}

/// `benchmark_system`. What the machine does not tell is 0.
#[must_use]
pub fn describe() -> System {
    let memory = memory().unwrap_or_default();
    System {
        platform: network_name(std::env::consts::OS).to_string(),
        arch: network_name(std::env::consts::ARCH).to_string(),
        cpus: cpus(),
        total_memory_bytes: memory.total,
        free_memory_bytes: memory.free,
        uptime_seconds: uptime_seconds().unwrap_or(0),
        rust_version: RUST_VERSION.to_string(),
    }
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Physical, or the lowest limit of a control group above this process.
    pub total: u64,
    /// What could be taken without swapping.
    pub free: u64,
}

/// The machine's memory, as far as this process may use it.
#[must_use]
pub fn memory() -> Option<Memory> {
    if cfg!(target_os = "macos") {
        let total = parse_number(&output("sysctl", &["-n", "hw.memsize"])?)?;
        return Some(Memory { total, free: parse_vm_stat(&output("vm_stat", &[])?)? });
    }
    let file = |path: &str| std::fs::read_to_string(path).ok();
    let machine = parse_meminfo(&file("/proc/meminfo")?)?;
    Some(limited_by_groups(machine, &file("/proc/self/cgroup").unwrap_or_default(), &file))
}

/// Resident memory of this process in bytes.
#[must_use]
pub fn resident() -> Option<u64> {
    if cfg!(target_os = "macos") {
        let pid = std::process::id().to_string();
        return parse_number(&output("ps", &["-o", "rss=", "-p", &pid])?)?.checked_mul(1024);
    }
    parse_kib(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn uptime_seconds() -> Option<u64> {
    if cfg!(target_os = "macos") {
        let boot = parse_boottime(&output("sysctl", &["-n", "kern.boottime"])?)?;
        return now().unix_seconds().checked_sub(boot);
    }
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    text.split(['.', ' ']).next()?.parse().ok()
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after `name` in a file whose numbers are in KiB, in bytes.
fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let total = parse_kib(text, "MemTotal:")?;
    // `MemAvailable` is missing on kernels before 3.14.
    let free = parse_kib(text, "MemAvailable:").or_else(|| parse_kib(text, "MemFree:"))?;
    Some(Memory { total, free })
}

/// Free, inactive and speculative pages of macOS's `vm_stat`.
fn parse_vm_stat(text: &str) -> Option<u64> {
    let page = text.split("page size of ").nth(1)?.split_whitespace().next()?.parse::<u64>().ok()?;
    let pages = ["Pages free:", "Pages inactive:", "Pages speculative:"];
    let count = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches('.').parse::<u64>().ok()
    };
    pages.into_iter().filter_map(count).sum::<u64>().checked_mul(page)
}

/// `{ sec = 1795391521, usec = 0 } Sun …`
fn parse_boottime(text: &str) -> Option<u64> {
    text.split("sec = ").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `machine`, or less where a control group above this process has a lower limit. `groups` is `/proc/self/cgroup`.
fn limited_by_groups(machine: Memory, groups: &str, file: &dyn Fn(&str) -> Option<String>) -> Memory {
    let mut memory = machine;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, limit, usage) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        // Every ancestor's limit counts. In a container the path may be the host's and not there; its root then is
        // the container's own group.
        let mut group = path.trim_end_matches('/');
        loop {
            let number = |name: &str| parse_number(&file(&format!("{root}{group}/{name}"))?);
            if let Some(limit) = number(limit).filter(|limit| *limit < memory.total) {
                memory.total = limit;
                // Cached files count as used, and would be given back.
                let cached = file(&format!("{root}{group}/memory.stat"))
                    .and_then(|text| {
                        let line = text.lines().find_map(|line| line.strip_prefix("inactive_file "))?;
                        parse_number(line)
                    })
                    .unwrap_or(0);
                let used = number(usage).unwrap_or(0).saturating_sub(cached);
                memory.free = memory.free.min(limit.saturating_sub(used));
            }
            match group.rsplit_once('/') {
                Some((parent, _)) => group = parent,
                None => break,
            }
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Memory = Memory { total: 8 << 30, free: 4 << 30 };

    fn limited(groups: &str, files: &[(&str, &str)]) -> Memory {
        limited_by_groups(MACHINE, groups, &|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_string())
        })
    }

    #[test]
    fn this_machine_tells_about_itself() {
        let system = describe();
        assert!(system.cpus >= 1);
        assert!(system.total_memory_bytes >= system.free_memory_bytes && system.free_memory_bytes > 0);
        assert!(["linux", "darwin"].contains(&system.platform.as_str()));
        assert!(resident().unwrap() > 100_000);
        assert!(now().monotonic <= now().monotonic);
        assert_ne!(seed(), seed());
    }

    #[test]
    fn as_many_files_as_the_system_allows_may_be_open() {
        raise_file_limit();
        let limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.unwrap_or(u64::MAX);
        assert!(limit.current.is_none_or(|current| current >= hard.min(MAX_FILES_OF_MACOS)));
        let less = limit.current.unwrap_or(MAX_FILES) - 1;
        setrlimit(Resource::Nofile, Rlimit { current: Some(less), ..limit }).unwrap();
        raise_file_limit();
        assert!(getrlimit(Resource::Nofile).current >= limit.current.min(Some(MAX_FILES)));
    }

    #[test]
    fn memory_without_a_group_is_the_machines() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:   8192 kB\n";
        assert_eq!(parse_meminfo(text), Some(Memory { total: 16 << 20, free: 8 << 20 }));
        assert_eq!(
            parse_meminfo("MemTotal: 2 kB\nMemFree: 1 kB\n"),
            Some(Memory { total: 2048, free: 1024 })
        );
        assert_eq!(parse_meminfo("MemTotal: x kB"), None);
        assert_eq!(limited("0::/\n", &[("/sys/fs/cgroup/memory.max", "max\n")]), MACHINE);
        assert_eq!(limited("", &[]), MACHINE);
        assert_eq!(limited("junk\n0:\n", &[]), MACHINE);
    }

    #[test]
    fn a_groups_limit_counts_also_when_an_ancestor_has_it() {
        let files = [
            ("/sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/a/memory.current", "536870912\n"),
            ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 268435456\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
        ];
        assert_eq!(limited("0::/a/b\n", &files), Memory { total: 1 << 30, free: (1 << 30) - (256 << 20) });
    }

    #[test]
    fn the_older_groups_count_too_and_their_no_limit_is_none() {
        let root = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        let groups = "5:cpu,cpuacct:/x\n4:memory:/docker/1\n";
        assert_eq!(limited(groups, &[(root, "9223372036854771712\n")]), MACHINE);
        assert_eq!(limited(groups, &[(root, "1048576\n")]), Memory { total: 1 << 20, free: 1 << 20 });
    }

    #[test]
    fn the_texts_of_macos_are_read() {
        let text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:      3.\n\
            Pages active:   9.\nPages inactive:  2.\nPages speculative:  1.\n";
        assert_eq!(parse_vm_stat(text), Some(6 * 16384));
        assert_eq!(parse_boottime("{ sec = 1795391521, usec = 7 } Sun Nov 22"), Some(1_795_391_521));
    }
}
