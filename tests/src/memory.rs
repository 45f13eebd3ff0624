//! The memory of a process, as Linux counts it; of one under qemu-user, without the emulator's own.

use std::fs;
use std::io;

/// How far beyond its base an emulated program's addresses reach, at most.
const GUEST_REACH: u64 = 1 << 39;

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// The most so far. Of an emulated program nobody keeps that: it is what is resident now.
    pub(crate) peak: u64,
}

/// What a process has.
///
/// Under qemu-user the process is the emulator, which takes many times what a small node does. Where its command line
/// says with `-B` at which address it puts what it emulates, only what lies there is counted: the program's own pages,
/// its heap and its stacks.
///
/// # Errors
/// There is no such process, or no `/proc`.
pub(crate) fn of(pid: u32) -> io::Result<Memory> {
    if let Some(base) = guest_base(&fs::read(format!("/proc/{pid}/cmdline"))?) {
        let resident = resident_of_guest(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, base);
        return Ok(Memory { resident, peak: resident });
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let figure = |name| status.lines().find_map(|line| kib(line, name)).unwrap_or_default();
    Ok(Memory { resident: figure("VmRSS:"), peak: figure("VmHWM:") })
}

fn kib(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.split_whitespace().next()?.parse().ok()
}

/// The base that a command line of qemu-user names; `None` where it is not of qemu-user, or names none.
fn guest_base(command_line: &[u8]) -> Option<u64> {
    let mut words = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    if !words.next()?.rsplit('/').next()?.starts_with("qemu-") {
        return None;
    }
    words.find(|word| word == "-B")?;
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

/// What is resident of the mappings that begin where a guest of that base may have some.
fn resident_of_guest(smaps: &str, base: u64) -> u64 {
    let guest = base..base.saturating_add(GUEST_REACH);
    let mut is_guest = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let begins = line.split_once('-').and_then(|(begin, _)| u64::from_str_radix(begin, 16).ok());
        if let Some(begins) = begins {
            is_guest = guest.contains(&begins);
        } else if is_guest {
            sum += kib(line, "Rss:").unwrap_or_default();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_has_memory_and_had_no_less() {
        let memory = of(std::process::id()).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident, "{memory:?}");
    }

    #[test]
    fn only_an_emulator_that_is_told_where_has_a_guest() {
        assert_eq!(
            guest_base(b"/usr/bin/qemu-arm\0-B\x000x10000000000\0-L\0/usr\0node\0run\0"),
            Some(1 << 40)
        );
        assert_eq!(guest_base(b"qemu-arm\0-L\0/usr\0node\0run\0"), None);
        assert_eq!(guest_base(b"node\0-B\x000x10000000000\0"), None);
        assert_eq!(guest_base(b"qemu-arm\0-B\x00here\0"), None);
        assert_eq!(guest_base(b""), None);
    }

    #[test]
    fn what_the_emulator_has_for_itself_is_not_its_guests() {
        let smaps = "10000000000-10000300000 r-xp 00000000 fe:00 42   /node\n\
                     Size:               3072 kB\n\
                     Rss:                1000 kB\n\
                     Pss:                 900 kB\n\
                     VmFlags: rd ex mr mw me\n\
                     100ffff0000-100ffff1000 r--p 00000000 00:00 0\n\
                     Rss:                   4 kB\n\
                     7f0000000000-7f0008000000 rwxp 00000000 00:00 0\n\
                     Rss:               20000 kB\n";
        assert_eq!(resident_of_guest(smaps, 1 << 40), 1004);
        assert_eq!(resident_of_guest(smaps, 1 << 41), 0);
    }
}
